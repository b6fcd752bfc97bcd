"""The architectures behind `fixtures/` and the development corpus, with random weights and example inputs.

Every architecture is one function `name(size, exporter) -> Example`, where `size` is `"tiny"` (a fixture of
less than 300 kB) or `"full"` (as in the paper, or fewer layers of that kind); an exporter may need another
attention or another input. Nothing is downloaded: configurations are built here and the weights are random.
The first of them are here, more in `architectures_text.py` and `architectures_vision.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from architecture_sketch import ATTENTION, BATCH, Example, Exporter, Size, named, text, tr
from architectures_recurrent import RECURRENT
from architectures_text import TEXT
from architectures_vision import VISION


def resnet(size: Size, exporter: Exporter) -> Example:
    """Bottleneck residual network without a classifier: Conv, BatchNorm, Relu, Add, pooling."""
    tiny = {"embedding_size": 8, "hidden_sizes": [16, 24, 32], "depths": [2, 1, 1]}
    model = tr.ResNetModel(tr.ResNetConfig(**tiny if size == "tiny" else {}))
    side = 32 if size == "tiny" else 224
    inputs = {"pixel_values": torch.randn(2, 3, side, side)}
    return named(model, inputs, {"pixel_values": BATCH}, "last_hidden_state", "pooler_output")


def vit(size: Size, exporter: Exporter) -> Example:
    """Vision Transformer (ViT-B/16 when full): patch convolution, class token, pre-norm encoder, GELU."""
    tiny = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
    }
    config = tr.ViTConfig(**tiny if size == "tiny" else {}, attn_implementation=ATTENTION[exporter])
    inputs = {"pixel_values": torch.randn(2, 3, config.image_size, config.image_size)}
    return named(tr.ViTModel(config), inputs, {"pixel_values": BATCH}, "last_hidden_state", "pooler_output")


def bert(size: Size, exporter: Exporter) -> Example:
    """BERT encoder (bert-base when full): embeddings, post-norm LayerNorm, GELU, mask, Tanh pooler."""
    tiny = {
        "vocab_size": 1000,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
    }
    model = tr.BertModel(
        tr.BertConfig(**tiny if size == "tiny" else {}, attn_implementation=ATTENTION[exporter])
    )
    return named(model, *text(mask=True), "last_hidden_state", "pooler_output")


def gpt2(size: Size, exporter: Exporter) -> Example:
    """GPT-2 decoder (6 layers when full): causal mask, fused QKV, tanh GELU, tied head; no cache."""
    tiny = {"vocab_size": 1000, "n_positions": 128, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = tr.GPT2Config(
        **tiny if size == "tiny" else {"n_layer": 6}, use_cache=False, attn_implementation=ATTENTION[exporter]
    )
    return named(tr.GPT2LMHeadModel(config), *text(mask=exporter == "ts"), "logits")


def llama(size: Size, exporter: Exporter) -> Example:
    """Llama decoder (8 layers of 512 when full): RMSNorm, rotary embedding, grouped queries, SiLU gate."""
    tiny = {"vocab_size": 900, "hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2}
    full = {"vocab_size": 8000, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    if size == "full":
        heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    config = tr.LlamaConfig(
        **tiny if size == "tiny" else full, **heads, use_cache=False, attn_implementation=ATTENTION[exporter]
    )
    return named(tr.LlamaForCausalLM(config), *text(mask=exporter == "ts"), "logits")


def llama1024(size: Size, exporter: Exporter) -> Example:
    """Twelve layers of the same of 1024, for eight prompts of 256: the one that is timed on a GPU."""
    config = tr.LlamaConfig(
        vocab_size=32000 if size == "full" else 900,
        hidden_size=1024 if size == "full" else 32,
        intermediate_size=2816 if size == "full" else 80,
        num_hidden_layers=12 if size == "full" else 2,
        num_attention_heads=16,
        num_key_value_heads=4,
        use_cache=False,
        attn_implementation=ATTENTION[exporter],
    )
    return named(tr.LlamaForCausalLM(config), *text(exporter == "ts", batch=8, length=256), "logits")


def whisperenc(size: Size, exporter: Exporter) -> Example:
    """Whisper's encoder (whisper-tiny when full): two Conv1d over the spectrogram, then a Transformer."""
    shape = {"d_model": 384, "layers": 4, "attention_heads": 6, "ffn_dim": 1536}
    sound = {"num_mel_bins": 80, "max_source_positions": 1500}
    if size == "tiny":
        shape = {"d_model": 24, "layers": 2, "attention_heads": 2, "ffn_dim": 48}
        sound = {"num_mel_bins": 8, "max_source_positions": 50}
    width = {"d_model": shape.pop("d_model")}
    sides = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in shape.items()}
    config = tr.WhisperConfig(**width, **sides, **sound, attn_implementation=ATTENTION[exporter])
    frames = 2 * config.max_source_positions
    inputs = {"input_features": torch.randn(2, config.num_mel_bins, frames)}
    return named(tr.WhisperModel(config).encoder, inputs, {"input_features": BATCH}, "last_hidden_state")


def clip(size: Size, exporter: Exporter) -> Example:
    """CLIP, both towers and their similarity (ViT-B/32 when full)."""
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = tr.CLIPConfig()
    if size == "tiny":
        config = tr.CLIPConfig(
            text_config=tower | {"vocab_size": 1000, "max_position_embeddings": 77},
            vision_config=tower | {"image_size": 32, "patch_size": 16},
            projection_dim=16,
        )
    config._attn_implementation = ATTENTION[exporter]
    tokens, axes = text(mask=True)
    side = config.vision_config.image_size
    pixels = {"pixel_values": torch.randn(2, 3, side, side)}
    inputs = {"input_ids": tokens["input_ids"]} | pixels | {"attention_mask": tokens["attention_mask"]}
    outputs = ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds")
    return named(tr.CLIPModel(config), inputs, axes | {"pixel_values": BATCH}, *outputs)


class Block(nn.Module):
    """Two convolutions with GroupNorm and SiLU and a residual path; padding is an operator of its own."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels, 3)
        self.second = nn.Conv2d(channels, channels, 3)
        self.norms = nn.ModuleList(nn.GroupNorm(min(8, channels // 2), channels) for _ in range(2))
        self.skip = nn.Conv2d(channels_in, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.silu(self.norms[0](self.first(F.pad(x, (1, 1, 1, 1)))))
        y = F.silu(self.norms[1](self.second(F.pad(y, (1, 1, 1, 1)))))
        return y + self.skip(x)


class UNet(nn.Module):
    """A U-Net: blocks down, blocks up through ConvTranspose + BatchNorm, skips joined by Concat."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels + 1)]
        steps = list(pairwise(widths))
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.down = nn.ModuleList(Block(a, b) for a, b in steps)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in reversed(steps))
        self.up_norm = nn.ModuleList(nn.BatchNorm2d(a) for a, _ in reversed(steps))
        self.join = nn.ModuleList(Block(2 * a, a) for a, _ in reversed(steps))
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem_norm(self.stem(image)))
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(F.max_pool2d(x, 2))
        for up, norm, join in zip(self.up, self.up_norm, self.join, strict=True):
            x = F.relu(norm(up(x)))
            x = join(torch.cat([x, skips.pop()], dim=1))
        return torch.sigmoid(self.head(x))


def unet(size: Size, exporter: Exporter) -> Example:
    """Small U-Net: Pad + Conv, GroupNorm, SiLU, ConvTranspose + BatchNorm, skip connections by Concat."""
    width, levels, side = (4, 2, 32) if size == "tiny" else (32, 4, 128)
    image = torch.randn(2, 3, side, side)
    return Example(UNet(width, levels), {"image": image}, {"image": BATCH}, ("mask_probability",))


class Tagger(nn.Module):
    """Embedding, bidirectional LSTM, linear layer: a score for each tag of each token."""

    def __init__(self, vocabulary: int, width: int, layers: int, tags: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, tags)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(self.embedding(input_ids))
        return F.log_softmax(self.head(states), dim=-1)


def lstm(size: Size, exporter: Exporter) -> Example:
    """Bidirectional LSTM tagger over token ids."""
    module = Tagger(1000, 16, 1, 9) if size == "tiny" else Tagger(30000, 512, 2, 17)
    inputs, dynamic = text(mask=False)
    return Example(module, inputs, dynamic, ("log_probabilities",))


ARCHITECTURES: dict[str, Callable[[Size, Exporter], Example]] = {
    build.__name__: build
    for build in (
        resnet,
        vit,
        bert,
        gpt2,
        llama,
        llama1024,
        whisperenc,
        clip,
        unet,
        lstm,
        *RECURRENT,
        *TEXT,
        *VISION,
    )
}


def build(name: str, size: Size, exporter: Exporter, seed: int = 0) -> Example:
    """The architecture `name` with weights that depend on `seed` alone."""
    torch.manual_seed(seed)
    example = ARCHITECTURES[name](size, exporter)
    example.module.eval()
    if size == "tiny":
        disturb(example.module, seed)
    return example


def disturb(module: nn.Module, seed: int) -> None:
    """Give most vectors (biases, scales, running statistics) values other than 0 and 1, in place.

    As initialised, a normalisation is the identity: a fusion that drops it would go unnoticed. A quarter keep
    their first values, because real exports have equal vectors too.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Any] = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, tensor in tensors.items():
        if tensor.ndim == 1 and tensor.is_floating_point() and "inv_freq" not in name:
            shift = torch.rand(tensor.shape, generator=generator) - 0.5
            if torch.rand((), generator=generator) < 0.75:
                # Scales stay within 0.5 … 1.5, and so do variances, times what they were.
                tensor.data.add_(shift * tensor if name.endswith("running_var") else shift)
