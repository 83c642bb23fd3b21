"""Choose the networks, the dictionary of patches.py and the epochs that suit a time budget on this machine."""

import argparse
import contextlib
import copy
import io
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import patches
from data import Dataset
from export import export
from fit import create_optimizer, train_epoch
from folders import DataError
from model import Average
from schedule import Clock, Schedule

IMAGES, SECONDS_MEASURED = 8, 0.3  # classified at once, and repeated for so long, to measure the speed
NETWORK_EXPORT, PATCHES_EXPORT = 4.5, 1.0  # duration, relative to the export of a single layer
PATCHES_FIT = 1.4  # duration of patches.fit, relative to the features of all images
CLOSING = 2.5  # seconds: processes that end, the report, the end of Python
LONGEST = 2  # times the default number of epochs; more was not found to help (benchmarks/README.md)
ALL_PARTS = 0.6  # of the default epochs; with fewer, one network that gets all the time is as good as two
PATCHES_SHARE = 0.35  # of the time that is left; a longer fit of patches.py costs more than it gains
MIN_EPOCHS = 2

Build = Callable[[int], nn.Module]


class BudgetError(DataError):
    """The time budget is too short for the data."""


def layer_export() -> float:
    """Seconds to export one layer: the unit of the export's duration. The first export also imports the exporter."""
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            started = time.monotonic()
            export(nn.Conv2d(3, 4, 3).eval(), (16, 16), Path(folder) / "layer.onnx")
    return time.monotonic() - started


@torch.no_grad()
def seconds_per_image(model: nn.Module, train: Dataset) -> float:
    """The time of one image; untrained models take as long as trained ones."""
    images = torch.from_numpy(train.images[:IMAGES])
    model.eval()
    model(images)
    times: list[float] = []
    while len(times) < 4 or sum(times) < SECONDS_MEASURED:
        started = time.monotonic()
        model(images)
        times.append(time.monotonic() - started)
    return min(times) / len(images)  # the rest was spent on waiting for other processes


def seconds_per_epoch(network: nn.Module, train: Dataset, options: argparse.Namespace) -> float:
    """Measured on a few steps with one thread: on a busy machine, more threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in PyTorch's stubs
    average, optimizer = copy.deepcopy(network), create_optimizer(network, options)
    steps = math.ceil(len(train) / options.batch_size)
    for count in (1, min(3, steps)):  # the first step takes longer
        part = train.subset(torch.randperm(len(train))[: count * options.batch_size].numpy())
        started = time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()):  # its progress
            train_epoch(1, network, average, optimizer, part, options, "", Schedule(1000, Clock()))
    seconds = (time.monotonic() - started) / count * steps
    torch.set_num_threads(before)
    return seconds


def seconds_to_finish(model: Average, sets: dict[str, Dataset], unit: float) -> float:
    """From the end of the networks' training: evaluation, export, verification, and the end of the command.

    unit: the result of layer_export.
    """
    dictionary = any(isinstance(part, patches.Patches) for part in model.models)
    networks = len(model.models) - dictionary
    images = sum(map(len, sets.values())) + 4 * len(sets["validation"])
    exports = NETWORK_EXPORT * networks + PATCHES_EXPORT * dictionary
    return unit * exports + images * seconds_per_image(model, sets["train"]) + CLOSING


def choose(
    options: argparse.Namespace,
    given: argparse.Namespace,
    sets: dict[str, Dataset],
    started: float,
    unit: float,
    build: Build,
    threads: Callable[[int], int],
) -> None:
    """Set options.networks, .gradients, .patches and .epochs to what the time allows; warn if it is too short.

    Raises BudgetError if there is no time for any training.
    given: the options before their defaults were chosen; what was given there stays. The second network is left out
    first, then half of the dictionary, then all of it: per second, the network on gradients gains most.
    """
    train, end = sets["train"], started + 60 * options.minutes
    epochs = options.epochs
    if given.epochs is None:
        options.epochs = LONGEST * epochs
    if given.patience is None:
        options.patience = max(1, options.epochs // 2)
    fewer = options.networks if given.networks else 1
    smaller = [options.patches // 2, 0] if given.patches is None and options.patches else [options.patches]
    kinds = [(options.networks, options.patches), *((fewer, size) for size in smaller)]
    last = kinds[-1]
    for networks, size in kinds:
        if networks != options.networks and given.gradients is None:
            options.gradients = min(options.gradients, networks)
        options.networks, options.patches = networks, size
        parts = [build(number) for number in range(1, networks + 1)]
        second = [patches.Patches(train.images.shape[2:], size, len(train.labels))] if size else []
        fitting = 0.0
        if second:
            views = Average(second, options.flip > 0)
            fitting = PATCHES_FIT * len(train) * seconds_per_image(views, train)
        finish = seconds_to_finish(Average([*parts, *second], options.flip > 0), sets, unit)
        epoch = seconds_per_epoch(parts[-1], train, options) / threads(networks)
        left = end - time.monotonic() - finish
        possible = (left - fitting) / epoch
        enough = ALL_PARTS * epochs if (networks, size) == kinds[0] else MIN_EPOCHS
        if (networks, size) == last or (possible >= enough and fitting <= PATCHES_SHARE * left):
            break
    if possible < MIN_EPOCHS:
        least = (time.monotonic() - started + fitting + finish + MIN_EPOCHS * epoch) / 60
        problem = (
            f"--minutes {options.minutes:g} is too short for these {len(train):,} images on this machine: "
            f"at least {math.ceil(11 * least) / 10:g} are needed for {MIN_EPOCHS} epochs"
        )
        if possible <= 0:
            raise BudgetError(problem)
        print(f"Warning: {problem}", flush=True)
