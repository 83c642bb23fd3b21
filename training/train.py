"""Train an image classifier on a folder of class folders and export it for the endpoint.

    python training/prepare.py digits                        # once: the sample data
    python training/train.py                                 # about 15 seconds on two cores
    SM_CHANNEL_TRAIN=images SM_MODEL_DIR=out python training/train.py        # your own: images/<label>/<image>

The script is also the entry point of a SageMaker training job. Folders come from SM_CHANNEL_TRAIN,
SM_CHANNEL_VALIDATION, SM_CHANNEL_TEST, SM_MODEL_DIR and SM_OUTPUT_DATA_DIR, or from the options of the same names.
SM_CHANNEL_TRAINING, the name in SageMaker's examples, means SM_CHANNEL_TRAIN.
Every option needs a value. Without a validation folder, a fraction of every training class is held out for
validation. Unreadable files are skipped, and examples of them printed; if more than one file in ten is unreadable,
training fails.

Defaults shown as [depends on the data] are chosen by `choose_defaults` from the size of the images, their number, and
whether they have colour. Colour images are assumed to be photographs, whose class survives mirroring, relighting and
cropping. Set --flip 0 for colour images whose class does not survive mirroring (signs, letters, left and right hands),
and --flip 0.5 --mix 0.5 for grey images whose class survives mirroring and cropping.

Each network is kept as a moving average of its weights. The model averages one or two networks (for photographs, the
second sees gradients) and, for up to 2,000 images of at least 32 pixels, patches.py. Training stops early when the
validation loss no longer improves. The validation data also selects an epoch before the last if that one is clearly
better, and fits the temperature that calibrates the probabilities. The test data is used once, at the end.

--minutes is a budget for the whole command. It measures the speed of this machine, leaves out networks and patches.py
if there is too little time for them, and lets the learning rate follow the clock, so the same seed does not give the
same model. Given --networks and --patches are kept, and --epochs is then the maximum; by default it is twice the usual
number of epochs, after which more training was not found to help, and training ends before the budget.

With --checkpoint-dir, an interrupted training continues where it was, after its last epoch or a few epochs before,
if options, data and code are the same, and gives the same model as without the interruption. Time before the
interruption counts towards --minutes, time without a machine does not.

Files in the model folder, written after training has succeeded:

    model.onnx       input: float32 `pixels` [N, 3, height, width], RGB, 0 to 1; output: float32 `probabilities`
                     [N, classes]. Includes normalisation, averaging with the mirror image (unless --flip is 0),
                     temperature and softmax. Verified against PyTorch on the whole validation set.
    metadata.json    labels in output order, input size, temperature, accuracy and calibration, coverage and accuracy
                     at each threshold, seed, options, versions, sha256 of the model, lineage (lineage.py)

    data.json        the folders that it was trained on; not packaged

A model that was in the model folder before is kept in its subfolder previous/<start of its model.onnx's sha256>.

Files in the output folder:

    report.html      learning curve, mistakes, reliability and thresholds
    history.csv      one row per epoch
    predictions.csv  the prediction for each validation and test image, from which threshold.py chooses a threshold
"""

import argparse
import concurrent.futures
import csv
import hashlib
import json
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

STARTED = time.monotonic()  # the imports below take seconds
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # & in a script ignores it
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # during them, Ctrl-C ends it without a traceback

import numpy as np
import torch

import budget
import calibration
import patches
import resnet
from checkpoint import Checkpoint, key_of
from data import Dataset, are_photographs, choose_size, load, stratified_split
from export import ExportMismatchError, export, largest_difference, versions
from fit import fit, outputs_of, say
from folders import DataError, list_images
from lineage import lineage
from model import Average, Classifier, Probabilities
from report import write_report
from schedule import Clock, duration

Network = Classifier | resnet.ResNet18
ROOT = Path(__file__).parents[1]
DIGITS = ROOT / ".local/data/digits"
TWO_NETWORKS_UP_TO = 5_000  # images; beyond that, a second network gains little
PATCHES_UP_TO = 2_000  # images; beyond that, patches.py is not used
SHALLOW_UP_TO = 2_000  # images; with so few, half the depth takes 38 to 46 % less time at no visible loss
PATCH_WEIGHT = 0.5  # of the scores of patches.py, relative to the networks' logits
MIN_EPOCHS, MAX_EPOCHS = 10, 150
JOB_CHECKPOINTS = Path("/opt/ml/checkpoints")  # in a SageMaker job with a CheckpointConfig
CORES = torch.get_num_threads()  # before it is changed


class OutputFolderError(Exception):
    """The model folder or the output folder is not writable."""


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the options. Defaults are SageMaker's variables, then local folders; options SageMaker adds are ignored."""
    environment = {name: value for name, value in os.environ.items() if value}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    channel = environment.get("SM_CHANNEL_TRAIN") or environment.get("SM_CHANNEL_TRAINING")
    add("--train", type=Path, default=channel, help="folder of class folders [digits]")
    add("--validation", type=Path, default=environment.get("SM_CHANNEL_VALIDATION"), help="same classes or fewer")
    add("--test", type=Path, default=environment.get("SM_CHANNEL_TEST"), help="same classes or fewer")
    add("--model-dir", type=Path, default=environment.get("SM_MODEL_DIR", ROOT / ".local/model"))
    add("--output-data-dir", type=Path, default=environment.get("SM_OUTPUT_DATA_DIR", ROOT / ".local/training"))
    checkpoints = JOB_CHECKPOINTS if JOB_CHECKPOINTS.is_dir() else None
    add("--checkpoint-dir", type=Path, default=checkpoints, help=f"see above [{JOB_CHECKPOINTS} if it exists]")
    add("--validation-fraction", type=float, default=0.1, help="held out of --train without --validation [%(default)s]")
    add("--pretrained", type=Path, help="weights to start from: a file of torchvision's resnet18")
    add("--image-size", type=int, default=0, help="pixels per side [0: 16 to 64, depends on the data]")
    add("--epochs", type=int, help="[depends on the data: the more images, the fewer epochs]")
    add("--patience", type=int, help="epochs without a lower validation loss before training stops [half of --epochs]")
    add("--minutes", type=float, help="time budget of the whole command, see above")
    add("--batch-size", type=int, default=32)
    add("--learning-rate", type=float, help="peak of a schedule that rises, then falls to 0 [0.1; --pretrained 0.01]")
    add("--weight-decay", type=float, default=5e-4)
    add("--label-smoothing", type=float, default=0.1)
    add("--averaging", type=float, default=0.995, help="decay of the weights' moving average, per step [%(default)s]")
    add("--width", type=int, help="channels of the first group of layers [depends on the data]")
    add("--blocks", type=int, help="residual blocks in each group of layers [depends on the data]")
    add("--dropout", type=float, default=0)
    add("--networks", type=int, help="trained in parallel, their outputs averaged [depends on the data]")
    add("--gradients", type=int, help="how many of the networks see gradients [depends on the data]")
    add("--patches", type=int, help="dictionary size of patches.py, 0 for none [depends on the data]")
    add("--rotate", type=float, default=10, help="augmentation: at most this many degrees either way [%(default)s]")
    add("--shift", type=float, default=0.12, help="augmentation: at most this fraction of the side [%(default)s]")
    add("--scale", type=float, default=0.15, help="augmentation: resize by at most this fraction [%(default)s]")
    add("--flip", type=float, help="augmentation: probability of mirroring, 0 for digits [depends on the data]")
    add("--light", type=float, help="augmentation: vary brightness, contrast, colour by it [depends on the data]")
    add("--mix", type=float, help="augmentation: probability of pasting in another image [depends on the data]")
    add("--seed", type=int, default=0)
    options, ignored = parser.parse_known_args(argv)
    if ignored:
        print(f"Ignoring unknown options: {' '.join(ignored)}")
    for name in ("epochs", "patience", "batch_size", "width", "blocks", "networks"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    fractions = ("label_smoothing", "averaging", "dropout", "flip", "mix")
    for name, value in vars(options).items():
        largest = 1 if name in fractions else math.inf
        if isinstance(value, int | float) and not (0 <= value <= largest and math.isfinite(value)):
            limit = "between 0 and 1" if name in fractions else "at least 0"
            parser.error(f"--{name.replace('_', '-')} must be {limit}")
    if options.minutes == 0:
        parser.error("--minutes must be more than 0")
    if not 0 < options.validation_fraction < 1:
        parser.error("--validation-fraction must be between 0 and 1")
    if options.train is None and (options.validation or options.test):
        parser.error("--validation and --test require --train: without it, all three are the digits")
    channels = [name.removeprefix("SM_CHANNEL_").lower() for name in environment if name.startswith("SM_CHANNEL_")]
    if options.train is None and channels:
        parser.error(f"the channel train (or training) is missing; there is {', '.join(sorted(channels))}")
    if options.train is None:
        options.train, options.validation, options.test = (DIGITS / part for part in ("train", "validation", "test"))
    return options


def make_folders(options: argparse.Namespace) -> None:
    """Create the folders now, so that training cannot fail on them at the end.

    Raises OutputFolderError.
    """
    for folder in filter(None, (options.model_dir, options.output_data_dir, options.checkpoint_dir)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise OutputFolderError(f"{folder} is not writable: {error.strerror}") from error


def load_data(options: argparse.Namespace) -> tuple[Dataset, Dataset, Dataset | None]:
    """Return the train, validation and test data; test is None without a test folder. Raises DataError."""
    classes = list_images(options.train)
    side = options.image_size or (resnet.SIDE if options.pretrained else 0)
    size = (side, side) if side else choose_size(classes)
    count = sum(map(len, classes.values()))
    print(f"Reading {count:,} images of {len(classes)} classes at {size[1]} x {size[0]} pixels", flush=True)
    train = load(classes, size)
    if options.validation:
        validation = load(list_images(options.validation, min_classes=1), size, train.labels)
    else:
        names = np.array(train.labels)[train.targets]
        kept, held_out = stratified_split(names, [options.validation_fraction], options.seed)
        train, validation = train.subset(kept), train.subset(held_out)
    test = load(list_images(options.test, min_classes=1), size, train.labels) if options.test else None
    return train, validation, test


def choose_defaults(options: argparse.Namespace, train: Dataset) -> None:
    """Set the options that were not given to values that suit this data.

    The number of steps grows with the square root of the number of images: 850 photographs of 32 x 32 pixels get 100
    epochs, 50,000 get 13. Small images and pretrained weights need less training.
    """
    photographs, easy = are_photographs(train), train.small or options.pretrained is not None
    epochs = round((400 if easy else 3000) / len(train) ** 0.5)
    defaults = {
        "learning_rate": 0.01 if options.pretrained else 0.1,
        "width": 16 if train.small else 32,
        "blocks": 2 if easy or len(train) > SHALLOW_UP_TO else 1,
        "networks": 1 if easy or len(train) > TWO_NETWORKS_UP_TO else 2,
        "patches": 0 if easy or len(train) > PATCHES_UP_TO else 800,
        "epochs": min(max(epochs, MIN_EPOCHS), MAX_EPOCHS),
        "flip": 0.5 if photographs else 0.0,
        "light": 0.3 if photographs else 0.0,
        "mix": 0.5 if photographs else 0.0,
    }
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.gradients is None:
        options.gradients = 1 if photographs and options.networks > 1 else 0
    if options.patience is None:
        options.patience = max(1, options.epochs // 2)


def build(number: int, train: Dataset, options: argparse.Namespace) -> Network:
    """Network `number` (from 1), untrained. The last options.gradients networks see gradients.

    Raises PretrainedWeightsError.
    """
    if options.pretrained:
        return resnet.pretrained(options.pretrained, len(train.labels))
    mean, std = train.images.mean((0, 2, 3)), train.images.std((0, 2, 3)).clip(1e-3)
    gradients = number > options.networks - options.gradients
    size = train.images.shape[2:]
    return Classifier(len(train.labels), mean, std, size, options.width, options.dropout, gradients, options.blocks)


def threads(train: Dataset, networks: int) -> int:
    """Threads for each of the networks that train in parallel."""
    # On small images, threads would spend more time waiting for each other than working.
    return 1 if train.small else max(1, torch.get_num_threads() // networks)


def train_one(
    number: int,
    train: Dataset,
    validation: Dataset,
    options: argparse.Namespace,
    clock: Clock,
    checkpoint: Checkpoint,
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Train network `number` of options.networks on its share of the cores. Returns its weights and its history."""
    torch.manual_seed(options.seed + 1000 * (number - 1))
    torch.set_num_threads(threads(train, options.networks))
    network = build(number, train, options)
    history = fit(network, train, validation, options, number, clock, checkpoint)
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    return weights, [{"network": number, **line} for line in history]


def end_with_parent() -> None:
    """End the process of a network together with the command's, even if that is killed."""

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def train_all(
    train: Dataset, validation: Dataset, options: argparse.Namespace, clock: Clock, checkpoint: Checkpoint
) -> tuple[list[Network], list[dict[str, Any]]]:
    """Train options.networks networks in parallel, each in its own process. Returns them and their history."""
    numbers = range(1, options.networks + 1)
    if options.networks == 1:
        results = [train_one(1, train, validation, options, clock, checkpoint)]
    else:
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(options.networks, spawn, end_with_parent) as pool:
            shared = (train, validation, options, clock, checkpoint)
            # The processes inherit the mask: Ctrl-C reaches only this one, which ends them, whatever they are doing.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                jobs = [pool.submit(train_one, number, *shared) for number in numbers]
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                results = [job.result() for job in jobs]
            except BaseException:
                for process in multiprocessing.active_children():
                    process.kill()
                raise
    networks = [build(number, train, options) for number in numbers]
    for network, (weights, _) in zip(networks, results, strict=True):
        network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    return networks, [line for _, history in results for line in history]


def fit_patches(train: Dataset, options: argparse.Namespace, checkpoint: Checkpoint) -> patches.Patches:
    """Fit patches.py on the training data."""
    if state := checkpoint.load("patches"):
        second = patches.Patches(train.images.shape[2:], options.patches, len(train.labels)).eval()
        second.load_state_dict(state)
        return second
    say(f"Fitting patches.py with a dictionary of {options.patches} patches")
    torch.manual_seed(options.seed)
    images, targets = torch.from_numpy(train.images), torch.from_numpy(train.targets)
    second = patches.fit(images, targets, len(train.labels), options.patches, mirrored=options.flip > 0)
    checkpoint.save("patches", second.state_dict())
    return second


def add_patches(classifier: Average, second: patches.Patches, validation: Dataset) -> Average:
    """Average the networks with patches.py, whose weight scales its scores to the spread of the networks' logits."""

    def spread(model: Average) -> float:
        logits = outputs_of(model, validation)
        return (logits - logits.mean(1, keepdim=True)).std().item()

    weight = PATCH_WEIGHT * spread(classifier) / spread(Average([second], classifier.mirrored))
    return Average([*classifier.models, second], classifier.mirrored, [*classifier.weights, weight])


def open_checkpoint(options: argparse.Namespace, train: Dataset, validation: Dataset) -> Checkpoint:
    """The checkpoint of these options and this data."""
    settings = {name: value for name, value in sorted(vars(options).items()) if not isinstance(value, Path)}
    if options.pretrained:
        settings["pretrained"] = hashlib.sha256(options.pretrained.read_bytes()).hexdigest()
    arrays = [each for part in (train, validation) for each in (part.images, part.targets)]
    return Checkpoint(options.checkpoint_dir, key_of([settings, train.labels, torch.get_num_threads(), *arrays]))


def make_plan(options: argparse.Namespace, sets: dict[str, Dataset], checkpoint: Checkpoint, started: float) -> Clock:
    """Choose the options that were not given, as before an interruption if there was one.

    The clock started when the command would have started without the interruption. Raises BudgetError.
    """
    train, given, least = sets["train"], argparse.Namespace(**vars(options)), 0.0
    speed = budget.Speed(lambda networks: min(threads(train, networks), CORES / networks))
    if options.minutes:
        speed.measure_export()
    if plan := checkpoint.load("plan"):
        vars(options).update(plan)
        states = [checkpoint.load(f"network-{number}") for number in range(1, options.networks + 1)]
        started -= max([state["elapsed"] for state in states if state], default=0.0)
    else:
        checkpoint.clear()
        choose_defaults(options, train)
        if options.minutes:
            least = budget.choose(options, given, sets, started, speed, lambda number: build(number, train, options))
        chosen = {name: value for name, value in vars(options).items() if vars(given)[name] != value}
        checkpoint.save("plan", chosen)
    parts: list[torch.nn.Module] = [build(number, train, options) for number in range(1, options.networks + 1)]
    if options.patches:
        parts.append(patches.Patches(train.images.shape[2:], options.patches, len(train.labels)))
    finish = speed.finish(Average(parts, options.flip > 0), sets)
    end = started + 60 * options.minutes if options.minutes else math.inf
    return Clock(started, budget.deadline(end, finish, least), finish)


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    """Write at least one row; all rows have the same keys."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def prediction_rows(part: str, dataset: Dataset, probabilities: np.ndarray) -> list[dict[str, Any]]:
    """The rows of predictions.csv for one part of the data. probabilities: [N, classes]."""
    return [
        {
            "part": part,
            "truth": dataset.labels[target],
            "label": dataset.labels[row.argmax()],
            "confidence": float(row.max()),
        }
        for target, row in zip(dataset.targets, probabilities, strict=True)
    ]


def keep_previous(model_dir: Path, sha256: str) -> Path | None:
    """Move another model in the model folder to a subfolder; return its path, or None if there is none to keep."""
    if not (model_dir / "model.onnx").exists():
        return None
    before = hashlib.sha256((model_dir / "model.onnx").read_bytes()).hexdigest()
    if before == sha256:
        return None
    folder = model_dir / "previous" / before[:16]
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model.onnx", "metadata.json", "data.json"):
        if (model_dir / name).exists():
            (model_dir / name).replace(folder / name)
    return folder


def main(argv: list[str] | None = None, started: float | None = None) -> None:
    started = time.monotonic() if started is None else started
    options = parse_options(argv)
    make_folders(options)
    train, validation, test = load_data(options)
    made_from = lineage(options.train, options.validation, options.test, options.model_dir)
    torch.set_num_threads(threads(train, 1))
    height, width = train.images.shape[2:]
    sets = {"train": train, "validation": validation} | ({"test": test} if test else {})
    checkpoint = open_checkpoint(options, train, validation)
    clock = make_plan(options, sets, checkpoint, started)
    names = ("networks", "gradients", "epochs", "width", "blocks", "patches", "flip", "light", "mix")
    chosen = ", ".join(f"{name} {getattr(options, name)}" for name in names)
    say("Training on " + ", ".join(f"{len(dataset):,} {name}" for name, dataset in sets.items()) + f"; {chosen}")

    second = [fit_patches(train, options, checkpoint)] if options.patches else []
    networks, history = train_all(train, validation, options, clock, checkpoint)
    write_csv(history, options.output_data_dir / "history.csv")

    classifier = Average(networks, mirrored=options.flip > 0)
    if second:
        classifier = add_patches(classifier, second[0], validation)
    logits = {name: outputs_of(classifier, dataset).double().numpy() for name, dataset in sets.items()}
    temperature = calibration.fit_temperature(logits["validation"], validation.targets)
    figures = {name: calibration.summary(logits[name], dataset.targets, temperature) for name, dataset in sets.items()}
    probabilities = {name: calibration.softmax(logits[name] / temperature) for name in sets if name != "train"}
    predictions = [row for name in probabilities for row in prediction_rows(name, sets[name], probabilities[name])]
    write_csv(predictions, options.output_data_dir / "predictions.csv")

    say(f"Exporting to ONNX and verifying against PyTorch, which takes about {duration(clock.finish)}")
    model = Probabilities(classifier, temperature).eval()
    unchecked = options.model_dir / "model.onnx.unchecked"
    export(model, (height, width), unchecked)
    difference = largest_difference(model, unchecked, validation)
    metadata = {
        "labels": train.labels,
        "input": {"name": "pixels", "height": height, "width": width, "range": [0, 1]},
        "normalisation": {
            "mean": networks[0].mean.flatten().tolist(),
            "std": networks[0].std.flatten().tolist(),
            "where": "inside the model",
        },
        "temperature": temperature,
        "figures": figures,
        "images": {name: dataset.counts() for name, dataset in sets.items()},
        "epochs": len(history),
        "kept_epochs": [line["epoch"] for line in history if line["kept"]],
        "seconds": time.monotonic() - clock.started,
        "pretrained": options.pretrained.name if options.pretrained else None,
        "seed": options.seed,
        "hyperparameters": {name: value for name, value in vars(options).items() if not isinstance(value, Path)},
        "largest_difference_from_pytorch": difference,
        "versions": versions(),
        "lineage": made_from,
        "sha256": hashlib.sha256(unchecked.read_bytes()).hexdigest(),
    }
    described = options.model_dir / "metadata.json.unchecked"
    described.write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    if previous := keep_previous(options.model_dir, metadata["sha256"]):
        print(f"Kept the previous model in {previous}, named by the SHA-256 of its model.onnx")
    unchecked.replace(options.model_dir / "model.onnx")
    described.replace(options.model_dir / "metadata.json")
    parts = {"train": options.train, "validation": options.validation, "test": options.test}
    folders = {name: str(path.resolve()) for name, path in parts.items() if path}
    (options.model_dir / "data.json").write_text(json.dumps(folders, indent=2) + "\n", encoding="utf-8")
    for name, figure in figures.items():
        error, area = figure["expected_calibration_error"], figure["area_under_roc"]
        print(
            f"{name}: accuracy={figure['accuracy']:.4f} loss={figure['loss']:.4f} "
            f"calibration_error={error['after']:.4f} (before temperature {temperature:.2f}: {error['before']:.4f}) "
            f"brier={figure['brier_score']:.4f} auroc={'undefined' if area is None else f'{area:.4f}'}"
        )
    write_report(options.output_data_dir / "report.html", metadata, history, sets, probabilities, options.train)
    print(f"{options.model_dir}: model.onnx, metadata.json ({metadata['seconds']:.0f} s)")
    print(f"{options.output_data_dir}: report.html, history.csv, predictions.csv")
    checkpoint.clear()


def interrupt(*_: object) -> None:
    """Raise KeyboardInterrupt, and again every second, as Python drops one that is raised in a callback."""
    signal.setitimer(signal.ITIMER_REAL, 1)
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGALRM, interrupt)
            signal.signal(signal.SIGINT, interrupt)
        main(started=STARTED)
    except (DataError, ExportMismatchError, OutputFolderError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.exit("\nInterrupted: the model folder is unchanged.")
