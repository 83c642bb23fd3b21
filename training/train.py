"""Train a convolutional network on a folder of class folders and export it for the endpoint.

    python training/prepare.py digits                        # once: the data to start with
    python training/train.py                                 # about 15 seconds on two cores
    SM_CHANNEL_TRAIN=pictures SM_MODEL_DIR=out python training/train.py      # any pictures/<label>/<picture>

It is also the entry point of a SageMaker training job: folders come from SM_CHANNEL_TRAIN, SM_CHANNEL_VALIDATION,
SM_CHANNEL_TEST, SM_MODEL_DIR and SM_OUTPUT_DATA_DIR, or from the option of the same name, and every option takes a
value. Without a validation folder, a part of every training class is set aside for it. Files that cannot be read are
listed and left out; more than one in ten end the training.

What an option's help calls suited to the data is chosen by `suit`, from three things: the pictures' size, how many
there are, and whether they have colour. Coloured pictures are taken for photographs of things, which stay what they
are in a mirror, in another light and where only a part is seen. Set --flip 0 for coloured pictures that do not (signs,
letters, left and right hands), and --flip 0.5 --mix 0.5 for grey ones that do.

What is kept of a network is a moving average of the trained one; the model averages the answers of one or two of them
(of photographs, the second looks at gradients) and, where photographs are few, of patches.py. Validation data ends
the training when it no longer improves, chooses an epoch before the last where that is clearly better, and gives the
temperature that makes probabilities honest; test data is looked at once, at the end.

Written to the model folder, when all is done:

    model.onnx       in: float32 `pixels` [N, 3, height, width], RGB, 0 to 1; out: float32 `probabilities` [N, classes].
                     Normalisation, the mean with the mirror image (where --flip is not 0), temperature and softmax are
                     inside. Compared with PyTorch on the whole validation set.
    metadata.json    labels in the order of the output, input size, temperature, accuracy and calibration, what each
                     threshold accepts and gets right, seed, options, versions, the model's sha256

and to the output folder

    report.html      the learning curve, mistakes, reliability and thresholds, to look at
    history.csv      the line of every epoch
    predictions.csv  the answer to every validation and test picture, from which threshold.py chooses a threshold
"""

import argparse
import concurrent.futures
import csv
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import calibration
import patches
import resnet
from data import DataError, are_photographs, choose_size, list_images, load, stratified_split
from export import ExportMismatchError, export, largest_difference, versions
from fit import fit, outputs_of
from model import Average, Classifier, Probabilities
from report import write_report

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / ".local/data/digits"
MANY = 5_000  # pictures; with more of them, a second network brings little
FEW = 2_000  # pictures, up to which patches.py is asked too
PATCH_WEIGHT = 0.5  # of its opinion, against the networks'
FEWEST_EPOCHS, MOST_EPOCHS = 10, 150


class OutputFolderError(Exception):
    """Nothing can be written to a folder of the results."""


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
    add("--validation-fraction", type=float, default=0.1, help="of the training data, where no validation is given")
    add("--pretrained", type=Path, help="file of torchvision's weights of resnet18 to start from")
    add("--image-size", type=int, default=0, help="pixels a side; 0 suits it to the data, between 16 and 64")
    add("--epochs", type=int, help="suited to the data: fewer of more pictures")
    add("--patience", type=int, help="epochs without a better validation loss before it stops [half of all]")
    add("--batch-size", type=int, default=32)
    add(
        "--learning-rate",
        type=float,
        help="highest of a schedule that rises, and falls to 0 [0.1; 0.01 if --pretrained]",
    )
    add("--weight-decay", type=float, default=5e-4)
    add("--label-smoothing", type=float, default=0.1)
    add("--averaging", type=float, default=0.995, help="of the moving average of the weights, a step")
    add("--width", type=int, help="channels of the first group of layers; suited to the data")
    add("--dropout", type=float, default=0)
    add("--networks", type=int, help="trained side by side, their answers averaged; suited to the data")
    add("--gradients", type=int, help="networks that look at gradients in place of pixels; suited to the data")
    add("--patches", type=int, help="entries of the dictionary of patches.py, 0 for none; suited to the data")
    add("--rotate", type=float, default=10, help="augmentation: degrees either way")
    add("--shift", type=float, default=0.12, help="augmentation: part of the side either way")
    add("--scale", type=float, default=0.15, help="augmentation: part larger or smaller")
    add("--flip", type=float, help="augmentation: probability of a mirror image; suited to the data, 0 for digits")
    add("--light", type=float, help="augmentation: part of brightness, contrast and colour; suited to the data")
    add("--mix", type=float, help="augmentation: probability of a part of another picture; suited to the data")
    add("--seed", type=int, default=0)
    options, ignored = parser.parse_known_args(argv)
    if ignored:
        print(f"Ignored, as no options of this script: {' '.join(ignored)}")
    for name in ("epochs", "patience", "batch_size", "width", "networks"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is 1 or more")
    if not 0 < options.validation_fraction < 1:
        parser.error("--validation-fraction is between 0 and 1")
    if options.train is None and (options.validation or options.test):
        parser.error("--validation and --test go with a --train: without one, all three are the digits")
    if options.train is None:
        options.train, options.validation, options.test = (DIGITS / part for part in ("train", "validation", "test"))
    return options


def make_folders(options):
    """The folders of what is written at the end, so that it does not fail after all the work. Raises
    OutputFolderError."""
    for folder in (options.model_dir, options.output_data_dir):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise OutputFolderError(f"{folder}: {error.strerror}: nothing can be written there") from error


def load_data(options):
    """Returns the train, validation and test Dataset; test is None where there is none. Raises DataError."""
    classes = list_images(options.train)
    side = options.image_size or (resnet.SIDE if options.pretrained else 0)
    size = (side, side) if side else choose_size(classes)
    count = sum(map(len, classes.values()))
    print(f"Reading {count:,} images of {len(classes)} classes at {size[1]} x {size[0]} pixels", flush=True)
    train = load(classes, size)
    if options.validation:
        validation = load(list_images(options.validation, fewest=1), size, train.labels)
    else:
        names = np.array(train.labels)[train.targets]
        kept, held_out = stratified_split(names, [options.validation_fraction], options.seed)
        train, validation = train.subset(kept), train.subset(held_out)
    test = load(list_images(options.test, fewest=1), size, train.labels) if options.test else None
    return train, validation, test


def suit(options, train):
    """Choose the options that were not given, for this Dataset. The length grows with the root of its size: 850
    photographs of 32 x 32 pixels get 100 epochs, 50,000 get 13. Pretrained weights have little to learn."""
    photographs, little = are_photographs(train), train.small or options.pretrained is not None
    epochs = round((400 if little else 3000) / len(train) ** 0.5)
    suited = {
        "learning_rate": 0.01 if options.pretrained else 0.1,
        "width": 16 if train.small else 32,
        "networks": 1 if little or len(train) > MANY else 2,
        "patches": 0 if little or len(train) > FEW else 800,
        "epochs": min(max(epochs, FEWEST_EPOCHS), MOST_EPOCHS),
        "flip": 0.5 if photographs else 0.0,
        "light": 0.3 if photographs else 0.0,
        "mix": 0.5 if photographs else 0.0,
    }
    for name, value in suited.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.gradients is None:
        options.gradients = 1 if photographs and options.networks > 1 else 0
    if options.patience is None:
        options.patience = max(1, options.epochs // 2)


def build(number, train, options):
    """Network `number` for this Dataset, untrained; the last options.gradients of them look at gradients.

    Raises PretrainedWeightsError.
    """
    if options.pretrained:
        return resnet.pretrained(options.pretrained, len(train.labels))
    mean, std = train.images.mean((0, 2, 3)), train.images.std((0, 2, 3)).clip(1e-3)
    gradients = number > options.networks - options.gradients
    return Classifier(len(train.labels), mean, std, train.images.shape[2:], options.width, options.dropout, gradients)


def train_one(number, train, validation, options):
    """Train network `number` of options.networks, with its share of the cores. Returns its weights, and fit's lines."""
    torch.manual_seed(options.seed + 1000 * (number - 1))
    # on small pictures threads would wait for each other longer than they work
    torch.set_num_threads(1 if train.small else max(1, torch.get_num_threads() // options.networks))
    network = build(number, train, options)
    history = fit(network, train, validation, options, f"network={number} " if options.networks > 1 else "")
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    return weights, [{"network": number, **line} for line in history]


def train_all(train, validation, options):
    """Train options.networks networks side by side, each in a process of its own. Returns them and the lines of fit."""
    numbers = range(1, options.networks + 1)
    if options.networks == 1:
        results = [train_one(1, train, validation, options)]
    else:
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(options.networks, mp_context=spawn) as pool:
            jobs = [pool.submit(train_one, number, train, validation, options) for number in numbers]
            results = [job.result() for job in jobs]
    networks = [build(number, train, options) for number in numbers]
    for network, (weights, _) in zip(networks, results, strict=True):
        network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    return networks, [line for _, history in results for line in history]


def ask_patches_too(classifier, train, validation, options):
    """An `Average` of the networks and of patches.py, which gets its weight by how far both spread."""
    torch.manual_seed(options.seed)
    images, targets = torch.from_numpy(train.images), torch.from_numpy(train.targets)
    second = patches.fit(images, targets, len(train.labels), options.patches, classifier.mirrored)

    def spread(model):
        logits = outputs_of(model, validation)
        return (logits - logits.mean(1, keepdim=True)).std().item()

    weight = PATCH_WEIGHT * spread(classifier) / spread(Average([second], classifier.mirrored))
    return Average([*classifier.models, second], classifier.mirrored, [*classifier.weights, weight])


def write_csv(lines, path):
    """Dicts with the same keys, at least one."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)


def answers(part, dataset, probabilities):
    """The lines of predictions.csv."""
    return [
        {
            "part": part,
            "truth": dataset.labels[target],
            "label": dataset.labels[row.argmax()],
            "confidence": float(row.max()),
        }
        for target, row in zip(dataset.targets, probabilities, strict=True)
    ]


def main(argv=None):
    started = time.perf_counter()
    options = parse_options(argv)
    make_folders(options)
    train, validation, test = load_data(options)
    suit(options, train)
    height, width = train.images.shape[2:]
    sets = {"train": train, "validation": validation} | ({"test": test} if test else {})
    names = ("networks", "gradients", "epochs", "width", "patches", "flip", "light", "mix")
    chosen = ", ".join(f"{name} {getattr(options, name)}" for name in names)
    print(
        "Training on " + ", ".join(f"{len(dataset):,} {name}" for name, dataset in sets.items()) + f"; {chosen}",
        flush=True,
    )

    networks, history = train_all(train, validation, options)
    write_csv(history, options.output_data_dir / "history.csv")

    classifier = Average(networks, mirrored=options.flip > 0)
    if options.patches:
        print(f"Comparing patches with a dictionary of {options.patches}", flush=True)
        classifier = ask_patches_too(classifier, train, validation, options)
    logits = {name: outputs_of(classifier, dataset).double().numpy() for name, dataset in sets.items()}
    temperature = calibration.fit_temperature(logits["validation"], validation.targets)
    figures = {name: calibration.trust(logits[name], dataset.targets, temperature) for name, dataset in sets.items()}
    probabilities = {name: calibration.softmax(logits[name] / temperature) for name in sets if name != "train"}
    predictions = [line for name in probabilities for line in answers(name, sets[name], probabilities[name])]
    write_csv(predictions, options.output_data_dir / "predictions.csv")

    print("Exporting to ONNX and comparing it with PyTorch", flush=True)
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
        "seconds": time.perf_counter() - started,
        "pretrained": options.pretrained.name if options.pretrained else None,
        "seed": options.seed,
        "hyperparameters": {name: value for name, value in vars(options).items() if not isinstance(value, Path)},
        "largest_difference_from_pytorch": difference,
        "versions": versions(),
        "sha256": hashlib.sha256(unchecked.read_bytes()).hexdigest(),
    }
    described = options.model_dir / "metadata.json.unchecked"
    described.write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    unchecked.replace(options.model_dir / "model.onnx")
    described.replace(options.model_dir / "metadata.json")
    for name, figure in figures.items():
        error = figure["expected_calibration_error"]
        print(
            f"{name}: accuracy={figure['accuracy']:.4f} loss={figure['loss']:.4f} "
            f"calibration_error={error['after']:.4f} (before temperature {temperature:.2f}: {error['before']:.4f})"
        )
    write_report(options.output_data_dir / "report.html", metadata, history, sets, probabilities)
    print(f"{options.model_dir}: model.onnx, metadata.json ({metadata['seconds']:.0f} s)")
    print(f"{options.output_data_dir}: report.html, history.csv, predictions.csv")


if __name__ == "__main__":
    try:
        main()
    except (DataError, ExportMismatchError, OutputFolderError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
