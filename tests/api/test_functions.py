"""What `import fermarsi` offers, as a script uses it."""

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import fermarsi
from harness.api.config import texts
from harness.config.reading import Draft
from harness.objects import Objects
from tests.api.parts import Impatient, Net

ROOT = Path(__file__).parents[2]

rng = np.random.default_rng(3)
LABELS = np.arange(64) % 3
X = (rng.normal(size=(64, 6)) + LABELS[:, None]).astype(np.float32)
CHECKS = {"duplicates": "off", "overlaps": "off"}
TASK = {"_target_": "harness.tasks.Classification", "input": "x", "target": "label"}


def config(directory: Path, network: Any, **changes: Any) -> fermarsi.Config:
    sections = {
        "run": {"dir": directory},
        "data": {
            "train": {"source": fermarsi.Arrays(x=X, label=LABELS)},
            "val": {"source": fermarsi.Arrays(x=X[:20], label=LABELS[:20])},
            "checks": CHECKS,
        },
        "task": TASK,
        "batch": {"size": 8, "micro_size": 4},
        "optimizer": {"_target_": torch.optim.AdamW, "lr": 1e-2},
        "stop": {"every": {"steps": 4}, "budget": {"steps": 8}},
        **changes,
    }
    return fermarsi.Config(network=network, **sections)


def test_an_object_is_trained_as_a_copy_and_known_by_its_code_and_structure(tmp_path: Path) -> None:
    network = Net()
    begun = network.body.weight.clone()
    first = fermarsi.train(config(tmp_path, network))
    assert (first.reason, first.step) == ("budget", 8)
    assert torch.equal(network.body.weight, begun)
    stored = fermarsi.read_run(tmp_path).config["network"]
    assert (stored["at"], stored["name"]) == ("network", "tests.api.parts.Net")
    # Another instance goes on from the checkpoint; another structure is another training
    more = {"stop.budget.steps": 12}
    assert fermarsi.train(config(tmp_path, Net()), more).launches == 2
    for other in (Net(width=9), Net(rate=0.5), nn.Sequential(nn.Linear(6, 3))):
        with pytest.raises(fermarsi.ConfigError, match=r"network\.(state|name): "):
            fermarsi.train(config(tmp_path, other), {"stop.budget.steps": 16})


def test_samples_of_an_object_identify_the_run(tmp_path: Path) -> None:
    fermarsi.train(config(tmp_path, Net))
    changed = X.copy()
    changed[0, 0] += 1
    data = {
        "train": {"source": fermarsi.Arrays(x=changed, label=LABELS)},
        "val": {"source": fermarsi.Arrays(x=X[:20], label=LABELS[:20])},
    }
    with pytest.raises(fermarsi.ConfigError, match=r"data\.train\.source\.state: "):
        fermarsi.train(config(tmp_path, Net, data=data), ["stop.budget.steps=12"])


class Held:
    """A user's source that keeps something."""

    def __init__(self, value: Any) -> None:
        self.value = value


def state(value: Any) -> Any:
    data = {"train": {"source": Held(value)}}
    return fermarsi.Config(data=data).tree["data"]["train"]["source"]["state"]


@dataclass(slots=True)
class Slotted:
    value: Any


def nested(depth: int, value: Any) -> Any:
    return nested(depth - 1, Held(value)) if depth else value


def round_of(value: Any) -> Any:
    """An object that holds itself, and a list that does."""
    found = Held([value])
    found.value.append(found)
    found.value.append(found.value)
    return found


def test_what_an_object_holds_identifies_it_wherever_that_lies_in_memory() -> None:
    frame = pd.DataFrame({"a": np.arange(1000)})
    kept = [np.random.default_rng(0) for _ in range(20)]  # else one takes the other's place
    pairs: list[tuple[Any, Any, Any]] = [
        # The same, the same again, another
        (kept[0], kept[1:], 0),
        ({0, 8}, [{8, 0}], {0, 9}),
        (frame, [frame.copy()], frame.replace(500, 7)),
        (frame, [frame.copy()], frame.set_index(frame["a"] + 1)),
        (frame["a"], [frame["a"].copy()], frame["a"].replace(500, 7)),
        (torch.zeros(3).bfloat16(), [torch.zeros(3).bfloat16()], torch.ones(3).bfloat16()),
        (np.array([Held(1), "a"]), [np.array([Held(1), "a"])], np.array([Held(1), "b"])),
        (nested(9, 1), [nested(9, 1)], nested(9, 2)),
        (nested(3, Slotted(1)), [nested(3, Slotted(1))], nested(3, Slotted(2))),
        (round_of(1), [round_of(1)], round_of(2)),
        (Image.new("L", (2, 2)), [Image.new("L", (2, 2))], Image.new("L", (2, 2), 3)),
    ]
    for value, alike, other in pairs:
        assert {state(one) for one in alike} == {state(value)}
        assert state(other) != state(value)


def test_what_is_nested_without_end_is_refused() -> None:
    """Known: json.dumps says "Circular reference detected", and not where."""
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(fermarsi.ConfigError, match=r"^data: it contains itself, or is nested too"):
        fermarsi.Config(data={"train": {"source": {"_target_": Held, "value": endless}}})
    with pytest.raises(fermarsi.ConfigError, match="Held: what it holds is nested too deeply to"):
        state(nested(900, 1))


def test_overrides_keep_their_values() -> None:
    value = {
        "a b": [1e-7, float("inf"), -float("inf"), None, "Infinity: x", True, "a\n\x7f é"],
        "n": {"c": 2},
    }
    (text,) = texts({"network.k": value}, Objects())
    draft = Draft(Path("own.yaml"))
    draft.override(text)
    assert draft.tree == {"network": {"k": value}}


def test_objects_are_found_as_long_as_one_of_them_is_kept(tmp_path: Path) -> None:
    kept = config(tmp_path, Net())
    fermarsi.train(kept)
    for other in (config(tmp_path, Net()), config(tmp_path, Net())):
        assert fermarsi.train(other).is_finished  # the same, and gone after it
    del other
    assert fermarsi.evaluate(tmp_path).split == "val"


def test_a_class_is_named_as_in_yaml_and_a_script_finds_the_run(tmp_path: Path) -> None:
    made = config(tmp_path, {"_target_": Net, "width": np.int64(5)})
    resolved = made.read()
    assert resolved.network == {"_target_": "tests.api.parts.Net", "width": 5}
    assert resolved.optimizer["_target_"] == "torch.optim.AdamW"
    outcome = fermarsi.train(made)
    assert fermarsi.evaluate(tmp_path, allow=["tests.api"]).values["loss"] == pytest.approx(
        outcome.best["value"] if outcome.best else None
    )


def test_mistakes_are_those_of_the_commands(tmp_path: Path) -> None:
    class Local(Net):
        pass

    for make, words in (
        (lambda: config(tmp_path, Local), "inside of a function"),
        (lambda: fermarsi.train(tmp_path / "no.yaml"), "cannot be read"),
        (lambda: fermarsi.train(config(tmp_path, Net), {"batch.size": 7}), "micro_size"),
        (lambda: fermarsi.train(config(tmp_path, Net, batch={"sise": 1})), "Did you mean"),
        (lambda: fermarsi.train(config(tmp_path, nn.Linear(4, 3))), "fails with a micro-batch"),
        (lambda: fermarsi.launch(config(tmp_path, Net()), processes=2), "Put the class into"),
        (
            lambda: fermarsi.launch(tmp_path / "no.yaml", processes=0),
            "processes: 0: give 1 or more",
        ),
        (lambda: fermarsi.read_run(tmp_path / "no"), "no config.yaml"),
        (lambda: fermarsi.Arrays(x=[1, 2], y=[1]), "all of one length"),
        (lambda: fermarsi.Arrays(x=[[1], [1, 2]]), "rows of one length"),
        (lambda: fermarsi.Arrays(x=torch.zeros(2, dtype=torch.bfloat16)), "a type of NumPy's"),
        (lambda: fermarsi.Arrays(x=[1, "a"]), "neither numbers nor texts"),
        (lambda: fermarsi.Arrays(x=np.array(["2026-01-31"], "M8[D]")), "neither numbers nor"),
        (lambda: fermarsi.Arrays(x=[1e300]), "too large for float32"),
    ):
        with pytest.raises(fermarsi.HarnessError, match=words):
            make()


def test_a_second_interrupt_is_an_exception_and_the_process_lives(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    more = {"stop.budget.steps": 100}
    with pytest.raises(KeyboardInterrupt):
        fermarsi.train(config(tmp_path, Impatient()), more)
    assert signal.getsignal(signal.SIGINT) is before
    assert fermarsi.train(config(tmp_path / "next", Net)).is_finished


def test_a_trained_network_is_let_go(tmp_path: Path) -> None:
    held: list[weakref.ref[nn.Module]] = []

    class Watched(Net):
        def __deepcopy__(self, memo: Any) -> "Watched":
            copied = Watched()
            held.append(weakref.ref(copied))
            return copied

    fermarsi.train(config(tmp_path, Watched()))
    assert [one() for one in held] == [None]


def test_a_model_predicts_arrays_frames_and_its_splits_by_name(tmp_path: Path) -> None:
    made = config(tmp_path, Net)
    fermarsi.train(made)
    model = fermarsi.load(tmp_path, device="cpu", allow=["tests.api"])
    own = model.predict()
    assert list(own.columns) == [
        "sample",
        "label",
        "predicted",
        *(f"probability_{i}" for i in range(3)),
    ]
    assert model.device.type == "cpu"
    with torch.no_grad():
        expected = model.network(torch.from_numpy(X[:20])).softmax(1).numpy()
    for inputs in (X[:20], {"x": torch.from_numpy(X[:20])}, X[:20].astype(np.float64)):
        found = model.predict(inputs)
        np.testing.assert_allclose(found.filter(like="probability"), expected, rtol=1e-6)
        assert "label" not in found
    with pytest.raises(fermarsi.HarnessError, match="reads no files"):
        model.predict(["a.png"])
    assert fermarsi.load(tmp_path, allow=["tests.api"]).evaluate().values["accuracy"] == (
        (own["predicted"] == own["label"]).mean()
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on dark and light pictures, in folders."""
    folder = tmp_path_factory.mktemp("pictures") / "all"
    for name, level in (("dark", 20), ("light", 200)):
        (folder / name).mkdir(parents=True)
        for number in range(8):
            picture = rng.integers(level, level + 40, (4, 4), np.uint8)
            Image.fromarray(picture).save(folder / name / f"{number}.png")
    files = {"files": f"{folder}/{{label}}/*.png", "on_error": "skip"}
    images = {"_target_": "harness.sources.images.Images", **files}
    treatments = [{"_target_": "harness.treatments.ToFloat", "key": "image"}]
    fermarsi.train(
        config(
            folder.parent / "run",
            {"_target_": "harness.networks.Mlp", "dims": [16, 8, 2]},
            data={name: {"source": images, "treatments": treatments} for name in ("train", "val")}
            | {"checks": CHECKS},
            task={**TASK, "input": "image"},
            stop={"every": {"steps": 8}, "budget": {"steps": 40}},
        )
    )
    return folder


def test_files_are_predicted_in_their_order_with_names_of_classes(pictures: Path) -> None:
    model = fermarsi.load(pictures.parent / "run", allow=[f"{pictures}/"])
    assert model.class_names == ("dark", "light")
    files = [pictures / "light" / "3.png", str(pictures / "dark" / "1.png")]
    table = model.predict(files)
    assert table["predicted"].tolist() == ["light", "dark"]
    assert [Path(path).name for path in table["path"]] == ["3.png", "1.png"]
    assert table[["probability_dark", "probability_light"]].sum(axis=1).tolist() == pytest.approx(
        [1, 1]
    )
    assert model.predict(files[0])["predicted"].tolist() == ["light"]


def test_files_that_are_skipped_are_told_and_the_others_keep_their_order(
    pictures: Path, tmp_path: Path
) -> None:
    """Known: predictions that belong to other files than those asked for (keras, many:
    flow_from_directory sorts, and passes over what it cannot read).
    """
    torn = tmp_path / "torn.png"
    torn.write_bytes(b"no picture")
    model = fermarsi.load(pictures.parent / "run", allow=[f"{pictures}/"])
    files = [pictures / "light" / "3.png", torn, pictures / "dark" / "1.png"]
    with pytest.warns(UserWarning, match=r"1 of 3 files skipped: .*torn\.png"):
        found = model.predict(files)
    assert found["predicted"].tolist() == ["light", "dark"]
    assert found["sample"].tolist() == [0, 1]


def test_rows_of_a_frame_are_predicted_as_those_of_the_table(tmp_path: Path) -> None:
    frame = pd.DataFrame(X, columns=[*"abcdef"]).assign(kind=[f"k{one}" for one in LABELS])
    frame.to_csv(tmp_path / "table.csv", index=False)
    table = {
        "_target_": "harness.sources.tables.Table",
        "files": str(tmp_path / "table.csv"),
        "features": [*"abcdef"],
        "columns": {"kind": "text"},
    }
    encode = {"_target_": "harness.treatments.Encode", "key": "kind"}
    split = {"source": table, "treatments": [encode]}
    fermarsi.train(
        config(
            tmp_path / "run",
            {"_target_": "harness.networks.Mlp", "dims": [6, 8, 3]},
            data={"train": split, "val": split, "checks": CHECKS},
            task={**TASK, "input": "features", "target": "kind"},
        )
    )
    model = fermarsi.load(tmp_path / "run", allow=[f"{tmp_path}/"])
    new = frame.drop(columns="kind").iloc[[5, 2, 9]]
    found, own = model.predict(new), model.predict()
    assert found.index.tolist() == [5, 2, 9]
    assert found["predicted"].tolist() == own["predicted"].iloc[[5, 2, 9]].tolist()
    pd.testing.assert_frame_equal(found[[*"abcdef"]], new.astype(float))
    assert set(found["predicted"]) <= {"k0", "k1", "k2"}
    assert model.predict(frame.iloc[:2])["kind"].tolist() == ["k0", "k1"]
    gap = new.assign(a=[0.5, np.nan, 0.5])
    with pytest.raises(fermarsi.DataError, match=r"^predict: the frame.* row 2.*'a'"):
        model.predict(gap)
    for wrong in (new.assign(note=[1, "a", 2]), pd.concat([new, new["a"]], axis=1)):
        with pytest.raises(fermarsi.ConfigError, match=r"frame is no table: .* under different"):
            model.predict(wrong)
    with pytest.raises(fermarsi.DataError, match=r"rejects its samples: IndexError: .* Give"):
        model.predict(frame["a"])
    for device in ("quux", "xpu"):
        with pytest.raises(fermarsi.ConfigError, match=f"device: {device} cannot be used here: "):
            fermarsi.load(tmp_path / "run", device=device)


def test_a_run_tells_its_metrics_verdicts_outcome_and_checkpoints(tmp_path: Path) -> None:
    outcome = fermarsi.train(config(tmp_path, Net))
    run = fermarsi.read_run(tmp_path)
    evaluated = run.metrics[run.metrics["kind"] == "eval"]
    assert evaluated.index.tolist() == [4, 8]
    assert outcome.best is not None
    assert evaluated["val/loss"].min() == outcome.best["value"]
    assert run.verdicts["action"].tolist() == ["go_on", "stop"]
    assert run.outcome == outcome
    assert [one["step"] for one in run.checkpoints][-1] == 8
    assert fermarsi.replay(tmp_path, overrides={"stop.budget.steps": 4}).stop_index == 0
    (ahead,) = fermarsi.forecast(tmp_path, metric="val/loss")
    assert ahead.words() == ("no forecast of val/loss: 2 of at least 6 evaluations are there")
    assert fermarsi.report(tmp_path).read_text().startswith("<!doctype html>")


@pytest.mark.torture
def test_several_processes_train_and_an_interrupt_saves(tmp_path: Path) -> None:
    digits = fermarsi.EXAMPLES / "digits.yaml"
    changes = {"run.dir": str(tmp_path), "stop.targets": {}, "stop.improvement": None}
    first = fermarsi.launch(digits, {**changes, "stop.budget.epochs": 2}, processes=2, cpu=True)
    assert (first.reason, first.world_size) == ("budget", 2)
    main = threading.get_ident()

    def interrupt() -> None:
        while fermarsi.read_run(tmp_path).metrics.index.max() < first.step + 20:
            time.sleep(0.05)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    second = fermarsi.launch(digits, {**changes, "stop.budget.epochs": 2000}, processes=2, cpu=True)
    thread.join()
    assert (second.reason, second.launches) == ("interrupted", 2)
    with pytest.raises(fermarsi.ConfigError, match="another training"):
        fermarsi.launch(digits, {**changes, "run.seed": 8}, processes=2, cpu=True)


@pytest.mark.torture
def test_a_launch_saves_and_ends_when_the_script_that_began_it_is_killed(tmp_path: Path) -> None:
    changes = {"run.dir": str(tmp_path / "run"), "stop.targets": {}, "stop.improvement": None}
    script = f"""if __name__ == "__main__":
    import fermarsi
    fermarsi.launch(fermarsi.EXAMPLES / "digits.yaml", {changes!r}, processes=2, cpu=True)
"""
    (tmp_path / "script.py").write_text(script)
    with open(tmp_path / "said.txt", "w") as said:
        process = subprocess.Popen(
            [sys.executable, tmp_path / "script.py"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=said,
            stderr=said,
        )
        with process:
            wait_for(lambda: list((tmp_path / "run").glob("checkpoints/step-*")))
            process.kill()
    wait_for((tmp_path / "run" / "outcome.json").exists)
    outcome = fermarsi.read_run(tmp_path / "run").outcome
    assert outcome is not None
    assert outcome.reason == "interrupted"


def wait_for(ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + 90
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)
