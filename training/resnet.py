"""ResNet-18 (He and others, 2016), for fine-tuning weights pretrained on ImageNet.

The layers are named as in torchvision, so that its weight files fit (resnet18-f37072fd.pth, which torch.hub caches in
~/.cache/torch/hub/checkpoints). The last layer is new, because the classes are different.
"""

import pickle
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from folders import DataError

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet, which the weights expect
NEW = ("mean", "std", "fc.weight", "fc.bias")  # missing from a weight file, or fitted to ImageNet's classes
SIDE = 128  # pixels; about half of ImageNet's side costs a third, and smaller images gain from being enlarged to it


class PretrainedWeightsError(DataError):
    """The file does not hold the weights of torchvision's resnet18."""


class ResNet18(nn.Module):
    """Images to logits. Input: float32 [N, 3, height, width], RGB, 0 to 1. Output: float32 [N, classes]."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).reshape(1, 3, 1, 1))
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(Block(64, 64), Block(64, 64))
        self.layer2 = nn.Sequential(Block(64, 128, 2), Block(128, 128))
        self.layer3 = nn.Sequential(Block(128, 256, 2), Block(256, 256))
        self.layer4 = nn.Sequential(Block(256, 512, 2), Block(512, 512))
        self.fc = nn.Linear(512, classes)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features = functional.relu(self.bn1(self.conv1((pixels - self.mean) / self.std)))
        features = functional.max_pool2d(features, 3, 2, padding=1)
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        return self.fc(features.mean((2, 3)))


class Block(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample = None
        if stride != 1:
            shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels_out))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        inside = functional.relu(self.bn1(self.conv1(pixels)))
        return functional.relu(self.bn2(self.conv2(inside)) + (self.downsample(pixels) if self.downsample else pixels))


def pretrained(path: Path, classes: int) -> ResNet18:
    """A ResNet18 with the weights from the file `path` and a new last layer. Raises PretrainedWeightsError."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise PretrainedWeightsError(f"{path} does not exist") from None
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise PretrainedWeightsError(f"{path} has no weights that PyTorch can load without running code") from error
    network = ResNet18(classes)
    new = {name: value for name, value in network.state_dict().items() if name in NEW}
    try:
        network.load_state_dict(dict(weights) | new)
    except (RuntimeError, TypeError, ValueError) as error:
        raise PretrainedWeightsError(f"{path} does not hold the weights of torchvision's resnet18") from error
    return network
