"""A process of make review, and a review table with images of one test alone."""

import re
import signal
import subprocess
import sys

from local.emulator.processes import clean_environment
from review.table import ReviewTable
from review_item import item_for
from workflow import DIGITS, ROOT

LABELS = [str(digit) for digit in range(10)]


class ReviewServer:
    """make review as a process of its own, for the emulated stack as if it were on AWS."""

    def __init__(self, stack, folder):
        self.environment = clean_environment() | stack.aws_variables
        self.folder, self.port, self.process, self.reviewer = folder, "", None, "mary"

    def use(self, credentials):
        names = {
            "ACCESS_KEY_ID": "AccessKeyId",
            "SECRET_ACCESS_KEY": "SecretAccessKey",
            "SESSION_TOKEN": "SessionToken",
        }
        self.environment |= {f"AWS_{variable}": credentials[name] for variable, name in names.items()}

    def start(self):
        code = "import pathlib, sys; from local import review; review.PAGES = pathlib.Path(sys.argv.pop(1)); "
        arguments = [self.folder / "review.json", "--stack=image-classification", f"--reviewer={self.reviewer}"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", code + "review.main()", *map(str, arguments), f"--port={self.port}"],
            cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        printed = ""
        for line in self.process.stdout:
            printed += line
            if found := re.match("Open (http://127.0.0.1:([0-9]+)/.*/)$", line):
                self.url, self.port = found[1], found[2]
                return
        self.process.wait()
        self.process = None
        raise AssertionError(printed)

    def stop(self, how=signal.SIGINT):
        """End it; returns the exit code and what it has printed."""
        self.process.send_signal(how)
        printed, _ = self.process.communicate(timeout=20)
        return self.process.returncode, printed


class Desk:
    """The review table with images of this test alone."""

    def __init__(self, workflow):
        self.workflow = workflow
        self.dynamodb = workflow.stack.client("dynamodb")
        self.table = ReviewTable(self.dynamodb, workflow.outputs["ReviewTableName"])
        self.seven = next((DIGITS / "test/7").iterdir()).read_bytes()
        self.clear()

    def remove(self, image, version):
        key = {"image": {"S": image}, "version": {"S": version}}
        self.dynamodb.delete_item(TableName=self.table.name, Key=key)

    def clear(self):
        for review in [*self.table.pending(), *self.table.reviewed()]:
            self.remove(review.image, review.version)

    def add(self, name, confidence=0.5, label="9", data=b"", bucket="", versioned=True, labels=(), **more):
        """Put an image up for review, as the workflow does."""
        bucket, key = bucket or self.workflow.bucket, f"review/{name}"
        response = self.workflow.s3.put_object(Bucket=bucket, Key=key, Body=data or self.seven)
        version = {"s3_version_id": response["VersionId"]} if versioned else {"s3_etag": response["ETag"].strip('"')}
        others = [each for each in labels or LABELS if each != label]
        predictions = [(label, confidence), *((each, (1 - confidence) / len(others)) for each in others)]
        result = {
            **{"s3_bucket": bucket, "s3_key": key, "label": label, "confidence": confidence, "threshold": 0.75},
            **{"accepted": confidence >= 0.75, "endpoint": {"name": "endpoint"}},
            "predictions": [{"label": label, "probability": probability} for label, probability in predictions],
        }
        item = item_for(result | version | more, 1)
        self.dynamodb.put_item(TableName=self.table.name, Item=item)
        return item["image"]["S"], item["version"]["S"]

    def decided(self):
        """File name -> (decision or label, revision)."""
        return {
            review.s3_key.rpartition("/")[2]: (review.reviewed_label or review.decision, review.revision)
            for review in self.table.reviewed()
        }

    def claimed(self):
        return {review.s3_key.rpartition("/")[2]: review.claim_session for review in self.table.pending()}
