"""What a user can do wrong ends with exit code 2 and one message, on one rank, and nothing is
written over.
"""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from harness.checkpoint.read import list_checkpoints
from harness.rundir.lease import Lease
from tests.pool import Launched, command, train_on_ranks

STORM = Path(__file__).parents[1] / "resume" / "storm.yaml"
DIGITS = Path(__file__).parents[2] / "configs" / "digits.yaml"


def launch(
    directory: Path, *overrides: str, ranks: int = 1, config: Path = STORM
) -> list[Launched]:
    return train_on_ranks(ranks, config, [f"run.dir={directory}", *overrides])


def assert_refused(ends: Sequence[Launched], *words: str) -> None:
    """Exit code 2 everywhere, the message exactly once over all ranks, no traceback."""
    assert [one.exit_code for one in ends] == [2] * len(ends), ends
    told = [one.stderr for one in ends if one.stderr.strip()]
    assert len(told) == 1, told
    assert "Traceback" not in told[0]
    assert len(re.findall(r"^\w+Error: ", told[0], re.MULTILINE)) == 1
    for word in words:
        assert word in told[0]


def contents(directory: Path) -> dict[str, str]:
    """What must not change: everything but the lease."""
    paths = [
        path
        for path in sorted(directory.rglob("*"))
        if path.is_file() and "lease" not in path.parts
    ]
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trian.clip_grad_norm=1"], ["train"]),
        (["stop.budget.step=3"], ["stop.budget.step", "steps"]),
        (["network._target_=tests.resume.parts.Strom"], ["network", "Storm"]),
        (["network.hight=3"], ["network.hight", "width"]),
        (["optimizer.lr=fast"], ["optimizer"]),
        (["batch.micro_size=7"], ["batch", "24", "7"]),
        (["run.exactness=elastics"], ["run.exactness", "elastic"]),
        (["train.precision=fp16"], ["train.precision", "CUDA"]),
        (["stop.improvement.metric=val/acuracy"], ["val/acuracy", "val/accuracy"]),
        (["stop.improvement=null", "stop.budget=null"], ["stop", "budget"]),
        (["data.train.source.count=0"], ["data.train.source", "empty"]),
        (["run.resume=must"], ["run.resume"]),
        (["run.init_from=/nowhere.safetensors"], ["/nowhere.safetensors"]),
        (["task.target=lable"], ["lable", "label"]),
        (["task.input=y"], ["y"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and "=" in value[0] else "",
)
def test_a_mistake_in_the_config_or_the_data(
    tmp_path: Path, overrides: list[str], words: list[str]
) -> None:
    assert_refused(launch(tmp_path / "run", *overrides), *words)


def test_on_two_ranks_the_message_comes_once(tmp_path: Path) -> None:
    assert_refused(launch(tmp_path / "run", "network.hight=3", ranks=2), "network.hight")
    assert_refused(launch(tmp_path / "run", "data.train.source.count=0", ranks=2), "empty")


def test_a_missing_config(tmp_path: Path) -> None:
    assert_refused(
        launch(tmp_path / "run", config=tmp_path / "none.yaml"), "none.yaml", "No such file"
    )


def test_a_missing_data_file(tmp_path: Path) -> None:
    source = (
        "data.train.source={_target_: harness.sources.idx.Idx, images: /nowhere/images, labels: "
        "/nowhere/labels}"
    )
    assert_refused(
        launch(tmp_path / "run", source, config=DIGITS), "data.train.source", "/nowhere/images"
    )


def test_labels_that_the_network_has_no_output_for(tmp_path: Path) -> None:
    assert_refused(
        launch(tmp_path / "run", "network.dims=[64, 16, 5]", ranks=2, config=DIGITS),
        "data.train",
        "label",
        "0 … 4",
    )


def test_slots_that_the_ranks_cannot_share(tmp_path: Path) -> None:
    assert_refused(
        launch(tmp_path / "run", "batch.size=8", ranks=3), "batch: 4 slots", "1, 2, 4 processes"
    )


def test_a_run_directory_that_belongs_to_another_training_stays_as_it_is(tmp_path: Path) -> None:
    assert launch(tmp_path / "run", "stop.budget.steps=7")[0].exit_code == 0
    before = contents(tmp_path / "run")
    changed = [
        "run.seed=12",
        "network.width=300",
        "batch.micro_size=4",
        "data.train.source.count=100",
        "optimizer._target_=torch.optim.SGD",
    ]
    named = [
        "run.seed: 11 -> 12",
        "network.width",
        "batch.micro_size",
        "data.train.source.count",
        "optimizer._target_",
    ]
    assert_refused(launch(tmp_path / "run", *changed), *named)
    assert contents(tmp_path / "run") == before
    assert_refused(
        launch(tmp_path / "run", "run.resume=never"), "run.resume is never", "run.overwrite"
    )
    assert contents(tmp_path / "run") == before


def test_what_does_not_identify_a_run_may_change(tmp_path: Path) -> None:
    free = ["schedule=null"]
    assert launch(tmp_path / "run", *free, "stop.budget.steps=7")[0].exit_code == 0
    more = [
        "stop.budget.steps=9",
        "log.every.steps=1",
        "optimizer.lr=2e-3",
        "stop.targets={accuracy: {at_least: 0.999}}",
    ]
    ends = launch(tmp_path / "run", *free, *more, ranks=2)
    assert [one.exit_code for one in ends] == [0, 0]
    rates = [
        json.loads(line).get("lr")
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [rate for rate in rates if rate is not None][-1] == 2e-3


def test_a_change_that_a_schedules_state_would_swallow(tmp_path: Path) -> None:
    assert launch(tmp_path / "run", "stop.budget.steps=7")[0].exit_code == 0
    assert_refused(
        launch(tmp_path / "run", "schedule.T_max=80"), "schedule changed", "harness.schedules"
    )
    assert_refused(launch(tmp_path / "run", "optimizer.lr=2e-3"), "optimizer.lr changed")
    ours = "schedule={_target_: harness.schedules.WarmupCosine, total_steps: 40}"
    assert launch(tmp_path / "other", "stop.budget.steps=7", ours)[0].exit_code == 0
    assert (
        launch(tmp_path / "other", "stop.budget.steps=9", ours.replace("40", "80"))[0].exit_code
        == 0
    )


def test_overwriting_moves_the_earlier_run_aside(tmp_path: Path) -> None:
    assert launch(tmp_path / "run", "stop.budget.steps=7")[0].exit_code == 0
    before = contents(tmp_path / "run")
    ends = launch(
        tmp_path / "run",
        "stop.budget.steps=7",
        "run.resume=never",
        "run.overwrite=true",
        "run.seed=12",
    )
    assert ends[0].exit_code == 0, ends[0].stderr
    assert contents(tmp_path / "run" / "superseded-1") == before


def test_a_second_launch_on_one_run_directory(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    lease = Lease(tmp_path / "run")
    lease.take()
    try:
        assert_refused(launch(tmp_path / "run"), f"process {os.getpid()}", "choose another run.dir")
    finally:
        lease.release()


def test_a_run_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_refused(launch(tmp_path / "file" / "run"), str(tmp_path / "file"), "run.dir")


def test_checkpoints_of_which_none_is_valid_are_not_started_over(tmp_path: Path) -> None:
    assert launch(tmp_path / "run", "stop.budget.steps=7")[0].exit_code == 0
    for manifest in (tmp_path / "run" / "checkpoints").glob("step-*/manifest.json"):
        manifest.write_text("{}")
    before = contents(tmp_path / "run")
    assert_refused(launch(tmp_path / "run"), "none is valid")
    assert contents(tmp_path / "run") == before


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path: Path) -> None:
    assert launch(tmp_path / "run", "stop.budget.steps=14")[0].exit_code == 0
    shard = next((tmp_path / "run" / "checkpoints" / "step-00000014").glob("model-*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    (end,) = launch(tmp_path / "run", "stop.budget.steps=16")
    assert end.exit_code == 0
    assert "step-00000014: skipped, not valid" in end.stdout
    assert "going on from step-00000012" in end.stdout  # the best one


# -- disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system of its own, mounted with the options given."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"this user may not mount: {done.stderr.strip()}")
        return place

    yield mount
    subprocess.run(["umount", "--lazy", str(place)], capture_output=True, check=False)


def test_a_run_directory_on_a_read_only_disk(disk: Callable[[str], Path]) -> None:
    assert_refused(
        launch(disk("ro") / "run", ranks=2),
        "Read-only file system",
        "Make the run directory writable",
    )


def test_a_run_directory_on_a_full_disk(disk: Callable[[str], Path]) -> None:
    place = disk("size=64k")
    (place / "rest").write_bytes(b"x" * 65536)
    assert_refused(
        launch(place / "run", ranks=2), "No space left on device", "choose another run.dir"
    )


def test_a_disk_that_is_too_small_for_a_checkpoint(disk: Callable[[str], Path]) -> None:
    place = disk("size=4m")
    ends = launch(place / "run", "checkpoint.max_failures=1", "stop.budget.steps=9", ranks=2)
    assert_refused(ends, "MB free and", "MB needed", "checkpoint.max_failures: 1")
    assert "training continues" in ends[0].stdout


# -- other processes, other machines


def test_another_number_of_processes_after_a_requeue(tmp_path: Path) -> None:
    assert launch(tmp_path / "run", "stop.budget.steps=7", ranks=2)[0].exit_code == 0
    before = contents(tmp_path / "run" / "checkpoints")
    refused = launch(tmp_path / "run", ranks=5)
    assert_refused(refused, "batch: 12 slots", "1, 2, 3, 4, 6, 12 processes")
    assert contents(tmp_path / "run" / "checkpoints") == before
    assert [one.exit_code for one in launch(tmp_path / "run", "stop.budget.steps=9", ranks=3)] == [
        0
    ] * 3


def test_processes_that_cannot_meet_leave_in_time_and_say_where_they_looked(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for environment, words in (
            ({"MASTER_PORT": port}, f"could not meet at 127.0.0.1:{port}"),
            ({"MASTER_ADDR": "no-such-host.invalid"}, "could not meet at no-such-host.invalid:"),
        ):
            began = time.monotonic()
            # Rank 0 keeps the store, as without an agent
            env = {"TORCHELASTIC_USE_AGENT_STORE": "False", **environment}
            ends = train_on_ranks(
                2, STORM, [f"run.dir={tmp_path / 'run'}", "run.timeout_s=3"], env=env
            )
            assert time.monotonic() - began < 25
            assert [one.exit_code for one in ends] == [1, 1]
            for rank, end in enumerate(ends):
                assert (
                    f"RankError: rank {rank}, before the first step: the 2 processes of this "
                    f"launch {words}" in end.stderr
                )
                assert "Traceback" not in end.stderr


def test_a_process_that_hangs_is_given_up_and_named(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def stop_one(pids: Sequence[int]) -> None:
        deadline = time.monotonic() + 60
        while not list(run.glob("checkpoints/step-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(pids[1], signal.SIGSTOP)
        while Path(f"/proc/{pids[0]}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(pids[1], signal.SIGKILL)

    limits = ["run.timeout_s=2", "checkpoint.timeout_s=2", "stop.budget.steps=100000"]
    first, second = train_on_ranks(2, STORM, [f"run.dir={run}", *limits], meanwhile=stop_one)
    assert (first.exit_code, second.exit_code) == (1, -9)
    assert re.search(
        r"^RankError: rank 0, step \d+: lost rank 1 \(.*[Tt]ime(d |)out",  # gloo has words for both
        first.stderr,
        re.MULTILINE,
    ), first.stderr


def test_clocks_an_hour_apart_decide_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert launch(run, "stop.budget.steps=14")[0].exit_code == 0
    ledger = json.loads((run / "ledger.json").read_text())
    # Written where it is an hour later
    (run / "ledger.json").write_text(json.dumps({**ledger, "wall_s": ledger["wall_s"] + 3600}))
    oldest, *_ = list_checkpoints(run / "checkpoints")
    for path in (oldest.path, *oldest.path.iterdir(), *(run / "lease").iterdir()):
        os.utime(path, (time.time() + 3600,) * 2)
    (end,) = launch(run, "stop.budget.steps=16")
    assert end.exit_code == 0
    assert "going on from step-00000014" in end.stdout
    assert json.loads((run / "outcome.json").read_text())["time"]["idle_s"] == 0


def test_the_status_of_a_run_while_it_goes_on_and_after_it_was_killed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    seen: list[Launched] = []

    def look(pids: Sequence[int]) -> None:
        deadline = time.monotonic() + 60
        while not list(run.glob("checkpoints/step-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        seen.append(command("status", run, "--json"))
        os.kill(pids[0], signal.SIGKILL)

    train_on_ranks(1, STORM, [f"run.dir={run}", "stop.budget.steps=100000"], meanwhile=look)
    seen.append(command("status", run, "--json"))
    assert [(json.loads(one.stdout)["state"], one.exit_code) for one in seen] == [
        ("running", 1),
        ("crashed", 1),
    ]
    assert re.search(r"step \d+ crashed; launch it again", json.loads(seen[1].stdout)["text"])


@pytest.mark.torture
def test_the_lease_of_a_machine_that_died(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert launch(run, "stop.budget.steps=7")[0].exit_code == 0
    (held,) = (run / "lease").iterdir()
    held.write_text(
        json.dumps(
            {
                **json.loads(held.read_text()),
                "released": False,
                "machine": "another",
                "host": "node-7",
            }
        )
    )
    assert "crashed elsewhere" in command("status", run).stdout or (run / "outcome.json").exists()
    began = time.monotonic()
    ends = launch(run, "stop.budget.steps=9", ranks=2)
    assert [one.exit_code for one in ends] == [0, 0]
    assert "took over from launch 1 (node-7, process" in ends[0].stdout
    assert 25 < time.monotonic() - began < 60
