"""make loop [SIZE=small]: drift, review, retrain, compare, promote: a model's life on this machine, in a few minutes.

A model of handwritten digits is in service, on a local stack of its own. Then the incoming images change: chalk on a
blackboard instead of ink on paper. The template's alarms go off, reviewers label what was unsure, a challenger is
trained on their labels, compared with the model in service, and promoted; its accuracy is measured again.

Time is compressed. The emulator only records alarms, so their definitions are read from the deployed stack and
evaluated here, on the metrics in the functions' logs: each round of images counts as one hour. Reviewers know the
truth, and decide through the API of make review's page.

Writes .local/loop/loop.svg and loop.json. SIZE=small has fewer images, for tests.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import secrets
import shutil
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from endpoint import package
from local.command import LOCAL, StackError, console, lock, one_of, report_errors, run, step
from local.deployment import STACK_NAME, deploy, upload_model
from local.emulator.processes import clean_environment, start, stop, stop_remains
from local.promote import promote
from local.report import loop as report
from local.retrain import retrain
from local.target import Target
from monitoring import metrics, prediction_log
from monitoring.metrics import Metric
from review.backlog import Backlog
from review.server import Reviewing, bind, create_app, create_server
from review.table import ReviewTable

FOLDER = LOCAL / "loop"
AUDIT_RATE = 0.2  # ten times the default: there are hundreds of images here, not thousands
NAMESPACE = "ImageClassification"
SECONDS_FOR_AN_HOUR = 180
NOISE = 10  # standard deviation of the chalk's grey levels, of 255
PARTS = {"train": 600, "validation": 120, "test": 500}  # the other scans arrive as images
SAMPLES = 4  # scans of each stage in the picture
SEED = 1
TRAINING = ["--width", "32", "--epochs", "24"]  # enough for ink and chalk in one network
MARGIN = 0.03  # of accuracy, on the 500 test images: with two points, losing six of them would decide nothing


@dataclasses.dataclass(frozen=True)
class Size:
    """images: of an hour. changed: at most so many hours until an alarm goes off."""

    images: int
    before: int
    changed: int
    promoted: int


SIZES = {"normal": Size(48, 3, 5, 4), "small": Size(30, 2, 4, 2)}


@dataclasses.dataclass(frozen=True)
class Hour:
    """A round of images: what the model made of them, what was measured, and which alarms are on after it.

    right: whether the best label is the true one. accepted: whether the threshold accepted it.
    """

    stage: str  # before, changed or promoted
    right: list[bool]
    accepted: list[bool]
    metrics: dict[Metric, list[float]]
    reviewed: int
    alarms: list[str]

    def average(self, name: str) -> float:
        return float(
            np.mean([value for (_, each, _), values in self.metrics.items() for value in values if each == name])
        )


def chalk(scan: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Ink on paper as chalk on a blackboard: grey levels, 0 to 255."""
    return (255 - scan + random.normal(0, NOISE, scan.shape)).clip(0, 255)


class Images:
    """The scans of digits: some with which the first model is trained and tested, and others that arrive later."""

    def __init__(self, folder: Path) -> None:
        """Write the data of the first model into `folder`."""
        from sklearn.datasets import load_digits  # takes a second to import

        digits = load_digits()
        self.random = np.random.default_rng(SEED)
        self.scans, self.labels = 255 - digits.images * 255 / 16, [str(target) for target in digits.target]
        order = iter(self.random.permutation(len(self.labels)))
        for part, count in PARTS.items():
            for _ in range(count):
                number = next(order)
                path = folder / part / self.labels[number] / f"{number:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                save(self.scans[number], path)
        self.arriving = order

    def next(self, count: int, folder: Path, is_changed: bool) -> dict[Path, str]:
        """The next images as files, with their true labels."""
        folder.mkdir(parents=True)
        truths = {}
        for _ in range(count):
            number = next(self.arriving)
            scan = self.scans[number]
            save(chalk(scan, self.random) if is_changed else scan, folder / f"{number:04d}.png")
            truths[folder / f"{number:04d}.png"] = self.labels[number]
        return truths


def save(scan: np.ndarray, path: Path) -> None:
    Image.fromarray(scan.round().astype(np.uint8)).save(path)


def train(data: Path, model: Path) -> None:
    """Train the first model. Raises StackError."""
    variables = {f"SM_CHANNEL_{part.upper()}": str(data / part) for part in PARTS}
    variables |= {"SM_MODEL_DIR": str(model), "SM_OUTPUT_DATA_DIR": str(model.with_name("training"))}
    run([sys.executable, "training/train.py", *TRAINING], clean_environment() | variables, capture=True)


class Service:
    """The deployed stack, with what a round of images needs of it."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.logs, self.s3 = target.client("logs"), target.client("s3")
        self.group = target.outputs["PredictionLogGroupName"]
        names = {
            resource["PhysicalResourceId"]: resource["LogicalResourceId"]
            for page in target.client("cloudformation")
            .get_paginator("list_stack_resources")
            .paginate(StackName=target.name)
            for resource in page["StackResourceSummaries"]
        }
        described = target.client("cloudwatch").get_paginator("describe_alarms").paginate()
        self.alarms = {
            names[alarm["AlarmName"]]: alarm
            for page in described
            for alarm in page["MetricAlarms"]
            if all(namespace == NAMESPACE for namespace, *_ in metrics.metrics_of(alarm))
        }

    def upload(self, images: dict[Path, str], prefix: str) -> dict[str, str]:
        """Upload the images, which starts an execution for each. Returns the true label by key."""
        prefix = f"{self.target.outputs['UploadPrefix']}{prefix}"
        for path in images:
            self.s3.upload_file(str(path), self.target.outputs["ImageBucketName"], f"{prefix}/{path.name}")
        return {f"{prefix}/{path.name}": label for path, label in images.items()}

    def predictions(self, keys: dict[str, str]) -> list[dict[str, Any]]:
        lines = prediction_log.from_log_group(self.logs, self.group)
        return [line for line in lines if line.get("s3_key") in keys]

    def measured(self, since: datetime) -> dict[Metric, list[float]]:
        """The values that the functions have logged since this time, by metric."""
        found: dict[Metric, list[float]] = defaultdict(list)
        query = {"logGroupName": self.group, "startTime": int(since.timestamp() * 1000), "filterPattern": '"_aws"'}
        for page in self.logs.get_paginator("filter_log_events").paginate(**query):
            for event in page["events"]:
                for metric, _, value in metrics.embedded_values(event["message"]):
                    found[metric].append(value)
        return found

    def publish_review_metrics(self) -> None:
        """Invoke PublishReviewMetrics with the event of its hourly schedule."""
        function = self.target.outputs["PublishReviewMetricsFunctionName"]
        aws_lambda, events = self.target.client("lambda"), self.target.client("events")
        alias = aws_lambda.get_alias(FunctionName=function, Name="live")["AliasArn"]
        (rule,) = events.list_rule_names_by_target(TargetArn=alias)["RuleNames"]
        (scheduled,) = events.list_targets_by_rule(Rule=rule)["Targets"]
        response = aws_lambda.invoke(FunctionName=function, Qualifier="live", Payload=scheduled["Input"])
        if "FunctionError" in response:
            raise StackError(f"PublishReviewMetrics failed: {response['Payload'].read().decode()}")

    def on(self, hours: list[Mapping[Metric, list[float]]]) -> list[str]:
        """The alarms that are on after these hours, by their names in the template."""
        return [name for name, alarm in self.alarms.items() if metrics.state(alarm, hours) == "ALARM"]


@contextlib.contextmanager
def review_page(target: Target) -> Iterator[str]:
    """The server of make review's page; its URL."""
    table = ReviewTable(target.client("dynamodb"), target.outputs["ReviewTableName"])
    backlog = Backlog(table, "loop", [])
    backlog.read()
    bound, token = bind(0), secrets.token_urlsafe(24)
    server = create_server(create_app(Reviewing(backlog, target.client("s3"), target.place), token))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/{token}/"
    finally:
        server.should_exit = True
        thread.join()


def review_all(target: Target, truths: dict[str, str]) -> int:
    """Give every pending image its true label, as reviewers would. Returns how many there were."""
    with review_page(target) as url:

        def post(name: str, body: dict[str, Any]) -> dict[str, Any]:
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(url + name, json.dumps(body).encode(), headers)
            with urllib.request.urlopen(request) as response:
                answer: dict[str, Any] = json.load(response)
                return answer

        count = 0
        while image := post("next", {"session": "loop", "held": [], "skipped": [], "uncounted": []})["image"]:
            decided = {"id": image["id"], "revision": image["revision"], "label": truths[image["s3_key"]]}
            post("decide", {"session": "loop", "decision": "label"} | decided)
            count += 1
    return count


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS_FOR_AN_HOUR
    while not condition():
        if time.monotonic() > deadline:
            raise StackError(f"The images of an hour were not classified within {SECONDS_FOR_AN_HOUR} s")
        time.sleep(0.2)


class Loop:
    """The hours so far, and the stack that they happen on."""

    def __init__(self, target: Target, images: Images, folder: Path, size: Size) -> None:
        self.service, self.images, self.folder, self.size = Service(target), images, folder, size
        self.truths: dict[str, str] = {}
        self.hours: list[Hour] = []
        self.samples: dict[str, list[list[list[float]]]] = {}  # the first scans of each stage

    def hour(self, stage: str) -> Hour:
        """Classify a round of images, review those that wait, publish the metrics and evaluate the alarms."""
        since, service = datetime.now(UTC), self.service
        name = f"hour-{len(self.hours) + 1:02d}"
        arriving = self.images.next(self.size.images, self.folder / "images" / name, stage != "before")
        self.samples.setdefault(stage, [np.asarray(Image.open(path)).tolist() for path in list(arriving)[:SAMPLES]])
        keys = service.upload(arriving, name)
        self.truths |= keys
        images = (NAMESPACE, "Images", frozenset({("service", service.target.name)}))
        pending = (NAMESPACE, "PendingReviews", frozenset({("service", service.target.name)}))
        wait_for(lambda: len(service.measured(since)[images]) == len(keys))
        reviewed = review_all(service.target, self.truths)
        service.publish_review_metrics()
        wait_for(lambda: bool(service.measured(since)[pending]))
        measured = service.measured(since)
        predictions = service.predictions(keys)
        made = Hour(
            stage=stage,
            right=[line.get("label") == keys[line["s3_key"]] for line in predictions],
            accepted=[line["outcome"] == "accepted" for line in predictions],
            metrics=measured,
            reviewed=reviewed,
            alarms=service.on([*(each.metrics for each in self.hours), measured]),
        )
        self.hours.append(made)
        return made

    def run(self, stage: str, count: int, until: Callable[[Hour], bool] = lambda hour: False) -> None:
        """So many hours of this stage, or fewer if one is the last."""
        for _ in range(count):
            hour = self.hour(stage)
            console.print(report.line(len(self.hours), hour), markup=False)
            if until(hour):
                return


def live(size: Size, folder: Path) -> dict[str, Any]:
    """The whole loop, with its files in `folder`. Returns what loop.json says. Raises StackError."""
    folder.mkdir(parents=True, exist_ok=True)
    stop_remains(folder / "stack")
    for path in [path for path in folder.iterdir() if path.is_dir()]:
        shutil.rmtree(path)
    images = Images(folder / "data")
    with step("Training the first model"):
        train(folder / "data", folder / "champion")
    archive = package.build(folder / "champion", [], folder / "package")
    with step("Starting a local stack"):
        stack = start(folder / "stack")
    try:
        with step("Deploying template.yaml with sam deploy"):
            url = upload_model(stack, archive)
            outputs = deploy(stack, EndpointType="serverless", ModelDataUrl=url, AuditRate=str(AUDIT_RATE))
        target = Target(STACK_NAME, outputs, stack.client, stack)
        loop = Loop(target, images, folder, size)
        console.print(
            "Each round of images counts as an hour for the alarms, which are evaluated here: the emulator only "
            "records them.",
            soft_wrap=True,
        )
        loop.run("before", size.before)
        console.print("The images change: chalk on a blackboard.")
        loop.run("changed", size.changed, until=lambda hour: bool(hour.alarms))
        if not loop.hours[-1].alarms:
            raise StackError(f"No alarm went off within {size.changed} hours of changed images")
        console.print(f"On: {', '.join(loop.hours[-1].alarms)}. A challenger is trained with the reviewers' labels.")
        made = retrain(target, folder / "data", folder / "retrain", TRAINING, margin=MARGIN)
        promote(target, made.name)
        loop.run("promoted", size.promoted)
    finally:
        stop(stack)
    alarms = loop.service.alarms
    limits = {
        metric: alarms[name]["Threshold"]
        for metric, name in {"Accepted": "AcceptanceRateAlarm", "Confidence": "ConfidenceAlarm"}.items()
    }
    return report.described(
        loop.hours,
        samples=loop.samples,
        limits=limits,
        verdict=made.verdict,
        champion=archive.parent.name,
        model=made.name,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="")
    options = parser.parse_args()
    with report_errors(), lock():
        size = options.size or "normal"
        one_of("SIZE", size, tuple(SIZES))
        started = time.monotonic()
        made = live(SIZES[size], FOLDER)
        (FOLDER / "loop.json").write_text(json.dumps(made, indent=2) + "\n")
        (FOLDER / "loop.svg").write_text(report.draw(made))
        for sentence in report.sentences(made):
            console.print(sentence, markup=False, soft_wrap=True)
        seconds = time.monotonic() - started
        console.print(f"Wrote {os.path.relpath(FOLDER)}/loop.svg and loop.json ({seconds:.0f} s)", markup=False)


if __name__ == "__main__":
    main()
