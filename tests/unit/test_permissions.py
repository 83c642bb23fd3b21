"""Each role's permissions against the calls of code and state machine: none is missing, and none is unused."""

import ast
import importlib
import re

import pytest
from botocore.client import BaseClient

from documents import CLASSIFY_BATCH, CLASSIFY_IMAGE, FUNCTIONS, MACHINES, RETRAINING_DUE, ROOT, snake_case, transformed
from test_state_machine import NOT_STATES, imported

ENCRYPTED_QUEUE = dict.fromkeys(
    ["kms:Decrypt", "kms:GenerateDataKey"], "with EncryptionKeyArn, whoever sends to a queue encrypts the message"
)
LOG_DELIVERY = dict.fromkeys(
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
)
ENCRYPTED_RESULTS = dict.fromkeys(
    ["kms:Decrypt", "kms:GenerateDataKey"], "with EncryptionKeyArn, images, results and messages are encrypted"
)
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
    "RecordOutcomeStateMachineRole": {
        **ENCRYPTED_QUEUE,
        **LOG_DELIVERY,
    },
    "RecordOutcomeStateMachineExecutionEndedRole": {
        "states:StartExecution": "EventBridge starts an execution for each event",
    },
    "RetrainingDueStateMachineRole": LOG_DELIVERY,
    "RetrainingDueRuleRole": {
        "states:StartExecution": "EventBridge starts an execution on the schedule and for each alarm",
    },
    "RecordReviewFunctionRole": {
        **dict.fromkeys(
            ["dynamodb:DescribeStream", "dynamodb:GetRecords", "dynamodb:GetShardIterator", "dynamodb:ListStreams"],
            "Lambda reads the review table's stream",
        ),
        "sqs:SendMessage": "decisions that could not be published go to the failure queue",
        **ENCRYPTED_QUEUE,
    },
    "PublishReviewMetricsFunctionRole": {
        "sqs:SendMessage": "hours that could not be published go to the failure queue",
        **ENCRYPTED_QUEUE,
    },
    "ClassifyImageStateMachineRole": {
        **dict.fromkeys(["kms:Decrypt", "kms:GenerateDataKey"], "with EncryptionKeyArn, the review table is encrypted"),
        **LOG_DELIVERY,
    },
    "ClassifyBatchFunctionRole": {
        **ENCRYPTED_RESULTS,
        "s3:GetObjectVersion": "get_object with a VersionId",
        "s3:ListBucket": "without it a missing object is a 403 instead of a 404",
    },
    "SummariseBatchFunctionRole": ENCRYPTED_RESULTS,
    "ClassifyBatchStateMachineRole": {
        **ENCRYPTED_RESULTS,
        **LOG_DELIVERY,
        "s3:ListBucket": "the Map over a prefix",
        "s3:GetObject": "the Maps over a manifest or an inventory",
        **dict.fromkeys(
            ["s3:PutObject", "s3:ListMultipartUploadParts", "s3:AbortMultipartUpload"], "the Maps' ResultWriter"
        ),
        "states:StartExecution": "a Map Run starts children",
        "states:DescribeExecution": "a Map Run watches its children",
        "states:StopExecution": "a Map Run stops its children",
        "states:RedriveExecution": "a Map Run is redriven",
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
WITHOUT_RESOURCE = {"ecr:GetAuthorizationToken", "cloudwatch:GetMetricData", "cloudwatch:PutMetricData", *LOG_DELIVERY}
GENERATED = transformed()["Resources"]
ROLES = {name: role for name, role in GENERATED.items() if role["Type"] == "AWS::IAM::Role"}
POLICIES = [resource["Properties"] for resource in GENERATED.values() if resource["Type"] == "AWS::IAM::Policy"]
# Actions of an API under another action's permission, or of a service that signs under another name
PERMISSIONS = {
    "sqs:SendMessageBatch": "sqs:SendMessage",
    "lambda:Invoke": "lambda:InvokeFunction",
    "monitoring:GetMetricData": "cloudwatch:GetMetricData",
}


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
    return [*ROLES[role]["Properties"].get("Policies", []), *(row for row in POLICIES if {"Ref": role} in row["Roles"])]


def granted(role):
    return {action for statement in statements(policies(role)) for action in actions(statement)}


def clients_of(module):
    """A module's clients by their names in it, its own and those that it imports."""
    return {
        name: value for name, value in vars(importlib.import_module(module)).items() if isinstance(value, BaseClient)
    }


def calls_of_code(module):
    """The actions that a module and the siblings that it imports call on their clients."""
    clients = clients_of(module)
    called = set()
    for node in ast.walk(ast.parse((ROOT / "functions" / f"{module}.py").read_text())):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method)) if name in clients:
                meta = clients[name].meta
                if method in meta.method_to_api_mapping:  # not exceptions
                    action = f"{meta.service_model.signing_name}:{meta.method_to_api_mapping[method]}"
                    called.add(PERMISSIONS.get(action, action))
    return called.union(*map(calls_of_code, imported(module)))


def modules_of(module):
    return {module}.union(*map(modules_of, imported(module)))


def calls_of_states(machine):
    """The actions that a state machine's integrations call."""
    resources = [state.get("Resource", "") for state in machine.states.values()]
    integrations = [re.search(r"states:::(\w+):(\w)(\w+)$", resource) for resource in resources]
    called = {f"{match[1]}:{match[2].upper()}{match[3]}" for match in integrations if match}
    return {PERMISSIONS.get(action, action) for action in called}


def test_the_roles_are_those_listed_here():
    listed = set(REASONS) | {f"{function}FunctionRole" for function in FUNCTIONS}
    assert set(ROLES) == listed


@pytest.mark.parametrize("function", [*FUNCTIONS, *NOT_STATES])
def test_a_function_is_allowed_exactly_what_it_calls(function):
    called = calls_of_code(snake_case(function))
    assert granted(f"{function}FunctionRole") == called | set(REASONS.get(f"{function}FunctionRole", {}))


@pytest.mark.parametrize("function", [*FUNCTIONS, *NOT_STATES])
def test_a_cold_start_creates_one_client_of_each_service(function):
    clients = {
        id(client): client for module in modules_of(snake_case(function)) for client in clients_of(module).values()
    }
    services = [client.meta.service_model.service_name for client in clients.values()]
    assert sorted(services) == sorted(set(services))


def test_the_calls_of_the_code_are_found():
    assert {function: calls_of_code(snake_case(function)) for function in [*FUNCTIONS, *NOT_STATES]} == {
        "RetrieveImage": {"s3:GetObject"},
        "ClassifyImage": {"sagemaker:InvokeEndpoint"},
        "CheckConfidence": set(),
        "PrepareBatch": set(),
        "ClassifyBatch": {"s3:GetObject", "sagemaker:InvokeEndpoint", "s3:PutObject", "dynamodb:PutItem"},
        "SummariseBatch": {"s3:GetObject", "s3:PutObject", "glue:GetTable", "glue:CreatePartition"},
        "StartExecution": {"states:StartExecution"},
        "RecordOutcome": set(),
        "RecordReview": {"events:PutEvents"},
        "PublishReviewMetrics": {
            "dynamodb:Query",
            "s3:GetObject",
            "cloudwatch:GetMetricData",
            "sagemaker:DescribeModel",
        },
    }


@pytest.mark.parametrize("machine", MACHINES, ids=str)
def test_a_state_machine_is_allowed_exactly_what_its_states_call(machine):
    role = f"{machine.name}StateMachineRole"
    assert granted(role) == calls_of_states(machine) | set(REASONS[role])


def test_the_calls_of_the_states_are_found():
    image, outcome, batch, retraining = map(calls_of_states, MACHINES)
    assert image == {"lambda:InvokeFunction", "dynamodb:PutItem", "events:PutEvents"}
    assert outcome == {"lambda:InvokeFunction", "sqs:SendMessage", "dynamodb:PutItem"}
    assert batch == {"lambda:InvokeFunction", "events:PutEvents"}
    assert retraining == {"events:PutEvents"}


def test_the_right_of_a_machine_to_its_own_map_runs_is_a_policy_of_its_own():
    """Among the machine's Policies, which SAM puts into its role, its own ARN would be a circular reference."""
    in_role = {action for each in statements(ROLES["ClassifyBatchStateMachineRole"]) for action in actions(each)}
    assert not any(action.startswith("states:") for action in in_role)


@pytest.mark.parametrize(
    "role", ["RetrieveImageFunctionRole", "ClassifyBatchFunctionRole", "ClassifyBatchStateMachineRole"]
)
def test_further_buckets_are_read_like_the_stacks_own_and_only_if_the_parameter_names_some(role):
    conditional = [policy["Fn::If"] for policy in policies(role) if "Fn::If" in policy]
    ((further, nothing),) = (rest for name, *rest in conditional if name == "ReadsFurtherBuckets")
    assert nothing == {"Ref": "AWS::NoValue"}
    own = [each for policy in policies(role) if "Fn::If" not in policy for each in statements(policy)]
    objects, buckets = statements(further)
    assert all(actions(statement) in map(actions, own) for statement in (objects, buckets))
    arns = {"Fn::Split": [",", {"Ref": "FurtherImageBuckets"}]}
    assert buckets["Resource"] == arns
    joined = {"Fn::Sub": ["${Arns}/*", {"Arns": {"Fn::Join": ["/*,", arns]}}]}
    assert objects["Resource"] == {"Fn::Split": [",", joined]}


def test_the_models_role_can_read_both_archives_and_nothing_else():
    reading = [each["Resource"] for each in statements(policies("ModelRole")) if "s3:GetObject" in actions(each)]
    values = {
        "AWS::Partition": "aws",
        "ModelDataUrl": "s3://models/a/model.tar.gz",
        "ShadowModelDataUrl": "s3://models/b/model.tar.gz",
    }
    arns = [evaluated(resource, values) for resource in reading]
    assert arns == ["arn:aws:s3:::models/a/model.tar.gz", "arn:aws:s3:::models/b/model.tar.gz"]


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
    """CloudFormation's value of an expression of these functions; `values` has parameters and conditions."""
    match node:
        case {"Ref": name} | {"Fn::GetAtt": [name, _]}:
            return values[name]
        case {"Fn::Select": [index, items]}:
            return evaluated(items, values)[int(index)]
        case {"Fn::Split": [delimiter, text]}:
            return evaluated(text, values).split(delimiter)
        case {"Fn::Join": [delimiter, items]}:
            return delimiter.join(evaluated(item, values) for item in items)
        case {"Fn::If": [condition, then, otherwise]}:
            return evaluated(then if values[condition] else otherwise, values)
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


@pytest.mark.parametrize(
    ("role", "machine"),
    [
        ("RecordOutcomeStateMachineExecutionEndedRole", "RecordOutcomeStateMachine"),
        ("RetrainingDueRuleRole", "RetrainingDueStateMachine"),
    ],
)
def test_eventbridge_may_start_a_rules_state_machine_and_nothing_else(role, machine):
    (statement,) = statements(policies(role))
    assert actions(statement) == {"states:StartExecution"}
    assert statement["Resource"] == {"Ref": machine}


@pytest.mark.parametrize("machine", [CLASSIFY_IMAGE, CLASSIFY_BATCH, RETRAINING_DUE], ids=str)
def test_a_state_machine_can_publish_only_the_events_of_the_workflow(machine):
    granting = statements(policies(f"{machine.name}StateMachineRole"))
    (statement,) = [each for each in granting if "events:PutEvents" in actions(each)]
    arguments = [state["Arguments"] for state in machine.states.values() if "Arguments" in state]
    sources = {entry["Source"] for each in arguments if "Entries" in each for entry in each["Entries"]}
    assert statement["Condition"] == {"StringEquals": {"events:source": "image-classification"}}
    assert sources == {"image-classification"}
