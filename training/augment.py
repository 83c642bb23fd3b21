"""Random augmentation of the training images.

images are float32 [N, 3, height, width], 0 to 1; options are those of train.py.
"""

import argparse

import torch
from torch.nn import functional

COLOURLESS = 0.1  # fraction of the relit images that lose their colour


def augment(
    images: torch.Tensor, truth: torch.Tensor, options: argparse.Namespace
) -> tuple[torch.Tensor, torch.Tensor]:
    """Move, relight and mix the images. Returns them with their new truth [N, classes]."""
    return mix(relight(move(images, options), options), truth, options)


def move(images: torch.Tensor, options: argparse.Namespace) -> torch.Tensor:
    """Shift, rotate, scale and randomly mirror the images; borders are filled with the image's reflection."""
    count = len(images)
    angle = torch.deg2rad(uniform(options.rotate, count))
    scale = 1 + uniform(options.scale, count)
    mirror = torch.where(torch.rand(count) < options.flip, -1.0, 1.0)
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    shift_x, shift_y = (uniform(2 * options.shift, count) for _ in range(2))  # the grid runs from -1 to 1
    rows = [torch.stack([cosine * mirror, -sine, shift_x], 1), torch.stack([sine * mirror, cosine, shift_y], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def relight(images: torch.Tensor, options: argparse.Namespace) -> torch.Tensor:
    """Vary contrast, brightness and colour, and remove the colour of some images; nothing if options.light is 0."""
    if not options.light:
        return images
    colour, contrast, brightness = (1 + uniform(options.light, len(images)).reshape(-1, 1, 1, 1) for _ in range(3))
    colour[torch.rand(len(images)) < COLOURLESS] = 0
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * colour
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * contrast + mean * brightness


def mix(images: torch.Tensor, truth: torch.Tensor, options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """With probability options.mix, paste a rectangle of another image of the batch into each (CutMix).

    truth [N, classes] is divided in proportion to the area.
    """
    if torch.rand(()) >= options.mix:
        return images, truth
    height, width = images.shape[2:]
    side = torch.rand(()).sqrt()  # makes the area uniformly distributed
    high, wide = int(side * height), int(side * width)
    top, left = (int(torch.randint(space + 1, ())) for space in (height - high, width - wide))
    rows, columns = slice(top, top + high), slice(left, left + wide)
    others = torch.randperm(len(images))
    images = images.clone()
    images[:, :, rows, columns] = images[others][:, :, rows, columns]
    share = high * wide / (height * width)
    return images, (1 - share) * truth + share * truth[others]


def uniform(limit: float, count: int) -> torch.Tensor:
    """`count` random numbers between -limit and limit, [count]."""
    return limit * (2 * torch.rand(count) - 1)
