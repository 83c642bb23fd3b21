"""Train one network: augmented batches, a learning rate that rises and falls, and which epoch is kept of it."""

import copy
import math
import time

import torch
from torch.nn import functional

import calibration
from augment import augment

SECONDS_BETWEEN_LINES = 5


def fit(model, train, validation, options, name=""):
    """Train `model` in place, and leave it at the moving average of its weights that `kept_of` chooses.

    Returns one dict an epoch, which it prints after `name`; in one of them "kept" is 1, in the others 0.
    """
    model.to(memory_format=torch.channels_last)
    average = copy.deepcopy(model)
    optimizer = optimizer_of(model, options)
    history, best = [], None
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
        text = name + " ".join(f"{key}={value:.4g}" for key, value in line.items())
        print(text + "\n", end="", flush=True)  # in one piece, also unbuffered: two processes write
        history.append(line | {"kept": 0})
        last = epoch, losses, copy.deepcopy(average.state_dict())
        if best is None or losses.mean() < best[1].mean():
            best = last
        elif epoch - best[0] >= options.patience:
            break
    epoch, _, weights = kept_of(best, last, ended_early=len(history) < options.epochs)
    history[epoch - 1]["kept"] = 1
    model.load_state_dict(weights)
    model.to(memory_format=torch.contiguous_format)
    return history


def kept_of(best, last, ended_early):
    """One of two (epoch, losses, ...): the best, if training ended early, or if it is better than the last by more than
    the standard error of the difference. Else it may be the best by luck, on a few pictures, and the last has learnt
    at the lowest rates."""
    worse = last[1] - best[1]
    return best if ended_early or worse.mean() > worse.std() / len(worse) ** 0.5 else last


def optimizer_of(model, options):
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0}]
    return torch.optim.SGD(groups, lr=options.learning_rate, momentum=0.9, nesterov=True)


def train_epoch(epoch, model, average, optimizer, train, options, name):
    """Go once through the pictures, `average` following. Returns the mean loss."""
    images, truth = torch.from_numpy(train.images), torch.eye(len(train.labels))[train.targets]
    bfloat16 = torch.cpu.get_capabilities().get("amx_bf16", False) and not train.small  # elsewhere it is not faster
    batches = torch.randperm(len(train)).split(options.batch_size)
    printed, loss_sum, done = time.perf_counter(), 0, 0
    model.train()
    for number, batch in enumerate(batches, 1 + (epoch - 1) * len(batches)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number / (options.epochs * len(batches)), options.learning_rate)
        pictures, wanted = augment(images[batch], truth[batch], options)
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = model(pictures).float()
        loss = functional.cross_entropy(logits, wanted, label_smoothing=options.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        follow(average, model, min(options.averaging, number / (number + 10)))  # the first weights are soon forgotten
        loss_sum += loss.item() * len(batch)
        done += len(batch)
        if time.perf_counter() - printed > SECONDS_BETWEEN_LINES:
            printed = time.perf_counter()
            print(f"{name}epoch {epoch}: {done:,} of {len(train):,} images", flush=True)
    return loss_sum / len(train)


def learning_rate(progress, highest):
    """At a point of training between 0 and 1: rises for a tenth of it, then falls like half a cosine wave."""
    return highest * min(progress / 0.1, (1 + math.cos(math.pi * progress)) / 2)


@torch.no_grad()
def follow(average, model, averaging):
    """Move the averaged weights towards those of the model."""
    for ours, theirs in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if ours.is_floating_point():
            ours.lerp_(theirs, 1 - averaging)


def evaluate(model, dataset):
    """Cross-entropy of each picture at the best temperature, which takes the effect of label smoothing back, and
    accuracy."""
    logits = outputs_of(model, dataset).double().numpy()
    probabilities = calibration.softmax(logits / calibration.fit_temperature(logits, dataset.targets))
    right = probabilities.argmax(1) == dataset.targets
    return calibration.losses(probabilities, dataset.targets), float(right.mean())


@torch.no_grad()
def outputs_of(model, dataset):
    """What the model makes of a whole dataset, [N, classes], in its order."""
    model.eval()
    return torch.cat([model(batch) for batch in torch.from_numpy(dataset.images).split(256)])
