"""A notebook, executed as Jupyter does."""

import os
import runpy
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]

CELLS = [
    """
import os, signal, sys, threading, time
import numpy as np
import fermarsi
assert "torch" not in sys.modules
WIDTH = 16
""",
    """
from torch import nn

LAYERS = [nn.ReLU]

def body(width):
    return nn.Sequential(nn.Linear(6, width), *(layer() for layer in LAYERS))

class Net(nn.Module):
    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.body, self.head = body(WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x):
        return self.head(self.body(x))
""",
    """
draw = np.random.default_rng(3)
label = np.arange(96) % 3
x = draw.normal(size=(96, 6)) + label[:, None]

class Own:
    # In a data worker, too: Lightning-AI/pytorch-lightning#10511
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"x": x[index].astype(np.float32), "label": label[index]}

def config(network):
    return fermarsi.Config(
        run={"dir": "run"},
        data={
            "train": {"source": fermarsi.Arrays(x=x, label=label)},
            "val": {"source": {"_target_": Own, "count": 30}},
            "num_workers": 1,
            "checks": {"duplicates": "off", "overlaps": "off"},
        },
        network=network,
        task={"_target_": "harness.tasks.Classification", "input": "x", "target": "label"},
        batch={"size": 8, "micro_size": 4},
        optimizer={"_target_": "torch.optim.AdamW", "lr": 1e-2},
        stop={"every": {"steps": 8}, "budget": {"steps": 4000}},
        log={"every": {"steps": 2}},
    )

def interrupt():
    written = "run/metrics.jsonl"
    while not os.path.exists(written) or fermarsi.read_run("run").metrics.index.max() < 16:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt).start()
outcome = fermarsi.train(config({"_target_": Net, "rate": 0.5}))
print(outcome.reason, outcome.is_finished)
""",
    """
changes = {"stop.budget.steps": outcome.step + 8}
more = fermarsi.train(config({"_target_": Net, "rate": 0.5}), changes)
print(more.reason, more.launches, more.exact)
""",
    """
table = fermarsi.load("run").predict({"x": x[:4]})
print(list(table.columns), len(table))
""",
    # What the class uses has changed, not its own text
    """
WIDTH = 17
try:
    fermarsi.train(config({"_target_": Net, "rate": 0.5}), {"stop.budget.steps": 5000})
except fermarsi.ConfigError as error:
    print("refused:", error)
WIDTH = 16
""",
    """
LAYERS.append(nn.Tanh)
""",
    """
try:
    fermarsi.train(config({"_target_": Net, "rate": 0.5}), {"stop.budget.steps": 5000})
except fermarsi.ConfigError as error:
    print("refused:", error)
""",
    """
LAYERS = [nn.ReLU]

class Net(Net.__bases__[0]):
    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.body, self.head = body(WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x):
        return self.head(self.body(x).tanh())

try:
    fermarsi.load("run")
except fermarsi.ConfigError as error:
    print("refused:", error)
""",
]


CONSTANTS = """
from harness.data.notebook import digest_of

class Stage:
    pass

WIDTHS, STAGES = (8, (16, int)), (Stage(), 2)

def network():
    return WIDTHS, STAGES

digests, kept = [digest_of(network)], STAGES
STAGES = (Stage(), 2)  # as in another process
digests.append(digest_of(network))
WIDTHS = (8, (16, float))
digests.append(digest_of(network))
"""


def test_the_code_of_a_function_does_not_depend_on_where_objects_lie(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(CONSTANTS)
    first, again, other = runpy.run_path(str(tmp_path / "script.py"), run_name="__main__")[
        "digests"
    ]
    assert first == again != other


SETTING = """
from harness.data.notebook import digest_of
import own, numpy as np
from dataclasses import dataclass
if __name__ == "__main__":
    SEEN, mean = [], np.array([0.5, 0.25])
    epochs = [3]

@dataclass
class Size:
    height: int = 2

SIZES = {"a": [1, 2]}
SIZES["b"] = 3
for count in range(2):
    SIZES.setdefault(count, count)
Layer = own.Layer

def scale():
    return 2 * mean

def network():
    SEEN.append(1)
    return SEEN, SIZES, [count for count in mean], scale(), own.HEIGHT, Layer, np.pi, Size()

digest = digest_of(network)
"""
SAME = {
    "a call, which fills its cache": [("digest =", "network()\ndigest =")],
    "a comprehension's variable": [("import own", "other = [mean for mean in (1, 2)]\nimport own")],
    "a value that is looked at": [("Layer =", "mean.max(), SIZES.get(1)\nLayer =")],
    "a comment": [("SIZES =", "# of layers\nSIZES =")],
    "a value that is replaced": [("SIZES =", "SIZES = {}\nSIZES =")],
    "another statement below the same condition": [("[3]", "[4]")],
}
OTHER = {
    "a list in a dictionary": [("[1, 2]", "[1, 3]")],
    "an array, through a function": [("0.25", "0.75")],
    "a class without methods": [("int = 2", "int = 3")],
    "an item": [('["b"] = 3', '["b"] = 4')],
    "a loop": [("range(2)", "range(3)")],
    "what changes a value": [("Layer =", "mean = mean / 2\nLayer =")],
    "what that changes": [("Layer =", "mean /= 2\nLayer =")],
}


def digest_in(folder: Path, text: str) -> str:
    (folder / "script.py").write_text(text)
    sys.modules.pop("own", None)
    return str(runpy.run_path(str(folder / "script.py"), run_name="__main__")["digest"])


def test_values_of_a_script_count_by_the_statements_that_set_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own.py").write_text("HEIGHT = [2]\nclass Layer:\n    pass\n")
    first = digest_in(tmp_path, SETTING)
    for kind, edits in {**SAME, **OTHER}.items():
        text = SETTING
        for before, after in edits:
            assert before in text
            text = text.replace(before, after)
        assert (digest_in(tmp_path, text) == first) == (kind in SAME), kind
    (tmp_path / "own.py").write_text("HEIGHT = [3]\nclass Layer:\n    pass\n")
    assert digest_in(tmp_path, SETTING) != first


@pytest.mark.filterwarnings("ignore")  # of zmq and asyncio, which are the client's
def test_a_notebook_trains_its_own_class_goes_on_and_predicts(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in CELLS]
    )
    client = NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    here = {name: value for name, value in os.environ.items() if name != "CI"}
    client.execute(env={**here, "PYTHONPATH": str(ROOT)})
    printed = [
        "".join(output.get("text", "") for output in cell.outputs) for cell in notebook.cells
    ]
    assert "interrupted False" in printed[2]
    assert "budget 2 True" in printed[3]
    assert "'predicted', 'probability_0', 'probability_1', 'probability_2'] 4" in printed[4]
    assert "network._source_: 'code" in printed[5]
    assert "network._source_: 'code" in printed[7]
    assert "the code of __main__.Net is code" in printed[8]
    assert any(
        output.get("data", {}).keys() & {"application/vnd.jupyter.widget-view+json", "text/html"}
        for output in notebook.cells[2].outputs
    )
