"""Stop a release that would replace the model in service: python tools/check_model.py STACK

The variable PARAMETERS is that of .github/workflows/deploy.yml, which gives each of its lines to sam deploy. Exit
status 1 if its ModelDataUrl is not the deployed one, which make promote may have put into service. Needs SAM's Python
and AWS credentials.
"""

import os
import sys

import boto3
from botocore.exceptions import ClientError
from samcli.cli.types import CfnParameterOverridesType


def named_model(parameters: str) -> str:
    """The ModelDataUrl as sam deploy would read it; empty without one."""
    lines = tuple(line for line in parameters.replace("\r", "").split("\n") if line.strip())
    values: dict[str, str] = CfnParameterOverridesType().convert(lines, None, None)
    return values.get("ModelDataUrl", "")


def deployed_model(stack: str) -> str:
    """The stack's ModelDataUrl; empty if there is no stack, or no model."""
    try:
        (described,) = boto3.client("cloudformation").describe_stacks(StackName=stack)["Stacks"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "ValidationError":
            raise
        return ""
    values = {row["ParameterKey"]: row.get("ParameterValue", "") for row in described.get("Parameters", [])}
    return values.get("ModelDataUrl", "")


if __name__ == "__main__":
    named, deployed = named_model(os.environ["PARAMETERS"]), deployed_model(sys.argv[1])
    if named and deployed and named != deployed:
        sys.exit(
            f"PARAMETERS names ModelDataUrl={named}, but {deployed} is in service. A release does not change the "
            "model: remove ModelDataUrl from PARAMETERS, or, to deploy the model in PARAMETERS, start this workflow by "
            "hand on the tag."
        )
