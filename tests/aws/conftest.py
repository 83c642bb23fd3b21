"""A stack on AWS, deployed for these tests with the digits model, and a role for the functions that they create.

The tests use boto3's default credentials and region, cost a few cents, and delete what they create. The stack must be
used by nothing else: the tests empty its queues.
"""

import contextlib
import json
import os
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import boto3
import pytest

from batches import Batches
from resources import execute, function, machine  # noqa: F401
from test_batches import digits  # noqa: F401
from workflow import Workflow

ROOT = Path(__file__).parents[2]
STACK_NAME = os.environ.get("AWS_STACK_NAME")
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/enable-event-notifications-eventbridge.html: about five minutes
SECONDS_UNTIL_S3_SENDS_EVENTS = 330 if STACK_NAME and "AWS_ENDPOINT_URL" not in os.environ else 0
SECONDS_UNTIL_A_ROLE_WORKS = 15 if STACK_NAME and "AWS_ENDPOINT_URL" not in os.environ else 0


def trust(*services):
    principal = {"Service": list(services)}
    statement = {"Effect": "Allow", "Principal": principal, "Action": "sts:AssumeRole"}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def allow(actions, resource, **more):
    statement = {"Effect": "Allow", "Action": actions, "Resource": resource, **more}
    return {"Version": "2012-10-17", "Statement": [statement]}


@pytest.fixture(scope="session", autouse=True)
def stack_name():
    if not STACK_NAME:
        pytest.skip("needs an account and a dedicated stack: AWS_STACK_NAME=image-classification-test make test-aws")
    return STACK_NAME


@pytest.fixture(scope="session")
def client():
    return boto3.client


@pytest.fixture(scope="session")
def workflow(stack_name):
    (described,) = boto3.client("cloudformation").describe_stacks(StackName=stack_name)["Stacks"]
    outputs = {output["OutputKey"]: output["OutputValue"] for output in described["Outputs"]}
    age = (datetime.now(UTC) - described["CreationTime"]).total_seconds()
    time.sleep(max(0, SECONDS_UNTIL_S3_SENDS_EVENTS - age))
    started = datetime.now(UTC).replace(microsecond=0)
    yield Workflow(SimpleNamespace(client=boto3.client), outputs)
    for name in ("ImageBucketName", "ResultsBucketName"):
        delete_since(started, outputs[name])


def delete_since(started, bucket):
    """Delete the objects of a bucket that were stored since then, with their versions."""
    s3 = boto3.client("s3")
    for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket):
        rows = [row for kind in ("Versions", "DeleteMarkers") for row in page.get(kind, [])]
        new = [{name: row[name] for name in ("Key", "VersionId")} for row in rows if row["LastModified"] >= started]
        if new:
            s3.delete_objects(Bucket=bucket, Delete={"Objects": new, "Quiet": True})


@pytest.fixture(scope="session")
def batches(workflow):
    return Batches(workflow.stack, workflow.outputs)


@contextlib.contextmanager
def queue_for(service):
    """The name, URL and ARN of a queue to which a service may send."""
    sqs, name = boto3.client("sqs"), f"test-{uuid.uuid4().hex[:8]}"
    url = sqs.create_queue(QueueName=name)["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    policy = allow("sqs:SendMessage", arn, Principal={"Service": service})
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": json.dumps(policy)})
    yield name, url, arn
    sqs.delete_queue(QueueUrl=url)


@contextlib.contextmanager
def queue_of_events_from(source):
    events = boto3.client("events")
    with queue_for("events.amazonaws.com") as (name, url, arn):
        events.put_rule(Name=name, EventPattern=json.dumps({"source": [source]}))
        events.put_targets(Rule=name, Targets=[{"Id": "queue", "Arn": arn}])
        yield url
        events.remove_targets(Rule=name, Ids=["queue"])
        events.delete_rule(Name=name)


@pytest.fixture(scope="session")
def outcome_events():
    """A queue that receives every outcome event of the workflow."""
    with queue_of_events_from("image-classification") as url:
        yield url


@pytest.fixture
def queue_of_events():
    with queue_of_events_from("conformance") as url:
        yield url


@pytest.fixture
def queue_of_statuses():
    with queue_of_events_from("aws.states") as url:
        yield url


@pytest.fixture
def alarms(workflow):
    """A queue that receives what CloudWatch publishes to the stack's topic."""
    sns = boto3.client("sns")
    with queue_for("sns.amazonaws.com") as (_, url, arn):
        topic = workflow.outputs["AlarmTopicArn"]
        subscription = sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn, ReturnSubscriptionArn=True)
        yield url
        sns.unsubscribe(SubscriptionArn=subscription["SubscriptionArn"])


@pytest.fixture(scope="session")
def stack(stack_name):
    return SimpleNamespace(client=boto3.client)


@pytest.fixture(scope="session")
def role():
    iam = boto3.client("iam")
    name = f"conformance-{uuid.uuid4().hex[:8]}"
    services = trust("lambda.amazonaws.com", "states.amazonaws.com")
    arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=services)["Role"]["Arn"]
    actions = [
        "lambda:InvokeFunction",
        "events:PutEvents",
        "logs:CreateLogGroup",
        "logs:CreateLogStream",
        "logs:PutLogEvents",
    ]
    iam.put_role_policy(RoleName=name, PolicyName="tests", PolicyDocument=json.dumps(allow(actions, "*")))
    time.sleep(SECONDS_UNTIL_A_ROLE_WORKS)
    yield arn
    iam.delete_role_policy(RoleName=name, PolicyName="tests")
    iam.delete_role(RoleName=name)


@pytest.fixture
def wait_scale():
    """An emulator can be configured to shorten waits; on AWS, they have their full length."""
    return float(os.environ.get("SFN_WAIT_SCALE", "1"))


@pytest.fixture
def seconds_to_end():
    return 300  # metrics arrive minutes later


@pytest.fixture(scope="session")
def seven():
    return sorted((ROOT / ".local/data/digits/test/7").iterdir())[0].read_bytes()
