"""make retrain: train a challenger on original and reviewed images, compare it with the champion, and upload it.

make retrain [DATA=folder] [ARGS="train.py options"] [MARGIN=0.02] [STACK=name]
make retrain REMOTE=1 BUCKET=b ROLE=arn STACK=name [ARGS="options of training/launch/job.py"]    a SageMaker job

DATA is a folder that training/prepare.py wrote, with train, validation and test; by default the one on which the model
in .local/model was trained. Everything is written to .local/retrain: champion, data, model, training, comparison and
package. The archive is uploaded to where the champion is, whatever the verdict. Nothing is deployed: the last line says
how to.

Exit status: 0 if the challenger is better on held-out reviewed images and not worse on the original test images;
otherwise that of training/compare.py.
"""

import argparse
import contextlib
import fcntl
import json
import os
import re
import shlex
import shutil
import sys
import tarfile
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from endpoint.package import PackageError, check_unpacked_size
from local.command import LOCAL, ROOT, StackError, UsageError, console, examples, report_errors, run
from local.emulator.processes import clean_environment
from local.registry import download, in_service, split
from local.target import Target, target

PARTS = ("train", "validation", "test")
ARCHIVE = "model.tar.gz"
MODEL_FILES = ("model.onnx", "metadata.json")
FOLDER = LOCAL / "retrain"
HELD_OUT = 0.3  # of all classified images, at most
FEWEST = 5  # with fewer held-out images, McNemar's test cannot show that a challenger is better
VERDICTS = (0, 3, 4, 5)  # exit statuses of compare.py; others are errors
REMOTE_PYTHON = LOCAL / "venvs/sagemaker/bin/python"


@dataclass(frozen=True)
class Retrained:
    """The challenger: its model's sha256, the archive's s3:// URL, and what comparison.json says."""

    sha256: str
    url: str
    comparison: dict[str, Any]

    @property
    def holds(self) -> bool:
        return self.comparison["holds"]

    @property
    def verdict(self) -> str:
        return self.comparison["verdict"]

    @property
    def name(self) -> str:
        """What MODEL is in make promote."""
        return split(self.url)[2]


def retrain(
    found: Target,
    data: Path,
    folder: Path = FOLDER,
    arguments: Sequence[str] = (),
    bucket: str = "",
    margin: float | None = None,
) -> Retrained:
    """Train, compare and upload a challenger, with everything that is written in `folder`.

    arguments: options of training/train.py; with a bucket, a SageMaker job trains, and they are options of
    training/launch/job.py. margin: how much worse is still not worse, of accuracy. Raises StackError.
    """
    data, folder = data.resolve(), folder.resolve()
    check_parts(data, folder)
    url = in_service(found)
    with locked(folder):
        champion = download_model(found, url, folder / "champion")
        check_labels(data, champion)
        prepare(found, data, folder / "data")
        if bucket:
            train_remotely(found, folder, [*arguments, "--bucket", bucket])
        else:
            train(champion, folder, arguments)
        comparison = compare(found, champion, folder, margin)
        url = upload(found, url, champion, folder)
    return Retrained(comparison["challenger"]["model_sha256"], url, comparison)


def default_data(model: Path = LOCAL / "model") -> Path:
    """The folder whose train, validation and test a model was trained on. Raises StackError."""
    advice = "give DATA=folder, one that training/prepare.py wrote"
    try:
        parts = json.loads((model / "data.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise StackError(f"It is unknown what the model in {model} was trained on: {advice}") from None
    folders = {Path(path).parent for path in parts.values()}
    if len(folders) != 1 or parts != {part: str(folder / part) for part in PARTS for folder in folders}:
        raise StackError(f"The model in {model} was not trained on train, validation and test of one folder: {advice}")
    return folders.pop()


def check_parts(data: Path, folder: Path) -> None:
    """Raise UsageError if the three parts are not all there, or if they would be replaced."""
    if missing := [part for part in PARTS if not (data / part).is_dir()]:
        raise UsageError(f"DATA={data} has no folder {missing[0]}: give one that training/prepare.py wrote")
    if data.is_relative_to(folder):
        raise UsageError(f"DATA={data} is what make retrain wrote: give the original data")


def check_labels(data: Path, champion: Path) -> None:
    """Raise UsageError if there are no training images of a label that the champion knows."""
    labels = {unicodedata.normalize("NFC", path.name) for path in (data / "train").iterdir()}
    known = json.loads((champion / "metadata.json").read_text(encoding="utf-8"))["labels"]
    if missing := [label for label in known if label not in labels]:
        raise UsageError(
            f"DATA={data} has no images of {examples(missing)}, which the model in service knows: give its own data"
        )


def download_model(found: Target, url: str, folder: Path) -> Path:
    """Download a model's archive and unpack the model beside it. Returns the folder. Raises StackError."""
    with replaced(folder):
        path = download(found.client("s3"), url, folder / ARCHIVE)
        try:
            with tarfile.open(path) as archive:
                check_unpacked_size(archive, url)
                for name in MODEL_FILES:
                    if not (file := archive.extractfile(name)):
                        raise StackError(f"{url}: {name} is not a file")
                    (folder / name).write_bytes(file.read())
        except (tarfile.TarError, EOFError, KeyError, zlib.error, PackageError) as error:
            raise StackError(f"{url} is no model.tar.gz that endpoint/package.py built: {error}") from None
    return folder


def prepare(found: Target, data: Path, output: Path) -> None:
    """Write the original data and the reviewed images, some held out. Raises StackError if these are too few."""
    options = ["--stack", found.name, "--add", str(data), "--hold-out", str(HELD_OUT), "--output", str(output)]
    run([sys.executable, "training/prepare.py", "reviewed", *options], environment(found))
    number = sum(path.is_file() for path in (output / "heldout").rglob("*"))
    if number < FEWEST:
        raise StackError(
            f"{number} reviewed images are held out, but even if the challenger were right and the champion wrong on "
            f"all, it would take {FEWEST} to show that it is better: at least {FEWEST - number} more audits of other "
            "images must be reviewed (above: how many are left out, and why). make review shows those that wait; a "
            "higher AuditRate chooses more"
        )


def train(champion: Path, folder: Path, arguments: Sequence[str]) -> None:
    """Train with train.py. If that fails, the earlier model comes back. Raises StackError."""
    model = folder / "model"
    with replaced(model):
        for name in MODEL_FILES:  # whose sha256 becomes the parent in the lineage
            shutil.copy(champion / name, model)
        channels = {f"SM_CHANNEL_{part.upper()}": str(folder / "data" / part) for part in PARTS}
        outputs = {"SM_MODEL_DIR": str(model), "SM_OUTPUT_DATA_DIR": str(folder / "training")}
        run([sys.executable, "training/train.py", *arguments], clean_environment() | channels | outputs)


def train_remotely(found: Target, folder: Path, arguments: Sequence[str]) -> None:
    """Train as a SageMaker job, which costs money, and download the model that it packaged. Raises StackError."""
    console.print(
        "This starts a SageMaker training job, which costs money: by default, at most an hour of one ml.m5.xlarge. "
        "Ctrl-C does not stop the job, but prints the command that does.",
        soft_wrap=True,
    )
    channels = [text for part in PARTS for text in (f"--{part}", str(folder / "data" / part))]
    command = [str(REMOTE_PYTHON), "-m", "training.launch.job", *channels, *arguments]
    printed = run(command, environment(found), capture=True)
    if not (url := re.search(r"ModelDataUrl=(s3://\S+)", printed)):
        raise StackError(f"No job was started, so there is no model to compare:\n{printed}")
    download_model(found, url[1], folder / "model")
    (folder / "model" / ARCHIVE).unlink()


def compare(found: Target, champion: Path, folder: Path, margin: float | None) -> dict[str, Any]:
    """What comparison.json says. Raises StackError."""
    data, output = folder / "data", folder / "comparison"
    options = ["--better", str(data / "heldout"), "--not-worse", str(data / "test"), "--output", str(output)]
    if float(threshold := found.parameter("Threshold")) < 1:
        options += ["--threshold", threshold]
    if margin is not None:
        options += ["--margin", str(margin)]
    models = [str(champion / ARCHIVE), str(folder / "model")]
    run([sys.executable, "training/compare.py", *models, *options], clean_environment(), VERDICTS)
    return json.loads((output / "comparison.json").read_text(encoding="utf-8"))


def upload(found: Target, champion_url: str, champion: Path, folder: Path) -> str:
    """Package the model as the champion was, and upload it beside that. Returns its s3:// URL. Raises StackError."""
    bucket, prefix, _ = split(champion_url)
    with tarfile.open(champion / ARCHIVE) as archive:
        lib = "container" if any(name.startswith("lib/") for name in archive.getnames()) else "none"
    options = ["--model-dir", str(folder / "model"), "--output", str(folder / "package"), "--lib", lib]
    options += ["--comparison", str(folder / "comparison/comparison.json"), "--bucket", bucket, "--prefix", prefix]
    printed = run([sys.executable, "endpoint/package.py", *options], environment(found), capture=True)
    return printed.splitlines()[-1]


@contextlib.contextmanager
def replaced(folder: Path) -> Iterator[None]:
    """Make the folder empty; if anything is raised, its files come back."""
    before, old = folder.with_name(f".{folder.name}.before"), folder.with_name(f".{folder.name}.old")
    if old.exists():  # a deletion that did not finish
        shutil.rmtree(old)
    if before.exists():  # the command was killed
        shutil.rmtree(folder, ignore_errors=True)
        before.rename(folder)
    if folder.exists():
        folder.rename(before)
    try:
        folder.mkdir()
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if before.exists():
            before.rename(folder)
        raise
    if before.exists():
        before.rename(old)  # first: an interrupted deletion must not look like a killed command
        shutil.rmtree(old, ignore_errors=True)


def environment(found: Target) -> dict[str, str]:
    """Environment variables with which a script finds the stack."""
    return clean_environment() | found.local.aws_variables if found.local else dict(os.environ)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create the folder. Raises StackError if another command is using it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackError(f"Another make retrain is using {folder}: wait until it has finished.") from None
        yield


def sentences(found: Target, retrained: Retrained) -> list[str]:
    """What the verdict means, and the command that deploys the challenger, which comes last."""
    stack = "" if found.local else f" STACK={found.name}"
    promote = f"make promote MODEL={retrained.name}{stack}"
    if retrained.holds:
        return ["The challenger is better on the held-out images and not worse on the original test images.", promote]
    lines = []
    for each in retrained.comparison["sets"]:
        if each["requirement"] and not each["holds"]:
            lines.append(f"Not promoted: {each['folder']}: {each['verdict']}, must be {each['requirement']}.")
            lines.append(what_helps(each))
    return [*lines, f'To deploy it all the same, for a reason that is recorded: {promote} OVERRIDE="reason"']


def what_helps(each: dict[str, Any]) -> str:
    """What to do about a set on which the challenger does not pass."""
    if each["verdict"] == "worse":
        return "Look at the images that it loses, in the report: wrong labels, or a kind that has too few images?"
    if not each["images_needed"]:
        return "More images like these would not help: the challenger gains too few. Look at the report."
    missing = each["images_needed"] - each["images"]
    if each["requirement"] == "better":
        return f"About {missing:,} more held-out images would show it: review more audits, or raise AuditRate."
    return f"About {missing:,} more test images like these would show it."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="folder with train, validation and test")
    parser.add_argument("--arguments", default="", help="options of train.py, or with --remote of training.launch.job")
    parser.add_argument("--margin", default="", help="how much worse is still not worse on the test images [0.02]")
    parser.add_argument("--stack", default="", help="name of a stack on AWS; by default the local stack")
    parser.add_argument("--remote", default="", help="1: train as a SageMaker job")
    parser.add_argument("--bucket", default="", help="of the SageMaker job")
    parser.add_argument("--role", default="", help="ARN of the SageMaker job's role")
    options = parser.parse_args()
    with report_errors():
        arguments = words(options.arguments)
        if options.remote:
            for name in ("stack", "bucket", "role"):
                if not getattr(options, name):
                    raise UsageError(f"REMOTE=1 needs {name.upper()}")
            arguments += ["--role", options.role]
        else:
            check_options(arguments)
        data = Path(options.data) if options.data else default_data()
        with target(options.stack, start=False) as found:
            console.print(f"Retraining the model of {found.place} with {data}", markup=False, soft_wrap=True)
            bucket = options.bucket if options.remote else ""
            retrained = retrain(found, data, FOLDER, arguments, bucket, margin_of(options.margin))
            console.print(f"The challenger is {retrained.url}", markup=False, soft_wrap=True)
            console.print(f"Report: {os.path.relpath(FOLDER / 'comparison/report.html')}", markup=False, soft_wrap=True)
            for sentence in sentences(found, retrained):
                console.print(sentence, markup=False, soft_wrap=True)
    sys.exit(retrained.comparison["exit_status"])


def margin_of(text: str) -> float | None:
    """The number in MARGIN; None without one. Raises UsageError."""
    if not text:
        return None
    with contextlib.suppress(ValueError):
        if 0 < (margin := float(text)) < 1:
            return margin
    raise UsageError(f"MARGIN={text} is not a number above 0 and below 1: 0.02 is two points of accuracy")


def check_options(arguments: Sequence[str]) -> None:
    """Raise UsageError unless these are options of train.py, which ignores unknown ones, with numbers if it wants any.

    Read from its source, because importing it takes seconds.
    """
    source = (ROOT / "training/train.py").read_text(encoding="utf-8")
    known = {f"--{name}": kind for name, kind in re.findall(r'add\(\s*"--([\w-]+)"(?:,\s*type=(\w+))?', source)}
    pairs = [part for argument in arguments for part in argument.split("=", 1)]
    for name, value in zip_longest(pairs[::2], pairs[1::2]):
        if name not in known:
            raise UsageError(f"ARGS: train.py has no option {name}, but {', '.join(known)}")
        if value is None:
            raise UsageError(f"ARGS: {name} needs a value")
        with contextlib.suppress(KeyError):
            try:
                {"int": int, "float": float}[known[name]](value)
            except ValueError:
                raise UsageError(f"ARGS: {name} {value} is not a number") from None


def words(arguments: str) -> list[str]:
    """The words of ARGS, as a shell would split them. Raises UsageError."""
    try:
        return shlex.split(arguments)
    except ValueError as error:
        raise UsageError(f"ARGS={arguments}: {error}") from None


if __name__ == "__main__":
    main()
