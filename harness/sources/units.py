"""Units of measurement: ranges of possible values, and conversion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, pi
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.data.written import plain_name
from harness.errors import ConfigError, DataError
from harness.sources.source import Rows
from harness.wording import did_you_mean


@dataclass(frozen=True)
class Unit:
    """A value x in this unit is (x + offset) * factor in the base unit of its quantity; x lies
    between `least` and `most`.
    """

    quantity: str
    factor: float = 1.0
    offset: float = 0.0
    least: float = -inf
    most: float = inf


UNITS = {
    "m/s2": Unit("acceleration"),
    "g": Unit("acceleration", 9.80665),
    "rad/s": Unit("angular velocity"),
    "deg/s": Unit("angular velocity", pi / 180),
    "rpm": Unit("angular velocity", pi / 30),
    "rad": Unit("angle"),
    "deg": Unit("angle", pi / 180),
    "K": Unit("temperature", least=0),
    "degC": Unit("temperature", offset=273.15, least=-273.15),
    "degF": Unit("temperature", 5 / 9, 459.67, least=-459.67),
    "Pa": Unit("pressure", least=0),
    "hPa": Unit("pressure", 100, least=0),
    "kPa": Unit("pressure", 1e3, least=0),
    "bar": Unit("pressure", 1e5, least=0),
    "1": Unit("share", least=0, most=1),
    "%": Unit("share", 0.01, least=0, most=100),
    "Hz": Unit("frequency", least=0),
    "kHz": Unit("frequency", 1e3, least=0),
    "bpm": Unit("frequency", 1 / 60, least=0),
    "V": Unit("voltage"),
    "mV": Unit("voltage", 1e-3),
    "uV": Unit("voltage", 1e-6),
    "A": Unit("current"),
    "mA": Unit("current", 1e-3),
    "W": Unit("power"),
    "kW": Unit("power", 1e3),
    "m": Unit("length"),
    "km": Unit("length", 1e3),
    "cm": Unit("length", 0.01),
    "mm": Unit("length", 1e-3),
    "m/s": Unit("velocity"),
    "km/h": Unit("velocity", 1 / 3.6),
    "T": Unit("flux density"),
    "mT": Unit("flux density", 1e-3),
    "uT": Unit("flux density", 1e-6),
    "lx": Unit("illuminance", least=0),
}


class Units:
    """Units of channels: `{temperature: degC}` checks that each value is possible;
    `{acceleration: "g -> m/s2"}` also converts it.
    """

    def __init__(self, units: Mapping[str, str], channels: Sequence[str]) -> None:
        self._of: dict[int, tuple[str, Unit, Unit]] = {}
        for channel, text in ((plain_name(channel), text) for channel, text in units.items()):
            if channel not in channels:
                raise ConfigError(
                    f"units.{channel}: no such channel; the channels are "
                    f"{', '.join(channels)}.{did_you_mean(channel, channels, quoted=True)}"
                )
            names = [name.strip() for name in str(text).split("->")]
            for name in names:
                if name not in UNITS:
                    raise ConfigError(
                        f"units.{channel}: {name!r} is not a known unit."
                        f"{did_you_mean(name, UNITS, quoted=True)} Known units: {', '.join(UNITS)}."
                    )
            first, last = UNITS[names[0]], UNITS[names[-1]]
            if len(names) > 2 or first.quantity != last.quantity:
                raise ConfigError(
                    f"units.{channel}: {text}: {first.quantity} cannot be converted to "
                    f"{last.quantity}. Give one unit, or two of one quantity."
                )
            self._of[channels.index(channel)] = names[0], first, last

    def apply(
        self, values: NDArray[np.float64], channels: Sequence[str], path: Path, rows: Rows
    ) -> NDArray[np.float64]:
        """values: (C, T) as stored in a file -> (C, T) in the wanted units.

        Raises DataError for an impossible value.
        """
        converted = values.copy()
        for channel, (name, first, last) in self._of.items():
            outside = (values[channel] < first.least) | (values[channel] > first.most)
            if outside.any():
                index = int(outside.argmax())
                ends = f"{first.least:g} to {first.most:g}"
                if first.most == inf:
                    ends = f"at least {first.least:g}"
                raise DataError(
                    f"{path}: row {rows[index]}, column {channels[channel]!r}: "
                    f"{values[channel, index]:g} {name} is impossible (range: {ends}). Correct it, "
                    "or set another unit."
                )
            if first != last:
                base = (values[channel] + first.offset) * first.factor
                converted[channel] = base / last.factor - last.offset
        return converted
