"""Reviews as files: Label Studio's tasks, CSV and class folders, and the decisions that come back in them.

A reader yields a Decision for each one in the file, or Rejected with the reason. What has no decision yet is left out.
A file that is not in its format at all raises ExchangeError.
"""

import csv
import dataclasses
import hashlib
import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any
from xml.sax.saxutils import quoteattr

from review.table import DECISIONS, Review
from training.folders import LEFT_BY_SYSTEMS, DataError, list_images

COLUMNS = (
    "s3_bucket", "s3_key", "s3_version_id", "version", "label", "confidence", "threshold", "reason",
    "selection_probability", "status", "decision", "reviewed_label", "reviewer", "reviewed_at", "created_at",
    "execution_arn",
)  # fmt: skip
NEEDED = ("s3_bucket", "s3_key", "version", "decision", "reviewed_label")
WITHOUT_LABEL = ("none_of_these", "not_usable")
CHOICES = {"(none of these)": "none_of_these", "(not usable)": "not_usable"}  # in Label Studio, beside the labels
PENDING = "_pending"  # the folder of images without a decision; those of WITHOUT_LABEL begin with _ too
MAX_NAME = 255  # bytes of a file's or folder's name
HASH = 16  # characters at the start of an exported image's name
Labels = Collection[str]


class ExchangeError(Exception):
    """The file cannot be read or written in this format; the message says why."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """A decision in a file. `where` names its row, task or path; `reviewer` is None if the file does not say."""

    image: str
    version: str
    decision: str
    label: str | None
    reviewer: str | None
    where: str

    @property
    def can_be_stored(self) -> bool:
        """Whether DynamoDB accepts the key and the texts, whatever their bytes were in the file."""
        try:
            sizes = [len(text.encode()) for text in (self.image, self.version, self.label or "", self.reviewer or "")]
        except UnicodeEncodeError:  # half of a surrogate pair
            return False
        return 0 < sizes[0] <= 2048 and 0 < sizes[1] <= 1024 and max(sizes) <= 2048


CELL, FORMULA = r"(?:^|(?<=[;\t]))", r"(?='*[=+\-@\t\r])"  # where a cell can begin, and what a spreadsheet would run


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A row, task or path that is no decision, and why."""

    where: str
    reason: str


Found = Decision | Rejected


# CSV


def write_csv(reviews: Iterable[Review], path: Path) -> int:
    """Write COLUMNS of the reviews; return how many there are."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        number = 0
        for review in reviews:
            writer.writerow([as_text(getattr(review, name)) for name in COLUMNS])
            number += 1
    return number


def as_text(value: Any) -> Any:
    """A cell. A spreadsheet would run a text that begins with = + - or @ as a formula, unless a ' is before it.

    Where a semicolon or a tab separates cells, a text can begin in the middle of this one.
    """
    return re.sub(CELL + FORMULA, "'", value) if isinstance(value, str) else value


def from_text(cell: str) -> str:
    """The inverse of `as_text`."""
    return re.sub(f"{CELL}'{FORMULA}", "", cell)


def read_csv(path: Path) -> Iterator[Found]:
    """The decisions in a CSV file with the columns NEEDED; a spreadsheet may have changed its delimiter."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            delimiter = max(",;\t", key=file.readline().count)
            file.seek(0)
            rows = csv.DictReader(file, delimiter=delimiter)
            if missing := [name for name in NEEDED if name not in (rows.fieldnames or ())]:
                raise ExchangeError(f"{path} has no column {', '.join(missing)}: its first row must name the columns")
            for row in rows:
                yield from decision_in_row(row, f"line {rows.line_num}")
    except UnicodeDecodeError:
        raise ExchangeError(f"{path} is not UTF-8: save it as CSV UTF-8") from None
    except csv.Error as error:
        raise ExchangeError(f"{path}: line {rows.line_num}: {error}") from None


def decision_in_row(row: dict[Any, Any], where: str) -> Iterator[Found]:
    if None in row or None in row.values():
        yield Rejected(where, "it has more or fewer cells than the first row")
        return
    cells = {name: from_text(row[name]) for name in {*NEEDED, "reviewer"} & set(row)}
    label = cells["reviewed_label"]
    decision = cells["decision"] or ("label" if label else "")
    if not decision:
        return
    if decision not in DECISIONS or (decision == "label") != bool(label):
        yield Rejected(where, f"decision {decision!r} with reviewed_label {label!r}: use one of {', '.join(DECISIONS)}")
        return
    image = f"s3://{cells['s3_bucket']}/{cells['s3_key']}"
    yield Decision(image, cells["version"], decision, label or None, cells.get("reviewer") or None, where)


# Label Studio: https://labelstud.io/guide/task_format


def labelling_config(labels: Labels) -> str:
    """The project's labelling configuration. Raises ExchangeError for a label that Label Studio cannot show."""
    labels = list(labels)
    for label in labels:
        if label in CHOICES or label.startswith("$") or re.search(r"[\x00-\x1f\ud800-\udfff\ufffe\uffff]", label):
            raise ExchangeError(f"Label Studio has no choice named {label!r}: use FORMAT=csv or folders")
    of_one = all(re.fullmatch("[0-9a-z]", label) for label in labels)  # each label is its own key, such as a digit's
    choices = [f"<Choice value={quoteattr(each)}{f' hotkey={quoteattr(each)}' * of_one}/>" for each in labels]
    choices += [f"<Choice value={quoteattr(each)}/>" for each in CHOICES]
    return "\n".join(
        [
            "<View>",
            '  <Image name="image" value="$image" zoom="true"/>',
            '  <Choices name="decision" toName="image" choice="single" required="true">',
            *(f"    {choice}" for choice in choices),
            "  </Choices>",
            "</View>\n",
        ]
    )


def task(review: Review, url: str, labels: Labels) -> dict[str, Any]:
    """A task with the prediction, and with the decision if there is one. `data` identifies the item.

    Label Studio refuses choices that are not in the labelling configuration, such as a former model's label.
    """
    about = {name: getattr(review, name) for name in ("version", "label", "confidence", "threshold", "reason")}
    made: dict[str, Any] = {"data": {"image": url, "s3_uri": review.image, **about}}
    if review.label in labels:
        variant = {"model_version": review.endpoint["variant"]} if review.endpoint else {}
        made["predictions"] = [variant | {"score": review.confidence, "result": [choice(review.label)]}]
    names = {decision: name for name, decision in CHOICES.items()}
    chosen = names.get(review.decision or "", review.reviewed_label)
    if chosen in {*labels, *CHOICES}:
        made["annotations"] = [{"result": [choice(str(chosen))]}]
    return made


def choice(name: str) -> dict[str, Any]:
    """A region of Label Studio's format."""
    names = {"from_name": "decision", "to_name": "image", "type": "choices"}
    return {"id": "decision", **names, "value": {"choices": [name]}}


def read_label_studio(path: Path) -> Iterator[Found]:
    """The decisions in Label Studio's export named JSON, of a project with `labelling_config`."""
    try:
        tasks = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError too
        raise ExchangeError(f"{path} is no JSON: {error}") from None
    if not isinstance(tasks, list) or not all(
        isinstance(each, dict) and {"data", "annotations"} & set(each) for each in tasks
    ):
        raise ExchangeError(f"{path} is not Label Studio's export: choose the format JSON there, not JSON-MIN")
    if tasks and not any("annotations" in each for each in tasks):
        raise ExchangeError(f"the tasks in {path} have no annotations yet: label them in Label Studio, and export them")
    for number, each in enumerate(tasks, 1):
        where = f"task {each.get('id') or number}"
        try:
            yield from decision_in_task(each, where)
        except (KeyError, TypeError, ValueError, AttributeError):
            yield Rejected(where, "it is not a task of make review-export, with one choice in each annotation")


def decision_in_task(exported: dict[str, Any], where: str) -> Iterator[Found]:
    """What the annotators chose; nothing if there is no annotation, or only skipped ones."""
    data = exported["data"]
    image, version = data["s3_uri"], data["version"]
    chosen: dict[str, str | None] = {}  # and by whom
    for annotation in exported.get("annotations", []):
        if annotation.get("was_cancelled"):
            continue
        regions = [region for region in annotation["result"] if region["from_name"] == "decision"]
        ((name,),) = [region["value"]["choices"] for region in regions]
        chosen[name] = annotator(annotation.get("completed_by"))
    if not all(isinstance(text, str) for text in (image, version, *chosen)):
        raise TypeError
    if len(chosen) > 1:
        who = ", ".join(f"{reviewer or 'somebody'}: {name}" for name, reviewer in chosen.items())
        yield Rejected(where, f"the annotators disagree ({who})")
    elif chosen:
        ((name, reviewer),) = chosen.items()
        yield Decision(image, version, CHOICES.get(name, "label"), None if name in CHOICES else name, reviewer, where)


def annotator(completed_by: Any) -> str | None:
    """The user's email address, if the export has it; some have only the user's number."""
    email = completed_by.get("email") if isinstance(completed_by, dict) else None
    return email if isinstance(email, str) and email else None


# class folders


def image_hash(image: str, version: str) -> str:
    """What identifies the item in a file's name, wherever the file is moved."""
    return hashlib.sha256(f"{image}#{version}".encode()).hexdigest()[:HASH]


def file_name(review: Review) -> str:
    """The hash and the end of the key, in characters that every file system accepts."""
    return f"{image_hash(review.image, review.version)}-{re.sub(r'[^A-Za-z0-9_.-]', '_', review.s3_key)[-80:]}"


def folder_name(label: str) -> str:
    """A label as the name of a folder: what could leave the folder, be hidden or be taken for ours becomes %XX.

    Raises ExchangeError for a label that is too long.
    """
    name = re.sub(r'[%/\\<>:"|?*\x00-\x1f\x7f]|^[._ ]|[. ]$', lambda match: f"%{ord(match[0]):02X}", label)
    if name.lower() in LEFT_BY_SYSTEMS:
        name = f"%{ord(name[0]):02X}{name[1:]}"
    if len(name.encode(errors="surrogatepass")) > MAX_NAME:
        raise ExchangeError(f"the label {label[:40]!r}... is too long for the name of a folder")
    return name or "%"


def folder(review: Review) -> PurePosixPath:
    """The folder of the review's image: its label's, or of what was decided instead, or below PENDING."""
    if not review.decision:
        return PurePosixPath(PENDING, folder_name(review.label))
    return PurePosixPath(folder_name(review.reviewed_label) if review.reviewed_label else f"_{review.decision}")


def folders(labels: Labels) -> dict[str, tuple[str, str | None]]:
    """The decision and label that each folder stands for, by its name."""
    special: dict[str, tuple[str, str | None]] = {f"_{decision}": (decision, None) for decision in WITHOUT_LABEL}
    return special | {folder_name(label): ("label", label) for label in labels}


def read_folders(path: Path, labels: Labels, items: Mapping[str, tuple[str, str]]) -> Iterator[Found]:
    """The decisions that folders of exported images stand for. `items`: image and version by `image_hash`."""
    meanings = {unicodedata.normalize("NFC", name): meaning for name, meaning in folders(labels).items()}
    shallow = chain(path.glob("*/*"), path.glob(f"{PENDING}/*/*"))  # not deeper: a wrong folder can be a whole disk
    if any(path.glob("*/*")) and not any(file.name[:HASH] in items for file in shallow):
        raise ExchangeError(
            f"{path} has no image of this stack in its folders: give the folder that make review-export wrote,"
            " and keep the names of its files"
        )
    try:
        classes = list_images(path, min_classes=0)
    except DataError as error:
        raise ExchangeError(str(error)) from None
    for name, files in classes.items():
        decision, label = meanings.get(name, ("label", name))
        for file in files if name != PENDING else []:
            where = str(file.relative_to(path))
            item = items.get(file.name[:HASH])
            if item:
                yield Decision(*item, decision, label, None, where)
            else:
                yield Rejected(where, "no image of this stack has this name: keep the names of make review-export")
