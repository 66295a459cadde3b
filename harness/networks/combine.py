"""Networks put together from networks, in a config and to any depth."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from harness.errors import ConfigError, require_choice


class Chain(nn.Sequential):
    """Each module takes what the one before it returns, e.g. an encoder, then a head: `{_target_:
    harness.networks.Chain, encoder: {...}, head: {...}}`.

    The modules' names are those of their parameters: `encoder.0.weight`.
    """

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        if not modules:
            raise ConfigError(
                "a Chain needs at least one module. Give each a name, e.g. encoder: {...}."
            )
        for name, module in modules.items():
            self.add_module(name, module)


class Fuse(nn.Module):
    """Several encoders on several inputs, then a head: {key: tensor} -> what the head gives, as a
    task with a list of inputs calls a network.

    encoders: by the key of their input, each giving (B, F). `how` their features meet:

        concat      (B, sum of all F)
        sum         (B, F), each F the same
        attend      (B, F): a sum weighted, for each sample, by a softmax over the encoders of a
                    learned score; `features` is F. Additive attention (Bahdanau, Cho & Bengio,
                    ICLR 2015) over modalities (Hori et al., ICCV 2017).
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        head: nn.Module | None = None,
        how: Literal["concat", "sum", "attend"] = "concat",
        features: int | None = None,
    ) -> None:
        super().__init__()
        require_choice("how", how, ("concat", "sum", "attend"))
        if (how == "attend") != (features is not None):
            raise ConfigError(
                "features: the number of features of each encoder is for how: attend only, "
                "which needs it."
            )
        if len(encoders) == 0:
            raise ConfigError("encoders: none. Give one for each input, by the input's key.")
        self.how = how
        self.encoders = nn.ModuleDict(encoders)
        self.score = (
            nn.Sequential(nn.Linear(features, features), nn.Tanh(), nn.Linear(features, 1))
            if features is not None
            else None
        )
        self.head = nn.Identity() if head is None else head

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        encoded = [encoder(inputs[key]) for key, encoder in self.encoders.items()]
        fused: Tensor = self.head(
            torch.cat(encoded, 1)
            if self.how == "concat"
            else self._combine(torch.stack(encoded, 1))
        )
        return fused

    def _combine(self, encoded: Tensor) -> Tensor:
        """(B, encoders, F) -> (B, F)"""
        return (
            encoded.sum(1)
            if self.score is None
            else (self.score(encoded).softmax(1) * encoded).sum(1)
        )


class Parallel(nn.Module):
    """Several heads on the same input: x -> {name: what that head gives}; for a task whose loss
    takes a dict, e.g. harness.tasks.Supervised.
    """

    def __init__(self, **heads: nn.Module) -> None:
        super().__init__()
        if not heads:
            raise ConfigError(
                "a Parallel needs at least one head. Give each a name, e.g. kind: {...}."
            )
        self.heads = nn.ModuleDict(heads)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: head(x) for name, head in self.heads.items()}
