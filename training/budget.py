"""Choose the networks, the dictionary of patches.py and the epochs that suit a time budget on this machine."""

import argparse
import contextlib
import copy
import io
import math
import tempfile
import time
from collections.abc import Callable, Iterator
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

IMAGES = 32  # classified at once to measure the speed
LARGE_BATCH = 1.3  # duration of an image in the batches of fit.outputs_of, which exceed the cache, relative to these
LAYER_EXPORT = 0.7  # seconds, without a measurement
FIRST_EXPORT, NETWORK_EXPORT, PATCHES_EXPORT = 1.5, 4.0, 1.0  # duration, relative to the export of a single layer
PATCHES_FIT = 1.4  # duration of patches.fit, relative to the features of all images
CLOSING = 2.5  # seconds: processes that end, the report, the end of Python
LONGEST = 2  # times the default number of epochs; more was not found to help (benchmarks/README.md)
ALL_PARTS = 0.6  # of the default epochs; with fewer, one network that gets all the time is as good as two
PATCHES_SHARE = 0.5  # of the time that is left; a longer fit of patches.py costs more than it gains
MIN_EPOCHS = 3  # are trained even if they exceed the budget,
MAX_EXCESS = 3  # unless it takes so many times the budget
MAX_RESERVE = 0.5  # of the time that is left; at least the rest is for training
MAX_SLOWDOWN = 3.0

Build = Callable[[int], nn.Module]


class BudgetError(DataError):
    """The time budget is too short for the data."""


class Speed:
    """Durations of parts of the training in seconds, measured with one thread.

    They are CPU time multiplied by the mean slowdown of all measurements: on a busy machine, the wall-clock time of a
    short measurement is a matter of luck. cores: how many a network can use, by the number of networks.
    """

    def __init__(self, cores: Callable[[int], float]) -> None:
        self.cores = cores
        self.wall = self.cpu = 0.0
        self.layer = LAYER_EXPORT

    @contextlib.contextmanager
    def measured(self) -> Iterator[list[float]]:
        """Appends the CPU seconds of the block to the list."""
        result: list[float] = []
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        wall, cpu = time.monotonic(), time.process_time()
        yield result
        result.append(time.process_time() - cpu)
        self.cpu += result[0]
        self.wall += time.monotonic() - wall
        torch.set_num_threads(before)

    def slowdown(self) -> float:
        """Wall-clock time in units of CPU time, because of other processes."""
        return min(max(self.wall / self.cpu, 1.0), MAX_SLOWDOWN) if self.cpu else 1.0

    def measure_export(self) -> None:
        """Measure the export of one layer, the unit of the export's duration; first import the exporter."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "layer.onnx"
            export(nn.Conv2d(3, 4, 3).eval(), (16, 16), path)
            with self.measured() as seconds:
                export(nn.Conv2d(3, 4, 3).eval(), (16, 16), path)
        self.layer = seconds[0]

    @torch.no_grad()
    def image(self, model: nn.Module, train: Dataset) -> float:
        """To classify one image on all cores; untrained models take as long as trained ones."""
        images = torch.from_numpy(train.images[:IMAGES])
        model.eval()
        model(images[:2])
        with self.measured() as seconds:
            model(images)
        return LARGE_BATCH * seconds[0] / len(images) * self.slowdown() / self.cores(1)

    def epoch(self, network: nn.Module, train: Dataset, options: argparse.Namespace) -> float:
        """One epoch of one of options.networks networks, from a few steps."""
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in PyTorch's stubs
        average, optimizer = copy.deepcopy(network), create_optimizer(network, options)
        steps = math.ceil(len(train) / options.batch_size)
        for count in (1, min(3, steps)):  # the first step takes longer
            part = train.subset(torch.randperm(len(train))[: count * options.batch_size].numpy())
            with self.measured() as seconds, contextlib.redirect_stdout(io.StringIO()):  # its progress
                train_epoch(1, network, average, optimizer, part, options, "", Schedule(1000, Clock()))
        return seconds[0] / count * steps * self.slowdown() / self.cores(options.networks)

    def finish(self, model: Average, sets: dict[str, Dataset]) -> float:
        """From the end of the networks' training: evaluation, export, verification, and the end of the command."""
        dictionary = any(isinstance(part, patches.Patches) for part in model.models)
        networks = len(model.models) - dictionary
        images = sum(map(len, sets.values())) + 4 * len(sets["validation"])
        exports = FIRST_EXPORT + NETWORK_EXPORT * networks + PATCHES_EXPORT * dictionary
        return images * self.image(model, sets["train"]) + (self.layer * exports + CLOSING) * self.slowdown()


def deadline(end: float, finish: float, least: float) -> float:
    """When the networks' training ends, so that the command ends at `end`: never before the time `least`."""
    now = time.monotonic()
    return max(end - finish, end - MAX_RESERVE * max(end - now, 0.0), least)


def choose(
    options: argparse.Namespace,
    given: argparse.Namespace,
    sets: dict[str, Dataset],
    started: float,
    speed: Speed,
    build: Build,
) -> float:
    """Set options.networks, .gradients, .patches and .epochs to what the time allows; warn if it is too short.

    Returns the time of MIN_EPOCHS, before which training should not end. Raises BudgetError if it would take more than
    MAX_EXCESS times the budget.
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
            fitting = PATCHES_FIT * len(train) * speed.image(views, train)
        finish = speed.finish(Average([*parts, *second], options.flip > 0), sets)
        epoch = speed.epoch(parts[-1], train, options)
        left = end - time.monotonic() - finish
        possible = (left - fitting) / epoch
        enough = ALL_PARTS * epochs if (networks, size) == kinds[0] else MIN_EPOCHS
        if (networks, size) == last or (possible >= enough and fitting <= PATCHES_SHARE * left):
            break
    now = time.monotonic()
    training = fitting + MIN_EPOCHS * epoch
    if possible < MIN_EPOCHS:
        least = now - started + training + finish
        problem = (
            f"--minutes {options.minutes:g} is too short for these {len(train):,} images on this machine: "
            f"at least {math.ceil(least / 6) / 10:g} are needed for {MIN_EPOCHS} epochs"
        )
        if least > MAX_EXCESS * 60 * options.minutes:
            raise BudgetError(problem)
        print(f"Warning: {problem}", flush=True)
    return now + training
