"""The wheel, installed into an empty environment and used outside of the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[2]
TRAIN = """
import fermarsi, harness
from pathlib import Path
assert all(Path(one.__file__).is_relative_to("{there}") for one in (fermarsi, harness))
changes = {{"stop.targets": {{}}, "stop.budget.epochs": 1}}
outcome = fermarsi.train(fermarsi.EXAMPLES / "digits.yaml", changes)
print(outcome.reason, len(fermarsi.load("runs/digits").predict()))
"""


def test_a_wheel_trains_from_its_own_examples_outside_of_the_checkout(tmp_path: Path) -> None:
    checkout, there = tmp_path / "checkout", tmp_path / "there"
    checkout.mkdir()
    for name in ("harness", "fermarsi", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)

    def run(*command: str | Path, cwd: Path = checkout) -> str:
        hidden = ("PYTHONPATH", "VIRTUAL_ENV")
        env = {name: value for name, value in os.environ.items() if name not in hidden}
        done = subprocess.run(
            [str(one) for one in command],
            cwd=cwd,
            env=env | {"ACCELERATE_USE_CPU": "true"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", there)
    (wheel,) = there.glob("*.whl")
    names = ZipFile(wheel).namelist()
    for folder, configs in (("fermarsi", "fermarsi/configs/digits.yaml"), ("harness", "")):
        assert {f"{folder}/py.typed", configs or f"{folder}/cli.py"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "docs/"))]
    venv.create(there / "venv", symlinks=True)
    packages = next((there / "venv").glob("lib/python*/site-packages"))
    ZipFile(wheel).extractall(packages)
    # The dependencies, without the editable installation beside them
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    python = there / "venv" / "bin" / "python"
    command, example = "from harness.cli import main; main()", "fermarsi/configs/digits.yaml"
    assert "seed: 7" in run(python, "-c", command, "config", packages / example, cwd=there)
    assert run(python, "-c", TRAIN.format(there=there), cwd=there).endswith("budget 357\n")
    assert (there / "runs" / "digits" / "outcome.json").exists()
