"""Whatever happens to the newest checkpoint's files, it is noticed and the one before is used."""

import hashlib
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.checkpoint.manifest import CONFIG, MANIFEST, dump_manifest, parse_manifest
from harness.checkpoint.read import choose, inspect, list_checkpoints, load
from harness.errors import CheckpointError
from tests.checkpoint.examples import assert_is_step, save_steps
from tests.parallel.sharded import save_rows
from tests.pool import on_ranks

MODEL, OPTIMIZER = "model-0*.safetensors", "optimizer-0*.safetensors"
MODEL_INDEX = "model*.index.json"
# Patterns, of which the last match is meant
FILES = [
    "config.yaml",
    "history.jsonl",
    "manifest.json",
    MODEL,
    MODEL_INDEX,
    OPTIMIZER,
    "optimizer.safetensors.index.json",
    "rng-*.safetensors",
    "trainer_state.json",
]


@pytest.fixture(scope="module", params=["one rank", "two ranks' rows"])
def pristine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    if request.param == "one rank":
        save_steps(directory, 1, 2)
    else:
        on_ranks(2, save_rows, directory, [1, 2])
    return directory


def file_in(path: Path, pattern: str) -> Path:
    return sorted(path.glob(pattern))[-1]


@pytest.fixture
def checkpoints(pristine: Path, tmp_path: Path) -> Iterator[Path]:
    """Two checkpoints; afterwards whatever was done to the second is detected, with little memory,
    and the first one is used.
    """
    directory = tmp_path / "checkpoints"
    shutil.copytree(pristine, directory, symlinks=True)
    yield directory
    tracemalloc.start()
    choice = choose(directory, "auto")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert choice.path == directory / "step-00000001"
    assert peak_bytes < 10e6
    assert len(choice.skipped) == 1
    assert "step-00000002" in choice.skipped[0]
    world_size = len([*choice.path.glob("rng-*")])
    assert_is_step(choice.path, 1, 0, world_size)
    with pytest.raises(
        CheckpointError,
        match=r"(?s)run\.resume: .*step-00000002.*In .* there are: step-00000001, step-00000002",
    ):
        choose(directory, 2)


def test_these_are_the_files(pristine: Path) -> None:
    path = pristine / "step-00000002"
    found = [sorted(one.name for one in path.glob(pattern)) for pattern in FILES]
    assert all(found)
    assert sorted(os.listdir(path)) == sorted(name for names in found for name in names)
    assert inspect(pristine / "step-00000002", verify="full").problems == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_flipped_bit(checkpoints: Path, name: str, where: float) -> None:
    path = file_in(checkpoints / "step-00000002", name)
    data = bytearray(path.read_bytes())
    data[round(where * (len(data) - 1))] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "length",
    [
        lambda size: 0,
        lambda size: 7,
        lambda size: 8,
        lambda size: min(size - 1, 100),
        lambda size: size // 2,
        lambda size: size - 1,
    ],
)
def test_a_truncated_file(checkpoints: Path, name: str, length: Callable[[int], int]) -> None:
    path = file_in(checkpoints / "step-00000002", name)
    os.truncate(path, length(path.stat().st_size))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "become",
    [
        lambda path: None,
        lambda path: path.mkdir(),
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
    ],
)
def test_a_file_that_is_gone_or_is_no_file(
    checkpoints: Path, name: str, become: Callable[[Path], None]
) -> None:
    path = file_in(checkpoints / "step-00000002", name)
    path.unlink()
    become(path)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_step(checkpoints: Path, name: str) -> None:
    # The same at both steps, or the same file
    one, other = (file_in(checkpoints / f"step-0000000{step}", name) for step in (1, 2))
    if name in ("config.yaml", "history.jsonl", MODEL_INDEX, "optimizer.safetensors.index.json"):
        other.write_bytes(b" " + one.read_bytes())
    else:
        shutil.copyfile(one, other)


def test_a_whole_checkpoint_of_another_step(checkpoints: Path) -> None:
    shutil.rmtree(checkpoints / "step-00000002")
    shutil.copytree(checkpoints / "step-00000001", checkpoints / "step-00000002")


def test_two_files_swapped(checkpoints: Path) -> None:
    path = checkpoints / "step-00000002"
    one, other, parked = file_in(path, MODEL), file_in(path, OPTIMIZER), path / "parked"
    one.rename(parked)
    other.rename(one)
    parked.rename(other)


def test_a_stale_extra_shard(checkpoints: Path) -> None:
    path = checkpoints / "step-00000002"
    shutil.copyfile(file_in(path, MODEL), path / "model-00003-of-00003.safetensors")


def test_a_header_that_claims_ten_gigabytes(checkpoints: Path) -> None:
    with file_in(checkpoints / "step-00000002", MODEL).open("r+b") as file:
        file.write((10 * 2**30).to_bytes(8, "little"))


def test_an_empty_directory(checkpoints: Path) -> None:
    shutil.rmtree(checkpoints / "step-00000002")
    (checkpoints / "step-00000002").mkdir()


def test_a_manifest_of_gigabytes_is_not_read(checkpoints: Path) -> None:
    os.truncate(checkpoints / "step-00000002" / MANIFEST, 10 * 2**30)


def rewrite(path: Path, change: Callable[[dict[str, Any]], object], sign: bool = True) -> None:
    """Change a manifest as somebody would who knows how, with a hash that holds again."""
    body = json.loads((path / MANIFEST).read_bytes())
    change(body)
    if sign:
        body.pop("sha256", None)
        body["sha256"] = hashlib.sha256(
            json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
        ).hexdigest()
    (path / MANIFEST).write_text(json.dumps(body, indent=1, sort_keys=True) + "\n")


def file_of(body: dict[str, Any], role: str) -> str:
    return max(name for name, entry in body["files"].items() if entry["role"] == role)


def embed(body: dict[str, Any]) -> Any:
    return body["model"]["embed.weight"]


def rename_file(body: dict[str, Any], name: str) -> None:
    before = file_of(body, "model")
    body["files"][name] = body["files"].pop(before)
    for entry in body["model"].values():
        for part in entry["parts"]:
            part["file"] = name if part["file"] == before else part["file"]


def grow(body: dict[str, Any]) -> None:
    embed(body)["shape"] = [2**40, 2**10]
    body["files"][file_of(body, "model")]["size_bytes"] = 2**52


def lay(*rows: tuple[int, int] | None) -> Callable[[dict[str, Any]], object]:
    """The rows that parts of a tensor are said to have, each in the file of the one before."""

    def change(body: dict[str, Any]) -> None:
        parts = embed(body)["parts"]
        names = [part["file"] for part in parts] + [parts[-1]["file"]] * len(rows)
        keys = [part["key"] for part in parts] + [f"more {index}" for index in range(len(rows))]
        embed(body)["parts"] = [
            {"file": file, "key": key, "rows": None if one is None else list(one)}
            for file, key, one in zip(names, keys, rows, strict=False)
        ]

    return change


LIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "path traversal": lambda body: rename_file(body, "../../model.safetensors"),
    "absolute path": lambda body: rename_file(body, "/etc/passwd"),
    "hidden name": lambda body: rename_file(body, ".model.safetensors"),
    "line break": lambda body: rename_file(body, "model.safetensors\n"),
    "future format": lambda body: body.update(format_version=3),
    "other format": lambda body: body.update(format="something"),
    "unknown key": lambda body: body.update(hello=1),
    "missing key": lambda body: body.pop("aliases"),
    "negative step": lambda body: body.update(step=-1),
    "a step that is true": lambda body: body.update(step=True),
    "a huge tensor": grow,
    "a tensor that is too large": lambda body: embed(body).update(shape=[7, 5]),
    "unknown dtype": lambda body: embed(body).update(dtype="F128"),
    "another dtype": lambda body: embed(body).update(dtype="I32"),
    "no parts": lambda body: embed(body).update(parts=[]),
    "overlapping rows": lay((0, 4), (3, 6)),
    "a gap in the rows": lay((0, 2), (3, 6)),
    "no first rows": lay((1, 3), (3, 6)),
    "no last rows": lay((0, 3), (3, 5)),
    "the first rows twice": lay((0, 3), (0, 3), (3, 6)),
    "more rows than there are": lay((0, 3), (3, 7)),
    "rows from back to front": lay((3, 6), (0, 3)),
    "no rows between rows": lay((0, 3), (3, 3), (3, 6)),
    "some rows and the whole": lay((0, 6), None),
    "a missing tensor": lambda body: body["model"].pop("embed.weight"),
    "a missing file": lambda body: body["files"].pop(file_of(body, "optimizer")),
    "a file's other role": lambda body: body["files"][file_of(body, "optimizer")].update(
        role="rng"
    ),
    "no history": lambda body: body["files"].pop("history.jsonl"),
    "a history of another name": lambda body: body["files"].update(
        {"other.jsonl": body["files"].pop("history.jsonl")}
    ),
    "a history of another role": lambda body: body["files"]["history.jsonl"].update(role="beside"),
    "two histories": lambda body: body["files"].update(more=body["files"]["history.jsonl"]),
    "no number of evaluations": lambda body: body.update(num_evaluations=None),
    "a history in the first format": lambda body: body.update(format_version=1),
    "no trainer state": lambda body: body["files"].pop("trainer_state.json"),
    "lists itself": lambda body: body["files"].update({MANIFEST: body["files"]["config.yaml"]}),
    "alias of nothing": lambda body: body["aliases"].update(x="y"),
    "seven ranks": lambda body: body.update(world_size=7),
    "a part in a file that is not there": lambda body: embed(body)["parts"][0].update(
        file="nothing.safetensors"
    ),
    "a metric that is no number": lambda body: body.update(metrics={"loss": "low"}),
    "a false float": lambda body: body.update(facts={"x": {"~float": "0x1p+0", "decimal": "3.0"}}),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_lies_with_a_hash_that_holds(checkpoints: Path, lie: str) -> None:
    rewrite(checkpoints / "step-00000002", LIES[lie])


def test_an_edited_manifest(checkpoints: Path) -> None:
    rewrite(checkpoints / "step-00000002", lambda body: body.update(samples=1), sign=False)


def test_duplicate_keys_in_a_manifest(checkpoints: Path) -> None:
    path = checkpoints / "step-00000002" / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"samples"', b'"step": 7, "samples"', 1))


def test_a_future_format_says_so(pristine: Path) -> None:
    body = json.loads((pristine / "step-00000002" / MANIFEST).read_bytes()) | {"format_version": 7}
    with pytest.raises(CheckpointError, match="format 7; this fermarsi reads up to 2"):
        parse_manifest(json.dumps(body).encode())


def test_a_manifest_survives_being_read_and_written(pristine: Path) -> None:
    data = (pristine / "step-00000002" / MANIFEST).read_bytes()
    assert dump_manifest(parse_manifest(data)) == data


def test_sizes_alone_do_not_show_a_flipped_bit_and_a_load_does_not_hide_a_wrong_size(
    pristine: Path, tmp_path: Path
) -> None:
    path = tmp_path / "step-00000002"
    shutil.copytree(pristine / "step-00000002", path)
    file = file_in(path, OPTIMIZER)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert inspect(path, verify="size").problems == []
    assert inspect(path, verify="full").problems == [
        f"{file.name}: its SHA-256 is not the one that was written"
    ]
    os.truncate(file, len(data) - 1)
    with pytest.raises(
        CheckpointError, match=r"bytes instead of .*\. Resume from another checkpoint\."
    ):
        load(path, rank=0, num_ranks=1)


def test_if_there_are_checkpoints_and_none_is_valid_nothing_starts_over(
    pristine: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "checkpoints"
    shutil.copytree(pristine, directory, symlinks=True)
    for path in directory.glob("step-*/" + CONFIG):
        path.unlink()
    for resume in ("auto", "must"):
        with pytest.raises(
            CheckpointError,
            match=(
                r"there are checkpoints, but none is valid:\n.*step-00000002: skipped, not valid: "
                r".*config\.yaml"
            ),
        ):
            choose(directory, resume)
    assert [listed.manifest for listed in list_checkpoints(directory)] == [None, None]
