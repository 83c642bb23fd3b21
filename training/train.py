"""Train a small convolutional network on a folder of class folders and export it for the endpoint.

    python training/prepare.py digits                        # once: the data to start with
    python training/train.py                                 # about half a minute on two cores
    SM_CHANNEL_TRAIN=pictures SM_MODEL_DIR=out python training/train.py      # any pictures/<label>/<picture>

It is also the entry point of a SageMaker training job: folders come from SM_CHANNEL_TRAIN, SM_CHANNEL_VALIDATION,
SM_CHANNEL_TEST, SM_MODEL_DIR and SM_OUTPUT_DATA_DIR, or from the option of the same name, and every option takes a
value. Without a validation folder, a part of every training class is set aside for it. Validation data chooses the
epoch that is kept and ends the training when it no longer improves; test data is looked at once, at the end.

Written to the model folder, when all is done:

    model.onnx       in: float32 `pixels` [N, 3, height, width], RGB, 0 to 1; out: float32 `probabilities` [N, classes].
                     Normalisation and softmax are inside. Compared with PyTorch on the whole validation set.
    metadata.json    labels in the order of the output, input size, seed, options, figures, versions, the model's sha256

and to the output folder history.csv, the line of every epoch.
"""

import argparse
import csv
import hashlib
import json
import logging
import os
import platform
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch.nn import functional

from data import DataError, choose_size, list_images, load, stratified_split
from model import Classifier, Probabilities

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / ".local/data/digits"
MAX_DIFFERENCE = 1e-5  # between PyTorch's probabilities and the exported model's


class ExportMismatchError(Exception):
    """The exported model does not answer as the trained one does."""


def parse_options(argv=None):
    """Options, with SageMaker's variables and local folders as defaults. What SageMaker adds is passed over."""
    environment = {name: value for name, value in os.environ.items() if value}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--train", type=Path, default=environment.get("SM_CHANNEL_TRAIN"), help="folder of class folders [digits]")
    add("--validation", type=Path, default=environment.get("SM_CHANNEL_VALIDATION"), help="same classes or fewer")
    add("--test", type=Path, default=environment.get("SM_CHANNEL_TEST"), help="same classes or fewer")
    add("--model-dir", type=Path, default=environment.get("SM_MODEL_DIR", ROOT / ".local/model"))
    add("--output-data-dir", type=Path, default=environment.get("SM_OUTPUT_DATA_DIR", ROOT / ".local/training"))
    add("--validation-fraction", type=float, default=0.2, help="of the training data, where no validation is given")
    add("--image-size", type=int, default=0, help="pixels a side; 0 suits it to the data, between 16 and 64")
    add("--epochs", type=int, default=24)
    add("--patience", type=int, default=10, help="epochs without a better validation loss before it stops")
    add("--batch-size", type=int, default=32)
    add("--learning-rate", type=float, default=0.003, help="highest of a one-cycle schedule")
    add("--weight-decay", type=float, default=0.01)
    add("--label-smoothing", type=float, default=0.05)
    add("--width", type=int, default=16, help="channels of the first layers")
    add("--dropout", type=float, default=0.2)
    add("--rotate", type=float, default=10, help="augmentation: degrees either way")
    add("--shift", type=float, default=0.1, help="augmentation: part of the side either way")
    add("--scale", type=float, default=0.1, help="augmentation: part larger or smaller")
    add("--flip", type=float, default=0, help="augmentation: probability of a mirror image; leave 0 for digits")
    add("--seed", type=int, default=0)
    options, ignored = parser.parse_known_args(argv)
    if ignored:
        print(f"Ignored, as no options of this script: {' '.join(ignored)}")
    if options.train is None:
        options.train, options.validation, options.test = (DIGITS / part for part in ("train", "validation", "test"))
    return options


def load_data(options):
    """Returns the train, validation and test Dataset; test is None where there is none. Raises DataError."""
    classes = list_images(options.train)
    size = (options.image_size, options.image_size) if options.image_size else choose_size(classes)
    count = sum(map(len, classes.values()))
    print(f"Reading {count:,} images of {len(classes)} classes at {size[1]} x {size[0]} pixels", flush=True)
    train = load(classes, size)
    if options.validation:
        validation = load(list_images(options.validation), size, train.labels)
    else:
        names = np.array(train.labels)[train.targets]
        kept, held_out = stratified_split(names, [options.validation_fraction], options.seed)
        train, validation = train.subset(kept), train.subset(held_out)
    test = load(list_images(options.test), size, train.labels) if options.test else None
    return train, validation, test


def augment(images, options):
    """Move, turn, scale and perhaps mirror each of images [N, 3, height, width] at random; edges are continued."""
    count = len(images)

    def between(limit):
        return limit * (2 * torch.rand(count) - 1)

    angle = torch.deg2rad(between(options.rotate))
    scale = 1 + between(options.scale)
    mirror = torch.where(torch.rand(count) < options.flip, -1.0, 1.0)
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    shift_x, shift_y = between(2 * options.shift), between(2 * options.shift)  # the grid's sides are 2 long
    rows = [torch.stack([cosine * mirror, -sine, shift_x], 1), torch.stack([sine * mirror, cosine, shift_y], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), images.shape, align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


@torch.no_grad()
def logits_of(model, dataset):
    """Logits [N, classes] of a whole dataset, in its order."""
    model.eval()
    return torch.cat([model(batch) for batch in torch.from_numpy(dataset.images).split(256)])


def evaluate(model, dataset):
    """Accuracy and mean cross-entropy."""
    logits, targets = logits_of(model, dataset), torch.from_numpy(dataset.targets)
    return {
        "accuracy": (logits.argmax(1) == targets).double().mean().item(),
        "loss": functional.cross_entropy(logits, targets).item(),
    }


def fit(model, train, validation, options):
    """Train `model` in place and leave it at the epoch of the lowest validation loss. Returns one dict an epoch."""
    images, targets = torch.from_numpy(train.images), torch.from_numpy(train.targets)
    steps = -(-len(train) // options.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=options.learning_rate, epochs=options.epochs, steps_per_epoch=steps
    )
    history, best, best_state = [], None, None
    for epoch in range(1, options.epochs + 1):
        started = time.perf_counter()
        model.train()
        loss_sum = 0.0
        for batch in torch.randperm(len(train)).split(options.batch_size):
            logits = model(augment(images[batch], options))
            loss = functional.cross_entropy(logits, targets[batch], label_smoothing=options.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            loss_sum += loss.item() * len(batch)

        figures = evaluate(model, validation)
        history.append(
            {
                "epoch": epoch,
                "train_loss": loss_sum / len(train),
                "validation_loss": figures["loss"],
                "validation_accuracy": figures["accuracy"],
                "seconds": time.perf_counter() - started,
            }
        )
        print(" ".join(f"{name}={value:.4g}" for name, value in history[-1].items()), flush=True)
        if best is None or figures["loss"] < best["validation_loss"]:
            best = history[-1]
            best_state = {name: value.clone() for name, value in model.state_dict().items()}
        elif epoch - best["epoch"] >= options.patience:
            break
    model.load_state_dict(best_state)
    return history


def export(model, size, path):
    """Write the classifier with its softmax as ONNX, without the exporter's traces of this machine's folders."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Probabilities(model).eval(),
            (torch.rand(2, 3, *size),),
            input_names=["pixels"],
            output_names=["probabilities"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            dynamo=True,
            verbose=False,
        )
    proto = program.model_proto
    for part in [proto, proto.graph, *proto.graph.node, *proto.graph.value_info]:
        del part.metadata_props[:]
    onnx.save_model(proto, path)


def largest_difference(model, path, dataset):
    """Largest absolute difference of a probability between PyTorch and the ONNX file. Raises ExportMismatchError."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (exported,) = session.run(["probabilities"], {"pixels": dataset.images})
    trained = torch.softmax(logits_of(model, dataset), dim=1).numpy()
    difference = float(np.abs(exported - trained).max())
    if not difference <= MAX_DIFFERENCE:
        raise ExportMismatchError(f"probabilities differ by {difference:.2g}, more than {MAX_DIFFERENCE:g} is too much")
    return difference


def versions():
    libraries = {library.__name__: library.__version__ for library in (torch, onnx, onnxruntime, np)}
    return {"python": platform.python_version(), **libraries}


def write_history(history, folder):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "history.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, history[0])
        writer.writeheader()
        writer.writerows(history)


def main(argv=None):
    started = time.perf_counter()
    options = parse_options(argv)
    torch.manual_seed(options.seed)
    train, validation, test = load_data(options)
    height, width = train.images.shape[2:]
    if max(height, width) < 32:  # threads would wait for each other longer than they work, tenfold on a busy machine
        torch.set_num_threads(1)
    sets = {"train": train, "validation": validation} | ({"test": test} if test else {})
    print("Training on " + ", ".join(f"{len(dataset):,} {name}" for name, dataset in sets.items()), flush=True)

    mean, std = train.images.mean((0, 2, 3)), train.images.std((0, 2, 3)).clip(1e-3)
    model = Classifier(len(train.labels), mean, std, options.width, options.dropout)
    history = fit(model, train, validation, options)
    write_history(history, options.output_data_dir)
    figures = {name: evaluate(model, dataset) for name, dataset in sets.items()}

    print("Exporting to ONNX and comparing it with PyTorch", flush=True)
    options.model_dir.mkdir(parents=True, exist_ok=True)
    unchecked = options.model_dir / "model.onnx.unchecked"
    export(model, (height, width), unchecked)
    difference = largest_difference(model, unchecked, validation)
    metadata = {
        "labels": train.labels,
        "input": {"name": "pixels", "height": height, "width": width, "range": [0, 1]},
        "normalisation": {"mean": mean.tolist(), "std": std.tolist(), "where": "inside the model"},
        "figures": figures,
        "images": {name: dataset.counts() for name, dataset in sets.items()},
        "epochs": len(history),
        "best_epoch": min(history, key=lambda line: line["validation_loss"])["epoch"],
        "seconds": time.perf_counter() - started,
        "seed": options.seed,
        "hyperparameters": {name: value for name, value in vars(options).items() if not isinstance(value, Path)},
        "largest_difference_from_pytorch": difference,
        "versions": versions(),
        "sha256": hashlib.sha256(unchecked.read_bytes()).hexdigest(),
    }
    unchecked.replace(options.model_dir / "model.onnx")
    (options.model_dir / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    for name, figure in figures.items():
        print(f"{name}: accuracy={figure['accuracy']:.4f} loss={figure['loss']:.4f}")
    print(f"{options.model_dir}: model.onnx, metadata.json ({metadata['seconds']:.0f} s)")


if __name__ == "__main__":
    try:
        main()
    except (DataError, ExportMismatchError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
