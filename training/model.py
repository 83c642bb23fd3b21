"""The network: a small wide residual network for pictures of any size.

WRN-16 of Zagoruyko and Komodakis, 2016; the shortcuts that halve a picture take means, as He and others have it, 2018.
It looks at pixels or at gradients: histograms of their directions, as Dalal and Triggs have them, 2005. Where pictures
are few, what needs not be learnt helps, and the two kinds make different mistakes.
"""

import math

import torch
from torch import nn
from torch.nn import functional

BLOCKS = 2  # in each of three groups
LARGE_SIDE = (
    40  # pictures of more pixels a side are halved by the first layer, or training would take four times as long
)
DIRECTIONS = 9  # of gradients, over half a turn
FAINT = 0.1  # added to the gradients around, so that noise in flat parts is not blown up


class Classifier(nn.Module):
    """Pictures to logits.

    In: float32 [N, 3, height, width], RGB, 0 to 1. Out: float32 [N, classes].
    Normalisation is a part of it, so that whoever calls the model need not know `mean` and `std` (each [3]).
    """

    def __init__(self, classes, mean, std, size=(32, 32), width=32, dropout=0.0, gradients=False):
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).reshape(1, 3, 1, 1))
        self.gradients = gradients
        stride = 2 if max(size) > LARGE_SIDE else 1
        if gradients:
            seen = DIRECTIONS + 3
            layers = [Gradients(), nn.BatchNorm2d(seen, affine=False), convolution(seen, width, stride)]
            channels, width = width, 2 * width  # at half the resolution, twice as many cost the same
        else:
            channels = width // 2
            layers = [convolution(3, channels, stride)]
        for wider, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            for _ in range(BLOCKS):
                layers.append(Block(channels, wider, stride))
                channels, stride = wider, 1
        self.features = nn.Sequential(
            *layers, nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, classes))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixels):
        return self.head(self.features(pixels if self.gradients else (pixels - self.mean) / self.std))


class Gradients(nn.Module):
    """Pictures to the directions and strengths of their gradients, and their colours, at half the resolution.

    In: [N, 3, height, width], 0 to 1. Out: [N, DIRECTIONS + 3, height / 2, width / 2], about 0 to 1. Of the three
    colours' gradients the strongest counts; strength is relative to what is around, so that light matters little.
    """

    def __init__(self):
        super().__init__()
        angles = torch.arange(DIRECTIONS) * math.pi / DIRECTIONS
        self.register_buffer("cosine", torch.cos(angles).reshape(1, -1, 1, 1))
        self.register_buffer("sine", torch.sin(angles).reshape(1, -1, 1, 1))
        self.register_buffer("halve", bell([1.0, 3, 3, 1]).repeat(DIRECTIONS, 1, 1, 1))
        self.register_buffer("around", bell([1.0, 2, 3, 4, 3, 2, 1]))

    def forward(self, pixels):
        pixels = pixels.float()
        framed = functional.pad(pixels, (1, 1, 1, 1), mode="replicate")
        across, down = (
            framed[..., 1:-1, 2:] - framed[..., 1:-1, :-2],
            framed[..., 2:, 1:-1] - framed[..., :-2, 1:-1],
        )
        strongest = (across.square() + down.square()).argmax(1, keepdim=True)
        across, down = across.gather(1, strongest), down.gather(1, strongest)
        strength = (across.square() + down.square()).sqrt()
        alike = ((across * self.cosine + down * self.sine) / strength.clamp(min=1e-4)).square()  # where it is flat, 0
        # the eighth power of the cosine: a gradient counts for its own direction, and a little for the next
        histogram = functional.conv2d(
            alike.square().square() * strength, self.halve, stride=2, padding=1, groups=DIRECTIONS
        )
        near = functional.conv2d(histogram.sum(1, keepdim=True), self.around, padding=3)
        return torch.cat([histogram / (near + FAINT), functional.avg_pool2d(pixels, 2)], 1)


def bell(weights):
    """A filter [1, 1, side, side] that takes a weighted mean."""
    weights = torch.tensor(weights)
    square = weights[:, None] * weights[None]
    return (square / square.sum())[None, None]


class Block(nn.Module):
    """Two convolutions beside a shortcut, each after its normalisation and ReLU."""

    def __init__(self, channels_in, channels_out, stride):
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
            # of an odd side, the convolution makes the larger half, and so must this
            halve = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
            self.shortcut = nn.Sequential(halve, nn.Conv2d(channels_in, channels_out, 1, bias=False))

    def forward(self, pixels):
        inside = self.before(pixels)
        return self.convolutions(inside) + (pixels if self.shortcut is None else self.shortcut(inside))


def convolution(channels_in, channels_out, stride=1):
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)


class Average(nn.Module):
    """The mean logits of several models, each with its weight; if `mirrored`, of each picture and its mirror image."""

    def __init__(self, models, mirrored, weights=None):
        super().__init__()
        self.models = nn.ModuleList(models)
        self.mirrored = mirrored
        self.weights = weights or [1 / len(models)] * len(models)

    def forward(self, pixels):
        views = [pixels, pixels.flip(3)] if self.mirrored else [pixels]
        weighed = zip(self.weights, self.models, strict=True)
        return sum(weight * model(view) for weight, model in weighed for view in views) / len(views)


class Probabilities(nn.Module):
    """What is exported: the classifier, its temperature and softmax."""

    def __init__(self, classifier, temperature=1.0):
        super().__init__()
        self.classifier = classifier
        self.temperature = temperature

    def forward(self, pixels):
        return torch.softmax(self.classifier(pixels) / self.temperature, dim=1)
