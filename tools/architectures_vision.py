"""Architectures for images: from transformers where it needs no torchvision, and written out in torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from architecture_sketch import ATTENTION, BATCH, Example, Exporter, Size, named, tr


def images(size: Size, tiny: int = 32, full: int = 224) -> dict[str, torch.Tensor]:
    side = tiny if size == "tiny" else full
    return {"pixel_values": torch.randn(2, 3, side, side)}


def awake(model: nn.Module, *inputs: torch.Tensor) -> nn.Module:
    """The model with the statistics of its first batch; as initialised, what passes many layers fades away."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(*inputs)
    return model


def vision(model: nn.Module, inputs: dict[str, torch.Tensor], *outputs: str) -> Example:
    return named(awake(model, *inputs.values()), inputs, dict.fromkeys(inputs, BATCH), *outputs)


# --- from transformers --------------------------------------------------------------------------------------


def convnext(size: Size, exporter: Exporter) -> Example:
    """ConvNeXt (tiny's widths when full): depthwise Conv, LayerNorm over channels, layer scale."""
    tiny = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1]}
    config = tr.ConvNextConfig(**tiny if size == "tiny" else {"depths": [2, 2, 4, 2]})
    return vision(tr.ConvNextModel(config), images(size), "last_hidden_state", "pooler_output")


def swin(size: Size, exporter: Exporter) -> Example:
    """Swin Transformer (tiny's widths when full): shifted windows, their mask, relative position bias."""
    tiny = {
        "image_size": 32,
        "patch_size": 2,
        "window_size": 4,
        "embed_dim": 8,
        "depths": [1, 2],
        "num_heads": [1, 2],
    }
    config = tr.SwinConfig(
        **tiny if size == "tiny" else {"depths": [2, 2, 2, 2]}, attn_implementation=ATTENTION[exporter]
    )
    return vision(tr.SwinModel(config), images(size), "last_hidden_state", "pooler_output")


def segformer(size: Size, exporter: Exporter) -> Example:
    """SegFormer (b0 when full): attention with reduced keys, depthwise Conv in its MLP, Resize in its head."""
    tiny = {
        "hidden_sizes": [4, 8, 12, 16],
        "decoder_hidden_size": 16,
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 2, 4],
    }
    config = tr.SegformerConfig(**tiny if size == "tiny" else {}, num_labels=5)
    return vision(tr.SegformerForSemanticSegmentation(config), images(size, 64, 256), "logits")


def dinov2(size: Size, exporter: Exporter) -> Example:
    """DINOv2 (4 layers of the small one when full): a ViT with layer scale, positions made for its size."""
    tiny = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_ratio": 2,
        "image_size": 28,
    }
    full = {"hidden_size": 384, "num_hidden_layers": 4, "num_attention_heads": 6, "image_size": 224}
    config = tr.Dinov2Config(
        **tiny if size == "tiny" else full, patch_size=14, attn_implementation=ATTENTION[exporter]
    )
    return vision(tr.Dinov2Model(config), images(size, 28), "last_hidden_state", "pooler_output")


def vitdet(size: Size, exporter: Exporter) -> Example:
    """ViTDet: a ViT over windows with decomposed relative positions and residual Conv blocks (4 layers)."""
    tiny = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "mlp_ratio": 2,
        "image_size": 32,
        "pretrain_image_size": 32,
        "patch_size": 4,
    }
    full = {"hidden_size": 384, "num_attention_heads": 6, "image_size": 224, "pretrain_image_size": 224}
    layers = {"num_hidden_layers": 2 if size == "tiny" else 4, "window_size": 3 if size == "tiny" else 8}
    config = tr.VitDetConfig(
        **tiny if size == "tiny" else full, **layers, window_block_indices=[0], residual_block_indices=[1],
        use_relative_position_embeddings=True,
    )  # fmt: skip
    return vision(tr.VitDetModel(config), images(size), "last_hidden_state")


def detr(size: Size, exporter: Exporter) -> Example:
    """DETR: a residual network, encoder and decoder with sine positions, queries, boxes and classes."""
    body = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]}
    backbone = tr.ResNetConfig(
        **body if size == "tiny" else {"depths": [1, 1, 2, 1]}, out_features=["stage4"]
    )
    small = {"d_model": 16, "heads": 2, "ffn_dim": 32, "num_queries": 5}
    shape = small if size == "tiny" else {"d_model": 256, "heads": 8, "ffn_dim": 1024, "num_queries": 100}
    heads, ffn = shape.pop("heads"), shape.pop("ffn_dim")
    sides = {f"{side}_attention_heads": heads for side in ("encoder", "decoder")}
    sides |= {f"{side}_ffn_dim": ffn for side in ("encoder", "decoder")}
    sides |= {f"{side}_layers": 1 if size == "tiny" else 3 for side in ("encoder", "decoder")}
    config = tr.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone,
        **shape, **sides, num_labels=7, attn_implementation={"": ATTENTION[exporter], "backbone_config": "eager"},
    )  # fmt: skip
    return vision(tr.DetrForObjectDetection(config), images(size, 64, 256), "logits", "pred_boxes")


def mobilenetv2(size: Size, exporter: Exporter) -> Example:
    """MobileNetV2: inverted residuals, depthwise Conv with BatchNorm, Relu6."""
    tiny = {"depth_multiplier": 0.1, "min_depth": 4, "depth_divisible_by": 4, "finegrained_output": False}
    config = tr.MobileNetV2Config(**tiny if size == "tiny" else {}, tf_padding=False)
    return vision(tr.MobileNetV2Model(config), images(size), "last_hidden_state", "pooler_output")


def efficientnet(size: Size, exporter: Exporter) -> Example:
    """EfficientNet (b0's widths when full): squeeze and excitation, SiLU, Pad before strided Conv."""
    tiny = {"width_coefficient": 0.25, "depth_coefficient": 0.2, "depth_divisor": 4, "hidden_dim": 32}
    full = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280}
    config = tr.EfficientNetConfig(**tiny if size == "tiny" else full)
    return vision(tr.EfficientNetModel(config), images(size), "last_hidden_state", "pooler_output")


def mobilevit(size: Size, exporter: Exporter) -> Example:
    """MobileViT with DeepLabV3's head: folding of patches, attention over them, atrous pyramid, Resize."""
    tiny = {
        "hidden_sizes": [8, 12, 16],
        "neck_hidden_sizes": [4, 4, 8, 8, 8, 8, 16],
        "num_attention_heads": 2,
        "aspp_out_channels": 8,
        "expand_ratio": 2.0,
    }
    full = {"hidden_sizes": [96, 120, 144], "neck_hidden_sizes": [16, 32, 64, 96, 128, 160, 640]}
    config = tr.MobileViTConfig(
        **tiny if size == "tiny" else full, num_labels=5, image_size=64 if size == "tiny" else 256
    )
    return vision(tr.MobileViTForSemanticSegmentation(config), images(size, 64, 256), "logits")


# --- written out --------------------------------------------------------------------------------------------


class ConvUnit(nn.Sequential):
    """Conv, BatchNorm, activation."""

    def __init__(
        self, a: int, b: int, kernel: int = 1, stride: int = 1, act: nn.Module | None = None
    ) -> None:
        conv = nn.Conv2d(a, b, kernel, stride, kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(b), act or nn.SiLU())


class C3(nn.Module):
    """YOLO's split-and-join block."""

    def __init__(self, a: int, b: int, count: int) -> None:
        super().__init__()
        half = b // 2
        self.left, self.right, self.out = ConvUnit(a, half), ConvUnit(a, half), ConvUnit(2 * half, b)
        self.steps = nn.ModuleList(
            nn.Sequential(ConvUnit(half, half), ConvUnit(half, half, 3)) for _ in range(count)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.left(x)
        for step in self.steps:
            y = y + step(y)
        return self.out(torch.cat([y, self.right(x)], 1))


class Pyramid(nn.Module):
    """SPPF: three max-poolings in a row, joined."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.after = ConvUnit(width, width // 2), ConvUnit(width * 2, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [self.before(x)]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 5, 1, 2))
        return self.after(torch.cat(parts, 1))


class Detect(nn.Module):
    """Boxes and scores of three scales, decoded against grids of anchors."""

    def __init__(self, widths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.fields = classes + 5
        self.heads = nn.ModuleList(nn.Conv2d(w, 3 * self.fields, 1) for w in widths)
        self.anchors = nn.Parameter(torch.rand(len(widths), 1, 3, 1, 1, 2))

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        found = []
        for i, (x, head) in enumerate(zip(maps, self.heads, strict=True)):
            y = head(x)
            batch, _, rows, columns = y.shape
            y = y.view(batch, 3, self.fields, rows, columns).permute(0, 1, 3, 4, 2).contiguous()
            v, u = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            grid = torch.stack((u, v), 2).expand(1, 3, rows, columns, 2).float() - 0.5
            y = y.sigmoid()
            xy, wh, rest = y.split((2, 2, self.fields - 4), 4)
            xy = (xy * 2 + grid) * 8 * 2**i
            wh = (wh * 2) ** 2 * self.anchors[i]
            found.append(torch.cat((xy, wh, rest), 4).view(batch, -1, self.fields))
        return torch.cat(found, 1)


class Yolo(nn.Module):
    """A detector: Focus, C3 blocks, SPPF, a path up and a path down, three heads."""

    def __init__(self, width: int, depth: int, classes: int) -> None:
        super().__init__()
        w = [width, 2 * width, 4 * width, 8 * width]
        self.stem = ConvUnit(12, w[0], 3)
        self.one = nn.Sequential(ConvUnit(w[0], w[1], 3, 2), C3(w[1], w[1], depth))
        self.two = nn.Sequential(ConvUnit(w[1], w[2], 3, 2), C3(w[2], w[2], depth))
        self.three = nn.Sequential(ConvUnit(w[2], w[3], 3, 2), C3(w[3], w[3], depth), Pyramid(w[3]))
        self.narrow, self.narrower = ConvUnit(w[3], w[2]), ConvUnit(w[2], w[1])
        self.up, self.upper = C3(2 * w[2], w[2], 1), C3(2 * w[1], w[1], 1)
        self.down, self.downer = ConvUnit(w[1], w[1], 3, 2), ConvUnit(w[2], w[2], 3, 2)
        self.join, self.joiner = C3(w[2], w[2], 1), C3(2 * w[2], w[3], 1)
        self.detect = Detect((w[1], w[2], w[3]), classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        a = self.one(self.stem(torch.cat(parts, 1)))
        b = self.two(a)
        c = self.narrow(self.three(b))
        d = self.narrower(self.up(torch.cat([F.interpolate(c, scale_factor=2.0), b], 1)))
        e = self.upper(torch.cat([F.interpolate(d, scale_factor=2.0), a], 1))
        f = self.join(torch.cat([self.down(e), d], 1))
        return self.detect([e, f, self.joiner(torch.cat([self.downer(f), c], 1))])


def yolo(size: Size, exporter: Exporter) -> Example:
    """A YOLO-like detector: SiLU, Focus, SPPF, Resize and Concat, a head that decodes boxes."""
    module = Yolo(4, 1, 3) if size == "tiny" else Yolo(32, 2, 80)
    side = 32 if size == "tiny" else 320
    image = torch.randn(2, 3, side, side)
    return Example(awake(module, image), {"image": image}, {"image": BATCH}, ("boxes",))


class DiffusionBlock(nn.Module):
    """GroupNorm, SiLU, Conv, twice, with the time step added in between."""

    def __init__(self, a: int, b: int, time: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList((nn.GroupNorm(4, a), nn.GroupNorm(4, b)))
        self.convs = nn.ModuleList((nn.Conv2d(a, b, 3, padding=1), nn.Conv2d(b, b, 3, padding=1)))
        self.time = nn.Linear(time, b)
        self.skip = nn.Conv2d(a, b, 1) if a != b else nn.Identity()

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        y = self.convs[0](F.silu(self.norms[0](x)))
        y = y + self.time(F.silu(time))[:, :, None, None]
        return self.skip(x) + self.convs[1](F.silu(self.norms[1](y)))


class PixelAttention(nn.Module):
    """Self-attention over all pixels, heads of 8 channels or more; written out, or torch's operator."""

    def __init__(self, width: int, heads: int, written_out: bool) -> None:
        super().__init__()
        self.norm, self.heads, self.written_out = nn.GroupNorm(4, width), heads, written_out
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, width, rows, columns = x.shape
        y = self.norm(x).view(batch, width, rows * columns).transpose(1, 2)
        q, k, v = (
            f(y).view(batch, rows * columns, self.heads, width // self.heads).transpose(1, 2)
            for f in (self.q, self.k, self.v)
        )
        if self.written_out:
            y = (q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        y = self.out(y.transpose(1, 2).reshape(batch, rows * columns, width))
        return x + y.transpose(1, 2).reshape(batch, width, rows, columns)


class Diffusion(nn.Module):
    """A denoising U-Net: time embedding, residual blocks, attention at the bottom, PixelShuffle on the way up."""

    def __init__(self, width: int, heads: int, written_out: bool) -> None:
        super().__init__()
        self.width, time = width, 4 * width
        self.embed = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        self.stem = nn.Conv2d(4, width, 3, padding=1)
        self.first, self.down = DiffusionBlock(width, width, time), nn.Conv2d(width, width, 3, 2, 1)
        self.second, self.bottom = (
            DiffusionBlock(width, 2 * width, time),
            DiffusionBlock(2 * width, 2 * width, time),
        )
        self.attention = PixelAttention(2 * width, heads, written_out)
        self.up = nn.Conv2d(2 * width, 4 * width, 3, padding=1)
        self.last = DiffusionBlock(2 * width, width, time)
        self.norm, self.out = nn.GroupNorm(4, width), nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        half = self.width // 2
        frequencies = torch.exp(-9.21 * torch.arange(half, dtype=torch.float32) / half)
        angles = timestep[:, None].float() * frequencies[None]
        time = self.embed(torch.cat([angles.cos(), angles.sin()], -1))
        x = self.first(self.stem(sample), time)
        y = self.attention(self.second(self.down(x), time))
        y = F.pixel_shuffle(self.up(self.bottom(y, time)), 2)
        y = self.last(torch.cat([y, x], 1), time)
        return self.out(F.silu(self.norm(y)))


def diffusion(size: Size, exporter: Exporter) -> Example:
    """A diffusion-like U-Net: GroupNorm and SiLU, time embedding, attention over pixels, PixelShuffle."""
    width, heads, side = (8, 2, 16) if size == "tiny" else (128, 8, 32)
    inputs = {"sample": torch.randn(2, 4, side, side), "timestep": torch.tensor([3, 500])}
    module = Diffusion(width, heads, written_out=exporter == "ts")
    return Example(module, inputs, dict.fromkeys(inputs, BATCH), ("noise",))


class DeepLab(nn.Module):
    """A residual body, atrous spatial pyramid with pooling, a decoder with a skip; Resize by sizes."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.stem = ConvUnit(3, width, 3, 2, nn.ReLU())
        self.low = ConvUnit(width, width, 3, 2, nn.ReLU())
        self.high = nn.Sequential(
            ConvUnit(width, 2 * width, 3, 2, nn.ReLU()), ConvUnit(2 * width, 2 * width, 3, 1, nn.ReLU())
        )
        rates = (1, 2, 3, 4)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(2 * width, width, 3, padding=r, dilation=r, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            )
            for r in rates
        )
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2 * width, width, 1), nn.ReLU())
        self.project = ConvUnit(5 * width, width, 1, 1, nn.Hardswish())
        self.head = nn.Conv2d(2 * width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = self.low(self.stem(x))
        high = self.high(low)
        size = high.shape[-2:]
        pooled = F.interpolate(self.pooled(high), size=size, mode="bilinear", align_corners=False)
        y = self.project(torch.cat([*(b(high) for b in self.branches), pooled], 1))
        y = F.interpolate(y, size=low.shape[-2:], mode="bilinear", align_corners=False)
        y = F.interpolate(
            self.head(torch.cat([y, low], 1)), size=x.shape[-2:], mode="bilinear", align_corners=False
        )
        return y.softmax(1)


def deeplab(size: Size, exporter: Exporter) -> Example:
    """DeepLab-like segmentation: dilated Conv, pooled branch, Resize to the size of another tensor."""
    module, side = (DeepLab(8, 3), 32) if size == "tiny" else (DeepLab(64, 21), 256)
    image = torch.randn(2, 3, side, side)
    return Example(awake(module, image), {"image": image}, {"image": BATCH}, ("classes",))


VISION = (
    convnext, swin, segformer, dinov2, vitdet, detr, mobilenetv2, efficientnet, mobilevit, yolo, diffusion, deeplab
)  # fmt: skip
