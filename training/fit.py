"""Train one network: augmented batches, a learning-rate schedule, a moving average of the weights, early stopping."""

import argparse
import copy
import math
import time
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import calibration
from augment import augment
from data import Dataset

SECONDS_BETWEEN_LINES = 5
Epoch = tuple[int, np.ndarray, dict[str, Any]]  # its number, the validation loss of each image, the averaged weights


def fit(
    model: nn.Module, train: Dataset, validation: Dataset, options: argparse.Namespace, name: str = ""
) -> list[dict[str, Any]]:
    """Train `model` in place, then load the averaged weights of the epoch that `choose_epoch` selects.

    Returns one dict per epoch and prints each, prefixed with `name`. "kept" is 1 for the selected epoch, otherwise 0.
    """
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in PyTorch's stubs
    average = copy.deepcopy(model)
    optimizer = create_optimizer(model, options)
    history: list[dict[str, Any]] = []
    best: Epoch = (0, np.empty(0), {})  # replaced in the first epoch
    for epoch in range(1, options.epochs + 1):
        started = time.perf_counter()
        train_loss = train_epoch(epoch, model, average, optimizer, train, options, name)
        losses, accuracy = evaluate(average, validation)
        line = {
            "epoch": epoch,
            "train_loss": train_loss,
            "validation_loss": losses.mean(),
            "validation_accuracy": accuracy,
            "seconds": time.perf_counter() - started,
        }
        history.append(line | {"kept": 0})
        left = (options.epochs - epoch) * sum(past["seconds"] for past in history) / epoch
        if epoch == 1:
            whole = f"{name}takes about {duration(left + line['seconds'])} for {options.epochs} epochs\n"
            print(whole, end="", flush=True)
        text = name + " ".join(f"{key}={value:.4g}" for key, value in line.items()) + f" left={duration(left)}"
        print(text + "\n", end="", flush=True)  # a single write, even if unbuffered: two processes share the output
        last = epoch, losses, copy.deepcopy(average.state_dict())
        if epoch == 1 or losses.mean() < best[1].mean():
            best = last
        elif epoch - best[0] >= options.patience:
            break
    epoch, _, weights = choose_epoch(best, last, ended_early=len(history) < options.epochs)
    history[epoch - 1]["kept"] = 1
    model.load_state_dict(weights)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # likewise
    return history


def duration(seconds: float) -> str:
    """40s, 12m or 3h."""
    if seconds < 100:
        return f"{seconds:.0f}s"
    return f"{seconds / 60:.0f}m" if seconds < 6000 else f"{seconds / 3600:.0f}h"


def choose_epoch(best: Epoch, last: Epoch, ended_early: bool) -> Epoch:
    """Choose the best epoch if training ended early, or if it beats the last by more than one standard error.

    Otherwise the best epoch may be best by chance on a few images, and the last was trained at the lowest rates.
    """
    worse = last[1] - best[1]
    return best if ended_early or worse.mean() > worse.std() / len(worse) ** 0.5 else last


def create_optimizer(model: nn.Module, options: argparse.Namespace) -> torch.optim.SGD:
    """Stochastic gradient descent with Nesterov momentum, without weight decay for biases and normalisation."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0}]
    return torch.optim.SGD(groups, lr=options.learning_rate, momentum=0.9, nesterov=True)


def train_epoch(
    epoch: int,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: Dataset,
    options: argparse.Namespace,
    name: str,
) -> float:
    """Train for one epoch and update `average` after each step. Returns the mean loss."""
    images, truth = torch.from_numpy(train.images), torch.eye(len(train.labels))[train.targets]
    bfloat16 = torch.cpu.get_capabilities().get("amx_bf16", False) and not train.small  # not faster elsewhere
    batches = torch.randperm(len(train)).split(options.batch_size)
    printed, loss_sum, done = time.perf_counter(), 0.0, 0
    model.train()
    for number, batch in enumerate(batches, 1 + (epoch - 1) * len(batches)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number / (options.epochs * len(batches)), options.learning_rate)
        augmented, mixed_truth = augment(images[batch], truth[batch], options)
        augmented = augmented.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = model(augmented).float()
        loss = functional.cross_entropy(logits, mixed_truth, label_smoothing=options.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        # A lower decay in the first steps, so that the initial weights soon drop out of the average.
        update_average(average, model, min(options.averaging, number / (number + 10)))
        loss_sum += loss.item() * len(batch)
        done += len(batch)
        if time.perf_counter() - printed > SECONDS_BETWEEN_LINES:
            printed = time.perf_counter()
            print(f"{name}epoch {epoch}: {done:,} of {len(train):,} images", flush=True)
    return loss_sum / len(train)


def learning_rate(progress: float, peak: float) -> float:
    """The rate at a point of training between 0 and 1: linear warm-up over the first tenth, then a cosine decay."""
    return peak * min(progress / 0.1, (1 + math.cos(math.pi * progress)) / 2)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Update the moving average with the model's weights."""
    for averaged, current in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if averaged.is_floating_point():
            averaged.lerp_(current, 1 - decay)


def evaluate(model: nn.Module, dataset: Dataset) -> tuple[np.ndarray, float]:
    """Cross-entropy of each image, [N], and accuracy, at the best temperature, which undoes label smoothing."""
    logits = outputs_of(model, dataset).double().numpy()
    probabilities = calibration.softmax(logits / calibration.fit_temperature(logits, dataset.targets))
    right = probabilities.argmax(1) == dataset.targets
    return calibration.losses(probabilities, dataset.targets), float(right.mean())


@torch.no_grad()
def outputs_of(model: nn.Module, dataset: Dataset) -> torch.Tensor:
    """The model's outputs for the whole dataset in its order: [N, classes]."""
    model.eval()
    return torch.cat([model(batch) for batch in torch.from_numpy(dataset.images).split(256)])
