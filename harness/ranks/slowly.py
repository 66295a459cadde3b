"""Long work of a rank that its peers wait for."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar, overload

from harness.ranks.ranks import J, Ranks

HEARD_S = 10.0


T = TypeVar("T")


@overload
def slowly(ranks: Ranks, work: Callable[[], T], *, heard_s: float = HEARD_S) -> T:
    """`work` gives a JSON value."""


@overload
def slowly(ranks: Ranks, work: Callable[[], J], kind: type[J], *, heard_s: float = HEARD_S) -> J:
    """`work` gives an instance of `kind`."""


def slowly(
    ranks: Ranks,
    work: Callable[[], Any],
    kind: Any = None,
    *,
    heard_s: float = HEARD_S,
) -> Any:
    """Like `ranks.decide`, for work that may take longer than a rank waits for another: it runs in
    a thread, and at least every `heard_s` the other ranks are told that it is still running.
    """
    if ranks.size == 1:
        return ranks.decide(work, kind)
    result = _start(work) if ranks.is_first() else Future()
    heard_s = min(heard_s, ranks.timeout_s / 3)
    while not ranks.decide(lambda: bool(wait([result], heard_s).done)):
        pass
    return ranks.decide(result.result, kind)


def together_slowly(ranks: Ranks, work: Callable[[], T], *, heard_s: float = HEARD_S) -> T:
    """Like `ranks.together`, for work of all ranks that may take longer than a rank waits for
    another.
    """
    if ranks.size == 1:
        return work()
    result = _start(work)
    heard_s = min(heard_s, ranks.timeout_s / 3)
    while not all(ranks.gather(bool(wait([result], heard_s).done))):
        pass
    return ranks.together(result.result)


def _start(work: Callable[[], T]) -> Future[T]:
    """Run it in a thread. A daemon: if a peer is lost meanwhile, this rank leaves at once, and
    nothing waits for the work to end.
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised on every rank
            result.set_exception(error)

    threading.Thread(target=run, name="fermarsi-slowly", daemon=True).start()
    return result
