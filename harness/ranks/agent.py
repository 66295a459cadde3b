"""Torch's elastic agent, started by accelerate's launcher in this process."""

import logging
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO


@dataclass(frozen=True)
class AgentEnd:
    """How the processes ended.

    `code`: of the one that failed first, 0 if none did, None after a signal to this process, which
    the agent has passed on; `signal`: what killed the first one; `rank`: which one it was.
    """

    code: int | None
    rank: int = 0
    signal: int | None = None


def run_agent(arguments: Sequence[str], report: TextIO) -> AgentEnd:
    """Start processes as `accelerate launch ARGUMENTS` does, and wait for them; what the agent has
    to say goes to the report.

    Raises ConnectionError if machines do not meet.
    """
    import torch.distributed as dist
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    try:
        with _log_to(report):
            launch_command(launch_command_parser().parse_args(list(arguments)))
    except ChildFailedError as error:
        report.write(f"{error}\n")
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            return AgentEnd(None, rank, -failure.exitcode)
        return AgentEnd(failure.exitcode, rank)
    except SignalException as error:
        report.write(f"{error}\n")
        return AgentEnd(None)
    except (RendezvousError, dist.DistError) as error:
        report.write(traceback.format_exc())
        raise ConnectionError(str(error)) from error
    return AgentEnd(0)


@contextmanager
def _log_to(report: TextIO) -> Iterator[None]:
    """Let the agent's log go there instead of to the screen."""
    logger = logging.getLogger("torch.distributed")
    before, handler = logger.handlers, logging.StreamHandler(report)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    logger.handlers = [handler]
    try:
        yield
    finally:
        logger.handlers = before
