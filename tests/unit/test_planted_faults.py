"""The checks of template, state machine, permissions, events and docs catch common mistakes.

Each fault is planted in a copy of the project, where the named tests must fail; without a fault they must pass.
"""

import os
import shutil
import subprocess
import sys

import pytest

from documents import ROOT

TEMPLATE = "template.yaml"
MACHINE = "statemachine/classify_image.asl.json"
BATCH = "statemachine/classify_batch.asl.json"
FAULTS = {  # the file, the original text, the planted text, the tests that must fail
    "a next state that does not exist": (MACHINE, '"Next": "IsAccepted"', '"Next": "Accepted"', "state_machine"),
    "an unreachable state": (MACHINE, '"Next": "PublishImageNeedsReview"', '"End": true', "state_machine"),
    "a state without an end": (MACHINE, '"End": true', '"Comment": "On."', "state_machine"),
    "a misspelt substitution": (MACHINE, "${Threshold}", "${Treshold}", "state_machine"),
    "broken JSONata": (MACHINE, "{% $states.input.accepted %}", "{% $states.input.accepted) %}", "state_machine"),
    "a misspelt variable": (MACHINE, "detail.bucket.name", "detail.buckt.name", "events"),
    "a retry of an error that nothing raises": (MACHINE, "UnavailableError", "DownError", "state_machine"),
    "a retry of an error that its function cannot raise": (
        MACHINE,
        '["Lambda.TooManyRequestsException"]',
        '["Lambda.TooManyRequestsException", "EndpointThrottledError"]',
        "state_machine",
    ),
    "an error that is no longer retried": (MACHINE, ', "EndpointThrottledError"', "", "state_machine"),
    "a retry with other numbers": (MACHINE, '"MaxAttempts": 100', '"MaxAttempts": 10', "docs"),
    "a task without a timeout": (MACHINE, '"TimeoutSeconds": 80,', "", "state_machine"),
    "a Map that differs from the others": (BATCH, '"url_encoded": true', '"url_encoded": false', "state_machine"),
    "a Map that would be repeated": (BATCH, '"Label": "Csv",', '"Label": "Csv", "Retry": [],', "state_machine"),
    "a name of a batch's field that the function does not know": (BATCH, "'request': $st", "'query': $st", "events"),
    "batches whose failures are not told": (TEMPLATE, ", !Ref ClassifyBatchStateMachine]", "]", "template"),
    "another function's handler": (TEMPLATE, "classify_image.lambda_", "check_confidence.lambda_", "state_machine"),
    "a function without its alias": (TEMPLATE, "!Ref RetrieveImageFunction.Alias", "x", "state_machine"),
    "a missing permission": (TEMPLATE, "sagemaker:InvokeEndpoint", "sagemaker:DescribeEndpoint", "permissions"),
    "an unused permission": (TEMPLATE, "[s3:GetObject, ", "[s3:DeleteObject, s3:GetObject, ", "permissions"),
    "a permission on everything": (TEMPLATE, '!Sub "${ImageBucket.Arn}/*"', '"*"', "permissions"),
    "image bytes in the logs": (TEMPLATE, "IncludeExecutionData: false", "IncludeExecutionData: true", "template"),
    "a parameter in a function's variables": (
        TEMPLATE,
        "NAMESPACE: ImageClassification",
        "NAMESPACE: !Ref Labels",
        "template",
    ),
    "a hard-coded partition": (TEMPLATE, "arn:${AWS::Partition}:sagemaker", "arn:aws:sagemaker", "template"),
    "a trigger that matches its own output": (TEMPLATE, "{key: [{prefix: !Ref UploadPrefix}]}", "{}", "template"),
    "an event without a field": ("events/check_confidence.json", '"threshold": 0.75,', "", "events"),
    "an undocumented default": (TEMPLATE, "Default: 2048", "Default: 4096", "docs"),
    "a documented command that does not exist": ("README.md", "make package-model", "make pack-model", "docs"),
}


@pytest.fixture
def project(tmp_path):
    for source in ROOT.glob("[!.]*"):
        if source.is_dir():
            shutil.copytree(source, tmp_path / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / source.name)
    for name in (".local", ".ci", ".github"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def run(project, *suites):
    """Run unit tests of the copy in a process of their own; return its exit code and output."""
    tests = [f"tests/unit/test_{suite}.py" for suite in suites]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # a second less
    result = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    return result.returncode, result.stdout


def test_without_a_fault_the_checks_pass(project):
    code, output = run(project, "state_machine", "template", "permissions", "events", "docs")
    assert code == 0, output


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(project, fault):
    name, right, wrong, suite = FAULTS[fault]
    text = (project / name).read_text()
    assert right in text
    (project / name).write_text(text.replace(right, wrong))
    code, output = run(project, suite)
    assert (code, " failed" in output or " error" in output) == (1, True), output
