"""Files found by the form of their paths."""

import errno
import os
import re
from collections import Counter
from glob import glob
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import ConfigError, DataError
from harness.sources.files import class_names
from harness.sources.listing import find_files


def lay(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_fields_are_read_from_folders_and_names(tmp_path: Path) -> None:
    lay(tmp_path, "b/x_1.wav", "a/y_12.wav", "a/y_2.wav", "a/notes.txt", "a/deep/y_2.wav")
    found = find_files(str(tmp_path / "{label}/{speaker}_{take}.wav"))
    assert [str(path.relative_to(tmp_path)) for path in found.paths] == [
        "a/y_12.wav",
        "a/y_2.wav",
        "b/x_1.wav",
    ]
    assert found.fields == {
        "label": ["a", "a", "b"],
        "speaker": ["y", "y", "x"],
        "take": ["12", "2", "1"],
    }
    assert found.select_rows([2, 0]).fields["take"] == ["1", "12"]


def test_stars_stand_for_anything_in_one_name_and_two_for_folders(tmp_path: Path) -> None:
    lay(tmp_path, "a/1.png", "a/b/2.png", "a/b/c/3.png", "c[1]/4.png")
    assert len(find_files(str(tmp_path / "a/*.png")).paths) == 1
    deep = find_files(str(tmp_path / "a/**/{number}.png"))
    assert deep.fields == {"number": ["1", "2", "3"]}
    assert len(find_files(str(tmp_path / "c[1]/?.png")).paths) == 1  # brackets are only themselves


def test_several_patterns_give_each_file_once(tmp_path: Path) -> None:
    lay(tmp_path, "a/1.wav", "a/2.flac", "b/1.wav")
    found = find_files(
        [
            str(tmp_path / "{label}/*.wav"),
            str(tmp_path / "{label}/*.flac"),
            str(tmp_path / "{label}/1.*"),
        ]
    )
    assert [
        (path.name, label) for path, label in zip(found.paths, found.fields["label"], strict=True)
    ] == [
        ("1.wav", "a"),
        ("2.flac", "a"),
        ("1.wav", "b"),
    ]
    with pytest.raises(
        ConfigError,
        match=r"has the fields \[\], which differ from those of .*\. Use the same fields in all",
    ):
        find_files([str(tmp_path / "{label}/*.wav"), str(tmp_path / "a/*.flac")])


def test_a_class_without_a_file_is_named(tmp_path: Path) -> None:
    lay(tmp_path, "a/1.wav", "b/1.mp3")
    with pytest.raises(
        DataError, match=r"the folder of 'b' holds no files\. Add samples, or remove the folder"
    ):
        find_files(str(tmp_path / "{label}/*.wav"))


def test_a_path_where_nothing_is_says_how_far_it_could_be_followed(tmp_path: Path) -> None:
    lay(tmp_path, "data/a/1.wav")
    for template in ("data/{label}/*.flac", "data/x/{label}/*.wav", "data/x/1.wav"):
        with pytest.raises(DataError, match=rf"no such file \(looked in {tmp_path}/data\)"):
            find_files(str(tmp_path / template))
    with pytest.raises(ConfigError, match=r"each \{field\} needs a unique name"):
        find_files("{}/{label}.wav")
    with pytest.raises(ConfigError, match=r"each \{field\} needs a unique name"):
        find_files("{label}/{label}.wav")


def test_classes_are_numbered_as_given_or_by_name() -> None:
    assert class_names(None, ["b", "a", "b"], "label") == ["a", "b"]
    assert class_names(["b", "a"], ["b", "a", "b"], "label") == ["b", "a"]
    assert class_names([1, 0], ["0", "1"], "label") == ["1", "0"]
    with pytest.raises(
        DataError,
        match=r"^label: 'aple' is not one of the classes apple, pear\. Did you mean 'apple'\?",
    ):
        class_names(["apple", "pear"], ["aple", "pear", "apple"], "label")
    with pytest.raises(DataError, match=r"^label: no samples of pear"):
        class_names(["apple", "pear"], ["apple"], "label")
    with pytest.raises(ConfigError, match=r"^classes: .* names a class twice"):
        class_names(["a", "a"], ["a"], "label")


def test_a_folder_is_listed_once_and_for_plain_paths_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(tmp_path, "a/1.png", "a/2.jpg", "b/3.png", "b/4.bmp")
    listed: Counter[str] = Counter()
    scandir = os.scandir

    def counted(path: Any) -> Any:
        listed[os.path.basename(path)] += 1
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    assert len(find_files(str(tmp_path / "{label}/*.png")).paths) == 2
    assert len(find_files([str(tmp_path / "a/1.png"), str(tmp_path / "b/4.bmp")]).paths) == 2
    assert (listed["a"], listed["b"]) == (1, 1)
    assert len(find_files(str(tmp_path / "{label}/*.{png,jpg,jpeg}")).paths) == 3
    assert (listed["a"], listed["b"]) == (2, 2)


def test_a_folder_that_cannot_be_listed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(tmp_path, "a/1.png", "b/2.png")
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if os.path.basename(path) == "b":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"/b: cannot be listed: Permission denied\. Make it read"):
        find_files(str(tmp_path / "{label}/*.png"))


@given(
    names=st.sets(st.text("ab.-_", min_size=1, max_size=4), min_size=1, max_size=12),
    template=st.sampled_from(
        ["*", "a*", "*.b", "?", "*-*", "{x}", "{x}.b", "{x}_{y}", ".*", "a?*"]
    ),
)
@settings(max_examples=60, deadline=None)
def test_names_match_as_in_a_shell(names: set[str], template: str) -> None:
    files = {name for name in names if name.strip(".")}
    with TemporaryDirectory() as folder:
        lay(Path(folder), "c/none", *(f"c/{name}" for name in files))
        shell = re.sub(r"\{\w\}", "*", template)
        expected = sorted(glob(f"{folder}/c/{shell}"))
        # A field is at least one letter
        regex = re.sub(r"\\\{\w\\\}", ".+", re.escape(template).replace(r"\*", ".*"))
        regex = regex.replace(r"\?", ".")
        expected = [one for one in expected if re.fullmatch(regex, os.path.basename(one))]
        if not expected:
            with pytest.raises(DataError, match="no such file"):
                find_files(f"{folder}/c/{template}")
            return
        for deep in ("c", "**", "?"):
            found = find_files(f"{folder}/{deep}/{template}", tell=False)
            assert sorted(map(str, found.paths)) == expected
            assert list(found.paths) == sorted(found.paths)
