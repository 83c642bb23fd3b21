"""Delete a stack with sam delete, and say what it leaves: python tools/destroy.py [ENVIRONMENT OF SAMCONFIG]"""

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
from botocore.client import BaseClient
from botocore.exceptions import ClientError

ROOT = Path(__file__).resolve().parent.parent
Clients = Callable[[str], BaseClient]


def describe(clients: Clients, stack_name: str) -> dict[str, Any]:
    (stack,) = clients("cloudformation").describe_stacks(StackName=stack_name)["Stacks"]
    return stack


def resources(clients: Clients, stack_name: str) -> dict[str, dict[str, str]]:
    pages = clients("cloudformation").get_paginator("list_stack_resources").paginate(StackName=stack_name)
    return {row["LogicalResourceId"]: row for page in pages for row in page["StackResourceSummaries"]}


def obstacles(clients: Clients, stack_name: str) -> list[str]:
    """Why the stack cannot be deleted yet, with the command that helps."""
    s3, found = clients("s3"), []
    for row in resources(clients, stack_name).values():
        bucket = row.get("PhysicalResourceId", "")
        if row["ResourceType"] == "AWS::S3::Bucket" and bucket:
            listed = s3.list_object_versions(Bucket=bucket, MaxKeys=1)
            if listed.get("Versions") or listed.get("DeleteMarkers"):
                found.append(f"s3://{bucket} holds images, or old versions: make empty-bucket BUCKET={bucket}")
        if row["ResourceType"] == "AWS::IAM::ManagedPolicy":
            found += attachments(clients, row["PhysicalResourceId"])
    return found


def attachments(clients: Clients, policy: str) -> list[str]:
    """To whom a policy is attached, which cannot be deleted meanwhile."""
    listed = clients("iam").list_entities_for_policy(PolicyArn=policy)
    kinds = {"Roles": "role", "Users": "user", "Groups": "group"}
    return [
        f"{kind} {entity[f'{kind.title()}Name']} has the policy ReviewerPolicy: "
        f"aws iam detach-{kind}-policy --{kind}-name {entity[f'{kind.title()}Name']} --policy-arn {policy}"
        for name, kind in kinds.items()
        for entity in listed.get(f"Policy{name}", [])
    ]


def leftovers(clients: Clients, stack_name: str) -> list[str]:
    """What remains after the stack is deleted, with the command that removes it; the stack must still exist."""
    parameters = {row["ParameterKey"]: row["ParameterValue"] for row in describe(clients, stack_name)["Parameters"]}
    found = []
    template = clients("cloudformation").get_template(StackName=stack_name, TemplateStage="Processed")["TemplateBody"]
    for name, row in resources(clients, stack_name).items():
        policy = template["Resources"].get(name, {}).get("DeletionPolicy") if isinstance(template, dict) else None
        if policy in ("Retain", "RetainExceptOnCreate") and row["ResourceType"] == "AWS::DynamoDB::Table":
            found.append(f"the table {name}: aws dynamodb delete-table --table-name {row['PhysicalResourceId']}")
        if row["ResourceType"] == "AWS::SageMaker::ModelPackageGroup":
            group = parameters["ModelPackageGroupName"]
            found.append(
                f"the group {group}: aws sagemaker delete-model-package-group --model-package-group-name {group}"
            )
        if row["ResourceType"] == "AWS::SageMaker::Endpoint":
            endpoint = row["PhysicalResourceId"].split("/")[-1]
            group = f"/aws/sagemaker/Endpoints/{endpoint}"
            found.append(f"the endpoint's log: aws logs delete-log-group --log-group-name {group}")
    for name, what in {"ModelDataUrl": "the model", "ShadowModelDataUrl": "the shadow model"}.items():
        if url := parameters.get(name):
            found.append(f"{what}: aws s3 rm {url}")
    if url := parameters.get("DataCaptureUrl"):
        found.append(f"captured requests and responses: aws s3 rm {url} --recursive")
    if url := parameters.get("InferenceImageUri"):
        found.append(f"the endpoint's image in ECR: {url}")
    return [*found, "SAM's bucket and stack aws-sam-cli-managed-default, which all your SAM projects share"]


def main(environment: str) -> None:
    settings = tomllib.loads((ROOT / "samconfig.toml").read_text())[environment]["global"]["parameters"]
    session = boto3.Session(region_name=settings["region"])
    try:
        blocked = obstacles(session.client, settings["stack_name"])
        left = leftovers(session.client, settings["stack_name"])
    except ClientError as error:
        sys.exit(str(error))
    if blocked:
        sys.exit("The stack cannot be deleted yet:\n  " + "\n  ".join(blocked))
    sam = [sys.executable, "-m", "samcli", "delete", "--config-env", environment]
    if code := subprocess.run(
        [*sam, "--stack-name", settings["stack_name"], "--region", settings["region"]]
    ).returncode:
        sys.exit(code)
    print("\nLeft, if you confirmed:\n  " + "\n  ".join(left))


if __name__ == "__main__":
    main(*sys.argv[1:] or ["default"])
