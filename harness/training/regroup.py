"""One process of a launch whose number of processes may change: it trains in one generation after
another, and stays as it is between them.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from harness.config.read import read_config
from harness.config.schema import Config
from harness.console import Console
from harness.data.feed import end_workers
from harness.errors import AbandonedError, HarnessError, LeavingError, RankError
from harness.interrupt import GROWS, Interruption
from harness.ranks.meeting import is_lost_peer, leave
from harness.ranks.membership import Membership
from harness.ranks.ranks import Ranks
from harness.rundir.ledger import process_age_s
from harness.rundir.outcome import INTERRUPTED, Outcome, exit_code
from harness.training.isolation import isolated
from harness.training.launch import TWICE, before_joining, fail, join
from harness.training.train import train


def launch_as_member(path: Path, overrides: Sequence[str], console: Console) -> int:
    """Train by a config, with whoever is there, to the end; the process's exit code."""
    try:
        membership = Membership()
        try:
            config = before_joining(lambda: read_config(path, overrides))
        except HarnessError as error:
            code, membership.has_trained = fail(error, Ranks()), True
        else:
            code = _train(membership, config, console)
    except KeyboardInterrupt:
        print(TWICE, file=sys.stderr)
        return 130
    except ConnectionError as error:
        print(f"RankError: {error}. Launch again to resume.", file=sys.stderr)
        return 1
    finally:
        end_workers()
    membership.finish(code)
    return code


def _train(membership: Membership, config: Config, console: Console) -> int:
    """In one generation after another."""
    age_s = process_age_s()
    while (code := _train_once(membership, config, console, age_s)) is None:
        age_s = 0.0
    return code


def _train_once(
    membership: Membership, config: Config, console: Console, age_s: float
) -> int | None:
    """Train in one generation; None where another one is to follow."""
    with isolated(), Interruption() as interruption:
        begun = time.monotonic()
        try:
            place = membership.wait(interruption.check)
        except LeavingError:
            return INTERRUPTED
        if place is None:
            return 0
        os.environ.update(place.environment())
        interruption.at_interval = membership.is_growth_due
        interruption.goes_on = place.generation > 1
        if place.goes_on:  # where to begin was asked once
            asked = config.run.model_copy(update={"resume": "auto", "overwrite": False})
            config = config.model_copy(update={"run": asked})
        ranks = Ranks()
        try:
            own = console.of_rank(place.rank)
            with membership, own:
                _, accelerator, ranks = join(interruption, lambda: config)
                age_s += time.monotonic() - begun
                outcome = train(
                    config, accelerator, ranks, interruption, age_s, own, begun=membership.begin
                )
            return _code(outcome, interruption)
        except AbandonedError as error:
            fail(error, ranks)
            return INTERRUPTED
        except LeavingError:  # before this launch held the run directory
            return None if interruption.cause == GROWS else INTERRUPTED
        except Exception as error:  # noqa: BLE001 - a peer's end breaks collectives anywhere
            if interruption.cause in (None, GROWS) and _has_lost_peers(error, ranks):
                return None
            return fail(error, ranks)
        finally:
            leave()


def _code(outcome: Outcome, interruption: Interruption) -> int | None:
    if outcome.reason == "interrupted" and interruption.cause == GROWS:
        return None
    return exit_code(outcome, under_agent=False)


def _has_lost_peers(error: Exception, ranks: Ranks) -> bool:
    """Whether it came because another process is gone, and not because of what that one found."""
    if isinstance(error, HarnessError) and not isinstance(error, RankError):
        return False
    found: BaseException = error.__cause__ or error if isinstance(error, RankError) else error
    if not is_lost_peer(found):
        return False
    cause = ranks.published_failure()
    return cause is None or isinstance(cause, RankError)
