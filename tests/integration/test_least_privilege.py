"""With the emulator's IAM on, each permission taken away breaks exactly its step, or is listed with a reason."""

import base64
import contextlib
import json

import pytest

from test_permissions import REASONS, ROLES, actions, granted, policies, statements
from test_review_metrics import scheduled
from test_workflow import log_lines, prediction_lines, review_lines
from workflow import wait_for

# The emulator does not check these, or nothing in the workflow uses them:
NOT_SHOWN = {
    ("RecordReviewFunctionRole", "events:PutEvents"): "test_a_decision_is_published_once_the_permission_is_back",
    ("RetrieveImageFunctionRole", "s3:ListBucket"): "the emulated S3 returns 404 for a missing object without it too",
    ("ClassifyImageFunctionRole", "sagemaker:InvokeEndpoint"): "the emulated SageMaker checks no permission",
    ("PublishReviewMetricsFunctionRole", "sagemaker:DescribeModel"): "as above",
    (
        "StartExecutionFunctionRole",
        "sqs:SendMessage",
    ): "the emulator does not deliver to dead-letter queues of a version",
    (
        "PublishReviewMetricsFunctionRole",
        "sqs:SendMessage",
    ): "the emulator does not deliver to dead-letter queues of a version",
    ("RecordReviewFunctionRole", "sqs:SendMessage"): "the emulated Lambda checks no permission to read a stream",
    **{
        ("RecordReviewFunctionRole", f"dynamodb:{action}"): "as above"
        for action in ("DescribeStream", "GetRecords", "GetShardIterator", "ListStreams")
    },
}
NOT_SHOWN_ROLES = {
    "ClassifyImageStateMachineRole": "the emulator does not check a state machine's role",
    "RecordOutcomeStateMachineRole": "as above",
    "RecordOutcomeStateMachineExecutionEndedRole": "the emulator does not check the role of a rule",
    "ClassifyBatchStateMachineRole": "as above",
    "RetrainingDueStateMachineRole": "as above",
    "RetrainingDueRuleRole": "as above; and the default stack has neither",
    "ClassifyBatchFunctionRole": "test_batches.py runs with them; tests/unit/test_permissions.py finds the needless",
    "SummariseBatchFunctionRole": "as above",
    "ModelRole": "the emulated SageMaker assumes no role",
}


@contextlib.contextmanager
def without(workflow, role, action):
    """Take a permission from a role of the deployed stack."""
    pages = workflow.stack.client("cloudformation").get_paginator("list_stack_resources")
    rows = [row for page in pages.paginate(StackName="image-classification") for row in page["StackResourceSummaries"]]
    (name,) = [row["PhysicalResourceId"] for row in rows if row["LogicalResourceId"] == role]
    iam = workflow.stack.client("iam")
    before = {}
    for policy in iam.list_role_policies(RoleName=name)["PolicyNames"]:
        before[policy] = document = iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"]
        kept = []
        for statement in document["Statement"]:
            left = actions(statement) - {action}
            kept += [statement | {"Action": sorted(left)}] if left else []
        if kept:
            new = json.dumps(document | {"Statement": kept})
            iam.put_role_policy(RoleName=name, PolicyName=policy, PolicyDocument=new)
        else:
            iam.delete_role_policy(RoleName=name, PolicyName=policy)
    try:
        yield
    finally:
        for policy, document in before.items():
            iam.put_role_policy(RoleName=name, PolicyName=policy, PolicyDocument=json.dumps(document))


def retrieve_fails(workflow, seven):
    assert workflow.classify("denied.png", seven).error == "ImageAccessDeniedError"


def retrieve_of_a_version_fails(workflow, seven):
    stored = workflow.s3.put_object(Bucket=workflow.bucket, Key="denied.png", Body=seven)
    request = {"s3_bucket": workflow.bucket, "s3_key": "denied.png"}
    assert workflow.execute(request | {"s3_version_id": stored["VersionId"]}).error == "ImageAccessDeniedError"
    assert workflow.execute(request).status == "SUCCEEDED"


def denials(workflow, operation):
    """How often a function was denied this operation, from its log."""
    lines = [line for group in log_lines(workflow).values() for line in group]
    return sum("AccessDenied" in line and f"calling the {operation} operation" in line for line in lines)


def upload_starts_nothing(workflow, seven):
    workflow.upload("uploads/denied.png", seven)
    wait_for(lambda: denials(workflow, "StartExecution"))


def published(workflow):
    """Invoke PublishReviewMetrics with its schedule's event; the error, the response and the lines that it logged."""
    response = workflow.stack.client("lambda").invoke(
        FunctionName=workflow.outputs["PublishReviewMetricsFunctionName"],
        Qualifier="live",
        LogType="Tail",
        Payload=json.dumps(scheduled(workflow)),
    )
    return response.get("FunctionError"), json.load(response["Payload"]), base64.b64decode(response["LogResult"])


def publishing_fails(workflow, _seven):
    error, payload, _ = published(workflow)
    assert error and "AccessDenied" in payload["errorMessage"]


def drift_is_unknown(workflow, _seven):
    error, _, lines = published(workflow)
    assert not error
    assert b"training's mix is unknown" in lines and b"AccessDenied" in lines


def decision_is_not_published(workflow, seven):
    review = workflow.review_of(workflow.classify("denied.png", seven, threshold=1))
    workflow.reviews.decide(review, "ada", "label", "7")
    wait_for(lambda: denials(workflow, "PutEvents"))
    assert review_lines(workflow, "denied.png") == []


SHOWN = {
    ("RetrieveImageFunctionRole", "s3:GetObject"): retrieve_fails,
    ("RetrieveImageFunctionRole", "s3:GetObjectVersion"): retrieve_of_a_version_fails,
    ("StartExecutionFunctionRole", "states:StartExecution"): upload_starts_nothing,
    ("PublishReviewMetricsFunctionRole", "dynamodb:Query"): publishing_fails,
    ("PublishReviewMetricsFunctionRole", "cloudwatch:GetMetricData"): publishing_fails,
    ("PublishReviewMetricsFunctionRole", "s3:GetObject"): drift_is_unknown,
}


def test_every_permission_is_shown_or_listed_with_a_reason():
    every = {(role, action) for role in ROLES for action in granted(role) if role not in NOT_SHOWN_ROLES}
    every = {(role, action) for role, action in every if not action.startswith("kms:")}  # with EncryptionKeyArn only
    assert every == set(SHOWN) | set(NOT_SHOWN)
    assert set(NOT_SHOWN_ROLES) <= set(REASONS)
    assert all(statements(policies(role)) for role in NOT_SHOWN_ROLES)


@pytest.mark.parametrize(("role", "action"), SHOWN)
def test_without_a_permission_exactly_its_step_fails(workflow, seven, role, action):
    with without(workflow, role, action):
        SHOWN[role, action](workflow, seven)
    key = workflow.upload(f"uploads/again/{action}.png", seven)
    execution = workflow.started_by_upload(key)
    assert execution.status == "SUCCEEDED"
    wait_for(lambda: execution.arn in [line["execution_arn"] for line in prediction_lines(workflow)])


def test_a_decision_is_published_once_the_permission_is_back(workflow, seven):
    with without(workflow, "RecordReviewFunctionRole", "events:PutEvents"):
        decision_is_not_published(workflow, seven)
    wait_for(lambda: review_lines(workflow, "denied.png"))
