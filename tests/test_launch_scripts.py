"""launch/ and docker/: read by the tools made for it, and the scripts run with a stand-in for the
training that tells what it was given.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.rundir.outcome import INTERRUPTED

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
TOOLS = Path(sys.executable).parent
YAML_RULES = (
    "{extends: default, rules: {document-start: disable, line-length: {max: 160}, comments: "
    "{min-spaces-from-content: 1}}}"
)
STAND_IN = """
import json, os, signal, sys, time
names = ["RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "ACCELERATE_USE_CPU"]
names += ["ACCELERATE_MIXED_PRECISION"]
if os.environ.get("WORLD_SIZE") is None:
    names += ["NCCL_DEBUG", "PET_SHUTDOWN_TIMEOUT", "PET_SIGNALS_TO_HANDLE"]
place = {name: os.environ.get(name) for name in names}
if os.environ.get("ACT") == "wait":
    told = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: told.append(signal.Signals(number).name))
    open(f"ready-{place['RANK']}", "w").close()
    deadline = time.monotonic() + 60
    while not told and time.monotonic() < deadline:
        time.sleep(0.02)
    place["told"] = told
with open(f"told-{place['RANK']}.json", "w") as file:
    json.dump({"arguments": sys.argv, "place": place}, file)
if not os.environ.get("ACT") and place["RANK"] in (None, "0"):
    fields = "reason detail step epoch samples world_size launches best checkpoint exact".split()
    outcome = dict(zip(fields, ["budget", "spent", 1, 1.0, 8, 1, 1, None, None, True]))
    named = [one[9:] for one in sys.argv if one.startswith("run.name=")]
    run = os.path.join("runs", *(named or ["digits"]))
    os.makedirs(run, exist_ok=True)
    with open(os.path.join(run, "outcome.json"), "w") as file:
        json.dump({**outcome, "exact_reason": "", "time": {}}, file)
sys.exit(3 if os.environ.get("ACT") == "fail" else 0)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout without .venv, at a path with spaces."""
    root = tmp_path / "my work" / "a checkout"
    shutil.copytree(LAUNCH, root / "launch")
    shutil.copytree(ROOT / "harness", root / "harness")
    (root / "harness" / "train.py").write_text(STAND_IN)
    return root


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """The working directory of the one who launches."""
    directory = tmp_path / "else where"
    directory.mkdir()
    for name in ("a config.yaml", "c.yaml"):
        shutil.copy(ROOT / "configs" / "digits.yaml", directory / name)
    return directory


def start(
    script: Path, *arguments: str, directory: Path, **environment: str
) -> subprocess.Popen[str]:
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("OMP_NUM_THREADS", "ACCELERATE_USE_CPU")
    }
    env["PATH"] = f"{TOOLS}:{env['PATH']}"
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [str(script), *arguments], cwd=directory, env=env | environment, **pipes
    )


def run(script: Path, *arguments: str, directory: Path, **environment: str) -> "tuple[int, str]":
    process = start(script, *arguments, directory=directory, **environment)
    _, errors = process.communicate(timeout=240)
    return process.returncode, errors


def told(directory: Path) -> list[dict[str, Any]]:
    """What each process was given, by rank; one process alone has no rank."""
    return [json.loads(path.read_text()) for path in sorted(directory.glob("told-*.json"))]


def test_two_processes_on_the_cpu_share_its_cores(checkout: Path, elsewhere: Path) -> None:
    code, errors = run(
        checkout / "launch" / "cpu.sh",
        "2",
        "a config.yaml",
        "run.name=two words",
        directory=elsewhere,
    )
    assert code == 0, errors
    first, second = told(elsewhere)
    assert (
        first["arguments"]
        == second["arguments"]
        == [str(checkout / "harness" / "train.py"), "a config.yaml", "run.name=two words"]
    )
    threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
    common = {
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": threads,
        "ACCELERATE_USE_CPU": "true",
        "ACCELERATE_MIXED_PRECISION": "no",
    }
    assert [one["place"] for one in (first, second)] == [
        {"RANK": "0", **common},
        {"RANK": "1", **common},
    ]
    assert "default" not in errors  # nothing was guessed, no config of the user's was read


def test_one_process_needs_no_launcher_and_keeps_its_exit_code(
    checkout: Path, elsewhere: Path
) -> None:
    code, _ = run(
        checkout / "launch" / "cpu.sh",
        "1",
        "c.yaml",
        directory=elsewhere,
        OMP_NUM_THREADS="7",
        ACT="fail",
    )
    assert code == 3
    (alone,) = told(elsewhere)
    assert (
        alone["place"].items()
        >= {
            "RANK": None,
            "WORLD_SIZE": None,
            "OMP_NUM_THREADS": "7",
            "ACCELERATE_USE_CPU": "true",
            "ACCELERATE_MIXED_PRECISION": None,
        }.items()
    )


def test_a_link_to_a_script_finds_its_checkout(checkout: Path, elsewhere: Path) -> None:
    (elsewhere / "train-here").symlink_to(checkout / "launch" / "cpu.sh")
    code, errors = run(elsewhere / "train-here", "1", "c.yaml", directory=elsewhere)
    assert code == 0, errors
    assert told(elsewhere)[0]["arguments"][0] == str(checkout / "harness" / "train.py")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_script_reaches_every_process(
    checkout: Path, elsewhere: Path, number: signal.Signals
) -> None:
    process = start(checkout / "launch" / "cpu.sh", "2", "c.yaml", directory=elsewhere, ACT="wait")
    deadline = time.monotonic() + 120
    while len(list(elsewhere.glob("ready-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert [one["place"]["told"] for one in told(elsewhere)] == [[number.name]] * 2


def test_several_machines_meet(checkout: Path, elsewhere: Path) -> None:
    script = checkout / "launch" / "multinode.sh"
    environment = {"PER_NODE": "1", "ACCELERATE_USE_CPU": "true"}
    nodes = [
        start(
            script,
            str(node),
            "2",
            f"127.0.0.1:{29400 + os.getpid() % 1000}",
            "c.yaml",
            directory=elsewhere,
            **environment,
        )
        for node in range(2)
    ]
    for node in nodes:
        _, errors = node.communicate(timeout=240)
        assert node.returncode == 0, errors
    assert [one["place"]["WORLD_SIZE"] for one in told(elsewhere)] == ["2", "2"]


def test_one_machine_is_a_number_of_machines_too(checkout: Path, elsewhere: Path) -> None:
    script = checkout / "launch" / "multinode.sh"
    code, errors = run(
        script,
        "0",
        "1",
        "head",
        "c.yaml",
        directory=elsewhere,
        PER_NODE="2",
        ACCELERATE_USE_CPU="true",
    )
    assert code == 0, errors
    assert [one["place"]["WORLD_SIZE"] for one in told(elsewhere)] == ["2", "2"]
    alone = {"PER_NODE": "1", "ACCELERATE_USE_CPU": "true", "ACT": "fail"}
    code, _ = run(script, "0", "1", "head", "c.yaml", directory=elsewhere, **alone)
    assert code == 3


OUTCOME = """
import json, sys
fields = "reason detail step epoch samples world_size launches best checkpoint exact".split()
outcome = dict(zip(fields, [None, None, 1, 1.0, 8, 1, 1, None, None, True]))
outcome |= {"reason": sys.argv[1], "detail": sys.argv[2], "exact_reason": "", "time": {}}
json.dump(outcome, open("run/outcome.json", "w"))
"""
WAITS = "trap 'exit 9' USR1; touch ready; while :; do sleep 0.05; done"


@pytest.mark.parametrize(
    ("before", "launcher", "expected"),
    [
        ("", "begins; says targets_reached now", 0),
        ("", "begins; says interrupted now", 75),
        # The launcher's code when a signal came to it
        ("", "begins; says interrupted now; exit 1", 75),
        ("", "begins; exit 1", 1),
        ("", "exit 2", 2),
        ("", "exit 0", 75),  # interrupted before it could begin, under torch's agent
        ("", "exit 75", 75),  # the same, without
        ("interrupted", "begins; exit 1", 1),
        ("interrupted", "exit 1", 1),  # crashed before it took the old outcome away
        ("targets_reached", "exit 0", 0),
    ],
)
def test_the_exit_code_is_the_runs_not_the_launchers(
    elsewhere: Path, before: str, launcher: str, expected: int
) -> None:
    (elsewhere / "outcome.py").write_text(OUTCOME)
    words = (
        f"begins() {{ mkdir -p run; touch run/config.yaml; rm -f run/outcome.json; }}; says() {{ "
        f"'{sys.executable}' outcome.py $1 $2; }}; "
    )
    if before:
        subprocess.run(
            ["bash", "-c", f"{words} begins; says {before} earlier"], cwd=elsewhere, check=True
        )
    code, errors = run(
        LAUNCH / "attend.sh", "run", "bash", "-c", words + launcher, directory=elsewhere
    )
    assert code == expected, errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_request_to_leave_reaches_the_run_as_a_signal_and_as_a_file(
    elsewhere: Path, number: signal.Signals
) -> None:
    (elsewhere / "run").mkdir()
    process = start(LAUNCH / "attend.sh", "run", "bash", "-c", WAITS, directory=elsewhere)
    deadline = time.monotonic() + 60
    while not (elsewhere / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 75  # though there was nothing to save yet
    assert (elsewhere / "run" / "PREEMPT").exists()


def test_what_is_set_already_is_kept(checkout: Path, elsewhere: Path) -> None:
    environment = {"NCCL_DEBUG": "INFO", "PET_SHUTDOWN_TIMEOUT": "110"}
    script = checkout / "launch" / "cpu.sh"
    code, errors = run(script, "1", "c.yaml", directory=elsewhere, **environment)
    assert code == 0, errors
    (alone,) = told(elsewhere)
    assert alone["place"]["NCCL_DEBUG"] == "INFO"
    assert alone["place"]["PET_SHUTDOWN_TIMEOUT"] == "110"
    assert alone["place"]["PET_SIGNALS_TO_HANDLE"].endswith(",SIGUSR1")


@pytest.mark.parametrize(
    "command",
    [
        [
            "shellcheck",
            ".ci/run",
            "launch/slurm.sbatch",
            *(str(path) for place in ("launch", "docker") for path in (ROOT / place).glob("*.sh")),
        ],
        ["hadolint", "docker/Dockerfile"],
        ["yamllint", "--strict", "--config-data", YAML_RULES, "launch", "docker"],
        [
            "kubernetes-validate",
            "--strict",
            "--kubernetes-version",
            "1.31.0",
            "launch/kubernetes.yaml",
        ],
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker/compose.yaml"],
    ],
    ids=lambda command: command[0],
)
def test_the_tools_made_for_it_find_nothing(command: list[str]) -> None:
    if not (TOOLS / command[0]).exists():
        pytest.skip(f"needs {command[0]}: make setup")
    done = subprocess.run(
        [str(TOOLS / command[0]), *command[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_slurm_finds_the_run_directory(elsewhere: Path) -> None:
    """By the Python within the script, whose names nothing else uses."""
    python = (LAUNCH / "slurm.sbatch").read_text().split("<<'PYTHON'\n")[1].split("PYTHON\n")[0]
    found = [
        subprocess.run(
            [sys.executable, "-", "c.yaml", *overrides],
            input=python,
            cwd=elsewhere,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        for overrides in (["run.dir=a b", "optimizer.lr=1"], ["run.nmae=x"])
    ]
    assert (found[0].returncode, found[0].stdout) == (0, "a b\n"), found[0].stderr
    assert found[1].returncode == 2
    assert found[1].stderr.startswith("ConfigError: ")


def test_kubernetes_takes_each_exit_code_for_what_it_means() -> None:
    service, config, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    actions = {
        code: rule["action"]
        for rule in spec["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", [])
    }
    assert actions == {INTERRUPTED: "Ignore", 2: "FailJob"}
    assert {
        rule["onExitCodes"]["containerName"]
        for rule in spec["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    } == {container["name"]}
    nodes = {one["name"]: one.get("value") for one in container["env"]}["NODES"]
    assert spec["completions"] == spec["parallelism"] == int(nodes)
    name = job["metadata"]["name"]
    # The first pod, by the headless service's name
    assert f"{name}-0.{pod['subdomain']}:29400" in container["args"]
    assert (service["metadata"]["name"], service["spec"]["selector"]) == (
        pod["subdomain"],
        {"job-name": name},
    )
    assert yaml.safe_load(config["data"]["training.yaml"])["run"]["dir"] == container["args"][1]
    grace = int({one["name"]: one.get("value") for one in container["env"]}["PET_SHUTDOWN_TIMEOUT"])
    assert grace < pod["terminationGracePeriodSeconds"]
    assert all(
        (ROOT / argument).exists()
        for argument in container["args"]
        if argument.startswith("launch/")
    )


def test_skypilot_is_given_no_key_that_it_does_not_know() -> None:
    # By SkyPilot 0.14's schema (sky/utils/schemas.py), too large a package to be installed for
    # this.
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task.keys() <= {
        "name",
        "workdir",
        "num_nodes",
        "resources",
        "file_mounts",
        "volumes",
        "envs",
        "secrets",
        "setup",
        "run",
    }
    assert task["resources"].keys() <= {
        "infra",
        "accelerators",
        "cpus",
        "memory",
        "use_spot",
        "disk_size",
        "image_id",
        "job_recovery",
        "any_of",
    }
    assert task["resources"]["job_recovery"] == {
        "max_restarts_on_errors": 2,
        "recover_on_exit_codes": [INTERRUPTED],
    }
    assert all(isinstance(value, str) for value in task["envs"].values())
    checked = subprocess.run(
        ["bash", "-n"], input=task["setup"] + task["run"], text=True, check=False
    )
    assert checked.returncode == 0


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("attend.sh", ["run"]),
        ("cpu.sh", []),
        ("cpu.sh", ["2"]),
        ("cpu.sh", ["0", "c.yaml"]),
        ("cpu.sh", ["c.yaml", "2"]),
        ("gpu.sh", []),
        ("multinode.sh", ["0", "2", "head"]),
        ("multinode.sh", ["2", "2", "head", "c.yaml"]),
    ],
)
def test_mistaken_arguments_are_answered_with_the_usage(
    script: str, arguments: list[str], elsewhere: Path
) -> None:
    code, errors = run(LAUNCH / script, *arguments, directory=elsewhere)
    assert code == 2
    assert f"launch/{script} " in errors
    assert "set -euo" not in errors


def test_no_gpu_is_said_in_one_line(checkout: Path, elsewhere: Path) -> None:
    code, errors = run(
        checkout / "launch" / "gpu.sh", "c.yaml", directory=elsewhere, CUDA_VISIBLE_DEVICES=""
    )
    assert code == 2
    assert errors.count("\n") == 1
    assert "torch sees no GPU here" in errors
