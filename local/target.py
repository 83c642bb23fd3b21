"""The stack that a command works on: the local one, or with STACK=name one on AWS, with the user's own credentials."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import boto3
from botocore.client import BaseClient
from botocore.exceptions import BotoCoreError, ClientError

from local.command import StackError, lock
from local.deployment import STACK_NAME, deployed, existing, shared
from local.emulator.processes import Stack


@dataclasses.dataclass(frozen=True)
class Target:
    """A deployed stack: its name, its outputs, and boto3 clients for its services."""

    name: str
    outputs: dict[str, str]
    client: Callable[..., BaseClient]  # of a service's name and boto3's options
    local: Stack | None = None  # None on AWS

    @property
    def place(self) -> str:
        return "the local stack" if self.local else f"the stack {self.name} on AWS"

    def parameter(self, name: str) -> str:
        """The value of one of the stack's parameters; empty if the stack does not have it."""
        (described,) = self.client("cloudformation").describe_stacks(StackName=self.name)["Stacks"]
        values = {row["ParameterKey"]: row.get("ParameterValue", "") for row in described.get("Parameters", [])}
        return values.get(name, "")


@contextlib.contextmanager
def target(stack_name: str = "", share: bool = False, start: bool = True) -> Iterator[Target]:
    """The stack on AWS with this name; without one the local stack, which is started for the command if necessary.

    share: other commands can use the local stack at the same time, such as make review.
    start: False raises StackError instead if the local stack is not running.
    Errors of AWS and of its credentials are raised as StackError.
    """
    try:
        if stack_name:
            yield Target(stack_name, stack_outputs(stack_name), boto3.Session().client)
        elif not start:
            with lock(shared=True):
                if not (running := existing()):
                    raise StackError("The local stack is not running: make up starts it. On AWS: STACK=name")
                yield Target(STACK_NAME, running[1], running[0].client, running[0])
        elif share:
            with shared() as (stack, outputs):
                yield Target(STACK_NAME, outputs, stack.client, stack)
        else:
            with lock(), deployed() as (stack, outputs):
                yield Target(STACK_NAME, outputs, stack.client, stack)
    except ClientError as error:
        refused = (
            f"AWS refused a request about STACK={stack_name}" if stack_name else "The local stack refused a request"
        )
        raise StackError(f"{refused}: {error}") from None
    except BotoCoreError as error:  # no credentials, no region, no network
        if not stack_name:
            raise
        problem = str(error).rstrip(".")
        raise StackError(f"STACK={stack_name}: {problem}. Check AWS's credentials and region: aws configure") from None


def stack_outputs(stack_name: str) -> dict[str, str]:
    """The outputs of a CloudFormation stack on AWS; StackError if it is not one of this template's."""
    (described,) = boto3.client("cloudformation").describe_stacks(StackName=stack_name)["Stacks"]
    outputs = {output["OutputKey"]: output["OutputValue"] for output in described.get("Outputs", [])}
    if "ClassifyImageStateMachineArn" not in outputs:
        raise StackError(f"STACK={stack_name} is not a deployed stack of template.yaml ({described['StackStatus']})")
    return outputs
