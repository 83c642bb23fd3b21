"""Each role's permissions against the calls of code and state machine: none is missing, and none is unused."""

import ast
import importlib
import re

import pytest

from documents import LAMBDA_STATES, ROOT, STATES, transformed
from test_state_machine import NOT_STATES, snake_case

ENCRYPTED_QUEUE = dict.fromkeys(
    ["kms:Decrypt", "kms:GenerateDataKey"], "with EncryptionKeyArn, whoever sends to a queue encrypts the message"
)
LOG_DELIVERY = {
    "logs:CreateLogDelivery",
    "logs:DeleteLogDelivery",
    "logs:DescribeLogGroups",
    "logs:DescribeResourcePolicies",
    "logs:GetLogDelivery",
    "logs:ListLogDeliveries",
    "logs:PutResourcePolicy",
    "logs:UpdateLogDelivery",
}
# Permissions without a call in the code, and the reason for each.
REASONS = {
    "RetrieveImageFunctionRole": {
        "s3:GetObjectVersion": "get_object with a VersionId",
        "kms:Decrypt": "with EncryptionKeyArn, images are encrypted",
        "s3:ListBucket": "without it a missing object is a 403 instead of a 404",
    },
    "StartExecutionFunctionRole": {
        "sqs:SendMessage": "uploads that could not start an execution go to the failure queue",
        **ENCRYPTED_QUEUE,
    },
    "RecordOutcomeFunctionRole": {
        "sqs:SendMessage": "events that could not be recorded go to the failure queue",
        **ENCRYPTED_QUEUE,
    },
    "ClassifyImageStateMachineRole": {
        **ENCRYPTED_QUEUE,
        **dict.fromkeys(LOG_DELIVERY, "the delivery of execution logs"),
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
}
MANAGED = {  # SAM adds these
    "AWSLambdaBasicExecutionRole": "a function's log",
    "AWSXRayDaemonWriteAccess": "a function's traces",
    "AWSXrayWriteOnlyAccess": "Tracing: Active",
}
WITHOUT_RESOURCE = {"ecr:GetAuthorizationToken", "cloudwatch:PutMetricData", *LOG_DELIVERY}
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


@pytest.mark.parametrize("state", [*LAMBDA_STATES, *NOT_STATES])
def test_a_function_is_allowed_exactly_what_it_calls(state):
    called = calls_of_code(snake_case(state))
    assert granted(f"{state}FunctionRole") == called | set(REASONS.get(f"{state}FunctionRole", {}))


def test_the_calls_of_the_code_are_found():
    assert [calls_of_code(snake_case(state)) for state in [*LAMBDA_STATES, *NOT_STATES]] == [
        {"s3:GetObject"},
        {"sagemaker:InvokeEndpoint"},
        set(),
        {"states:StartExecution"},
        {"dynamodb:PutItem"},
    ]


def test_the_state_machine_is_allowed_exactly_what_its_states_call():
    role = "ClassifyImageStateMachineRole"
    assert granted(role) == calls_of_states() | set(REASONS[role])
    assert calls_of_states() == {"lambda:InvokeFunction", "sqs:SendMessage", "events:PutEvents"}


def test_further_buckets_are_read_like_the_stacks_own_and_only_if_the_parameter_names_some():
    conditional = [policy["Fn::If"] for policy in policies("RetrieveImageFunctionRole") if "Fn::If" in policy]
    ((further, nothing),) = (rest for name, *rest in conditional if name == "ReadsFurtherBuckets")
    assert nothing == {"Ref": "AWS::NoValue"}
    own = next(policy for policy in policies("RetrieveImageFunctionRole") if "Fn::If" not in policy)
    objects, buckets = statements(further)
    assert [actions(statement) for statement in (objects, buckets)] == [actions(each) for each in statements(own)]
    arns = {"Fn::Split": [",", {"Ref": "FurtherImageBuckets"}]}
    assert buckets["Resource"] == arns
    joined = {"Fn::Sub": ["${Arns}/*", {"Arns": {"Fn::Join": ["/*,", arns]}}]}
    assert objects["Resource"] == {"Fn::Split": [",", joined]}


def test_what_sagemaker_calls_in_the_models_role_is_listed():
    assert granted("ModelRole") == set(REASONS["ModelRole"])


@pytest.mark.parametrize("role", ROLES)
def test_a_role_has_no_managed_policies_but_sams_and_no_wildcards(role):
    managed = ROLES[role]["Properties"].get("ManagedPolicyArns", [])
    assert {arn.rpartition("/")[2] for arn in managed} <= set(MANAGED)
    for statement in statements(policies(role)):
        assert "NotAction" not in statement and "NotResource" not in statement
        assert not any(action.endswith("*") for action in actions(statement))
        if statement["Resource"] == "*":
            assert actions(statement) <= WITHOUT_RESOURCE


def evaluated(node, values):
    """CloudFormation's value of an expression of these functions; `values` has parameters and pseudo parameters."""
    match node:
        case {"Ref": name}:
            return values[name]
        case {"Fn::Select": [index, items]}:
            return evaluated(items, values)[int(index)]
        case {"Fn::Split": [delimiter, text]}:
            return evaluated(text, values).split(delimiter)
        case {"Fn::Join": [delimiter, items]}:
            return delimiter.join(evaluated(item, values) for item in items)
        case {"Fn::Sub": [text, variables]}:
            known = values | {name: evaluated(value, values) for name, value in variables.items()}
            return re.sub(r"\$\{([\w:]+)\}", lambda match: known[match[1]], text)
    return node


@pytest.mark.parametrize("repository", ["endpoint", "team/endpoint", "a/b/c", "a/b/c/d", "team.x_y-z/e"])
@pytest.mark.parametrize("version", [":1", ":latest", "@sha256:" + "0" * 64, ":1@sha256:" + "0" * 64])
@pytest.mark.parametrize("suffix", ["amazonaws.com", "amazonaws.com.cn"])
def test_the_models_role_can_pull_from_its_own_repository_only(repository, version, suffix):
    (statement,) = [each for each in statements(policies("ModelRole")) if "ecr:BatchGetImage" in actions(each)]
    own_image = statement["Resource"]["Fn::If"][1]
    values = {"AWS::Partition": "aws", "AWS::Region": "us-east-1"}
    values["InferenceImageUri"] = f"123456789012.dkr.ecr.us-east-1.{suffix}/{repository}{version}"
    assert evaluated(own_image, values) == f"arn:aws:ecr:us-east-1:123456789012:repository/{repository}"


def test_the_state_machine_can_publish_only_the_events_of_the_workflow():
    (statement,) = [
        each for each in statements(policies("ClassifyImageStateMachineRole")) if "events:PutEvents" in actions(each)
    ]
    sources = {entry["Source"] for state in STATES.values() for entry in state.get("Arguments", {}).get("Entries", [])}
    assert statement["Condition"] == {"StringEquals": {"events:source": "image-classification"}}
    assert sources == {"image-classification"}
