"""`fermarsi replay`: histories read from files, judged as a run would have, and shown."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.commands.forecast import forecasts
from harness.commands.replay import replay_command
from harness.commands.suggest import suggestion
from harness.errors import ConfigError
from harness.stopping.history import read_history
from harness.stopping.replay import metric_infos, replay
from harness.stopping.settings import StopSettings

VALUES = [0.5, 0.6, 0.7, 0.71, 0.72, 0.725, 0.8, 0.9, 0.91]
CONFIG = """
stop:
  targets: {accuracy: {at_least: 0.95}}
  improvement: {metric: val/accuracy, at_least: 5%, patience: 3}
"""


def records(values: Sequence[float | None] = VALUES) -> list[dict[str, Any]]:
    return [
        {
            "step": 100 * n,
            "epoch": n,
            "val/accuracy": value,
            "train/accuracy": 0.9,
            "elapsed_s": 720.0 * n,
        }
        for n, value in enumerate(values, 1)
    ]


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def history(tmp_path: Path) -> Path:
    return lines(tmp_path / "history.jsonl", records())


def printed_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    value = json.loads(capsys.readouterr().out)
    assert isinstance(value, dict)
    return value


def settings(**stop: Any) -> StopSettings:
    return StopSettings.model_validate(stop)


BUDGET = settings(budget={"steps": 10**9})


# -- what is printed


def test_json_has_the_documented_shape(
    history: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay_command(history, config, as_json=True) == 0
    answer = printed_json(capsys)
    assert set(answer) == {"stop_index", "reason", "detail", "best_index", "verdicts"}
    assert (answer["stop_index"], answer["reason"], answer["best_index"]) == (
        5,
        "no_improvement",
        5,
    )
    assert "3 of 3 intervals without enough improvement" in answer["detail"]
    assert [verdict["stale"] for verdict in answer["verdicts"]] == [0, 0, 0, 1, 2, 3]
    assert answer["verdicts"][3] == {
        "index": 3,
        "step": 400,
        "improved": False,
        "new_best": True,
        "stale": 1,
        "action": "go_on",
        "reason": None,
    }
    assert answer["verdicts"][5]["action"] == "stop"


def test_a_history_that_goes_on_has_no_stop(
    history: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replay_command(history, config, ["stop.improvement.patience=4"], as_json=True)
    answer = printed_json(capsys)
    assert (answer["stop_index"], answer["reason"], answer["detail"], answer["best_index"]) == (
        None,
        None,
        None,
        8,
    )
    assert len(answer["verdicts"]) == len(VALUES)


def test_overrides_are_taken(
    history: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replay_command(
        history,
        config,
        ["stop.improvement.patience=1", "stop.improvement.at_least=0.15"],
        as_json=True,
    )
    assert printed_json(capsys)["stop_index"] == 1


def test_the_story_says_what_is_kept_lost_and_saved(
    history: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replay_command(history, config)
    story = capsys.readouterr().out
    assert "stops at step 600, evaluation 6 of 9: no_improvement" in story
    assert "saves 300 of 900 steps and 0.6 of 1.8 hours" in story
    assert "keeps val/accuracy 0.725 of step 600, loses 0.91 of step 900" in story
    replay_command(history, config, ["stop.improvement.patience=9"])
    story = capsys.readouterr().out
    assert "does not stop within 9 evaluations, up to step 900" in story
    assert "keeps val/accuracy 0.91 of step 900, the best of the history" in story


def test_a_sweep_puts_settings_side_by_side(
    history: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["stop.improvement.patience=1,{epochs: 3},9", "stop.improvement.from=best,previous"]
    replay_command(history, config, sweep=sweep)
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + 6
    assert "stop.improvement.patience" in table[1]
    assert [line.split()[:2] for line in table[2:4]] == [["1", "best"], ["1", "previous"]]
    assert "never" in table[6]
    replay_command(history, config, sweep=sweep, as_json=True)
    swept = printed_json(capsys)["sweep"]
    assert [one["stop_index"] for one in swept] == [3, 3, 5, 5, None, None]
    assert swept[2]["settings"] == {
        "stop.improvement.patience": "{epochs: 3}",
        "stop.improvement.from": "best",
    }


def test_a_plot_is_drawn(history: Path, config: Path, tmp_path: Path) -> None:
    replay_command(
        history, config, sweep=["stop.improvement.patience=1,3"], plot=tmp_path / "stops.png"
    )
    assert (tmp_path / "stops.png").read_bytes().startswith(b"\x89PNG")
    replay_command(history, config, plot=tmp_path / "stops.svg")
    with pytest.raises(ConfigError, match="cannot be written"):
        replay_command(history, config, plot=tmp_path / "stops.what")


def test_neither_torch_nor_what_draws_is_imported(history: Path, config: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from harness.commands.replay import replay_command;"
        f"replay_command(Path({str(history)!r}), Path({str(config)!r}), "
        "sweep=['stop.improvement.patience=1,2']);"
        "print(sorted({'torch', 'numpy', 'pandas', 'matplotlib', 'accelerate'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


# -- a run's own history


def test_a_run_is_replayed_by_its_own_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    rows: list[dict[str, Any]] = []
    for record in records():
        rows += [
            {"kind": "train", "step": record["step"] - 50, "train/loss": 1.0},
            {"kind": "eval", **record, "tables": {"val/confusion": [[1]]}},
        ]
        rows.append({"kind": "event", "step": record["step"], "event": "verdict", "verdict": {}})
    lines(tmp_path / "metrics.jsonl", rows)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "eval", "step": 1000, "val/accu')  # killed while writing
    replay_command(tmp_path, as_json=True)
    assert printed_json(capsys)["stop_index"] == 5


def test_a_history_alone_needs_a_config(history: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config"):
        replay_command(history)


# -- files


def test_csv_is_read_like_json_lines(tmp_path: Path, history: Path) -> None:
    rows = records()
    text = (
        ",".join(rows[0])
        + ",note\n"
        + "".join(",".join(map(str, row.values())) + ",words\n" for row in rows)
    )
    for content in (text, "\ufeff" + text.replace("\n", "\r\n"), text.replace(",", ", ")):
        (tmp_path / "history.csv").write_text(content, encoding="utf-8", newline="")
        assert (
            read_history(tmp_path / "history.csv").evaluations == read_history(history).evaluations
        )


def test_values_that_are_none_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "h.jsonl").write_text(
        '{"step": 1, "a": null, "b": NaN, "c": Infinity, "d": -Infinity, "e": true, "f": "x", "g": '
        "[1]}\n"
    )
    (tmp_path / "h.csv").write_text("step,a,b,c,d,e\n1,null,NaN,Infinity,-inf,\n")
    for name in ("h.jsonl", "h.csv"):
        (one,) = read_history(tmp_path / name).evaluations
        assert str(dict(one.metrics)) == "{'a': nan, 'b': nan, 'c': inf, 'd': -inf}"


def test_null_is_no_improvement_and_an_empty_cell_was_not_measured(tmp_path: Path) -> None:
    stop = settings(improvement={"metric": "val/f1", "patience": 2})
    for cell, index in (("null", 2), ("NaN", 2), ("", None)):
        (tmp_path / "h.csv").write_text(f"step,val/f1,val/x\n1,0.5,1\n2,{cell},1\n3,{cell},1\n")
        assert replay(read_history(tmp_path / "h.csv"), stop).stop_index == index


def test_records_of_one_step_are_one_evaluation(tmp_path: Path) -> None:
    """As Lightning's CSVLogger writes them; rows without a metric that the settings name are no
    evaluations.
    """
    (tmp_path / "metrics.csv").write_text(
        "epoch,step,train_loss,val_loss\n0,49,,0.9\n0,49,0.8,\n1,60,0.7,\n1,99,,0.95\n1,99,0.6,\n"
    )
    history = read_history(tmp_path / "metrics.csv")
    assert [(one.step, dict(one.metrics)) for one in history.evaluations] == [
        (49, {"val_loss": 0.9, "train_loss": 0.8}),
        (60, {"train_loss": 0.7}),
        (99, {"val_loss": 0.95, "train_loss": 0.6}),
    ]
    assert (
        replay(history, settings(improvement={"metric": "val_loss", "patience": 1})).stop_index == 1
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("h.csv", "epoch,val/loss\n1,0.5\n", "no column step (there are epoch, val/loss)"),
        ("h.csv", "", "no column step"),
        ("h.csv", "step,val/loss\n", "no evaluation in it"),
        ("h.csv", "step,val/loss\n,0.5\n", "line 2: no step"),
        ("h.csv", "step,val/loss\n1.5,0.5\n", "no step (step is 1.5)"),
        ("h.csv", "step,val/loss\n-1,0.5\n", "no step (step is -1)"),
        (
            "h.csv",
            "step,val/loss\n2,0.5\n1,0.5\n",
            "line 3: step 1 comes after step 2: steps go backwards",
        ),
        (
            "h.csv",
            "step,val/loss\n2,0.5\n2,0.6\n",
            "step 2 comes twice, with two values of val/loss",
        ),
        ("h.csv", "step,val/loss\n1,0.5,7\n", "more cells than the header"),
        ("h.csv", "step,val/loss\n1\n", "fewer cells than the header"),
        ("h.jsonl", '{"epoch": 1, "val/loss": 1}\n', "line 1: no step (there are epoch, val/loss)"),
        ("h.jsonl", '{"step": null}\n', "no step (step is nan)"),
        (
            "h.jsonl",
            '{"step": 2}\n\n{"step": 1}\n',
            "line 3: step 1 comes after step 2: steps go backwards",
        ),
        ("h.jsonl", '{"step": 1\n{"step": 2}\n', "line 1: not valid JSON"),
        ("h.jsonl", "[1]\n", "not a JSON object"),
        ("h.jsonl", "", "no evaluation in it"),
        ("h.jsonl", '{"kind": "train", "step": 1}\n', "no evaluation in it"),
    ],
)
def test_a_history_that_is_none_is_refused(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError) as refused:
        read_history(tmp_path / name)
    assert words in str(refused.value)
    assert str(tmp_path / name) in str(refused.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_history(tmp_path / "h.jsonl")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl: no such file"):
        read_history(tmp_path)
    (tmp_path / "h.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_history(tmp_path / "h.jsonl")


# -- settings and histories


@pytest.mark.parametrize(
    ("stop", "words"),
    [
        ({"improvement": {"metric": "val/acc", "patience": 1}}, "Did you mean val/accuracy?"),
        ({"targets": {"f1": {"at_least": 0.5}}}, "no metric train/f1"),
        (
            {"improvement": {"metric": "val/accuracy", "at_least": 5, "patience": 1}},
            "Write 5% for a share",
        ),
        ({"targets": {"accuracy": {"at_least": 95}}}, "never above 1"),
        ({"targets": {"val/accuracy": {"at_most": 0.5}}}, "more is better"),
        ({"budget": {"samples": 10}}, "stop.budget.samples"),
        (
            {"improvement": {"metric": "val/accuracy", "patience": {"samples": 9}}},
            "stop.improvement.patience",
        ),
        (
            {"improvement": {"metric": "val/accuracy", "patience": 1, "cooldown": 1}},
            "does not have lr at each evaluation",
        ),
    ],
)
def test_settings_that_the_history_cannot_answer_are_refused(
    history: Path, stop: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        replay(read_history(history), settings(**stop))
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "stop",
    [
        {"budget": {"hours": 1}},
        {"budget": {"epochs": 5}},
        # The history says how often was evaluated, not `every`
        {
            "budget": {"epochs": 5},
            "targets": {"val/accuracy": {"at_least": 1}},
            "forecast": {"target": "val/accuracy", "chance_below": "5%", "for": 3},
        },
        {"improvement": {"metric": "val/accuracy", "at_least": "5%", "patience": {"epochs": 3}}},
    ],
)
def test_settings_that_it_can_answer_are_judged(history: Path, stop: dict[str, Any]) -> None:
    assert replay(read_history(history), settings(**stop)).stop_index is not None


def test_the_mode_is_known_from_the_settings_or_the_name(tmp_path: Path) -> None:
    names = [
        "val/loss",
        "val_mse",
        "val/accuracy",
        "top1-acc",
        "val/word error rate",
        "val/ratio",
        "val/drift",
        "val/percent_accuracy",
        "val/x",
    ]
    history = read_history(
        lines(
            tmp_path / "h.jsonl",
            [{"step": 1, **dict.fromkeys(names, 0.5), "val/percent_accuracy": 95.0}],
        )
    )
    infos = metric_infos(history, BUDGET)
    assert [name for name in names if infos[name].mode == "min"] == [
        "val/loss",
        "val_mse",
        "val/word error rate",
    ]
    assert [name for name in names if infos[name].upper == 1.0] == ["val/accuracy", "top1-acc"]
    stop = settings(
        targets={"val/ratio": {"at_most": 0.1}},
        divergence={"metric": "val/drift", "above": 3.0},
        improvement={"metric": "val/x", "patience": 1, "mode": "min"},
    )
    infos = metric_infos(history, stop)
    assert {infos[name].mode for name in ("val/ratio", "val/drift", "val/x")} == {"min"}


def test_a_metric_of_which_nothing_tells_what_is_better_is_refused_until_it_is_said(
    tmp_path: Path,
) -> None:
    """It was taken to be better the higher it is, in silence."""
    rows = [{"step": n, "train/drag": 2 / n, "val/drag": 1 / n} for n in range(1, 9)]
    history = read_history(lines(tmp_path / "h.jsonl", rows))
    stop = {"improvement": {"metric": "val/drag", "patience": 2}}
    words = "val/drag: its name does not tell whether more or less of it is better. Add stop.best="
    with pytest.raises(ConfigError, match=re.escape(words)):
        replay(history, settings(**stop))
    with pytest.raises(ConfigError, match=re.escape(words)):
        list(suggestion([history.path] * 2, settings(**stop), 0.1))
    with pytest.raises(ConfigError, match=re.escape(words)):
        list(forecasts(history, settings(budget={"steps": 99}), "val/drag"))
    known = {**stop, "best": {"metric": "val/drag", "mode": "min"}}
    assert replay(history, settings(**known)).stop_index is None
    gap = {"gap": {"metric": "drag", "above": 0.1, "for": 9}, "train_metrics": "full"}
    assert replay(history, settings(**known, **gap)).stop_index is None


@pytest.mark.parametrize(
    "text", ["stop.improvement.patience", "=1,2", "stop.improvement.patience="]
)
def test_a_sweep_that_is_none_is_refused(history: Path, config: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="key=value,value"):
        replay_command(history, config, sweep=[text])


def test_several_criteria_have_one_count(tmp_path: Path) -> None:
    rows = [
        {"step": n, "val/accuracy": 0.5, "val/loss": loss}
        for n, loss in enumerate([3.0, 2.0, 1.0, 1.0], 1)
    ]
    history = read_history(lines(tmp_path / "h.jsonl", rows))
    both = [{"metric": name, "patience": 9} for name in ("val/accuracy", "val/loss")]
    for need, stale in (("all", [0, 0, 0, 1]), ("any", [0, 1, 2, 3])):
        answer = replay(history, settings(improvement=both, improvement_needs=need)).to_json()
        assert [verdict["stale"] for verdict in answer["verdicts"]] == stale


def test_a_history_without_what_is_judged_has_no_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    rows = [
        {"step": 1, "val/accuracy": 0.5, "train/accuracy": 0.5, "val/loss": 1.0},
        {"step": 2, "val/loss": 1.0},
    ]
    path = lines(tmp_path / "h.jsonl", rows)
    assert (
        len(
            replay(
                read_history(path), settings(improvement={"metric": "val/accuracy", "patience": 1})
            ).verdicts
        )
        == 1
    )
    assert len(replay(read_history(path), BUDGET).verdicts) == 2
