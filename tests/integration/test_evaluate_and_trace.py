"""make evaluate and make trace, on the local stack and, with STACK=name, as on AWS."""

import csv
import os
import shutil
import subprocess
import sys
import uuid

import pytest
from PIL import Image

from local import evaluate, trace
from local.command import ROOT, StackError
from local.report import evaluation
from local.target import Target
from workflow import DIGITS, wait_for


@pytest.fixture(scope="module")
def stack_name():
    return "image-classification"


@pytest.fixture(scope="module")
def deployed_stack(workflow, stack, stack_name):
    return Target(stack_name, workflow.outputs, stack.client, stack)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Two digits, one in a wrong folder, a stranger, and a file that is no image."""
    folder = tmp_path_factory.mktemp("labelled")
    for label, digit in (("7", "7"), ("1", "1"), ("3", "8")):
        (folder / label).mkdir()
        shutil.copy(sorted((DIGITS / "test" / digit).iterdir())[0], folder / label / "digit.png")
    (folder / "stranger").mkdir()
    Image.new("RGB", (32, 32), "red").save(folder / "stranger/red.png")
    (folder / "1/notes.txt").write_text("not an image")
    return folder


@pytest.mark.parametrize("way", [evaluate.through_the_workflow, evaluate.by_the_endpoint])
def test_labelled_images_are_evaluated(deployed_stack, labelled, way):
    images = evaluate.labelled_images(labelled)
    classify = way(deployed_stack, labelled) if way is evaluate.through_the_workflow else way(deployed_stack)
    rows = evaluate.evaluate(images, classify, 2)
    made = evaluation.figures(rows, float(deployed_stack.parameter("Threshold")))
    assert made.threshold == 0.75
    assert (made.labels, len(made.known), made.right) == ([str(digit) for digit in range(10)], 3, 2)
    assert [row.path.parent.name for row in made.strangers] == ["stranger"]
    (error,) = made.errors
    assert error.path.name == "notes.txt"
    assert error.error == ("UnsupportedImageError" if way is evaluate.through_the_workflow else "ModelError")
    assert "the file is text" in str(error.cause)


def run(workflow, stack_name, module, *arguments):
    """A command with STACK=name, and with variables that point at the local stack or, in tests/aws, at AWS."""
    command = [sys.executable, "-m", f"local.{module}", *arguments, "--stack", stack_name]
    environment = getattr(workflow.stack, "aws_variables", dict(os.environ))
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_a_named_stack_is_evaluated_with_the_users_own_credentials(workflow, stack_name, labelled, tmp_path):
    done = run(workflow, stack_name, "evaluate", str(labelled), "--endpoint", "1", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "accuracy 66.7%: 2 of 3 right" in done.stdout
    assert "1/notes.txt: ModelError: the file is text" in done.stdout
    assert "should be 3" in (tmp_path / "report.html").read_text()
    with (tmp_path / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 5


def test_an_image_in_a_named_stack_is_followed(workflow, stack_name, seven):
    execution = workflow.classify(f"followed/{uuid.uuid4()}.png", seven)
    done = run(workflow, stack_name, "trace", "--arn", execution.arn)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "accepted: 7" in done.stdout and f"#/v2/executions/details/{execution.arn}" in done.stdout


def test_an_image_is_followed_from_its_key_to_its_trace_and_outcome(workflow, stack, deployed_stack, seven):
    key = f"{workflow.outputs['UploadPrefix']}followed seven.png"
    execution = workflow.started_by_upload(workflow.upload(key, seven))
    logs, group = stack.client("logs"), workflow.outputs["PredictionLogGroupName"]
    wait_for(lambda: trace.events(logs, group, execution.arn))
    for name in (key, f"s3://{workflow.bucket}/{key}"):
        assert trace.execution_of(deployed_stack, name) == execution.arn
    found = trace.follow(deployed_stack, execution.arn)
    assert [line["message"] for line in sorted(found["lines"], key=lambda line: line["timestamp"])] == [
        "image retrieved", "image classified", "confidence checked", "prediction",
    ]  # fmt: skip
    functions = [line for line in found["lines"] if line["message"] != "prediction"]
    assert {line["xray_trace_id"] for line in functions} == {found["trace_id"]} == {found["log"]["trace_id"]}
    assert "xray_trace_id" not in found["log"]
    assert {"s3 GetObject", "runtime.sagemaker InvokeEndpoint"} <= {each["name"] for each in found["segments"]}


def test_a_failed_image_has_a_trace_too(workflow, deployed_stack):
    request = {"s3_bucket": workflow.bucket, "s3_key": workflow.upload("followed.txt", b"text")}
    found = trace.follow(deployed_stack, workflow.execute(request).arn)
    assert (found["outcome"], found["error"]) == ("error", "UnsupportedImageError")
    assert "s3 GetObject" in {segment["name"] for segment in found["segments"]}


def test_unknown_keys_executions_and_stacks_are_answered_with_a_sentence(stack, workflow, deployed_stack):
    with pytest.raises(StackError, match="no execution for this key"):
        trace.execution_of(deployed_stack, "uploads/none.png")
    with pytest.raises(StackError, match="is not an execution of the local stack"):
        trace.follow(deployed_stack, "arn:aws:states:us-east-1:000000000000:execution:none:none")
    command = [sys.executable, "-m", "local.trace", "--key", "x", "--stack", "none"]
    done = subprocess.run(command, cwd=ROOT, env=stack.aws_variables, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert "STACK=none" in done.stdout
