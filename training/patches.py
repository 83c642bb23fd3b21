"""A second opinion where pictures are few: patches against a dictionary of patches, and a linear classifier.

Coates and Ng, "The importance of encoding versus training with sparse coding and vector quantization", 2011. It needs
no gradients and makes other mistakes than a network does: alone it is worse, and together they are better than either.
"""

import torch
from torch import nn
from torch.nn import functional

SIDE = 6  # of a patch
GRID = 4  # cells a side in which features are averaged
SAMPLED = 200_000  # patches, from which whitening and dictionary are made
ROUNDS = 10  # of k-means
WHITENING = 0.1  # added to the variances, so that noise is not blown up
CONTRAST = 10 / 255**2  # added to a patch's variance, so that flat ones stay flat
FAINT = 1.0  # added to a whitened patch's squared length, of about 50: else rounding would turn flat ones any way
SPARSITY = 0.1  # a likeness below it counts as none
RIDGE = 0.3  # regularisation, in units of the mean squared length of a picture's features
LARGE_SIDE = 40  # pictures of more pixels a side are halved first


class Patches(nn.Module):
    """Pictures to scores: float32 [N, 3, height, width], 0 to 1 -> [N, classes], about -1 to 1 each."""

    def __init__(self, size, channels, classes):
        super().__init__()
        self.halves = max(size) > LARGE_SIDE
        height, width = ((side // 2 if self.halves else side) - SIDE + 1 for side in size)
        values = 3 * SIDE * SIDE
        self.cells = (height // GRID, width // GRID)
        self.register_buffer("centre", (torch.eye(values) - 1 / values).reshape(values, 3, SIDE, SIDE))
        self.register_buffer("whiten", torch.zeros(values, values, 1, 1))
        self.register_buffer("shift", torch.zeros(values))
        self.register_buffer("dictionary", torch.zeros(channels, values, 1, 1))
        self.head = nn.Linear(2 * channels * GRID * GRID, classes)

    def patches(self, pixels):
        """Every patch, its mean taken away and its contrast evened out: [N, values, rows, columns]."""
        if self.halves:
            pixels = functional.avg_pool2d(pixels, 2)
        centred = functional.conv2d(pixels, self.centre)
        return centred / torch.sqrt(centred.square().mean(1, keepdim=True) + CONTRAST)

    def features(self, pixels):
        whitened = functional.conv2d(self.patches(pixels), self.whiten, self.shift)
        whitened = whitened / torch.sqrt(whitened.square().sum(1, keepdim=True) + FAINT)
        likeness = functional.conv2d(whitened, self.dictionary)
        sparse = torch.cat([torch.relu(likeness - SPARSITY), torch.relu(-likeness - SPARSITY)], 1)
        return functional.avg_pool2d(sparse, self.cells)[:, :, :GRID, :GRID].flatten(1)

    def forward(self, pixels):
        return self.head(self.features(pixels))


@torch.no_grad()
def fit(images, targets, classes, channels, mirrored):
    """A fitted `Patches` with a dictionary of `channels` patches. images [N, 3, height, width], targets [N].

    mirrored: whether a mirror image is a picture of the same class.
    """
    model = Patches(images.shape[2:], channels, classes).eval()
    sample = sample_patches(model, images)
    mean = sample.mean(0)
    variances, directions = torch.linalg.eigh(torch.cov(sample.T))
    whiten = directions @ torch.diag((variances.clamp(min=0) + WHITENING).rsqrt()) @ directions.T
    model.whiten.copy_(whiten[:, :, None, None])
    model.shift.copy_(-whiten @ mean)
    model.dictionary.copy_(spherical_k_means((sample - mean) @ whiten, channels)[:, :, None, None])
    wanted = functional.one_hot(targets, classes) * 2.0 - 1
    if mirrored:
        images, wanted = torch.cat([images, images.flip(3)]), wanted.repeat(2, 1)
    solve(model, images, wanted)
    return model


def sample_patches(model, images):
    """Patches of all pictures, [at most SAMPLED, values]."""
    each = max(1, SAMPLED // len(images))
    chosen = []
    for picture in images.split(1):
        patches = model.patches(picture)[0].flatten(1).T
        chosen.append(patches[torch.randint(len(patches), (each,))])
    return torch.cat(chosen)[:SAMPLED]


def spherical_k_means(points, count):
    """Directions [count, values] about which points [N, values] gather."""
    points = functional.normalize(points, dim=1)
    centres = points[torch.randperm(len(points))[:count]]
    for _ in range(ROUNDS):
        nearest = torch.cat([(part @ centres.T).argmax(1) for part in points.split(20_000)])
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        empty = sums.norm(dim=1) < 1e-6
        sums[empty] = points[torch.randint(len(points), (int(empty.sum()),))]
        centres = functional.normalize(sums, dim=1)
    return centres


def solve(model, images, wanted):
    """Ridge regression of the wanted scores [N, classes] on the pictures' features.

    Solved in the pictures' own space: there are fewer of them than features.
    """
    features = torch.cat([model.features(part) for part in images.split(50)])
    mean, spread = features.mean(0), features.std(0)
    spread = spread + 1e-3 * spread.mean()
    features = (features - mean) / spread
    products = features @ features.T
    strength = RIDGE * products.diagonal().mean()
    weights = features.T @ torch.linalg.solve(products + strength * torch.eye(len(images)), wanted)
    weights = weights.T / spread
    model.head.weight.copy_(weights)
    model.head.bias.copy_(-weights @ mean)
