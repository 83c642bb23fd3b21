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
from checkpoint import Checkpoint
from data import Dataset
from schedule import Clock, Schedule, duration

SECONDS_BETWEEN_LINES = 5
Epoch = tuple[int, np.ndarray, dict[str, Any]]  # its number, the validation loss of each image, the averaged weights


def fit(
    model: nn.Module,
    train: Dataset,
    validation: Dataset,
    options: argparse.Namespace,
    number: int = 1,
    clock: Clock = Clock(),  # noqa: B008  # immutable
    checkpoint: Checkpoint | None = None,
) -> list[dict[str, Any]]:
    """Train `model`, network `number`, in place; then load the averaged weights of the epoch `choose_epoch` selects.

    Returns one dict per epoch and prints each. "kept" is 1 for the selected epoch, otherwise 0.
    """
    checkpoint = checkpoint or Checkpoint()
    name = f"network={number} " if options.networks > 1 else ""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in PyTorch's stubs
    average = copy.deepcopy(model)
    optimizer = create_optimizer(model, options)
    history: list[dict[str, Any]] = []
    best: Epoch = (0, np.empty(0), {})  # replaced in the first epoch
    last, spent = best, 0.0
    if state := checkpoint.load(f"network-{number}"):
        best, last = restore(state, model, average, optimizer)
        history, spent = state["history"], state["spent"]
        say(f"{name}continues after epoch {len(history)} of the checkpoint")
    steps = math.ceil(len(train) / options.batch_size)
    schedule = Schedule(options.epochs * steps, clock, len(history) * steps, spent)
    epoch = len(history)
    while epoch < options.epochs and epoch - best[0] < options.patience and not (epoch and schedule.over()):
        epoch += 1
        started = time.perf_counter()
        train_loss = train_epoch(epoch, model, average, optimizer, train, options, name, schedule)
        losses, accuracy = evaluate(average, validation)
        line = {
            "epoch": epoch,
            "train_loss": train_loss,
            "validation_loss": float(losses.mean()),
            "validation_accuracy": accuracy,
            "seconds": time.perf_counter() - started,
        }
        history.append(line | {"kept": 0})
        left = schedule.left(epoch * steps)
        if epoch == 1 and number == options.networks:  # the networks take equally long
            say(f"Takes about {duration(time.monotonic() - clock.started + left)} in all, {duration(left)} from now")
        say(name + " ".join(f"{key}={value:.4g}" for key, value in line.items()) + f" left={duration(left)}")
        last = epoch, losses, copy.deepcopy(average.state_dict())
        if epoch == 1 or losses.mean() < best[1].mean():
            best = last
        ended = epoch == options.epochs or epoch - best[0] >= options.patience or schedule.over()
        times = {"spent": schedule.spent(), "elapsed": time.monotonic() - clock.started}
        state = state_of(model, average, optimizer, best, last) | times | {"history": history}
        checkpoint.save(f"network-{number}", state, always=ended)
    ended_early = epoch < options.epochs and epoch - best[0] >= options.patience
    epoch, _, weights = choose_epoch(best, last, ended_early)
    history[epoch - 1]["kept"] = 1
    model.load_state_dict(weights)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # likewise
    return history


def state_of(
    model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, best: Epoch, last: Epoch
) -> dict[str, Any]:
    """What restore() needs. The averaged weights are those of the last epoch."""
    return {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best": [best[0], torch.from_numpy(best[1]), best[2]],
        "last": [last[0], torch.from_numpy(last[1])],
        "random": torch.get_rng_state(),
    }


def restore(
    state: dict[str, Any], model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Epoch, Epoch]:
    """Continue from the state: load it into the networks, the optimizer and the random generator.

    Returns the best and the last epoch so far.
    """
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    best, best_losses, best_weights = state["best"]
    last, losses = state["last"]
    return (best, best_losses.numpy(), best_weights), (last, losses.numpy(), copy.deepcopy(average.state_dict()))


def say(line: str) -> None:
    """Print a line in a single write, even if unbuffered: the networks' processes share the output."""
    print(line + "\n", end="", flush=True)


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
    schedule: Schedule,
) -> float:
    """Train for one epoch, or until the time is up; update `average` after each step. Returns the mean loss."""
    images, truth = torch.from_numpy(train.images), torch.eye(len(train.labels))[train.targets]
    bfloat16 = torch.cpu.get_capabilities().get("amx_bf16", False) and not train.small  # not faster elsewhere
    batches = torch.randperm(len(train)).split(options.batch_size)
    printed, loss_sum, done = time.perf_counter(), 0.0, 0
    model.train()
    for number, batch in enumerate(batches, 1 + (epoch - 1) * len(batches)):
        if done and schedule.over():
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(schedule.progress(number), options.learning_rate)
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
            say(f"{name}epoch {epoch}: {done:,} of {len(train):,} images, {duration(schedule.left(number))} left")
    return loss_sum / done


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
