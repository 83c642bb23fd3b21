"""The network: a small convolutional classifier of pictures of any size."""

import torch
from torch import nn


class Classifier(nn.Module):
    """Pictures to logits.

    In: float32 [N, 3, height, width], RGB, 0 to 1. Out: float32 [N, classes].
    Normalisation is a part of it, so that whoever calls the model need not know `mean` and `std` (each [3]).
    """

    def __init__(self, classes, mean, std, width=16, dropout=0.2):
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).reshape(1, 3, 1, 1))
        self.features = nn.Sequential(
            block(3, width),
            block(width, width),
            nn.MaxPool2d(2),
            block(width, 2 * width),
            block(2 * width, 2 * width),
            nn.MaxPool2d(2),
            block(2 * width, 4 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(4 * width, classes))

    def forward(self, pixels):
        return self.head(self.features((pixels - self.mean) / self.std))


def block(channels_in, channels_out):
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


class Probabilities(nn.Module):
    """What is exported: the classifier and its softmax."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels):
        return torch.softmax(self.classifier(pixels), dim=1)
