"""The section of a config that says how a part of the network is trained."""

from typing import Self

from pydantic import Field, model_validator

from harness.settings import Section, UserPath


class PartConfig(Section):
    """A part of the network: a module or a parameter, by its path in the network.

    Of nested parts, the innermost one that gives a setting applies.
    """

    freeze: bool | None = Field(
        None,
        description=(
            "Do not train it: parameters stay fixed, BatchNorm and dropout are in evaluation mode."
        ),
    )
    lr: float | None = Field(
        None,
        gt=0,
        description=(
            "Its learning rate, if not optimizer.lr. A schedule changes all rates in proportion."
        ),
    )
    weight_decay: float | None = Field(
        None, ge=0, description="Its weight decay, if not the optimizer's."
    )
    init_from: UserPath | None = Field(
        None,
        description=(
            "A run, checkpoint or safetensors file with the part's initial weights in a new run."
        ),
    )
    prefix: str | None = Field(
        None,
        description=(
            "With init_from: the prefix of the part's weight names there, e.g. `backbone.`; null: "
            "the same as here."
        ),
    )

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.freeze and (self.lr is not None or self.weight_decay is not None):
            raise ValueError(
                "lr and weight_decay have no effect on a frozen part; remove them, or freeze"
            )
        if self.prefix is not None and self.init_from is None:
            raise ValueError("prefix has no effect without init_from; set that too, or remove it")
        if self == PartConfig.model_construct():
            raise ValueError("sets nothing; give one of freeze, lr, weight_decay, init_from")
        return self
