"""Networks as people have them, small: what each asks of a resume beyond a few linear layers."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from tests.resume.parts import NUM_CLASSES, NUM_FEATURES

WIDTH = 8
# What torch and transformers say of their own code
warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")


class Head(nn.Module):
    """(B, 6) -> (B, 3), through a body (B, 8) -> (B, 8)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(NUM_FEATURES, WIDTH)
        self.body = body
        self.last = nn.Linear(WIDTH, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.body(self.first(x).relu()))
        return out


class Recomputed(nn.Module):
    """BatchNorm and dropout whose forward runs again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.3))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.body(x)
        out: Tensor = checkpoint(self.body, x, use_reentrant=self.reentrant)
        return out


class Typed(nn.Module):
    """Parameters and buffers of every type and shape that somebody has, one in the other's way."""

    def __init__(self) -> None:
        super().__init__()
        self.wave = nn.Parameter(torch.randn(WIDTH, dtype=torch.complex64) * 0.1)
        self.halves = nn.Parameter(torch.randn(WIDTH).bfloat16() * 0.1)
        self.doubles = nn.Parameter(torch.randn(WIDTH, dtype=torch.float64) * 0.1)
        self.empties = nn.Parameter(torch.zeros(0, 5))
        self.gain = nn.Parameter(torch.tensor(1.0))
        self.turned = nn.Parameter((torch.randn(WIDTH, WIDTH) * 0.1).t())
        self.frozen = nn.Parameter(torch.randn(WIDTH).half(), requires_grad=False)
        self.register_parameter("größe/λ [0:3]", nn.Parameter(torch.randn(WIDTH) * 0.1))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("flags", torch.zeros(3, dtype=torch.bool))
        self.register_buffer("octets", torch.zeros(0, dtype=torch.uint8))
        self.register_buffer("eight", torch.ones(4).to(torch.float8_e4m3fn))
        self.register_buffer("spread", torch.ones(1).expand(4))
        self.register_buffer("scale", torch.full((WIDTH,), 1.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.count += 1
            self.flags ^= True
        x = (
            x
            + (x.to(torch.complex64) * self.wave).abs()
            + self.halves.float()
            + self.doubles.float()
        )
        x = x @ self.turned + self.frozen.float() + getattr(self, "größe/λ [0:3]")
        return (x + self.empties.sum()) * self.gain * self.scale


class Tied(nn.Module):
    """Two layers with one weight, and one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.other.weight = self.one.weight
        self.again = self.other

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.again(self.other(self.one(x).relu()).relu())
        return out


class Recurrent(nn.Module):
    """Both directions of two layers, with dropout between. x: (B, 8) -> (B, 8)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        cell = getattr(nn, kind)
        self.cell = cell(
            2, WIDTH // 2, num_layers=2, dropout=0.2, bidirectional=True, batch_first=True
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cell(x.unflatten(1, (-1, 2)))[0][:, -1]
        return out


class MovingBuffer(nn.Module):
    """A buffer that each training pass puts anew, and an average of a layer that it updates."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.average = torch.optim.swa_utils.AveragedModel(self.layer)
        self.average.requires_grad_(False)
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
            self.average.update_parameters(self.layer)
        out: Tensor = self.layer(x) + self.average(x) + self.mean
        return out


class Adapted(nn.Module):
    """A low-rank adapter beside a frozen layer (Hu et al., "LoRA", 2021)."""

    def __init__(self, rank: int = 2) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, WIDTH) * 0.1)
        self.up = nn.Parameter(torch.zeros(WIDTH, rank))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.dropout(x) @ self.down.T @ self.up.T
        return out


class Experts(nn.Module):
    """A layer for each kind of sample; a micro-batch may need none of some.

    Shazeer et al., "Outrageously Large Neural Networks", 2017.
    """

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 4)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        shares, chosen = self.router(x).softmax(1).max(1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mine = (chosen == number).nonzero()[:, 0]
            if len(mine):
                out = out.index_put((mine,), expert(x[mine]) * shares[mine, None])
        return out


class Observed(nn.Module):
    """Fake quantisation, whose observer follows what it sees, in evaluations as well."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.quantise = FakeQuantize(MovingAverageMinMaxObserver, quant_min=0, quant_max=255)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.quantise(self.layer(x))
        return out


class Fickle(nn.Module):
    """A second layer that some samples need and others do not, on each rank by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.at_times = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.always(x)
        return out + self.at_times(x) if float(x.detach()[0, 0]) > 0.5 else out


def pruned() -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    prune.l1_unstructured(layer, "weight", amount=0.5)
    return layer


BODIES = {
    "batch-norm": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)),
    "recomputed": lambda: Recomputed(reentrant=False),
    "recomputed-reentrant": lambda: Recomputed(reentrant=True),
    "typed": Typed,
    "tied": Tied,
    "lstm": lambda: Recurrent("LSTM"),
    "gru": lambda: Recurrent("GRU"),
    "moving": MovingBuffer,
    "lora": Adapted,
    "fickle": Fickle,
    "experts": Experts,
    "observed": Observed,
    "pruned": pruned,
    "parametrised": lambda: nn.Sequential(
        parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
        parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)),
        parametrizations.orthogonal(nn.Linear(WIDTH, WIDTH)),
    ),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(WIDTH), nn.LazyBatchNorm1d()),
    "compiled": lambda: torch.compile(nn.Linear(WIDTH, WIDTH), backend="aot_eager"),
}


def small(kind: str) -> nn.Module:
    """(B, 6) -> (B, 3) around one of BODIES; "whole-compiled" and "peft" around all of it."""
    if kind == "whole-compiled":
        return torch.compile(Head(nn.Dropout(0.2)), backend="aot_eager")  # type: ignore[return-value] # a module
    if kind == "peft":
        from peft import LoraConfig, get_peft_model

        options = LoraConfig(
            r=2, target_modules=["body"], modules_to_save=["last"], lora_dropout=0.1
        )
        return get_peft_model(Head(nn.Linear(WIDTH, WIDTH)), options)
    return Head(BODIES[kind]())


class Tokens:
    """Sentences of 8 tokens with a mask, and a label that the first token gives."""

    def __init__(self, count: int, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.tokens = generator.integers(5, 30, (count, 8))
        self.mask = np.arange(8) < generator.integers(4, 9, (count, 1))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        tokens = self.tokens[index]
        return {"tokens": tokens, "mask": self.mask[index], "label": tokens[0] % NUM_CLASSES}


class Pictures:
    """(3, 32, 32) noise around a level that the label gives."""

    def __init__(self, count: int, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.labels = generator.integers(0, NUM_CLASSES, count)
        self.pictures = (
            generator.normal(size=(count, 3, 32, 32)) + self.labels[:, None, None, None]
        ).astype(np.float32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {"x": self.pictures[index], "label": self.labels[index]}


SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}


def bert(adapted: bool = False) -> nn.Module:
    """A tiny BERT for classification; with LoRA by peft if `adapted`."""
    from transformers import BertConfig, BertForSequenceClassification

    network = BertForSequenceClassification(BertConfig(**SIZES, num_labels=NUM_CLASSES))
    if not adapted:
        return network
    from peft import LoraConfig, get_peft_model

    return get_peft_model(network, LoraConfig(r=2, task_type="SEQ_CLS", lora_dropout=0.1))


def adapted(model: nn.Module) -> nn.Module:
    """A GPT-2 with LoRA by peft."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model,  # type: ignore[arg-type] # a PreTrainedModel
        LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True),
    )


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=8))


def mixtral() -> nn.Module:
    """Experts, of which a micro-batch takes some."""
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_experts_per_tok": 1}
    config = MixtralConfig(vocab_size=11, num_local_experts=3, **sizes, **heads)
    return MixtralForCausalLM(config)
