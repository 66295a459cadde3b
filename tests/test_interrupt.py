"""Signals as a flag."""

import os
import signal
import threading

import pytest

from harness.interrupt import SIGNALS, Interruption, ignore_signals
from tests.pool import on_ranks


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_sets_the_flag_and_nothing_else(number: signal.Signals) -> None:
    with Interruption() as interruption:
        assert interruption.signal_name is None
        send(number)
        assert interruption.signal_name == number.name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_schedulers_may_send_a_signal_twice(number: signal.Signals) -> None:
    with Interruption() as interruption:
        send(number)
        send(number)
        assert interruption.signal_name == number.name


def test_a_second_ctrl_c_means_now() -> None:
    with Interruption() as interruption:
        send(signal.SIGINT)
        assert interruption.signal_name == "SIGINT"
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
        assert interruption.signal_name == "SIGTERM"


def test_a_second_interruption_begins_without_a_flag() -> None:
    with Interruption():
        send(signal.SIGTERM)
    with Interruption() as interruption:
        assert interruption.signal_name is None


def bear_signals() -> str:
    ignore_signals()
    for number in SIGNALS:
        send(number)
    return "alive"


def test_a_loaders_worker_lives_through_the_signals_that_ask_a_run_to_save() -> None:
    assert on_ranks(1, bear_signals) == ["alive"]
