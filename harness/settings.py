"""What the sections of a config are made of."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from harness.components import TARGET


class Section(BaseModel):
    """A section of a config: nothing but what is named here, and of the very types."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )

    def non_null(self, *names: str) -> list[str]:
        """Those of the fields `names` that are set."""
        return [name for name in names if getattr(self, name) is not None]

    def _require_one(self, *names: str) -> None:
        given = self.non_null(*names)
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of {', '.join(names)} ({' and '.join(given) or 'none'} given)"
            )


def item_path(name: str, index: int, among: Sequence[object]) -> str:
    """How a user finds one of one or several settings."""
    return name if len(among) == 1 else f"{name}[{index}]"


def _component(value: object) -> object:
    if not isinstance(value, dict) or TARGET not in value:
        raise ValueError(
            f"give a component: a mapping with {TARGET}: pkg.mod.Name and its arguments"
        )
    return value


def _home(value: Path) -> Path:
    # A shell expands ~ in `--dir ~/x` but not in `run.dir=~/x`, and a directory called ~ is never
    # meant
    return value.expanduser()


Spec = Annotated[dict[Any, Any], BeforeValidator(_component)]
UserPath = Annotated[Path, Field(strict=False), AfterValidator(_home)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
