"""Signals as a flag."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import LeavingError
from harness.interrupt import SIGNALS, Interruption, ignore_signals
from tests.pool import on_ranks


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_sets_the_flag_and_nothing_else(number: signal.Signals) -> None:
    with Interruption() as interruption:
        assert interruption.cause is None
        send(number)
        assert interruption.cause == f"{number.name} came"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_schedulers_may_send_a_signal_twice(number: signal.Signals) -> None:
    with Interruption() as interruption:
        send(number)
        send(number)
        assert interruption.cause == f"{number.name} came"


def test_a_second_ctrl_c_means_now() -> None:
    with Interruption() as interruption:
        send(signal.SIGINT)
        assert interruption.cause == "SIGINT came"
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_the_handlers_from_before_are_put_back_whatever_happened() -> None:
    def own(number: int, frame: object) -> None: ...

    before = signal.signal(signal.SIGUSR1, own)
    try:
        with pytest.raises(KeyError), Interruption():
            raise KeyError
        assert signal.getsignal(signal.SIGUSR1) is own
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_interrupts_no_wait() -> None:
    # The handler returns, so that Python goes on waiting: nothing in the middle of a save is torn.
    done = threading.Event()
    with Interruption() as interruption:
        threading.Timer(0.1, send, [signal.SIGTERM]).start()
        threading.Timer(0.3, done.set).start()
        assert done.wait(10)
        assert interruption.cause == "SIGTERM came"


def test_a_second_interruption_begins_without_a_flag() -> None:
    with Interruption():
        send(signal.SIGTERM)
    with Interruption() as interruption:
        assert interruption.cause is None


def test_what_was_asked_first_stays_and_is_what_check_raises() -> None:
    with Interruption() as interruption:
        interruption.check()
        assert interruption.age_s() == 0.0
        send(signal.SIGUSR1)
        send(signal.SIGTERM)
        interruption.ask("something else")
        with pytest.raises(LeavingError, match="SIGUSR1 came"):
            interruption.check()
        assert 0 < interruption.age_s() < 5


def leave_and_be_asked_again() -> str:
    with Interruption() as interruption:
        send(signal.SIGTERM)
        interruption.stay_deaf()
    send(signal.SIGTERM)
    send(signal.SIGUSR1)
    return "alive"


def test_a_second_signal_that_comes_when_the_launch_has_ended_changes_no_exit_code() -> None:
    assert on_ranks(1, leave_and_be_asked_again) == ["alive"]


def test_a_file_is_a_request_once_it_is_there(tmp_path: Path) -> None:
    with Interruption() as interruption:
        interruption.look_for(tmp_path / "PREEMPT")
        assert interruption.cause is None
        (tmp_path / "PREEMPT").touch()
        assert waited_for(lambda: interruption.cause) == "a file PREEMPT came"


def test_ranks_pass_the_word_on() -> None:
    notes = Notes()
    with Interruption() as first:
        first.join(notes, 0)
        notes.post("leave", "SIGTERM came (rank 7)")
        assert waited_for(lambda: first.cause) == "SIGTERM came (rank 7)"
    notes = Notes()
    with Interruption() as second:
        second.join(notes, 3)
        send(signal.SIGTERM)
        assert waited_for(lambda: notes.read("leave")) == "SIGTERM came (rank 3)"


class Notes:
    """A board for one process."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def post(self, key: str, text: str) -> None:
        self.kept.setdefault(key, text)

    def read(self, key: str) -> str | None:
        return self.kept.get(key)


def waited_for(look: Callable[[], str | None], limit_s: float = 10.0) -> str | None:
    deadline = time.monotonic() + limit_s
    while (found := look()) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def orphan(writing: int) -> None:
    """In a process whose parent ends: what its interruption says of it."""
    with Interruption() as interruption:
        os.write(writing, (waited_for(lambda: interruption.cause, 4) or "nothing").encode())
    os._exit(0)


@pytest.mark.parametrize(
    ("mark", "said"), [("TORCHELASTIC_RUN_ID", b"the launcher ended"), ("NO_LAUNCHER", b"nothing")]
)
def test_a_worker_notices_the_end_of_its_launcher_and_not_that_of_a_shell(
    mark: str, said: bytes
) -> None:
    assert on_ranks(1, leave_an_orphan, mark) == [said]


def leave_an_orphan(mark: str) -> bytes:
    """The launcher of the test above: a fork of a fork, so that its own parent may end."""
    os.environ[mark] = "x"
    reading, writing = os.pipe()
    if os.fork() == 0:
        if os.fork() == 0:
            orphan(writing)
        time.sleep(0.5)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    os.wait()
    return said


def bear_signals() -> str:
    ignore_signals()
    for number in SIGNALS:
        send(number)
    return "alive"


def test_a_loaders_worker_lives_through_the_signals_that_ask_a_run_to_save() -> None:
    assert on_ranks(1, bear_signals) == ["alive"]
