"""Compare a challenger with a champion on the same labelled images, and say whether it is better.

    python training/compare.py CHAMPION CHALLENGER --data .local/data/digits/test
    python training/compare.py CHAMPION CHALLENGER --better reviewed --not-worse .local/data/digits/test

A model is a folder with model.onnx and metadata.json, as train.py writes it, or a model.tar.gz, as package.py builds
it. Both answer every image through endpoint/inference.py. The folders hold images/<label>/<image>.

--better DIR requires the challenger to be better on these images, --not-worse DIR to be not worse by more than
--margin; --data DIR only compares. Without --better and --not-worse, it must be better on every folder.

    better     McNemar's exact test, one-sided, has p <= 0.05
    not worse  by more than the margin: the exact unconditional test has p <= 0.05, and the difference of the accuracies
               is above -margin with 95% confidence
    worse      neither, and McNemar's test the other way round has p <= 0.05
    undecided  none of these: the images are too few

A challenger that is not better passes as better in at most 5% of all sets of images, and one that is worse by the
margin passes as not worse in at most 5%. If several folders have a requirement, all must hold, which needs no
correction. Trying many challengers on the same images does: one in 20 that are no better passes by chance.

This holds for images that were drawn independently and were used to train neither model. Files with the same bytes
count once. Images of the folders in a model's data.json (its training and validation data) are left out; an archive
has no data.json. Images that were reviewed because the champion was unsure favour the challenger, even one that is no
better on others: require it to be not worse on a frozen test set too.

--captured FILE compares answers that an endpoint with a shadow variant gave, as make shadow collects them, instead of
asking the models. The folders then hold the images of them whose label is known; without one, nothing is decided, but
agreement, changed labels and crossings of the threshold are shown.

Images whose label a model does not know count as wrong for it. Unreadable files are left out for both.

Files in the output folder: report.html, with the images whose answer changes from right to wrong or back, and
comparison.json, with the figures, hashes of models and data, and all files that were left out.

Exit status: 0 if all requirements hold; otherwise 4 if the challenger is worse on a folder with a requirement, 3 if it
is not worse by more than the margin on all of them (but not better, as required), or else 5. 1 and 2 are errors.
"""

import argparse
import hashlib
import io
import json
import signal
import sys
import tarfile
import tempfile
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # & in a script ignores it
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # during the imports below, Ctrl-C ends it without a traceback

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as errors

import calibration
import captured
import paired
from captured import NAMES
from comparison_report import lines, write_report
from data import Skipped, print_skipped, show_progress
from folders import DataError, list_images
from inference import THREADS, Model, classify, input_fn, model_fn, output_fn, predict_fn
from lineage import digest_of, fingerprint
from package import PackageError, check_unpacked_size
from pixels import UnsupportedImageError
from report import THRESHOLD

ROOT = Path(__file__).parents[1]
FILES = ("model.onnx", "metadata.json")
CODE = ("inference.py", "pixels.py")
LOAD_ERRORS = (  # of ONNX Runtime, which have no base class
    *(errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf, errors.NoModel),
    *(errors.NotImplemented, errors.RuntimeException),
)
HOLDS, NOT_WORSE, WORSE, UNDECIDED = 0, 3, 4, 5  # exit statuses; argparse uses 2, an error 1


class ModelFileError(Exception):
    """The path holds no model of this project; the message says why."""


class NoImagesError(DataError):
    pass


@dataclass(frozen=True)
class Candidate:
    """One of the two models. about: what comparison.json says of it. trained_on: folders of its data.json, or None."""

    name: str
    model: Model
    about: dict[str, Any]
    trained_on: list[Path] | None


@dataclass(frozen=True)
class Images:
    """The images of a folder that are compared, with their labels. skipped: {reason: files}.

    sha256: of the hashes and labels of all images, once each: the same for any two models.
    """

    folder: Path
    paths: list[Path]
    labels: list[str]
    sha256: str
    skipped: dict[str, Skipped]


@dataclass(frozen=True)
class Answers:
    """What a model answered to N images: predicted labels, confidences [N], right [N], and CPU seconds [N].

    seconds: NaN for captured answers.
    """

    labels: list[str]
    confidences: np.ndarray
    right: np.ndarray
    seconds: np.ndarray


def load(name: str, path: Path) -> Candidate:
    """Load a model from a folder or an archive. Raises ModelFileError."""
    about: dict[str, Any] = {}
    if path.is_dir():
        files = read_folder(path)
    elif path.is_file():
        files, about = read_archive(path)
    else:
        there = "download the archive first" if "s3:/" in str(path) else "there is no such folder or file"
        raise ModelFileError(f"{path}: {there}")
    with tempfile.TemporaryDirectory() as folder:
        for file in FILES:
            (Path(folder) / file).write_bytes(files[file])
        try:
            model = model_fn(folder)
            classify([np.zeros((3, *model.size), np.float32)], model)  # also warms it up
        except (*LOAD_ERRORS, KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ModelFileError(f"{path} holds no model that endpoint/inference.py can serve: {reason}") from None
    hashes = {f"{Path(file).stem}_sha256": hashlib.sha256(files[file]).hexdigest() for file in FILES}
    sizes = {"model_bytes": len(files["model.onnx"])}
    return Candidate(
        name, model, {"path": str(path), **hashes, **sizes, **about, "labels": model.labels}, trained_on(path)
    )


def read_folder(path: Path) -> dict[str, bytes]:
    """Raises ModelFileError."""
    try:
        return {file: (path / file).read_bytes() for file in FILES}
    except OSError as error:
        raise ModelFileError(f"{path} is no model: {error.filename} cannot be read: {error.strerror}") from None


def read_archive(path: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files of a model.tar.gz, and what comparison.json says of the archive. Raises ModelFileError."""
    files = {}
    try:
        content = path.read_bytes()
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            check_unpacked_size(archive, str(path))
            for name in (*FILES, *(f"code/{file}" for file in CODE)):
                if name in archive.getnames() and (file := archive.extractfile(name)):
                    files[name] = file.read()
    except (tarfile.TarError, EOFError, KeyError, zlib.error, OSError, PackageError) as error:  # KeyError: a dead link
        reason = str(error).partition(":\n")[0]  # without what each format's reader said
        raise ModelFileError(f"{path} is no model.tar.gz: {reason}") from None
    if missing := [file for file in FILES if file not in files]:
        raise ModelFileError(f"{path} has no {' and no '.join(missing)}: build it with endpoint/package.py")
    own = {file: (ROOT / "endpoint" / file).read_bytes() for file in CODE}
    other_code = any(files.get(f"code/{file}", own[file]) != own[file] for file in CODE)
    about = {"archive_sha256": hashlib.sha256(content).hexdigest(), "archive_bytes": len(content)}
    return files, {**about, "other_code": other_code}


def trained_on(path: Path) -> list[Path] | None:
    """The training and validation folders that train.py wrote to data.json; None if it or one of them is not there."""
    try:
        parts = json.loads((path / "data.json").read_text(encoding="utf-8"))
        folders = [Path(parts[part]) for part in ("train", "validation") if part in parts]
    except (OSError, ValueError, TypeError):
        return None
    return folders if all(folder.is_dir() for folder in folders) else None


def find_images(folder: Path, candidates: list[Candidate]) -> Images:
    """The images of a folder, without duplicates and those that a model was trained on.

    Raises DataError.
    """
    labels: dict[Path, str] = {}
    digests: dict[Path, str] = {}
    skipped: dict[str, Skipped] = {"unreadable": [], "duplicate": [], "training": []}
    first: dict[str, Path] = {}
    for label, paths in list_images(folder, min_classes=1).items():
        for path in paths:
            try:
                digest = digest_of(path)
            except OSError as error:
                skipped["unreadable"].append((path, error.strerror or str(error)))
                continue
            if (original := first.setdefault(digest, path)) is not path:
                elsewhere = "" if labels[original] == label else ", which has another label"
                skipped["duplicate"].append((path, f"same as {original}{elsewhere}"))
                continue
            labels[path], digests[path] = label, digest
    sha256 = fingerprint((digest, labels[path]) for path, digest in digests.items())
    for candidate in candidates:
        trained = digests_of(candidate.trained_on or [], {path.stat().st_size for path in digests})
        for path in [path for path in digests if digests[path] in trained]:
            skipped["training"].append((path, f"in the {candidate.name}'s training or validation data"))
            del digests[path]
    paths = list(digests)
    return Images(folder, paths, [labels[path] for path in paths], sha256, skipped)


def digests_of(folders: list[Path], sizes: set[int]) -> set[str]:
    """The hashes of the images in these folders that have one of these sizes in bytes. Raises DataError."""
    classes = [list_images(folder, min_classes=1) for folder in folders]
    paths = [path for each in classes for of_label in each.values() for path in of_label]
    return {digest_of(path) for path in paths if path.is_file() and path.stat().st_size in sizes}


def answer(path: Path, models: list[Model]) -> list[tuple[str, float, float]] | str:
    """The label, confidence and CPU seconds of each model, decoding included; or why the image is unreadable."""
    answers = []
    try:
        body = path.read_bytes()
        for model in models:
            started = time.thread_time()
            response, _ = output_fn(predict_fn(input_fn(body, "application/octet-stream"), model), None)
            seconds = time.thread_time() - started
            best = json.loads(response)["predictions"][0]
            answers.append((best["label"], best["probability"], seconds))
    except (UnsupportedImageError, OSError) as error:
        return str(error)
    return answers


Row = list[tuple[str, float, float]] | str  # each model's label, confidence and CPU seconds; or why there are none


def ask(images: Images, candidates: list[Candidate]) -> list[Row]:
    """Both models' answers to the images."""
    models = [candidate.model for candidate in candidates]

    def in_turns(number: int) -> Row:
        """Each model is first for half of the images: the second finds the image in the processor's cache."""
        if number % 2 == 0:
            return answer(images.paths[number], models)
        answers = answer(images.paths[number], models[::-1])
        return answers if isinstance(answers, str) else answers[::-1]

    with ThreadPoolExecutor(THREADS) as pool:
        try:
            numbers = range(len(images.paths))
            return list(show_progress(pool.map(in_turns, numbers), len(numbers), str(images.folder)))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def look_up(images: Images, answers: dict[str, dict[str, Any]]) -> list[Row]:
    """Both models' captured answers to the images."""
    found = [answers.get(digest_of(path)) for path in images.paths]
    return [[(*row[name], np.nan) for name in NAMES] if row else "no captured answers" for row in found]


def readable_images(images: Images, candidates: list[Candidate], everything: list[Row]) -> tuple[Images, list[Answers]]:
    """The images that both models answered, and their answers. Raises NoImagesError."""
    models = [candidate.model for candidate in candidates]
    rows = [(path, label, row) for path, label, row in zip(images.paths, images.labels, everything, strict=True)]
    images.skipped["unreadable"].extend((path, row) for path, _, row in rows if isinstance(row, str))
    readable = [(path, label, row) for path, label, row in rows if not isinstance(row, str)]
    known = {label for model in models for label in model.labels}
    if not any(label in known for _, label, _ in readable):
        print_left_out(images)
        what = "label that a model knows" if readable else "image left that can be compared"
        raise NoImagesError(f"{images.folder} has no {what}")
    paths, labels = [path for path, _, _ in readable], [label for _, label, _ in readable]
    answers = []
    for number in range(len(models)):
        predicted = [row[number][0] for _, _, row in readable]
        confidences, seconds = np.array([row[number][1:] for _, _, row in readable]).T
        right = np.array([guess == label for guess, label in zip(predicted, labels, strict=True)])
        answers.append(Answers(predicted, confidences, right, seconds))
    return Images(images.folder, paths, labels, images.sha256, images.skipped), answers


def compare(
    images: Images,
    candidates: list[Candidate],
    answers: list[Answers],
    requirement: str | None,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """What comparison.json says of a folder."""
    champion, challenger = answers
    gained, lost = challenger.right & ~champion.right, champion.right & ~challenger.right
    result = paired.judge(int(gained.sum()), int(lost.sum()), len(images.labels), options.margin)
    margin = 0.0 if requirement == "better" else options.margin
    holds = requirement is None or result.verdict == "better" or result.verdict == requirement
    figures = [figures_of(each, options.threshold) for each in answers]
    unknown = [
        dict(Counter(label for label in images.labels if label not in candidate.model.labels))
        for candidate in candidates
    ]
    return {
        "folder": str(images.folder),
        "sha256": images.sha256,
        "requirement": requirement,
        "holds": holds,
        **asdict(result),
        "at_least": paired.lower_bound(result.gained, result.lost, result.images),
        "images_needed": None if holds else paired.images_needed(result, margin),
        **{name: {**each, "unknown": names} for name, each, names in zip(NAMES, figures, unknown, strict=True)},
        "intervals": intervals(answers, options.threshold, options.seed),
        "labels": by_label(images.labels, answers),
        "moves": moves(answers, options.threshold),
        "skipped": {why: [[str(path), reason] for path, reason in files] for why, files in images.skipped.items()},
        "changed": changed(images, answers),
    }


def figures_of(answers: Answers, threshold: float) -> dict[str, Any]:
    accepted = calibration.accepted(answers.confidences, answers.right, threshold)
    return {
        "accuracy": float(answers.right.mean()),
        "expected_calibration_error": calibration.expected_calibration_error(answers.confidences, answers.right),
        "brier_score": calibration.brier_score(answers.confidences, answers.right),
        "area_under_roc": calibration.area_under_roc(answers.confidences, answers.right),
        "coverage": accepted["coverage"],
        "accepted": accepted["accepted"],
        "accepted_accuracy": accepted["accuracy"],
        "cpu_milliseconds": None if np.isnan(answers.seconds).any() else 1000 * float(answers.seconds.mean()),
    }


def intervals(answers: list[Answers], threshold: float, seed: int) -> dict[str, tuple[float, float] | None]:
    """95% bootstrap intervals of the differences that are means over images."""
    columns = []
    for each in answers:
        accepted = each.confidences >= threshold
        columns += [each.right, (each.confidences - each.right) ** 2, accepted, accepted & each.right]
    champion, challenger = np.split(paired.bootstrap(np.column_stack(columns).astype(float), seed), 2, axis=1)
    difference = (challenger - champion) / len(answers[0].right)
    found = {
        name: paired.interval(difference[:, at]) for at, name in enumerate(("accuracy", "brier_score", "coverage"))
    }
    with_accepted = (champion[:, 2] > 0) & (challenger[:, 2] > 0)
    champion, challenger = champion[with_accepted], challenger[with_accepted]
    accuracy = challenger[:, 3] / challenger[:, 2] - champion[:, 3] / champion[:, 2]
    return {**found, "accepted_accuracy": paired.interval(accuracy) if len(accuracy) else None}


def by_label(labels: list[str], answers: list[Answers]) -> list[dict[str, Any]]:
    """The images of each label. p: of McNemar's two-sided test that the models differ, adjusted for all labels."""
    champion, challenger = answers
    truth = np.array(labels, dtype=object)
    rows: list[dict[str, Any]] = []
    for label in sorted(set(labels)):
        of_label = truth == label
        right = [int(each.right[of_label].sum()) for each in answers]
        gained = int((challenger.right & ~champion.right)[of_label].sum())
        lost = int((champion.right & ~challenger.right)[of_label].sum())
        p = min(1.0, 2 * min(paired.mcnemar(gained, lost), paired.mcnemar(lost, gained)))
        counts = {"images": int(of_label.sum()), "champion": right[0], "challenger": right[1]}
        rows.append({"label": label, **counts, "gained": gained, "lost": lost, "p": p})
    for row, p in zip(rows, paired.holm([row["p"] for row in rows]), strict=True):
        row["p"] = p
    return rows


def moves(answers: list[Answers], threshold: float) -> list[list[int]]:
    """Images accepted right, accepted wrong, and for review: by the champion (rows) and the challenger (columns)."""
    fates = [np.where(each.confidences < threshold, 2, np.where(each.right, 0, 1)) for each in answers]
    counts = np.zeros((3, 3), dtype=int)
    np.add.at(counts, tuple(fates), 1)
    return counts.tolist()


def changed(images: Images, answers: list[Answers]) -> list[dict[str, Any]]:
    """The images with another label than before: lost ones first, then gained ones, then those wrong in both cases.

    The challenger's most confident answers are first.
    """
    champion, challenger = answers
    order = {(True, False): 0, (False, True): 1, (False, False): 2}
    numbers = [number for number, label in enumerate(champion.labels) if label != challenger.labels[number]]
    numbers.sort(key=lambda n: (order[bool(champion.right[n]), bool(challenger.right[n])], -challenger.confidences[n]))
    return [
        {
            "file": str(images.paths[number]),
            "label": images.labels[number],
            "change": ("lost", "gained", "other")[order[bool(champion.right[number]), bool(challenger.right[number])]],
            **{
                name: {"label": each.labels[number], "confidence": float(each.confidences[number])}
                for name, each in zip(NAMES, answers, strict=True)
            },
        }
        for number in numbers
    ]


def decide(sets: list[dict[str, Any]]) -> tuple[str, int]:
    """The verdict on all folders with a requirement, and the exit status."""
    required = [each for each in sets if each["requirement"]]
    if not required:
        return "undecided", UNDECIDED
    if all(each["holds"] for each in required):
        return "better" if any(each["requirement"] == "better" for each in required) else "not worse", HOLDS
    verdicts = {each["verdict"] for each in required}
    if "worse" in verdicts:
        return "worse", WORSE
    return ("undecided", UNDECIDED) if "undecided" in verdicts else ("not worse", NOT_WORSE)


def print_left_out(images: Images) -> None:
    for why, files in images.skipped.items():
        print_skipped(why, files, "comparison.json")


def write_json(path: Path, comparison: dict[str, Any]) -> None:
    path.write_text(json.dumps(comparison, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def requirements(options: argparse.Namespace) -> dict[Path, str | None]:
    """The folders, each once, with the strictest requirement given for it."""
    default = None if options.better or options.not_worse else "better"
    folders: dict[Path, str | None] = dict.fromkeys([*options.better, *options.not_worse, *options.data], default)
    return folders | dict.fromkeys(options.not_worse, "not worse") | dict.fromkeys(options.better, "better")


def fraction(text: str) -> float:
    """A number above 0 and below 1."""
    if not 0 < (number := float(text)) < 1:
        raise ValueError(text)
    return number


def threshold(text: str) -> float:
    """A number above 0 and up to 1, as the stack's Threshold."""
    return 1.0 if float(text) == 1 else fraction(text)


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("champion", type=Path, help="the model in service: a folder or a model.tar.gz")
    add("challenger", type=Path, help="the model that could replace it")
    folders: dict[str, Any] = {"type": Path, "nargs": "+", "action": "extend", "default": [], "metavar": "DIR"}
    add("--data", **folders, help="folders of class folders")
    add("--better", **folders, help="the challenger must be better on these")
    add("--not-worse", **folders, help="the challenger must be not worse by more than --margin on these")
    add("--captured", type=Path, metavar="FILE", help="compare these answers, which make shadow wrote")
    add("--threshold", type=threshold, default=THRESHOLD, help="of confidence, for what is accepted [%(default)s]")
    add("--margin", type=fraction, default=0.02, help="of accuracy: 0.02 is two points [%(default)s]")
    add("--seed", type=int, default=0, help="of the bootstrap [%(default)s]")
    add("--output", type=Path, default=ROOT / ".local/comparison", help="[.local/comparison]")
    options = parser.parse_args(argv)
    if not requirements(options) and not options.captured:
        parser.error("pass at least one folder of class folders with --data, --better or --not-worse")
    if options.seed < 0:
        parser.error("--seed must be at least 0")
    return options


def main(argv: list[str] | None = None) -> int:
    options = parse_options(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # not every terminal and file name is UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    candidates = [load(name, getattr(options, name)) for name in NAMES]
    answered = captured.read(options.captured) if options.captured else None
    sets, details = [], []
    for folder, requirement in requirements(options).items():
        images = find_images(folder, candidates)
        rows = look_up(images, answered.answers) if answered else ask(images, candidates)
        images, answers = readable_images(images, candidates, rows)
        print_left_out(images)
        sets.append(compare(images, candidates, answers, requirement, options))
        details.append(answers)
    verdict, status = decide(sets)
    comparison = {
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "verdict": verdict,
        "holds": status == HOLDS,
        "exit_status": status,
        "threshold": options.threshold,
        "margin": options.margin,
        "level": paired.LEVEL,
        "seed": options.seed,
        "onnxruntime": onnxruntime.__version__,
        **{each.name: {**each.about, "training_data_known": each.trained_on is not None} for each in candidates},
        "captured": captured.summary(answered, options.threshold) if answered else None,
        "sets": sets,
    }
    print("\n".join(lines(comparison)))
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / "comparison.json", comparison)
    side = max(max(each.model.size) for each in candidates)
    write_report(options.output / "report.html", comparison, details, side)
    print(f"{options.output}: report.html, comparison.json")
    return status


if __name__ == "__main__":
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.exit(main())
    except (DataError, ModelFileError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except PermissionError as error:
        sys.exit(f"{error.filename} cannot be written: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted.")
