"""A notebook, executed as Jupyter does."""

import os
import runpy
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

def body(width):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU())

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
    assert "the code of __main__.Net is code" in printed[6]
    assert any(
        output.get("data", {}).keys() & {"application/vnd.jupyter.widget-view+json", "text/html"}
        for output in notebook.cells[2].outputs
    )
