"""The parts of make batch that need no stack; tests/integration/test_batches.py runs the rest."""

import contextlib
import sys
from types import SimpleNamespace

import boto3
import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber

from local import batch, command, target
from local.command import StackError, UsageError
from local.target import Target

MACHINE = "arn:aws:states:us-east-1:123456789012:stateMachine:batch"
OUTPUTS = {"ImageBucketName": "images", "ResultsBucketName": "results", "ClassifyBatchStateMachineArn": MACHINE}


@pytest.fixture
def on_aws():
    return Target("image-classification", OUTPUTS, boto3.client)


@pytest.mark.parametrize(
    ("prefix", "manifest", "source"),
    [
        ("uploads/", "", {"s3_bucket": "images", "s3_prefix": "uploads/"}),
        ("s3://archive/2025/", "", {"s3_bucket": "archive", "s3_prefix": "2025/"}),
        ("s3://archive", "", {"s3_bucket": "archive", "s3_prefix": ""}),
        ("", "s3://archive/lists/a.csv", {"s3_bucket": "archive", "s3_key": "lists/a.csv"}),
    ],
)
def test_a_source_is_a_prefix_or_a_manifest(on_aws, prefix, manifest, source):
    assert batch.source(on_aws, prefix, manifest) == source


@pytest.mark.parametrize(
    ("prefix", "manifest", "problem"),
    [("a/", "b.csv", "name one"), ("", "", "Name the images"), ("", "missing.csv", "neither a file nor")],
)
def test_no_source_or_two_are_refused(on_aws, prefix, manifest, problem):
    with pytest.raises(StackError, match=problem):
        batch.source(on_aws, prefix, manifest)


def test_options_are_numbers_or_left_to_the_stack():
    assert batch.limits("", "") == {}
    assert batch.limits("0.9", "") == {"threshold": 0.9}
    assert batch.limits("1", "50") == {"threshold": 1, "max_concurrency": 50}


@pytest.mark.parametrize("concurrency", ["many", "-1", "0", "1.5", "nan", "1e3", "10001", "9" * 5000])
def test_another_concurrency_is_a_sentence(concurrency):
    with pytest.raises(UsageError, match="is not a number of batches, 1 to 10,000"):
        batch.limits("", concurrency)


@pytest.mark.parametrize("option", ["--threshold=nan", "--threshold=-1", "--concurrency=-1"])
def test_a_wrong_option_is_refused_before_a_stack_is_looked_for(option, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["batch", option])
    monkeypatch.setattr(batch, "target", None)
    with pytest.raises(SystemExit):
        batch.main()
    assert capsys.readouterr().out.startswith("UsageError: ")


def test_what_the_local_stack_refuses_is_a_sentence(monkeypatch, tmp_path):
    """As with EXECUTION= and the name of none."""
    monkeypatch.setattr(command, "LOCAL", tmp_path)
    monkeypatch.setattr(target, "deployed", lambda: contextlib.nullcontext((SimpleNamespace(client=None), {})))
    error = {"Error": {"Code": "ExecutionDoesNotExist", "Message": "Execution Does Not Exist"}}
    with pytest.raises(StackError, match=r"The local stack refused a request: .*Does Not Exist"), target.target():
        raise ClientError(error, "DescribeExecution")


def test_the_rest_is_estimated_from_the_mean_speed():
    assert batch.speed_of(0, 0, 0.1) == "0 images/s"
    assert batch.speed_of(400, 1400, 8) == "50 images/s, 0:00:28 left"
    assert batch.speed_of(1_000_000, 0, 900) == "1,111 images/s, 0:00:00 left"


def test_an_execution_is_named_by_its_name_or_arn(on_aws):
    arn = "arn:aws:states:us-east-1:123456789012:execution:batch:name"
    assert batch.arn_of(on_aws, "name") == batch.arn_of(on_aws, arn) == arn


def test_a_failed_batch_says_how_to_repeat_its_failed_part(on_aws):
    execution = {"executionArn": f"{MACHINE}:name", "status": "FAILED", "error": "E", "cause": "c"}
    with pytest.raises(
        StackError,
        match="FAILED: E: c\nTo repeat its failed part: make batch EXECUTION=name STACK=image-c",
    ):
        batch.finish(on_aws, execution)


def test_an_interrupted_batch_continues_and_says_how_to_come_back(on_aws, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115
    batch.interrupted(on_aws, f"{MACHINE}:name")
    printed = capsys.readouterr().out
    assert "It continues. To come back to it: make batch EXECUTION=name STACK=image-classification" in printed


def test_an_interrupted_batch_is_stopped_on_request(capsys, monkeypatch):
    states = boto3.client("stepfunctions")
    monkeypatch.setattr(batch.console, "input", lambda _: "y")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    with Stubber(states) as stubber:
        arn = f"{MACHINE}:name"
        expected = {"executionArn": arn, "cause": "stopped at the keyboard"}
        stubber.add_response("stop_execution", {"stopDate": 0}, expected)
        batch.interrupted(Target("stack", OUTPUTS, lambda _: states), arn)
        stubber.assert_no_pending_responses()
    assert "make batch EXECUTION=name STACK=stack REDRIVE=true" in capsys.readouterr().out
