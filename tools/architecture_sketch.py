"""What the descriptions of architectures have in common: the example, its inputs, its dynamic axes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# No model here needs torchvision, and one that was built for another torch makes transformers fail to import.
sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]

import torch  # noqa: E402
import transformers as tr  # noqa: E402, F401 (from here, so that the line above comes first)
from torch import nn  # noqa: E402

Size = Literal["tiny", "full"]
Exporter = Literal["ts", "dyn"]
Axes = dict[int, str]


# People export through TorchScript with attention written out; the newer exporter takes the fused operator.
ATTENTION: dict[Exporter, str] = {"ts": "eager", "dyn": "sdpa"}


@dataclass(frozen=True)
class Example:
    """A module in evaluation mode with inputs that it runs on.

    `inputs` maps input names to tensors, in the order `forward` takes them; `dynamic` names, for each input,
    the axes that may vary (`{"input_ids": {0: "batch", 1: "seq"}}`); `outputs` names the results in order.
    """

    module: nn.Module
    inputs: dict[str, torch.Tensor]
    dynamic: dict[str, Axes]
    outputs: tuple[str, ...]


class Named(nn.Module):
    """A transformers model with positional tensors in and a plain tuple of the named fields out."""

    def __init__(self, model: nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(inputs)
        self.fields = tuple(outputs)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = self.model(**dict(zip(self.names, tensors, strict=True)))
        return tuple(result[field] for field in self.fields)


def named(
    model: nn.Module, inputs: dict[str, torch.Tensor], dynamic: dict[str, Axes], *outputs: str
) -> Example:
    return Example(Named(model, tuple(inputs), outputs), inputs, dynamic, outputs)


# --- example inputs -----------------------------------------------------------------------------------------

BATCH: Axes = {0: "batch"}
TOKENS: Axes = {0: "batch", 1: "seq"}


def token_ids(batch: int = 2, length: int = 64) -> torch.Tensor:
    return torch.randint(1, 900, (batch, length))


def text(mask: bool, batch: int = 2, length: int = 64) -> tuple[dict[str, torch.Tensor], dict[str, Axes]]:
    """Token ids, with or without an attention mask, and their dynamic axes.

    Decoders need the mask for the TorchScript exporter: without one, transformers looks for packed sequences
    in the position ids, with an operator that this exporter does not know.
    """
    ids = token_ids(batch, length)
    inputs = {"input_ids": ids}
    if mask:
        inputs["attention_mask"] = torch.ones_like(ids)
    return inputs, dict.fromkeys(inputs, TOKENS)
