"""JSON that brings back exactly what was put in: every float to the last bit, NaN and infinities,
tuples, keys that are no strings.

A float is written as `{"~float": "<hex>", "decimal": "<repr>"}`: the hex for the machine, the
decimal for people; both must agree when read.
"""

import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from harness.errors import CheckpointError

MAX_BYTES = 512 * 2**20  # of one JSON document; what is larger is not ours
_MAPPINGS: dict[str, Callable[[Any], Any]] = {
    "~dict": dict,
    "~ordered": OrderedDict,
    "~counter": lambda pairs: Counter(dict(pairs)),
}
_MARKS: dict[type, str] = {dict: "~dict", OrderedDict: "~ordered", Counter: "~counter"}


def encode(value: Any, where: str = "value") -> Any:
    """A plain JSON value for `value`.

    Raises CheckpointError, naming its keys, for what JSON cannot hold (tensors, objects).
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return {"~float": value.hex(), "decimal": repr(float(value))}
    if type(value) is tuple:
        return {"~tuple": [encode(item, f"{where}[{index}]") for index, item in enumerate(value)]}
    if type(value) is list:
        return [encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
    mark = _MARKS.get(type(value))
    if mark is None:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise CheckpointError(
            f"{where}: a {kind} cannot be stored exactly. Only None, bool, int, float, str, list, "
            "tuple and dict can."
        )
    if mark == "~dict" and all(isinstance(key, str) and not key.startswith("~") for key in value):
        return {key: encode(item, f"{where}.{key}") for key, item in value.items()}
    return {
        mark: [
            [encode(key, where), encode(item, f"{where}[{key!r}]")] for key, item in value.items()
        ]
    }


def decode(value: Any) -> Any:
    """The inverse of `encode`.

    Raises CheckpointError for a marked value that `encode` never writes.
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    # Not the first key: a document may have been sorted
    mark = next((key for key in value if key.startswith("~")), None)
    if mark is None:
        return {key: decode(item) for key, item in value.items()}
    try:
        if mark == "~float":
            return _float(value)
        (content,) = value.values()  # a ValueError if there is more
        if mark == "~tuple":
            return tuple(decode(content))
        return _MAPPINGS[mark]([(decode(key), decode(item)) for key, item in content])
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"not a stored value: {str(value)[:80]} ({error}).") from error


def dumps(value: Any, where: str = "value") -> bytes:
    """`value` as a UTF-8 JSON document. Raises CheckpointError for what cannot be stored."""
    return to_bytes(encode(value, where))


def to_bytes(encoded: Any) -> bytes:
    """The document of what `encode` gave."""
    return (json.dumps(encoded, allow_nan=False) + "\n").encode()


def loads(data: bytes, where: str) -> Any:
    """The inverse of `dumps`. Raises CheckpointError."""
    encoded = parse(data, where)
    try:
        return decode(encoded)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error
    except RecursionError as error:
        raise CheckpointError(f"{where}: nested too deeply.") from error


def parse(data: bytes, where: str) -> Any:
    """Plain JSON, strictly: no duplicate keys, no NaN, bounded size and depth.

    Raises CheckpointError.
    """
    if len(data) > MAX_BYTES:
        raise CheckpointError(
            f"{where}: {len(data)} bytes of JSON; no more than {MAX_BYTES} are read."
        )
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not valid JSON: {error}.") from error


def _float(value: dict[str, str]) -> float:
    number = float.fromhex(value["~float"])
    if len(value) != 2 or repr(number) != repr(float(value["decimal"])):
        raise ValueError("hex and decimal differ")
    return number


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(
            f"the key {next(key for key in found if [name for name, _ in pairs].count(key) > 1)!r} "
            "occurs twice"
        )
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")
