"""The network: a small wide residual network for images of any size.

WRN-16 or, for few images, WRN-10 (Zagoruyko and Komodakis, 2016), with average pooling in the shortcuts that halve the
resolution (He and others, 2018). Its input is either pixels or gradients: histograms of gradient directions (Dalal and
Triggs, 2005). With few images, features that need no learning help, and networks of the two kinds make different
mistakes.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

LARGE_SIDE = 40  # pixels; above it, the first layer halves the image, or training would take four times as long
DIRECTIONS = 9  # of gradients, over half a turn
FAINT = 0.1  # added to the gradients in the neighbourhood, so that noise in flat areas is not amplified


class Classifier(nn.Module):
    """Images to logits.

    Input: float32 [N, 3, height, width], RGB, 0 to 1. Output: float32 [N, classes].
    Normalisation is part of the model, so that callers need not know `mean` and `std` (each [3]). Each of the three
    groups of layers has `blocks` residual blocks: 2 for WRN-16, 1 for WRN-10.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        classes: int,
        mean: Any,
        std: Any,
        size: tuple[int, ...] = (32, 32),
        width: int = 32,
        dropout: float = 0.0,
        gradients: bool = False,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).reshape(1, 3, 1, 1))
        self.gradients = gradients
        stride = 2 if max(size) > LARGE_SIDE else 1
        layers: list[nn.Module]
        if gradients:
            inputs = DIRECTIONS + 3
            layers = [Gradients(), nn.BatchNorm2d(inputs, affine=False), convolution(inputs, width, stride)]
            channels, width = width, 2 * width  # at half the resolution, twice the channels cost the same
        else:
            channels = width // 2
            layers = [convolution(3, channels, stride)]
        for wider, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            for _ in range(blocks):
                layers.append(Block(channels, wider, stride))
                channels, stride = wider, 1
        self.features = nn.Sequential(
            *layers, nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, classes))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(pixels if self.gradients else (pixels - self.mean) / self.std))


class Gradients(nn.Module):
    """Images to histograms of gradient directions, weighted by strength, and colours, at half the resolution.

    Input: [N, 3, height, width], 0 to 1. Output: [N, DIRECTIONS + 3, height / 2, width / 2], about 0 to 1. Each pixel
    uses the strongest gradient of its three colours. Strength is relative to the neighbourhood, so that lighting
    matters little.
    """

    cosine: torch.Tensor
    sine: torch.Tensor
    halve: torch.Tensor
    around: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        angles = torch.arange(DIRECTIONS) * math.pi / DIRECTIONS
        self.register_buffer("cosine", torch.cos(angles).reshape(1, -1, 1, 1))
        self.register_buffer("sine", torch.sin(angles).reshape(1, -1, 1, 1))
        self.register_buffer("halve", bell([1.0, 3, 3, 1]).repeat(DIRECTIONS, 1, 1, 1))
        self.register_buffer("around", bell([1.0, 2, 3, 4, 3, 2, 1]))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        pixels = pixels.float()
        padded = functional.pad(pixels, (1, 1, 1, 1), mode="replicate")
        across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
        down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
        strongest = (across.square() + down.square()).argmax(1, keepdim=True)
        across, down = across.gather(1, strongest), down.gather(1, strongest)
        strength = (across.square() + down.square()).sqrt()
        alignment = ((across * self.cosine + down * self.sine) / strength.clamp(min=1e-4)).square()  # 0 in flat areas
        # The eighth power of the cosine: a gradient counts towards its own direction, and a little towards the next.
        weighted = alignment.square().square() * strength
        histogram = functional.conv2d(weighted, self.halve, stride=2, padding=1, groups=DIRECTIONS)
        near = functional.conv2d(histogram.sum(1, keepdim=True), self.around, padding=3)
        return torch.cat([histogram / (near + FAINT), functional.avg_pool2d(pixels, 2)], 1)


def bell(weights: list[float]) -> torch.Tensor:
    """A smoothing filter, [1, 1, side, side], whose rows and columns have these weights and whose sum is 1."""
    row = torch.tensor(weights)
    square = row[:, None] * row[None]
    return (square / square.sum())[None, None]


class Block(nn.Module):
    """A residual block: two convolutions, each after batch normalisation and ReLU, plus a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(channels_in), nn.ReLU())
        self.convolutions = nn.Sequential(
            convolution(channels_in, channels_out, stride),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            convolution(channels_out, channels_out),
        )
        self.shortcut = None
        if channels_in != channels_out or stride != 1:
            # ceil_mode, because the convolution rounds up when it halves an odd side.
            halve = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
            self.shortcut = nn.Sequential(halve, nn.Conv2d(channels_in, channels_out, 1, bias=False))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        inside = self.before(pixels)
        return self.convolutions(inside) + (pixels if self.shortcut is None else self.shortcut(inside))


def convolution(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)


class Average(nn.Module):
    """The weighted sum of several models' logits, by default their mean; if `mirrored`, also over the mirror image."""

    def __init__(self, models: Sequence[nn.Module], mirrored: bool, weights: list[float] | None = None) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.mirrored = mirrored
        self.weights = weights or [1 / len(models)] * len(models)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        views = [pixels, pixels.flip(3)] if self.mirrored else [pixels]
        weighted = zip(self.weights, self.models, strict=True)
        return sum(weight * model(view) for weight, model in weighted for view in views) / len(views)


class Probabilities(nn.Module):
    """The exported model: the classifier, its temperature and softmax."""

    def __init__(self, classifier: nn.Module, temperature: float = 1.0) -> None:
        super().__init__()
        self.classifier = classifier
        self.temperature = temperature

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.classifier(pixels) / self.temperature, dim=1)
