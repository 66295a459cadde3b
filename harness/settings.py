"""What the sections of a config are made of."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from harness.components import TARGET


def _component(value: object) -> object:
    if not isinstance(value, dict) or TARGET not in value:
        raise ValueError(f"give a component: a mapping with {TARGET}: pkg.mod.Name and its arguments")
    return value


def _home(value: Path) -> Path:
    return value.expanduser()  # a shell expands ~ in `--dir ~/x` but not in `run.dir=~/x`, and a directory called ~ is never meant


Spec = Annotated[dict[Any, Any], BeforeValidator(_component)]
Place = Annotated[Path, Field(strict=False), AfterValidator(_home)]
Names = Annotated[tuple[str, ...], Field(strict=False)]


class Section(BaseModel):
    """A part of a config: nothing but what is named here, and of the very types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
