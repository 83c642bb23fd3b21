import copy

import numpy as np
import torch

import export
import patches
import train
from checkpoint import Checkpoint
from data import Dataset
from model import Average, Classifier, Probabilities


def stripes(count, seed, size=(32, 36)):
    """Noisy images of horizontal (0) or vertical (1) stripes at random offsets, [N, 3, height, width], and targets."""
    random = np.random.default_rng(seed)
    targets = np.arange(count) % 2
    images = []
    for target in targets:
        rows, columns = np.mgrid[: size[0], : size[1]]
        wave = np.sin((columns if target else rows) * 0.9 + random.uniform(0, 6.3))
        images.append(0.5 + 0.2 * wave + 0.2 * random.standard_normal((3, *size)))
    return np.clip(images, 0, 1).astype(np.float32), targets


def fitted(size=(32, 36), channels=32):
    torch.manual_seed(0)
    images, targets = stripes(40, seed=0, size=size)
    return patches.fit(torch.from_numpy(images), torch.from_numpy(targets), 2, channels, mirrored=True)


def test_new_images_of_two_textures_are_distinguished():
    images, targets = stripes(60, seed=1)
    scores = fitted()(torch.from_numpy(images))
    assert scores.shape == (60, 2)
    assert (scores.argmax(1).numpy() == targets).mean() > 0.95


def test_mirror_images_that_belong_to_another_class_are_distinguished():
    """The classes are falling lines and their mirror images, rising lines."""
    falling = np.maximum(np.eye(32), np.eye(32, k=1)).astype(np.float32)
    noise = np.random.default_rng(0).random((40, 3, 32, 32), dtype=np.float32)
    images = torch.from_numpy(0.5 * noise + 0.5 * falling)
    both = torch.cat([images, images.flip(3)])
    targets = torch.arange(80) // 40
    model = patches.fit(both[::2], targets[::2], 2, 32, mirrored=False)
    assert (model(both[1::2]).argmax(1) == targets[1::2]).float().mean() > 0.95


def test_the_same_seed_gives_the_same_model():
    one, other = fitted(), fitted()
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_large_images_are_halved_and_flat_images_have_finite_scores():
    model = fitted(size=(64, 48))
    assert model.halves
    assert torch.isfinite(model(torch.full((1, 3, 64, 48), 0.5))).all()


def test_the_exported_average_of_networks_and_patches_has_the_same_outputs(tmp_path):
    images, targets = stripes(20, seed=2)
    dataset = Dataset(images, targets, ["horizontal", "vertical"])
    network = Classifier(2, [0.5] * 3, [0.2] * 3, (32, 36), 16)
    options = train.parse_options(["--patches", "32", "--flip", "0.5"])
    second = train.fit_patches(dataset, options, Checkpoint())
    both = train.add_patches(Average([network], mirrored=True), second, dataset)
    model = Probabilities(both, 0.7).eval()
    export.export(model, (32, 36), tmp_path / "model.onnx")
    assert export.largest_difference(model, tmp_path / "model.onnx", dataset) <= export.MAX_DIFFERENCE
    assert both.weights[1] > 0


def test_rounding_errors_do_not_decide_about_flat_images():
    """For uniform grey, like a plain background, the features in single precision equal those in double precision."""
    model = fitted()
    flat = torch.rand(50, 1, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, 3, 32, 36)
    exact = copy.deepcopy(model).double().features(flat.double())
    assert (model.features(flat) - exact).abs().max() < 1e-5
