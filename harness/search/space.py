"""What a sweep varies: `--over KEY=VALUES`, where values are a range like 1e-4..1e-2:log or choices
like [64],[128].
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import reading
from harness.config.reading import parse_value, raise_all
from harness.config.schema import Config
from harness.errors import ConfigError
from harness.wording import Mistake, some

if TYPE_CHECKING:
    import optuna

_CLOSING = {"[": "]", "{": "}"}
# What a sweep decides itself, or what would make its trials incomparable
_RESERVED = ("run.dir", "run.name", "run.resume", "run.overwrite", "stop.every", "stop.best")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included: whole ones if both ends are. `step`: those that
    many apart from `low`; `log`: their logarithms are spread evenly.
    """

    key: str
    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Whether its numbers are whole."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def texts(self) -> tuple[str, ...]:
        """Its ends, as overrides have them."""
        return repr(self.low), repr(self.high)

    def suggest(self, trial: optuna.Trial) -> str:
        """A value for a trial, as an override has it."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            step = 1 if self.step is None else int(self.step)
            return repr(trial.suggest_int(self.key, self.low, self.high, log=self.log, step=step))
        return repr(
            trial.suggest_float(self.key, self.low, self.high, log=self.log, step=self.step)
        )


@dataclass(frozen=True)
class Choice:
    """One of several values, each as an override has it."""

    key: str
    texts: tuple[str, ...]

    def suggest(self, trial: optuna.Trial) -> str:
        """A value for a trial, as an override has it."""
        return str(trial.suggest_categorical(self.key, self.texts))


Parameter = Range | Choice


def parse_space(over: Sequence[str], overrides: Sequence[str]) -> list[Parameter]:
    """What the options `--over` ask for. Raises ConfigError with all their mistakes at once."""
    space, mistakes = _parse_all(over, overrides)
    raise_all(mistakes)
    return space


def read_space(
    path: Path,
    over: Sequence[str],
    overrides: Sequence[str],
    read: Callable[[Sequence[str]], Config],
) -> tuple[list[Parameter], Config]:
    """What the options `--over` ask for, and the config that they vary. `read`: the config of a
    file with overrides.

    Each end of a range and each choice has to make a valid config, and to be of the kind that the
    config has there. Raises ConfigError with all mistakes at once, also those of the config.
    """
    space, mistakes = _parse_all(over, overrides)
    plain = [text for text in overrides if not _is_range(text)]
    config = None
    try:
        config = read(plain)
    except ConfigError as error:
        mistakes += _each(error)
    tree = reading.read(path, plain).tree if config is None else config.to_json()
    for one in space:
        present = _value_at(tree, one.key)
        for text in one.texts:
            try:
                read([*plain, f"{one.key}={text}"])
            except ConfigError as error:
                mistakes += _each(error)
            given = _kind(parse_value(text, f"--over {one.key}"))
            if present is not None and given is not None and given != _kind(present):
                message = f"{text} is {given} where the config has {present!r}. Give "
                message += f"{_kind(present)}."
                mistakes.append(Mistake((), message, f"--over {one.key}"))
    raise_all(mistakes)
    assert config is not None
    return space, config


def _parse_all(
    over: Sequence[str], overrides: Sequence[str]
) -> tuple[list[Parameter], list[Mistake]]:
    """What can be read, and what is wrong with the rest."""
    space: list[Parameter] = []
    mistakes: list[Mistake] = []
    for text in over:
        try:
            space.append(_parse(text))
        except ConfigError as error:
            mistakes.append(Mistake((), str(error), f"--over {text}"))
    keys = [one.key for one in space]
    given = [text.partition("=")[0].strip() for text in overrides]
    for key, other in itertools.permutations(keys, 2):
        if key == other or other.startswith((f"{key}.", f"{key}[")):
            mistakes.append(Mistake((), f"{key} is varied twice. Give it once.", f"--over {other}"))
    for key in dict.fromkeys(keys):
        if key in given:
            message = "is varied, and has a value too. Leave one of them out."
            mistakes.append(Mistake((), message, key))
        if any(key == one or key.startswith(f"{one}.") for one in _RESERVED):
            message = "cannot be varied: it is the sweep's own, or trials could not be compared."
            mistakes.append(Mistake((), f"{message} Set it as KEY=VALUE, or remove it.", key))
    mistakes += [
        Mistake((), "is a range. Put it behind an --over of its own.", text)
        for text in overrides
        if _is_range(text)
    ]
    if not over:
        mistakes.append(
            Mistake((), "nothing to vary. Give e.g. optimizer.lr=1e-4..1e-2:log.", "--over")
        )
    return space, mistakes


def _is_range(override: str) -> bool:
    return _range_of(override.partition("=")[2]) is not None


def _each(error: ConfigError) -> list[Mistake]:
    """The mistakes that an error tells of."""
    lines = str(error).splitlines()
    return [Mistake((), line.strip()) for line in (lines[1:] if len(lines) > 1 else lines)]


def grid(space: Sequence[Parameter]) -> Iterator[dict[str, str]]:
    """All combinations of the choices. Raises ConfigError for a range."""
    ranges = [one.key for one in space if isinstance(one, Range)]
    if ranges:
        raise ConfigError(
            f"--sampler grid: {some(ranges)} is a range, whose values have no end. List them, e.g. "
            f"{ranges[0]}=1,2,3, or take another sampler."
        )
    for texts in itertools.product(*(one.texts for one in space)):
        yield dict(zip((one.key for one in space), texts, strict=True))


def override(key: str, value: Any) -> str:
    """An override that sets exactly this value, whatever signs of YAML are in it."""
    return f"{key}={json.dumps(value, default=str, ensure_ascii=False)}"


def split_values(text: str) -> list[str]:
    """Values between commas, none of which are within brackets or quotes. Raises ConfigError for
    those that are not closed.
    """
    values, open_, quote = [""], list[str](), ""
    for sign in text:
        if sign == "," and not open_ and not quote:
            values.append("")
            continue
        values[-1] += sign
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"" and (open_ or not values[-1].strip(sign).strip()):
            quote = sign
        elif sign in _CLOSING:
            open_.append(_CLOSING[sign])
        elif open_ and sign == open_[-1]:
            open_.pop()
    if open_ or quote:
        raise ConfigError(f"{text}: {quote or open_[-1]} is missing. Close what is open.")
    return [value.strip() for value in values if value.strip()]


def _parse(text: str) -> Parameter:
    key, equals, values = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise ConfigError("not of the form KEY=VALUES. Write e.g. optimizer.lr=1e-4..1e-2:log.")
    found = _range_of(values)
    if found is not None:
        return _checked_range(key, *found)
    choices = tuple(split_values(values))
    for choice in choices:
        parse_value(choice, key)
    if len(set(choices)) < 2:
        raise ConfigError(
            f"{'nothing' if not choices else 'one value'} to choose from. Give a range like "
            f"1..4, or values like 16,32{'; or set it by ' + text if choices else ''}."
        )
    if len(set(choices)) < len(choices):
        raise ConfigError("a value is there twice. Remove one.")
    return Choice(key, choices)


def _range_of(values: str) -> tuple[Any, Any, str] | None:
    """(low, high, what follows the colon) of a text like 1..4:log; None for another."""
    low, dots, rest = values.partition("..")
    high, _, how = rest.partition(":")
    ends = [_number(low), _number(high)]
    if not dots or ends == [None, None]:
        return None
    return low if ends[0] is None else ends[0], high if ends[1] is None else ends[1], how.strip()


def _number(text: str) -> int | float | None:
    try:
        value = parse_value(text.strip(), "")
    except ConfigError:
        return None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _checked_range(key: str, low: Any, high: Any, how: str) -> Range:
    for end in (low, high):
        if isinstance(end, str) or not abs(end) < float("inf"):
            raise ConfigError(f"{end!r} is not a finite number. Give a range like 1e-4..1e-2.")
    if not low < high:
        raise ConfigError(f"{low!r} to {high!r} is empty. Give the lower end first.")
    step = None if how in ("", "log") else _number(how)
    if how not in ("", "log"):
        if step is None:
            raise ConfigError(f"{how!r} behind the colon is neither log nor a step like 0.1.")
        if not 0 < step < float("inf") or (Decimal(str(high)) - Decimal(str(low))) % Decimal(
            str(step)
        ):
            raise ConfigError(
                f"the step {step!r} does not lead from {low!r} to {high!r}. Give one that divides "
                "their difference."
            )
        if isinstance(low, int) and isinstance(high, int) and not isinstance(step, int):
            low, high = float(low), float(high)
    if how == "log" and low <= 0:
        raise ConfigError(f"{low!r} has no logarithm. Give a lower end above 0, or drop :log.")
    if isinstance(low, int) != isinstance(high, int):
        low, high = float(low), float(high)
    return Range(key, low, high, how == "log", step)


def _value_at(tree: Mapping[str, Any], key: str) -> Any:
    """None for what is not there, or lies in a list."""
    node: Any = tree
    for part in key.split("."):
        if not isinstance(node, Mapping):
            return None
        node = node.get(part)
    return node


def _kind(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true or false"
    kinds = (
        (int | float, "a number"),
        (str, "a text"),
        (Sequence, "a list"),
        (Mapping, "a mapping"),
    )
    return next((words for kind, words in kinds if isinstance(value, kind)), None)
