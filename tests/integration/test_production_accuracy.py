"""make accuracy: decisions in the review table -> the terminal and the page."""

import subprocess
import sys
import uuid
from datetime import UTC, datetime

import pytest

from local.command import ROOT
from review.table import ReviewTable
from review_item import item_for

DECISIONS = [("label", "7")] * 37 + [("label", "1"), ("none_of_these", None), ("not_usable", None)]


@pytest.fixture
def audits(workflow, seven):
    """Audits of 41 sevens, of which only the last two are in S3, and their table; all but the newest are decided."""
    table, prefix = ReviewTable(workflow.stack.client("dynamodb"), workflow.outputs["ReviewTableName"]), uuid.uuid4()
    found = []
    for number in range(len(DECISIONS) + 1):
        key, etag = f"audited/{prefix}/{number}.png", "none"
        if number >= 37:
            workflow.upload(key, seven)
            etag = workflow.s3.head_object(Bucket=workflow.bucket, Key=key)["ETag"]
        result = {
            "s3_bucket": workflow.bucket, "s3_key": key, "s3_etag": etag, "label": "7", "confidence": 0.9,
            "threshold": 0.75, "accepted": True, "predictions": [], "endpoint": {},
        }  # fmt: skip
        item = item_for(result, audit_rate=1)
        table.client.put_item(TableName=table.name, Item=item)
        found.append(table.get(item["image"]["S"], item["version"]["S"]))
    for number, (decision, label) in enumerate(DECISIONS):
        found[number] = table.decide(found[number], "maria", decision, label)
    yield table, found
    for review in found:
        table.client.delete_item(TableName=table.name, Key=review.key)


def accuracy(workflow, since, page):
    """make accuracy with STACK=name, and with variables that point at the local stack."""
    command = [sys.executable, "-m", "local.accuracy", "--stack", "image-classification", "--since", since]
    done = subprocess.run(
        [*command, "--output", page], cwd=ROOT, env=workflow.stack.aws_variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return " ".join(done.stdout.split()), page.read_text()


def test_decisions_become_an_accuracy_with_its_interval(workflow, request, tmp_path):
    since = datetime.now(UTC).isoformat()
    table, reviews = request.getfixturevalue("audits")
    text, page = accuracy(workflow, since, tmp_path / "new/report.html")
    assert "accepted images 37 of 39 94.9% 82.7% to 99.4% all images" in text
    assert "audits: 40 reviewed, of which 1 not usable; 1 pending" in text
    assert "At least 84.7% of accepted images are right, with 95% confidence" in text
    assert "accuracy of accepted images</dt><dd>94.9%<small>95% interval: 82.7% to 99.4%" in page
    assert "maria: 1<" in page and "maria: none of these<" in page
    assert page.count('src="data:image/png;base64,') == 2

    table.undo(reviews[10], "maria")
    text, page = accuracy(workflow, since, tmp_path / "report.html")
    assert "Too few decisions on audits for an estimate: 10 of the 30 that it takes." in text
    assert "39 reviewed, of which 1 not usable; 2 pending" in text and "accepted images" not in text.split("audits:")[0]
    assert f"Images count up to {reviews[10].created_at[:16].replace('T', ' ')} UTC" in text
    assert "newer ones that are already decided (28) do not count yet" in text and ">unknown<" in page
