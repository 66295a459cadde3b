"""A training in a process that goes on afterwards: a notebook's or a script's."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack

from harness.config.schema import Config
from harness.errors import HarnessError
from harness.interrupt import Interruption
from harness.ranks.meeting import has_joined, is_lost_peer, leave
from harness.ranks.ranks import Ranks
from harness.rundir.outcome import Outcome
from harness.training.compiling import compiler_kept
from harness.training.isolation import isolated
from harness.training.launch import join, name_lost, worded
from harness.training.train import train

# Who sends these wants the process to end, not only its training
_ENDING = (signal.SIGTERM, signal.SIGUSR1)


def train_in_process(read: Callable[[], Config]) -> Outcome:
    """Train by the config that `read` gives, to the end or until SIGINT, SIGTERM, SIGUSR1 or a file
    PREEMPT asks to save; afterwards the process is as it was. Called by every rank.

    SIGTERM and SIGUSR1 are raised again once all is saved; signals reach the main thread alone.
    Raises HarnessError, LeavingError where it was asked to leave before it had begun, and
    KeyboardInterrupt at the second SIGINT.
    """
    begun = time.monotonic()
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    with ExitStack() as stack:
        stack.enter_context(isolated())
        interruption = stack.enter_context(Interruption(owns_process=not alone))
        if not has_joined():
            stack.callback(leave)
        ranks = Ranks()
        try:
            config, accelerator, ranks = join(interruption, read)
            if config.train.compile:
                stack.enter_context(compiler_kept())
            age_s = time.monotonic() - begun
            outcome = train(config, accelerator, ranks, interruption, age_s)
        except Exception as error:
            known = worded(error, ranks)
            if not isinstance(known, HarnessError) and is_lost_peer(known):
                known = ranks.published_failure() or name_lost(known, ranks)
            ranks.publish_failure(known)
            if known is error:
                raise
            raise known from error
    for number in _ENDING:
        if interruption.cause == f"{number.name} came":
            signal.raise_signal(number)
    return outcome
