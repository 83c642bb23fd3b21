"""Each role's permissions against the calls of code and state machine: none is missing, and none is unused."""

import ast
import importlib
import re

import pytest

from documents import LAMBDA_STATES, ROOT, STATES, transformed
from test_state_machine import snake_case

# Permissions without a call in the code, and the reason for each.
REASONS = {
    "RetrieveImageFunctionRole": {
        "s3:GetObjectVersion": "get_object with a VersionId",
        "s3:ListBucket": "without it a missing object is a 403 instead of a 404",
    },
    "RecordOutcomeFunctionRole": {"sqs:SendMessage": "events that could not be recorded go to the failure queue"},
    "ClassifyImageStateMachineRole": {
        **dict.fromkeys(
            [
                "logs:CreateLogDelivery",
                "logs:DeleteLogDelivery",
                "logs:DescribeLogGroups",
                "logs:DescribeResourcePolicies",
                "logs:GetLogDelivery",
                "logs:ListLogDeliveries",
                "logs:PutResourcePolicy",
                "logs:UpdateLogDelivery",
            ],
            "the delivery of execution logs",
        ),
    },
    "ModelRole": {
        "s3:GetObject": "SageMaker fetches the model",
        **dict.fromkeys(
            [
                "ecr:BatchCheckLayerAvailability",
                "ecr:BatchGetImage",
                "ecr:GetAuthorizationToken",
                "ecr:GetDownloadUrlForLayer",
            ],
            "SageMaker pulls the image",
        ),
        **dict.fromkeys(
            ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"],
            "the container's log",
        ),
        "cloudwatch:PutMetricData": "the container's metrics",
        "cloudwatch:DescribeAlarms": "an update of a realtime endpoint watches its alarms",
        "s3:PutObject": "data capture",
        "kms:GenerateDataKey": "data capture with a key",
    },
    "ClassifyImageStateMachineUploadRole": {"states:StartExecution": "EventBridge starts an execution for an upload"},
}
MANAGED = {  # SAM adds these
    "AWSLambdaBasicExecutionRole": "a function's log",
    "AWSXRayDaemonWriteAccess": "a function's traces",
    "AWSXrayWriteOnlyAccess": "Tracing: Active",
}
WITHOUT_RESOURCE = {"ecr:GetAuthorizationToken", "cloudwatch:PutMetricData", *REASONS["ClassifyImageStateMachineRole"]}
ROLES = {name: role for name, role in transformed()["Resources"].items() if role["Type"] == "AWS::IAM::Role"}


def statements(node):
    """Every policy statement below a node, in both branches of a condition."""
    if isinstance(node, dict) and "Effect" in node and "Principal" not in node:
        yield node
    elif isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from statements(value)


def actions(statement):
    named = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
    return {"sqs:SendMessage" if action == "sqs:SendMessage*" else action for action in named}  # SAM's policy template


def policies(role):
    return ROLES[role]["Properties"].get("Policies", [])


def granted(role):
    return {action for statement in statements(policies(role)) for action in actions(statement)}


def calls_of_code(module):
    """The actions that a module calls on its module-level clients."""
    tree = ast.parse((ROOT / "functions" / f"{module}.py").read_text())
    made = [node for node in tree.body if isinstance(node, ast.Assign) and "create_client(" in ast.unparse(node.value)]
    clients = {node.targets[0].id: getattr(importlib.import_module(module), node.targets[0].id) for node in made}
    called = set()
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method)) if name in clients:
                meta = clients[name].meta
                called.add(f"{meta.service_model.signing_name}:{meta.method_to_api_mapping[method]}")
    return called


def calls_of_states():
    """The actions that the state machine's integrations call."""
    integrations = [re.search(r"states:::(\w+):(\w)(\w+)$", state.get("Resource", "")) for state in STATES.values()]
    called = {f"{match[1]}:{match[2].upper()}{match[3]}" for match in integrations if match}
    return {"lambda:InvokeFunction" if action == "lambda:Invoke" else action for action in called}


def test_the_roles_are_those_listed_here():
    listed = set(REASONS) | {f"{state}FunctionRole" for state in LAMBDA_STATES}
    assert set(ROLES) == listed


@pytest.mark.parametrize("state", [*LAMBDA_STATES, "RecordOutcome"])
def test_a_function_is_allowed_exactly_what_it_calls(state):
    called = calls_of_code(snake_case(state))
    assert granted(f"{state}FunctionRole") == called | set(REASONS.get(f"{state}FunctionRole", {}))


def test_the_calls_of_the_code_are_found():
    assert [calls_of_code(snake_case(state)) for state in LAMBDA_STATES] == [
        {"s3:GetObject"},
        {"sagemaker:InvokeEndpoint"},
        set(),
    ]


def test_the_state_machine_is_allowed_exactly_what_its_states_call():
    role = "ClassifyImageStateMachineRole"
    assert granted(role) == calls_of_states() | set(REASONS[role])
    assert calls_of_states() == {"lambda:InvokeFunction", "sqs:SendMessage", "events:PutEvents"}


@pytest.mark.parametrize("role", ["ModelRole", "ClassifyImageStateMachineUploadRole"])
def test_what_aws_calls_in_a_role_is_listed(role):
    assert granted(role) == set(REASONS[role])


@pytest.mark.parametrize("role", ROLES)
def test_a_role_has_no_managed_policies_but_sams_and_no_wildcards(role):
    managed = ROLES[role]["Properties"].get("ManagedPolicyArns", [])
    assert {arn.rpartition("/")[2] for arn in managed} <= set(MANAGED)
    for statement in statements(policies(role)):
        assert "NotAction" not in statement and "NotResource" not in statement
        assert not any(action.endswith("*") for action in actions(statement))
        if statement["Resource"] == "*":
            assert actions(statement) <= WITHOUT_RESOURCE
