"""Pictures as training shows them, a little other each time.

images are float32 [N, 3, height, width], 0 to 1; options are train.py's.
"""

import torch
from torch.nn import functional

COLOURLESS = 0.1  # part of the pictures in another light


def augment(images, truth, options):
    """Moved, in another light, and mixed with each other; truth [N, classes] goes along."""
    return mix(relight(move(images, options), options), truth, options)


def move(images, options):
    """Shift, turn, scale and perhaps mirror; what comes in at the edges is the picture's own reflection."""
    count = len(images)
    angle = torch.deg2rad(between(options.rotate, count))
    scale = 1 + between(options.scale, count)
    mirror = torch.where(torch.rand(count) < options.flip, -1.0, 1.0)
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    shift_x, shift_y = (between(2 * options.shift, count) for _ in range(2))  # the grid's sides are 2 long
    rows = [torch.stack([cosine * mirror, -sine, shift_x], 1), torch.stack([sine * mirror, cosine, shift_y], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), images.shape, align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def relight(images, options):
    """More or less contrast, brightness and colour, or none."""
    if not options.light:
        return images
    colour, contrast, brightness = (1 + between(options.light, len(images)).reshape(-1, 1, 1, 1) for _ in range(3))
    colour[torch.rand(len(images)) < COLOURLESS] = 0
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * colour
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * contrast + mean * brightness


def mix(images, truth, options):
    """Into a part of the batches, paste a rectangle of another picture; truth [N, classes] is divided by area."""
    if torch.rand(()) >= options.mix:
        return images, truth
    height, width = images.shape[2:]
    side = torch.rand(()).sqrt()  # so that every area is as likely
    high, wide = int(side * height), int(side * width)
    top, left = (int(torch.randint(space + 1, ())) for space in (height - high, width - wide))
    rows, columns = slice(top, top + high), slice(left, left + wide)
    others = torch.randperm(len(images))
    images = images.clone()
    images[:, :, rows, columns] = images[others][:, :, rows, columns]
    part = high * wide / (height * width)
    return images, (1 - part) * truth + part * truth[others]


def between(limit, count):
    """`count` numbers between -limit and limit."""
    return limit * (2 * torch.rand(count) - 1)
