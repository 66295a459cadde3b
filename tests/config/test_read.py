"""A config as a whole: what it may hold, what is said about what it may not, and how it is written
back.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.config import trust
from harness.config.identity import identity_changes
from harness.config.read import read_config, read_section, resolved_yaml
from harness.config.schema import Config
from harness.errors import ConfigError
from harness.stopping.budget import Every
from harness.stopping.settings import StopSettings
from tests.config.test_document import TEXTS, VALUES

BASE = """\
run: {seed: 7}
data:
  train:
    source: {_target_: tests.toy_parts.Source, path: /data/a.csv}
    treatments:
      - {_target_: tests.toy_parts.Treatment, size: 3}
  val: {source: {_target_: tests.toy_parts.Source, split: val}}
network: {_target_: tests.toy_parts.Net, width: 8}
task: {_target_: tests.toy_parts.Task}
batch: {size: 64, micro_size: 16}
optimizer: {_target_: tests.toy_parts.Optimizer, lr: 1e-3}
stop: {budget: {epochs: 3}}
"""


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("digits.yaml").write_text(BASE)
    return Path("digits.yaml")


def config(*overrides: str, text: str = BASE) -> Config:
    Path("digits.yaml").write_text(text)
    return read_config(Path("digits.yaml"), overrides)


def mistakes(*overrides: str, text: str = BASE) -> list[str]:
    """The lines of the error, without the heading that counts them."""
    try:
        config(*overrides, text=text)
    except ConfigError as error:
        lines = str(error).splitlines()
        if len(lines) > 1:
            assert lines[0] == f"{len(lines) - 1} mistakes:"
            lines = [line.removeprefix("  ") for line in lines[1:]]
        return lines
    return []


def mistake(*overrides: str, text: str = BASE) -> str:
    (line,) = mistakes(*overrides, text=text)
    return line


# -- what is read


def test_values_come_with_their_types_and_defaults() -> None:
    read = config()
    assert (read.run.name, read.run.dir, read.run.seed, read.run.resume) == (
        "digits",
        Path("runs/digits"),
        7,
        "auto",
    )
    assert read.optimizer == {"_target_": "tests.toy_parts.Optimizer", "lr": 0.001}
    assert read.data.train.treatments[0]["size"] == 3
    assert read.data.test is None
    assert (read.train.precision, read.train.clip_grad_norm) == ("no", None)
    assert read.log.every == Every(steps=20)
    assert (read.checkpoint.every, read.checkpoint.keep_last, read.checkpoint.keep_best) == (
        None,
        2,
        1,
    )
    assert read.tracking.wandb is None
    assert read.stop.budget is not None


def test_names_follow_from_each_other_unless_given() -> None:
    assert config("run.name=x").run.dir == Path("runs/x")
    assert config("run.dir=/tmp/a").run.name == "digits"
    assert config("run.dir=${run.name}-${run.seed}").run.dir == Path("digits-7")
    assert config("run.name=a${run.seed}").run.dir == Path("runs/a7")
    assert config("run=null").run.name == "digits"


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        config().run.seed = 8  # type: ignore[misc]


def test_a_number_with_an_exponent_is_one_everywhere() -> None:
    assert config("optimizer.lr=3e-4").optimizer["lr"] == 0.0003
    assert config("train.clip_grad_norm=1e1").train.clip_grad_norm == 10.0
    assert config("network.value={a: [1e-3]}").network["value"] == {"a": [0.001]}
    assert (
        config("stop.targets={val/loss: {at_most: 1e-2}}").stop.targets["val/loss"].at_most == 0.01
    )


@pytest.mark.parametrize("precision", ["no", "'no'", '"no"', "bf16", "fp16"])
def test_precision_is_text_even_where_yaml_1_1_has_a_boolean(precision: str) -> None:
    assert config(f"train.precision={precision}").train.precision == precision.strip("'\"")
    assert config(
        text=f"{BASE}train: {{precision: {precision}}}\n"
    ).train.precision == precision.strip("'\"")


def test_paths_in_components_are_left_alone_and_the_home_is_found_in_others() -> None:
    assert config("data.train.source.path=~/a.csv").data.train.source["path"] == "~/a.csv"
    home = Path.home()
    assert config("run.dir=~/runs/x").run.dir == home / "runs/x"
    assert config("run.init_from=~/a.safetensors").run.init_from == home / "a.safetensors"
    assert config("run.resume=~/runs/x/checkpoints/step-3").run.resume == str(
        home / "runs/x/checkpoints/step-3"
    )


@pytest.mark.parametrize(
    "resume",
    [
        "auto",
        "never",
        "must",
        "best",
        "latest",
        0,
        1200,
        "step-00001200",
        "runs/a/checkpoints/step-3",
    ],
)
def test_ways_to_resume(resume: str | int) -> None:
    assert config(f"run.resume={resume}").run.resume == (
        str(Path(resume)) if isinstance(resume, str) else resume
    )


def test_a_config_over_a_base_with_overrides() -> None:
    Path("child.yaml").write_text(
        "base: digits.yaml\nnetwork: {width: 9}\nlog: {every: {epochs: 1}}\n"
    )
    read = read_config(Path("child.yaml"), ["network.depth=3"])
    assert read.network == {"_target_": "tests.toy_parts.Net", "width": 9, "depth": 3}
    assert read.log.every == Every(epochs=1)
    assert read.run.name == "child"


# -- what is refused: each message has the file and line or the override, the key, the value and
# what is allowed


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.seed=x", "run.seed: 'x' is not allowed. Give a whole number."),
        ("run.seed=1.0", "run.seed: 1.0 is not allowed. Give a whole number."),
        ("run.seed=true", "run.seed: True is not allowed. Give a whole number."),
        ("run.seed=-1", "run.seed: -1 is not allowed. Give a number of at least 0."),
        (
            "run.name=2024",
            "run.name: 2024 is not allowed. Give text (a number or true and false in quotes).",
        ),
        ("run.name=''", "run.name: '' is not allowed. Give non-empty text."),
        (
            "run.name=a/b",
            "run.name: 'a/b': a name must not contain /; set run.dir to choose the directory.",
        ),
        ("run.dir=3", "run.dir: 3 is not allowed. Give a path."),
        ("run.paranoid=yes", "run.paranoid: 'yes' is not allowed. Give true or false."),
        ("run.paranoid=1", "run.paranoid: 1 is not allowed. Give true or false."),
        ("run.timeout_s=0", "run.timeout_s: 0 is not allowed. Give a number above 0."),
        ("run.timeout_s=.inf", "run.timeout_s: inf is not allowed. Give a finite number."),
        (
            "run.exactness=resum",
            "run.exactness: 'resum' is not allowed. Give 'none', 'resume' or 'elastic'. Did you "
            "mean resume?",
        ),
        (
            "run.resume=atuo",
            "run.resume: 'atuo': use auto, must, never, best, latest, a step, or the path of a "
            "checkpoint (with a /). Did you mean auto?",
        ),
        ("run.resume=-3", "run.resume: -3: a step is a whole number, at least 0."),
        (
            "run.resume=true",
            "run.resume: True is not allowed. Give text (a number or true and false in quotes) or "
            "a whole number.",
        ),
        (
            "run.overwrite=true",
            "run.overwrite: True: no effect with run.resume: auto; set run.resume: never, or "
            "remove it.",
        ),
        (
            "data.num_workers=-1",
            "data.num_workers: -1 is not allowed. Give a number of at least 0 or 'auto'.",
        ),
        (
            "data.train.treatments={_target_: a.b}",
            "data.train.treatments: {'_target_': 'a.b'} is not allowed. Give a list.",
        ),
        (
            "data.train.treatments=[3]",
            "data.train.treatments[0]: 3: give a component: a mapping with _target_: pkg.mod.Name "
            "and its arguments.",
        ),
        (
            "data.train=null",
            "data.train: None is not allowed. Give a mapping (source, "
            "samples, treatments, balance).",
        ),
        (
            "network=null",
            "network: None: give a component: a mapping with _target_: pkg.mod.Name and its "
            "arguments.",
        ),
        (
            "network={width: 3}",
            "network: give a component: a mapping with _target_: pkg.mod.Name and its arguments.",
        ),
        ("batch.size=0", "batch.size: 0 is not allowed. Give a number of at least 1."),
        (
            "train.precision=false",
            "train.precision: False is not allowed. Give 'no', 'bf16' or 'fp16'.",
        ),
        (
            "train.precision=fp61",
            "train.precision: 'fp61' is not allowed. Give 'no', 'bf16' or 'fp16'. Did you mean "
            "fp16?",
        ),
        (
            "train.clip_grad_norm=0",
            "train.clip_grad_norm: 0 is not allowed. Give a number above 0.",
        ),
        ("train.clip_grad_norm='1'", "train.clip_grad_norm: '1' is not allowed. Give a number."),
        (
            "checkpoint.keep_last=0",
            "checkpoint.keep_last: 0 is not allowed. Give a number of at least 1.",
        ),
        (
            "checkpoint.verify=hash",
            "checkpoint.verify: 'hash' is not allowed. Give 'full' or 'size'.",
        ),
        (
            "checkpoint.every=3",
            "checkpoint.every: 3 is not allowed. Give a mapping (steps, "
            "epochs, minutes) or 'auto'.",
        ),
        (
            "checkpoint.every=Auto",
            "checkpoint.every: 'Auto' is not allowed. Give a mapping (steps, epochs, minutes) or "
            "'auto'. Did you mean auto?",
        ),
        (
            "checkpoint.every={minutes: 0}",
            "checkpoint.every.minutes: 0 is not allowed. Give a number above 0.",
        ),
        (
            "checkpoint.every={minutes: 5, steps: 1}",
            "checkpoint.every: give exactly one of steps, epochs, minutes (steps and minutes "
            "given).",
        ),
        (
            "checkpoint.max_overhead=1",
            "checkpoint.max_overhead: 1 is not allowed. Give a number below 1.0.",
        ),
        (
            "checkpoint.failures_per_day=3",
            "checkpoint: failures_per_day has no effect without every: auto; set that too, or "
            "leave it out.",
        ),
        ("log.every={}", "log.every: give exactly one of steps, epochs (none given)."),
        (
            "log.every={steps: 1, epochs: 1}",
            "log.every: give exactly one of steps, epochs (steps and epochs given).",
        ),
        ("tracking.wandb={}", "tracking.wandb.project: is missing. The W&B project."),
        (
            "tracking.backends=[wandbb]",
            "tracking.backends[0]: 'wandbb': give wandb, tensorboard, trackio, or your own "
            "tracker: a mapping with _target_: pkg.mod.Name and its arguments. Did you mean "
            "wandb?",
        ),
        (
            "tracking.backends=[{_target_: tests.tracking.trackers.Lines, file: x, fil: y}]",
            "tracking.backends[0].fil: tests.tracking.trackers.Lines has no argument of this name. "
            "Did you mean file?",
        ),
        (
            "tracking.backends=[{_target_: tests.tracking.trackers.Lines, file: x, run: y}]",
            "tracking.backends[0].run: the harness passes this argument to "
            "tests.tracking.trackers.Lines itself. Remove it.",
        ),
        (
            "tracking.backends=[{_target_: tests.tracking.trackers.Partial}]",
            "tracking.backends[0]._target_: tests.tracking.trackers.Partial has no event, finish, "
            "abandon. A tracker has the methods begin, row, event, finish, abandon "
            "(docs/tracking.md).",
        ),
        (
            "tracking.wandb={project: x, tags: a}",
            "tracking.wandb.tags: 'a' is not allowed. Give a list.",
        ),
        (
            "tracking.wandb={project: x, tags: [1]}",
            "tracking.wandb.tags[0]: 1 is not allowed. Give text (a number or true and false in "
            "quotes).",
        ),
        (
            "stop.train_metrics=intervall",
            "stop.train_metrics: 'intervall' is not allowed. Give 'interval' or 'full' or a "
            "mapping (samples). Did you mean interval?",
        ),
        (
            "stop.targets={accuracy: {at_least: high}}",
            "stop.targets.accuracy.at_least: 'high' is not allowed. Give a number.",
        ),
    ],
)
def test_a_value_that_is_not_allowed(override: str, message: str) -> None:
    assert mistake(override) == f"override {override}: {message}"


def test_a_mistake_in_a_file_is_said_with_its_line() -> None:
    text = BASE.replace("size: 64", "size: many")
    assert (
        mistake(text=text)
        == "digits.yaml:10: batch.size: 'many' is not allowed. Give a whole number."
    )
    assert (
        mistake("stop.budget=null")
        == "digits.yaml:12: stop: nothing ends the training: give targets, improvement or budget."
    )


def test_a_missing_section_or_key_is_said_with_what_it_is() -> None:
    text = BASE.replace("batch: {size: 64, micro_size: 16}\n", "batch: {size: 64}\n").replace(
        "task:", "tsk:"
    )
    assert mistakes(text=text) == [
        "digits.yaml: task: is missing. The component that computes losses, predictions and "
        "metrics from a batch.",
        "digits.yaml:10: batch.micro_size: is missing. Samples per forward pass. size / "
        "micro_size must be a whole number and a multiple of the number of processes.",
        "digits.yaml:9: tsk: no such key. Did you mean task?",
    ]


@pytest.mark.parametrize(
    ("override", "key", "meant"),
    [
        ("trian.clip_grad_norm=1", "trian", "train.clip_grad_norm"),
        ("train.clip_gradnorm=1", "train.clip_gradnorm", "train.clip_grad_norm"),
        ("clip_grad_norm=1", "clip_grad_norm", "train.clip_grad_norm"),
        ("train.lr=3e-4", "train.lr", "optimizer.lr"),
        ("train.seed=3", "train.seed", "run.seed"),
        ("optimiser.lr=3", "optimiser", "optimizer.lr"),
        ("stop.bugdet.epochs=3", "stop.bugdet", "stop.budget.epochs"),
        ("stop.budget.epoch=3", "stop.budget.epoch", "stop.budget.epochs"),
        ("budget.steps=3", "budget", "stop.budget.steps"),
        (
            "stop.targets.accuracy.at_leest=1",
            "stop.targets.accuracy.at_leest",
            "stop.targets.accuracy.at_least",
        ),
        ("data.trian={}", "data.trian", "data.train"),
        ("micro_size=3", "micro_size", "batch.micro_size or evaluation.micro_size"),
    ],
)
def test_an_unknown_key_suggests_the_one_that_was_meant(
    override: str, key: str, meant: str
) -> None:
    assert f"override {override}: {key}: no such key. Did you mean {meant}?" in mistakes(override)


def test_an_unknown_key_that_resembles_none_lists_those_that_there_are() -> None:
    assert (
        mistake("train.qqq=3")
        == "override train.qqq=3: train.qqq: no such key. Known keys: channels_last, "
        "clip_grad_norm, compile, ema, find_unused_parameters, matmul_precision, precision, "
        "recompute."
    )


def test_all_mistakes_are_said_at_once_each_in_one_line() -> None:
    text = (
        BASE.replace("seed: 7", "seed: x, sed: 1, seed: 8")
        .replace("size: 3}", "sise: 3}")
        .replace("Net, width: 8", "Nett")
        .replace("lr: 1e-3", "lr: 010")
    )
    assert mistakes(
        "trian.precision=no",
        "run.name=a/b",
        "log.every.steps=0",
        "x",
        "run.dir=${nowhere}",
        text=text,
    ) == [
        "digits.yaml:1: run.seed: duplicate key; the first is in line 1. Remove one.",
        "digits.yaml:11: optimizer.lr: 010 is octal in YAML 1.1 and decimal in 1.2. Write the "
        "number without the leading zero, or text in quotes.",
        "override x: not of the form key=value. Write x=VALUE.",
        "override run.dir=${nowhere}: run.dir: '${nowhere}': Interpolation key 'nowhere' not "
        "found. "
        "Name a key of the config, or another source of the value.",
        "override run.name=a/b: run.name: 'a/b': a name must not contain /; set run.dir to choose "
        "the directory.",
        "digits.yaml:1: run.sed: no such key. Did you mean run.seed?",
        "override log.every.steps=0: log.every.steps: 0 is not allowed. Give a number of at least "
        "1.",
        "override trian.precision=no: trian: no such key. Did you mean train.precision?",
        "digits.yaml:8: network._target_: the module tests.toy_parts has no Nett. Did you mean "
        "Net?",
        "digits.yaml:6: data.train.treatments[0].sise: tests.toy_parts.Treatment has no argument "
        "of this name. Did you mean size?",
    ]


@pytest.mark.parametrize(
    ("size", "micro_size", "nearest"),
    [
        (65, 16, "size 64 or 80, or micro_size 5 or 13"),
        (60, 16, "size 48 or 64, or micro_size 12 or 15"),
        (8, 16, "size 16, or micro_size 4 or 8"),
        (7, 3, "size 6 or 9, or micro_size 1 or 7"),
    ],
)
def test_a_batch_is_whole_micro_batches(size: int, micro_size: int, nearest: str) -> None:
    text = BASE.replace("{size: 64, micro_size: 16}", f"{{size: {size}, micro_size: {micro_size}}}")
    assert mistake(text=text) == (
        f"digits.yaml:10: batch: size {size} is not a multiple of micro_size {micro_size}; "
        f"nearest that fit: {nearest}."
    )
    assert config("batch.size=64", "batch.micro_size=64").batch.size == 64


def test_settings_that_would_have_no_effect_together() -> None:
    assert config("run.overwrite=true", "run.resume=never").run.overwrite
    assert config("run.init_from=a.safetensors").run.init_from == Path("a.safetensors")
    assert mistake("run.init_from=a", "run.resume=must") == (
        "override run.init_from=a: run.init_from: 'a': no effect with run.resume: must, which "
        "never starts a new run; leave one of them out."
    )


# -- components


def test_keys_inside_components_may_be_new_and_are_checked_by_signature() -> None:
    assert config("network.depth=3").network["depth"] == 3
    assert config("data.train.source.split=x").data.train.source["split"] == "x"
    assert mistake("network.detph=3") == (
        "override network.detph=3: network.detph: tests.toy_parts.Net has no argument of this "
        "name. Did you mean depth?"
    )
    assert mistake("data.val.source.spilt=x").startswith(
        "override data.val.source.spilt=x: data.val.source.spilt: tests.toy_parts.Source has no "
        "argument"
    )


def test_the_optimizer_is_given_params_and_the_schedule_the_optimizer() -> None:
    assert config("schedule={_target_: tests.toy_parts.Schedule}").schedule is not None
    assert mistake("optimizer.params=3").endswith(
        "the harness passes this argument to tests.toy_parts.Optimizer itself. Remove it."
    )
    assert "takes no argument params" in mistake(
        "optimizer={_target_: tests.toy_parts.Schedule, optimizer: 3}"
    )
    assert "takes no argument optimizer" in mistake(
        "schedule={_target_: tests.toy_parts.Net, width: 3}"
    )


def test_another_optimizer_in_a_child_comes_with_its_own_arguments_alone() -> None:
    Path("child.yaml").write_text(
        "base: digits.yaml\noptimizer: {_target_: tests.toy_parts.OtherOptimizer}\n"
    )
    assert read_config(Path("child.yaml"), []).optimizer == {
        "_target_": "tests.toy_parts.OtherOptimizer"
    }
    assert mistake(
        "optimizer.momentum=0.9", "optimizer._target_=tests.toy_parts.OtherOptimizer"
    ).startswith(
        "override optimizer.momentum=0.9: optimizer.momentum: tests.toy_parts.OtherOptimizer has "
        "no argument"
    )


def test_somebody_elses_config_may_name_only_what_is_allowed() -> None:
    path = Path("digits.yaml")
    with pytest.raises(ConfigError) as caught:
        read_config(path, allow=())
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 6
    assert lines[1].startswith(
        "  digits.yaml:8: network._target_: tests.toy_parts.Net is code from elsewhere. A "
        "checkpoint may name harness.networks, harness.tasks, harness.sources"
    )
    read = read_config(path, allow=("tests",))
    assert read == read_config(path)
    trust.check_code(read.data, "data", ["tests"])
    with pytest.raises(
        ConfigError,
        match=r"^data\.train\.source\._target_: tests\.toy_parts\.Source is code from elsewhere",
    ):
        trust.check_code(read.data, "data", [])


# -- stop settings alone


def test_the_stop_section_is_read_without_looking_at_the_rest() -> None:
    Path("stop.yaml").write_text("network: 3\nqqq: 1\nstop: {budget: {epochs: 3}, hold: 1}\n")
    settings = read_section(
        Path("stop.yaml"), StopSettings, ["stop.targets={accuracy: {at_least: 0.9}}", "stop.hold=2"]
    )
    assert (settings.hold, settings.targets["accuracy"].at_least) == (2, 0.9)


def test_mistakes_in_the_stop_section_are_said_as_ever() -> None:
    with pytest.raises(ConfigError) as caught:
        read_section(
            Path("digits.yaml"),
            StopSettings,
            ["stop.hodl=2", "stop.budget.epochs=0", "stpo.hold=3", "run.seed=3", "stop-hold=3"],
        )
    assert str(caught.value).splitlines() == [
        "5 mistakes:",
        "  override stpo.hold=3: only stop.* has an effect here. Remove it, or fix the key.",
        "  override run.seed=3: only stop.* has an effect here. Remove it, or fix the key.",
        "  override stop-hold=3: only stop.* has an effect here. Remove it, or fix the key.",
        "  override stop.budget.epochs=0: stop.budget.epochs: 0 is not allowed. Give a number of "
        "at least 1.",
        "  override stop.hodl=2: stop.hodl: no such key. Did you mean stop.hold?",
    ]
    Path("empty.yaml").write_text("run: {}\n")
    with pytest.raises(
        ConfigError,
        match=r"^empty\.yaml: stop: is missing\. When the run is evaluated and what ends it\.$",
    ):
        read_section(Path("empty.yaml"), StopSettings)


def test_stop_settings_are_read_without_torch_and_soon() -> None:
    script = (
        "import sys, time; start = time.process_time()\n"
        "from pathlib import Path; from harness.config.read import read_section\n"
        "from harness.stopping.settings import StopSettings\n"
        "read_section(Path('digits.yaml'), StopSettings, ['stop.hold=1'])\n"
        "print(time.process_time() - start)\n"
        "assert not {'torch', 'omegaconf', 'numpy', 'accelerate'} & set(sys.modules), "
        "sorted(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    seconds = [
        float(
            subprocess.run(
                [sys.executable, "-c", script], env=environment, check=True, capture_output=True
            ).stdout
        )
        for _ in range(3)
    ]
    assert min(seconds) < 0.5  # 0.2 on an idle machine


# -- written back


def test_the_resolved_config_is_whole_and_says_who_wrote_it() -> None:
    given = ["network.value=${run.seed}", "optimizer.lr=1e-3", "network.depth=null"]
    text = resolved_yaml(read_config(Path("digits.yaml"), given))
    assert text.startswith("# The resolved config of a run of fermarsi ")
    for line in (
        "  precision: 'no'",
        "  lr: 0.001",
        "  value: 7",
        "  depth: null",
        "  dir: runs/digits",
        "  keep_last: 2",
        "    steps: 20",
    ):
        assert line in text.splitlines()


def test_the_resolved_config_reads_as_the_same_from_any_place() -> None:
    original = config(
        "run.dir=/tmp/a",
        "run.resume=runs/x/step-3",
        "tracking.wandb={project: x, tags: [a, no]}",
        "stop.every.steps=10",
        "stop.improvement={metric: val/accuracy, at_least: 5%, patience: {steps: 20}}",
        "stop.train_metrics={samples: 10}",
        "checkpoint.keep_every={epochs: 2}",
        "network.value=[1e-3, 1e-300, 0.1, '010', null]",
        "schedule={_target_: 'tests.toy_parts:Schedule'}",
        "data.test=${data.val}",
    )
    Path("elsewhere").mkdir()
    Path("elsewhere/config.yaml").write_text(resolved_yaml(original))
    assert read_config(Path("elsewhere/config.yaml")) == original
    assert resolved_yaml(read_config(Path("elsewhere/config.yaml"))) == resolved_yaml(original)


LOOKALIKES = st.text(st.sampled_from("${}\\a:. "), max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=VALUES | LOOKALIKES,
    names=st.dictionaries(
        TEXTS.filter(lambda text: text.strip("_") != "target"),
        LOOKALIKES | st.floats(allow_nan=False),
        max_size=3,
    ),
    clip=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    notes=TEXTS.filter(bool) | LOOKALIKES.filter(bool),
)
def test_any_resolved_config_reads_as_the_same(
    value: Any, names: dict[str, Any], clip: float, notes: str
) -> None:
    tree = config().model_dump()
    tree["network"] |= {"value": [value, names]}
    tree["train"]["clip_grad_norm"] = clip
    tree["tracking"]["wandb"] = {"project": "x", "notes": notes}
    original = Config.model_validate(tree)
    Path("config.yaml").write_text(resolved_yaml(original))
    again = read_config(Path("config.yaml"))
    assert again == original
    assert repr(again) == repr(original)  # == takes 1, 1.0 and True for the same


# -- what identifies a run


@pytest.mark.parametrize(
    ("overrides", "changes"),
    [
        (["run.seed=8"], ["run.seed: 7 -> 8"]),
        (["run.exactness=none"], ["run.exactness: 'resume' -> 'none'"]),
        (["data.train.source.path=b"], ["data.train.source.path: '/data/a.csv' -> 'b'"]),
        (
            ["data.train.treatments=[]"],
            [
                "data.train.treatments[0]._target_: 'tests.toy_parts.Treatment' -> absent",
                "data.train.treatments[0].size: 3 -> absent",
                "data.train.treatments: absent -> ()",
            ],
        ),
        (
            ["data.val=null"],
            [
                "data.val.source._target_: 'tests.toy_parts.Source' -> absent",
                "data.val.source.split: 'val' -> absent",
                "data.val.samples: None -> absent",
                "data.val.treatments: () -> absent",
                "data.val: absent -> None",
            ],
        ),
        (
            ["network.width=9", "network.depth=3"],
            ["network.width: 8 -> 9", "network.depth: absent -> 3"],
        ),
        (["task.target=y"], ["task.target: absent -> 'y'"]),
        (["batch.micro_size=32"], ["batch.micro_size: 16 -> 32"]),
        (
            ["optimizer._target_=tests.toy_parts.OtherOptimizer"],
            ["optimizer._target_: 'tests.toy_parts.Optimizer' -> 'tests.toy_parts.OtherOptimizer'"],
        ),
    ],
)
def test_what_identifies_a_run_is_named_with_both_values(
    overrides: list[str], changes: list[str]
) -> None:
    assert identity_changes(config(), config(*overrides)) == changes


@pytest.mark.parametrize(
    "override",
    [
        "run.name=x",
        "run.dir=y",
        "run.resume=must",
        "run.paranoid=true",
        "run.timeout_s=3",
        "data.num_workers=2",
        "optimizer.lr=1",
        "train.precision=bf16",
        "train.clip_grad_norm=1",
        "stop.budget.epochs=6",
        "stop.targets={accuracy: {at_least: 0.9}}",
        "checkpoint.keep_last=5",
        "log.trace=true",
        "evaluation.micro_size=3",
        "tracking.wandb={project: x}",
        "network.width=8.0",
        "schedule={_target_: tests.toy_parts.Schedule}",
        "data.test={source: {_target_: tests.toy_parts.Source}}",
        "network._target_='tests.toy_parts:Net'",
        "optimizer._target_='tests.toy_parts:Optimizer'",
    ],
)
def test_everything_else_may_change_between_launches(override: str) -> None:
    assert identity_changes(config(), config(override)) == []


def test_what_is_no_number_is_the_same_as_itself() -> None:
    assert identity_changes(config("network.value=.nan"), config("network.value=.nan")) == []
    assert identity_changes(config("network.value=.nan"), config("network.value=1")) == [
        "network.value: nan -> 1"
    ]
