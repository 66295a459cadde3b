"""Stop settings that do not fit the task's metrics, in a config that has other mistakes: named
beside these, so that one reading tells all.

The settings are taken as far as they are valid. What a mistake hides is not guessed at: without a
readable budget nothing is said of a forecast within it.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

from pydantic import ValidationError, model_validator

from harness.config.mistakes import keys_of
from harness.config.reading import Draft
from harness.errors import HarnessError
from harness.stopping.judges import problems
from harness.stopping.settings import StopSettings
from harness.stopping.verdict import Metrics
from harness.wording import Keys, Mistake

MetricsOf = Callable[[Mapping[str, Any], Sequence[str]], Metrics]


class _Taken(StopSettings):
    """Settings that may contradict each other."""

    @model_validator(mode="after")
    def _can_take_effect(self) -> Self:
        return self


def misfits(draft: Draft, metrics_of: MetricsOf | None) -> Iterator[Mistake]:
    """What the settings contradict, and what does not fit the metrics of the task, where neither it
    nor the data has a mistake. `metrics_of`: of a task's component and splits; None: not looked at.
    """
    stop = draft.tree.get("stop")
    stops = [one.keys for one in draft.mistakes if one.keys[:1] == ("stop",)]
    hidden = {str(keys[1]) for keys in stops if keys[1:]}
    settings = _as_far_as_valid(stop, stops)
    if settings is None:
        return
    # Else looked for by pydantic, if no key has a mistake
    if hidden and not draft.has_mistake(("stop",)):
        for contradiction in settings.contradictions(hidden):
            yield Mistake(("stop",), f"{contradiction}.", draft.origin(("stop",)))
    hides = ((), ("task",), ("data",))
    if metrics_of is None or any(one.keys[:1] in hides for one in draft.mistakes):
        return
    splits = ["train"] if draft.tree["data"].get("val") is None else ["train", "val"]
    with suppress(HarnessError):  # said by what makes the task for training
        metrics = metrics_of(draft.tree["task"], splits)
        yield from (Mistake((), one) for one in (problems(settings, metrics) if metrics else ()))


def _as_far_as_valid(stop: Any, mistakes: Sequence[Keys]) -> StopSettings | None:
    """The settings without what is invalid; None if nothing is left of them."""
    tree = {"stop": copy.deepcopy(stop)}
    for keys in mistakes:
        if keys[1:]:
            _remove(tree, keys)
    while isinstance(tree.get("stop"), dict):
        try:
            settings = _Taken.model_validate(tree["stop"])
        except ValidationError as error:
            for keys in [keys_of(one, tree["stop"])[0] for one in error.errors()]:
                _remove(tree, ("stop", *keys))
            continue
        return _without_what_follows(settings, stop)
    return None


def _without_what_follows(settings: StopSettings, stop: Mapping[str, Any]) -> StopSettings:
    """Without a forecast of what a mistake hides: of a target, within a budget."""
    one = settings.forecast
    if one is not None and (
        (settings.budget is None and stop.get("budget") is not None)
        or (one.target in (stop.get("targets") or {}) and one.target not in settings.targets)
    ):
        return settings.model_copy(update={"forecast": None})
    return settings


def _remove(tree: dict[str, Any], keys: Keys) -> None:
    """Remove what is at some keys, or the innermost value around it; of a list, the whole."""
    node: Any = tree
    path: list[tuple[Any, Any]] = []
    key: Any
    for key in keys:
        if not (isinstance(node, list | dict) and (key in node or isinstance(node, list))):
            break
        path.append((node, key))
        node = node[key]
    for around, key in reversed(path):
        if isinstance(around, dict):
            del around[key]
            return
