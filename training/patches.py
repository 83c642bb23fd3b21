"""A second model for small sets of images: patches encoded by a dictionary of patches, and a linear classifier.

Coates and Ng, "The importance of encoding versus training with sparse coding and vector quantization", 2011. It needs
no gradient descent and makes different mistakes from a network's: alone it is worse, but the average of both is better
than either.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from data import show_progress

SIDE = 6  # pixels, of a patch
GRID = 4  # cells per side; features are averaged over each cell
SAMPLED = 200_000  # patches from which whitening and dictionary are computed
ROUNDS = 10  # of k-means
WHITENING = 0.1  # added to the variances, so that noise is not amplified
CONTRAST = 10 / 255**2  # added to a patch's variance, so that flat patches stay flat
FAINT = 1.0  # added to a whitened patch's squared length (about 50), or rounding errors would decide about flat patches
SPARSITY = 0.1  # smaller similarities count as 0
RIDGE = 0.3  # regularisation, in units of the mean squared length of an image's features
LARGE_SIDE = 40  # pixels; larger images are halved first


class Patches(nn.Module):
    """Images to scores: float32 [N, 3, height, width], 0 to 1 -> [N, classes], each about -1 to 1."""

    centre: torch.Tensor
    whiten: torch.Tensor
    shift: torch.Tensor
    dictionary: torch.Tensor

    def __init__(self, size: Sequence[int], channels: int, classes: int) -> None:
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

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """All patches with their mean subtracted and their contrast normalised: [N, values, rows, columns]."""
        if self.halves:
            pixels = functional.avg_pool2d(pixels, 2)
        centred = functional.conv2d(pixels, self.centre)
        return centred / torch.sqrt(centred.square().mean(1, keepdim=True) + CONTRAST)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Similarities to the dictionary, averaged over the cells: [N, 2 * channels * GRID * GRID]."""
        whitened = functional.conv2d(self.patches(pixels), self.whiten, self.shift)
        whitened = whitened / torch.sqrt(whitened.square().sum(1, keepdim=True) + FAINT)
        similarity = functional.conv2d(whitened, self.dictionary)
        sparse = torch.cat([torch.relu(similarity - SPARSITY), torch.relu(-similarity - SPARSITY)], 1)
        return functional.avg_pool2d(sparse, self.cells)[:, :, :GRID, :GRID].flatten(1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(pixels))


@torch.no_grad()
def fit(images: torch.Tensor, targets: torch.Tensor, classes: int, channels: int, mirrored: bool) -> Patches:
    """Fit a `Patches` with a dictionary of `channels` patches. images: [N, 3, height, width], targets: [N].

    mirrored: whether the mirror image belongs to the same class.
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


def sample_patches(model: Patches, images: torch.Tensor) -> torch.Tensor:
    """Random patches, equally many of each image: [at most SAMPLED, values]."""
    each = max(1, SAMPLED // len(images))
    chosen = []
    for image in show_progress(images.split(1), len(images), "Sampling patches"):
        patches = model.patches(image)[0].flatten(1).T
        chosen.append(patches[torch.randint(len(patches), (each,))])
    return torch.cat(chosen)[:SAMPLED]


def spherical_k_means(points: torch.Tensor, count: int) -> torch.Tensor:
    """Unit vectors [count, values] around which the directions of the points [N, values] cluster."""
    points = functional.normalize(points, dim=1)
    centres = points[torch.randperm(len(points))[:count]]
    for _ in show_progress(range(ROUNDS), ROUNDS, "Clustering patches", "rounds"):
        nearest = torch.cat([(part @ centres.T).argmax(1) for part in points.split(20_000)])
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        empty = sums.norm(dim=1) < 1e-6
        sums[empty] = points[torch.randint(len(points), (int(empty.sum()),))]
        centres = functional.normalize(sums, dim=1)
    return centres


def solve(model: Patches, images: torch.Tensor, wanted: torch.Tensor) -> None:
    """Fit the linear layer: ridge regression of the wanted scores [N, classes] on the images' features.

    Solved in its dual form, because there are fewer images than features.
    """
    parts = show_progress(images.split(50), len(images), "Features of patches", step=50)
    features = torch.cat([model.features(part) for part in parts])
    mean, spread = features.mean(0), features.std(0)
    spread = spread + 1e-3 * spread.mean()
    features = (features - mean) / spread
    products = features @ features.T
    strength = RIDGE * products.diagonal().mean()
    weights = features.T @ torch.linalg.solve(products + strength * torch.eye(len(images)), wanted)
    weights = weights.T / spread
    model.head.weight.copy_(weights)
    model.head.bias.copy_(-weights @ mean)
