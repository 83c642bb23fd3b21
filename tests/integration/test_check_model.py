"""tools/check_model.py, with the Python that deploys in .github/workflows/deploy.yml, on a deployed stack."""

import subprocess

import pytest

from local.command import LOCAL, ROOT
from local.deployment import STACK_NAME
from local.emulator.processes import clean_environment
from local.target import Target

OTHER = "s3://models/models/0123456789abcdef/model.tar.gz"


@pytest.fixture
def check(workflow):
    """Run it with these PARAMETERS."""

    def run(parameters, stack=STACK_NAME):
        command = [LOCAL / "venvs/sam/bin/python", "tools/check_model.py", stack]
        environment = clean_environment() | workflow.stack.aws_variables | {"PARAMETERS": parameters}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    return run


def test_another_model_than_the_one_in_service_stops_the_release(workflow, check):
    in_service = Target(STACK_NAME, workflow.outputs, workflow.stack.client).parameter("ModelDataUrl")
    for line in (
        f"ModelDataUrl={OTHER}",
        f'  ModelDataUrl="{OTHER}"',
        f"ModelDataUrl='{OTHER}'",
        f"AuditRate=0.1 ModelDataUrl={OTHER} Architecture=arm64",
        f"ParameterKey=ModelDataUrl,ParameterValue={OTHER}",
    ):
        stopped = check(f"EndpointType=serverless\r\n\r\n{line}\r\nThreshold=0.8\r\n")
        assert stopped.returncode == 1
        assert stopped.stderr.startswith(f"PARAMETERS names ModelDataUrl={OTHER}, but {in_service} is in service.")
    for parameters in (
        f"ModelDataUrl={in_service}\nThreshold=0.8",
        f"EndpointType=serverless ModelDataUrl='{in_service}'",
        f"ParameterKey=ModelDataUrl,ParameterValue={in_service}",
        "Threshold=0.8",
        "",
    ):
        passed = check(parameters)
        assert (passed.returncode, passed.stderr) == (0, "")


def test_the_first_deployment_of_a_stack_names_its_model(check):
    assert check(f"ModelDataUrl={OTHER}", "not-deployed-yet").returncode == 0
