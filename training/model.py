"""The network: a small wide residual network for pictures of any size.

WRN-16 of Zagoruyko and Komodakis, 2016; the shortcuts that halve a picture take means, as He and others have it, 2018.
"""

import torch
from torch import nn

BLOCKS = 2  # in each of three groups
LARGE_SIDE = (
    40  # pictures of more pixels a side are halved by the first layer, or training would take four times as long
)


class Classifier(nn.Module):
    """Pictures to logits.

    In: float32 [N, 3, height, width], RGB, 0 to 1. Out: float32 [N, classes].
    Normalisation is a part of it, so that whoever calls the model need not know `mean` and `std` (each [3]).
    """

    def __init__(self, classes, mean, std, size=(32, 32), width=32, dropout=0.0):
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).reshape(1, 3, 1, 1))
        channels = width // 2
        layers = [convolution(3, channels, stride=2 if max(size) > LARGE_SIDE else 1)]
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
        return self.head(self.features((pixels - self.mean) / self.std))


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
            self.shortcut = nn.Sequential(nn.AvgPool2d(stride), nn.Conv2d(channels_in, channels_out, 1, bias=False))

    def forward(self, pixels):
        inside = self.before(pixels)
        return self.convolutions(inside) + (pixels if self.shortcut is None else self.shortcut(inside))


def convolution(channels_in, channels_out, stride=1):
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)


class Average(nn.Module):
    """The mean logits of several networks; if `mirrored`, of each picture and its mirror image."""

    def __init__(self, networks, mirrored):
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.mirrored = mirrored

    def forward(self, pixels):
        views = [pixels, pixels.flip(3)] if self.mirrored else [pixels]
        return torch.stack([network(view) for network in self.networks for view in views]).mean(0)


class Probabilities(nn.Module):
    """What is exported: the classifier, its temperature and softmax."""

    def __init__(self, classifier, temperature=1.0):
        super().__init__()
        self.classifier = classifier
        self.temperature = temperature

    def forward(self, pixels):
        return torch.softmax(self.classifier(pixels) / self.temperature, dim=1)
