"""No sample is lost, or changed, without a word."""

import errno
import json
import os
import unicodedata
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from harness.errors import DataError
from harness.sources import csv_files
from harness.sources.hub import Hub
from harness.sources.images import Images
from harness.sources.listing import find_files
from harness.sources.series import Series
from harness.sources.split import ByValue
from harness.sources.tables import Table
from harness.sources.text import Bytes
from tests.pool import command


def picture(path: Path, grey: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), grey).save(path)
    return path


@pytest.mark.parametrize("keep", ["memory", "disk"])
def test_a_link_that_leads_nowhere_is_named_or_skipped(tmp_path: Path, keep: Any) -> None:
    for number in range(3):
        picture(tmp_path / f"{number}.png")
    (tmp_path / "0.png").unlink()
    (tmp_path / "0.png").symlink_to(tmp_path / "gone.png")
    files = str(tmp_path / "*.png")
    what = rf"{tmp_path}/0\.png: a link to {tmp_path}/gone\.png, where there is no file"
    with pytest.raises(DataError, match=rf"^{what}.* Or skip such files with on_error: skip"):
        Images(files, keep=keep)
    with pytest.warns(UserWarning, match=rf"^1 of 3 files skipped: {what}"):
        source = Images(files, keep=keep, on_error="skip")
    assert len(source) == 2
    assert Images.paths_of(files) == source.paths(), "what the store hashes is what is read"


def test_links_that_cannot_be_followed_hide_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "a.png")
    wrong = {"loop": "loop.png", "through": "a.png/b.png", "long": f"{'n' * 300}.png"}
    for name, target in wrong.items():
        (tmp_path / f"{name}.png").symlink_to(target)
    files = str(tmp_path / "*.png")
    what = r"a link to .*, where there is no file that can be read\. Bring"
    with pytest.warns(UserWarning, match=rf"^3 of 4 files skipped: .*{what}"):
        assert len(Images(files, on_error="skip")) == 1
    for name in wrong:
        (tmp_path / f"{name}.png").unlink()
    (tmp_path / "denied.png").symlink_to(tmp_path / "denied" / "b.png")

    class Denied:
        """A link into a folder that this user may not enter."""

        name = "denied.png"

        def is_file(self) -> bool:
            raise PermissionError(errno.EACCES, "Permission denied")

        def is_symlink(self) -> bool:
            return True

    monkeypatch.setattr(os, "scandir", lambda folder: nullcontext([Denied()]))
    with pytest.raises(DataError, match=rf"denied\.png: {what}"):
        Images(files)


def test_a_link_that_leads_nowhere_does_not_hide_other_endings(tmp_path: Path) -> None:
    picture(tmp_path / "1.jpg")
    picture(tmp_path / "2.jpg").rename(tmp_path / "2.JPG")
    (tmp_path / "3.jpg").symlink_to("gone.jpg")
    with pytest.warns(UserWarning, match=r"1 files beside it end in \.JPG"):
        find_files(str(tmp_path / "*.jpg"))


def test_folders_that_cannot_be_listed_are_passed_over_where_nobody_named_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `lost+found` of a disk."""
    picture(tmp_path / "a" / "1.png")
    picture(tmp_path / "lost+found" / "2.png")
    scandir, cause = os.scandir, PermissionError(errno.EACCES, "Permission denied")

    def refusing(path: Any) -> Any:
        if os.path.basename(path) == "lost+found":
            raise cause
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    files = str(tmp_path / "**/*.png")
    message = r"\*\*/\*\.png: folders were passed over: .*/lost\+found: cannot be listed: Perm"
    with pytest.warns(UserWarning, match=message) as told:
        assert find_files(files).paths == [tmp_path / "a" / "1.png"]
    assert len(told) == 1
    assert find_files(files, tell=False).paths == [tmp_path / "a" / "1.png"]
    for named in ("lost+found/**/*.png", "*/*.png", "**/*.jpg"):
        with pytest.raises(DataError, match=r"/lost\+found: cannot be listed: Permission denied"):
            find_files(str(tmp_path / named))
    cause = OSError(errno.EIO, "Input/output error")  # type: ignore[assignment] # a disk that fails
    with pytest.raises(DataError, match="cannot be listed: Input/output error"):
        find_files(files)


def test_tables_texts_and_lists_name_such_a_link_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").symlink_to("gone.csv")
    (tmp_path / "a.txt").symlink_to("gone.txt")
    (tmp_path / "0.png").symlink_to("gone.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png"}))
    for read in (
        lambda: Table(str(tmp_path / "*.csv")),
        lambda: Series(str(tmp_path / "a.csv"), ["x"], 2, 2),
        lambda: Bytes(str(tmp_path / "*.txt"), 3),
        lambda: Images(str(tmp_path / "metadata.jsonl")),
    ):
        with pytest.raises(DataError, match=r"a link to gone\.\w+, where there is no file"):
            read()


def test_files_of_another_way_of_writing_the_ending_are_told(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/2.JPG", "b/3.jpeg", "b/4.jpg", "b/5.png", "b/6.JPG"):
        picture(tmp_path / name.replace(".JPG", ".jpg")).rename(tmp_path / name)
    files = str(tmp_path / "{label}/*.jpg")
    with pytest.warns(UserWarning, match="3 files beside it end in") as told:
        assert len(Images(files)) == 2
    message = str(told[0].message)
    assert ".JPG, .jpeg and are not read, e.g. " in message
    remedy = message.partition("To read them: ")[2].removesuffix(".")
    assert remedy == str(tmp_path / "{label}/*.{jpg,JPG,jpeg}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Images(remedy)) == 5
        assert [path.name for path in find_files(remedy).paths] == [
            "1.jpg",
            "2.JPG",
            "3.jpeg",
            "4.jpg",
            "6.JPG",
        ]


def test_what_lies_beside_is_said_where_nothing_matches(tmp_path: Path) -> None:
    for name in ("1.PNG", "2.PNG", "3.bmp"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"no such file .*There are 2 \.PNG, 1 \.bmp\. Give a path"):
        find_files(str(tmp_path / "*.png"))


def test_names_in_both_normal_forms_are_one_class(tmp_path: Path) -> None:
    for number, form in enumerate(("NFC", "NFD")):
        name = unicodedata.normalize(form, "citt\u00e0")
        picture(tmp_path / name / f"{form}.png", number)
    source = Images(str(tmp_path / "{label}/*.png"))
    assert source.classes == ["citt\u00e0"]
    assert source.__getitems__([0, 1])["label"].tolist() == [0, 0]
    for form in ("NFC", "NFD"):
        asked = unicodedata.normalize(form, str(tmp_path / "citt\u00e0/*.png"))
        assert len(Images(asked)) == 2
    split = ByValue("label", test=[unicodedata.normalize("NFD", "citt\u00e0")])
    assert len(Images(str(tmp_path / "{label}/*.png"), part="test", split=split)) == 2


def test_a_table_names_files_in_either_normal_form(tmp_path: Path) -> None:
    picture(tmp_path / unicodedata.normalize("NFD", "\u00e9.png"))
    table = tmp_path / "metadata.csv"
    table.write_text("file_name\n\u00e9.png\n")
    assert len(Images(str(table))) == 1


@pytest.mark.parametrize("named", ["gone.png", "s\\a.png"])
def test_a_listed_file_that_is_not_there_is_told_as_such(tmp_path: Path, named: str) -> None:
    picture(tmp_path / "s" / "a.png")
    (tmp_path / "metadata.csv").write_text(f"file_name\n{named}\ns/a.png\n")
    files = str(tmp_path / "metadata.csv")
    with pytest.raises(DataError, match=r"there is no such file\. Bring it back, or correct"):
        Images(files)
    with pytest.warns(UserWarning, match=r"^1 of 2 files skipped: .*there is no such file"):
        assert len(Images(files, on_error="skip")) == 1
    with pytest.raises(DataError, match=r"names there are relative to the table, with / between"):
        Images(files, keep="disk", check="first").__getitems__([1, 0])


def test_a_link_to_a_folder_above_repeats_no_file(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png")
    picture(tmp_path / "b" / "2.png")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    (tmp_path / "a" / "aside").symlink_to(tmp_path / "b")
    found = find_files(str(tmp_path / "**/*.png")).paths
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "a/1.png",
        "a/aside/2.png",
        "b/2.png",
    ]


def test_a_table_that_lists_files_may_hold_thumbnails(tmp_path: Path) -> None:
    for name in "ab":
        picture(tmp_path / f"{name}.png")
    columns = {"file_name": ["a.png", "b.png"], "thumb": [b"\xff\xd8", b"\x89P"], "age": [3, 4]}
    pq.write_table(pa.table(columns), tmp_path / "metadata.parquet")
    path = str(tmp_path / "metadata.parquet")
    images = Images(path, columns={"age": "number"})
    assert images.__getitems__([0, 1])["age"].tolist() == [3, 4]
    assert set(images.known()) == {"path", "age"}
    with pytest.raises(DataError, match=r"row 1, column 'thumb': .*Store text as UTF-8"):
        Images(path, columns={"thumb": "text"})
    with pytest.raises(DataError, match=r"row 1, column 'thumb': .*Store text as UTF-8"):
        Images(path, split=ByValue("thumb", test=["a"]))


def test_a_table_that_lists_files_names_columns_in_either_normal_form(tmp_path: Path) -> None:
    for name in "ab":
        picture(tmp_path / f"{name}.png")
    size = unicodedata.normalize("NFD", "gr\u00f6\u00dfe")
    (tmp_path / "metadata.csv").write_text(f"file_name,{size}\na.png,3\nb.png,4\n")
    for form in ("NFC", "NFD"):
        asked = unicodedata.normalize(form, size)  # type: ignore[arg-type] # the two
        split = ByValue(asked, train=[3], test=[4])
        path = str(tmp_path / "metadata.csv")
        images = Images(path, columns={asked: "integer"}, split=split, part="test")
        assert images[0][asked] == 4


@pytest.mark.parametrize(
    ("first", "odd"),
    [
        ("5.1,3.5,setosa", True),
        ("1,22,0", True),
        ("1,1", True),
        ("0,1,2", False),
        ("country,2019,2020,2021", False),
        ("length,width,name", False),
        ("nan,inf", False),
    ],
)
def test_a_header_that_looks_like_data_is_told(tmp_path: Path, first: str, odd: bool) -> None:
    path = tmp_path / "a.csv"
    count = first.count(",") + 1
    path.write_text(f"{first}\n" + f"{','.join(['7'] * count)}\n" * 2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        names = list(dict.fromkeys(first.split(",")))
        if len(names) == count:
            Table(str(path))
            Table(str(path), features=names[:1])  # found by its name: it is one
        else:
            with pytest.raises(DataError, match="two columns are called '1'"):
                Table(str(path))
    assert [
        str(one.message).partition(": row 1 is used as column names")[1] != "" for one in told
    ] == ([True] if odd else [])


def counters(count: int) -> "np.ndarray[Any, np.dtype[np.float64]]":
    return 123456789 + 0.25 * np.arange(count)


def test_counters_that_float32_cannot_distinguish_are_told(tmp_path: Path) -> None:
    values = counters(40)
    pq.write_table(pa.table({"n": values, "x": np.arange(40.0)}), tmp_path / "a.parquet")
    lines = "".join(f"{value!r},{index}\n" for index, value in enumerate(values.tolist()))
    (tmp_path / "b.csv").write_text(f"n,x\n{lines}")
    for name in ("a.parquet", "b.csv"):
        with pytest.warns(UserWarning, match="column 'n': 2 of 40 distinct numbers remain") as told:
            Table(str(tmp_path / name))
        assert len(told) == 1
        with pytest.warns(UserWarning, match="channel 'n': 2 of 40 distinct numbers remain"):
            Series(str(tmp_path / name), ["n", "x"], 4, 4)
    with pytest.warns(UserWarning, match="column 'n': 2 of 40 distinct numbers remain"):
        Hub("parquet", data_files=str(tmp_path / "a.parquet"))


def test_counters_are_compared_over_all_pieces_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece may hold one number alone, and numbers come again in other pieces."""
    monkeypatch.setattr(csv_files, "_BLOCK", 200)
    path = tmp_path / "a.csv"
    for values, what in (
        (np.repeat(counters(4), 50), "1 of 4"),
        (np.tile(counters(4), 50), "1 of 4"),
        (np.repeat([2.0**24 - 1, 2.0**24 + 1], 50), None),
        (np.concatenate([counters(40), [0.0]]), None),
        (123456789 + np.arange(70_000) / 32, "274 of more than 65,536"),
    ):
        monkeypatch.setattr(csv_files, "_BLOCK", 200 if len(values) < 300 else 2**19)
        path.write_text("\n".join(["n", *map(repr, values.tolist())]) + "\n")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            Table(str(path))
        assert [f"{what} distinct numbers" in str(one.message) for one in told] == (
            [] if what is None else [True]
        ), [str(one.message) for one in told]


def test_numbers_with_many_digits_are_not_told(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    columns = {
        "normal": draw.normal(size=50),
        "warm": 293.15 + draw.normal(size=50),
        "same": np.full(50, 123456789.25),
        "wide": draw.uniform(0, 1e12, 50),
        "whole": 1_000_000.0 + np.arange(50),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Table(str(tmp_path / "a.parquet"))


SPLIT = "{_target_: harness.sources.split.%s, column: %s, %s}"
UNUSED = [
    ("Stratified", "y", "key: x", "Stratified keeps 10% of the samples for 'test', by default"),
    ("ByGroup", "x", "val: 0.2", "ByGroup keeps 10% of the samples for 'test', by default"),
    ("ByTime", "x", "val: 0.2", "ByTime keeps 10% of the samples for 'test', by default"),
    ("Stratified", "y", "key: x, test: 0", None),
    ("Stratified", "y", "key: x, test: 0.2", None),  # as the config says
]


@pytest.mark.parametrize(("rule", "column", "more", "told"), UNUSED)
def test_a_part_that_no_split_reads_is_told(
    tmp_path: Path, rule: str, column: str, more: str, told: str | None
) -> None:
    rows = "".join(f"{index},{index % 2},{index * index}\n" for index in range(200))
    (tmp_path / "a.csv").write_text(f"x,y,z\n{rows}")
    source = (
        f"{{_target_: harness.sources.tables.Table, files: {tmp_path}/a.csv, features: [x, z], "
        f"columns: {{y: integer}}, split: {SPLIT % (rule, column, more)}, part: %s}}"
    )
    config = f"""
run: {{name: parts, dir: {tmp_path}/run}}
data:
  train: {{source: {source % "train"}}}
  val: {{source: {source % "val"}}}
network: {{_target_: harness.networks.Mlp, dims: [2, 4, 2]}}
task: {{_target_: harness.tasks.Classification, input: features, target: y}}
batch: {{size: 4, micro_size: 4}}
optimizer: {{_target_: torch.optim.SGD, lr: 0.1}}
stop: {{budget: {{steps: 1}}}}
"""
    (tmp_path / "c.yaml").write_text(config)
    found = json.loads(command("data", "check", str(tmp_path / "c.yaml"), "--json").stdout)
    messages = [one["message"] for one in found["findings"] if one["check"] == "unused_parts"]
    assert len(messages) == (told is not None)
    if told is not None:
        assert told in messages[0]
        # Another setting, the same samples
        test = source % "test, on_error: skip"
        with_test = config.replace("network:", f"  test: {{source: {test}}}\nnetwork:")
        (tmp_path / "c.yaml").write_text(with_test)
        found = json.loads(command("data", "check", str(tmp_path / "c.yaml"), "--json").stdout)
        assert not [one for one in found["findings"] if one["check"] == "unused_parts"]


def test_datasets_of_one_builder_are_different_sources(tmp_path: Path) -> None:
    for name in "ab":
        columns = {"x": np.arange(200.0), "y": np.arange(200) % 2, "who": np.arange(200) % 40}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    rule = SPLIT % ("ByGroup", "who", "val: 0.2")
    source = (
        f"{{_target_: harness.sources.hub.Hub, path: parquet, data_files: {tmp_path}/%s.parquet, "
        f"part: %s, rule: {rule}}}"
    )
    config = f"""
run: {{name: parts, dir: {tmp_path}/run}}
data:
  train: {{source: {source % ("a", "train")}}}
  val: {{source: {source % ("b", "test")}}}
  checks: {{duplicates: "off", shared_groups: "off"}}
network: {{_target_: harness.networks.Mlp, dims: [1, 4, 2]}}
task: {{_target_: harness.tasks.Classification, input: x, target: y}}
batch: {{size: 4, micro_size: 4}}
optimizer: {{_target_: torch.optim.SGD, lr: 0.1}}
stop: {{budget: {{steps: 1}}}}
"""
    (tmp_path / "c.yaml").write_text(config)
    found = json.loads(command("data", "check", str(tmp_path / "c.yaml"), "--json").stdout)
    messages = [one["message"] for one in found["findings"] if one["check"] == "unused_parts"]
    assert len(messages) == 1
    assert "ByGroup keeps 10% of the samples for 'test'" in messages[0]


def test_years_are_names_in_excel_too(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet: Any = book.active
    for row in (["name", 2019, 2020], ["a", 1.5, 2.5]):
        sheet.append(row)
    book.save(tmp_path / "a.xlsx")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = Table(str(tmp_path / "a.xlsx"), columns={"name": "text"})
    assert table.features == ["2019", "2020"]
    assert os.fspath(table.paths()[0]).endswith("a.xlsx")
