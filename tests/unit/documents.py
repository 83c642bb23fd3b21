"""template.yaml and the state machines' definitions as data."""

import functools
import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


class _Loader(yaml.SafeLoader):
    """Expands CloudFormation's short forms: !Ref X -> {"Ref": "X"}."""


def _intrinsic(loader: yaml.Loader, tag: str, node: yaml.Node) -> dict[str, Any]:
    value = {
        yaml.ScalarNode: loader.construct_scalar,
        yaml.SequenceNode: lambda node: loader.construct_sequence(node, deep=True),
        yaml.MappingNode: lambda node: loader.construct_mapping(node, deep=True),
    }[type(node)](node)
    if tag == "GetAtt":
        value = value.split(".", 1)
    return {tag if tag in ("Ref", "Condition") else f"Fn::{tag}": value}


_Loader.add_multi_constructor("!", _intrinsic)


@functools.cache
def transformed(deployment_preference: str = "AllAtOnce") -> dict[str, Any]:
    """template.yaml, transformed by SAM into a CloudFormation template."""
    python = ROOT / ".local/venvs/sam/bin/python"
    command = [python, ROOT / "tools/transform.py", f"DeploymentPreference={deployment_preference}"]
    environment = os.environ | {"AWS_DEFAULT_REGION": "us-east-1"}
    return yaml.safe_load(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)


TEMPLATE = yaml.load((ROOT / "template.yaml").read_text(), _Loader)
RESOURCES = TEMPLATE["Resources"]


def all_states(states: dict[str, Any]) -> dict[str, Any]:
    """The states, and those of their children."""
    below = [all_states(state["ItemProcessor"]["States"]) for state in states.values() if "ItemProcessor" in state]
    return {name: state for group in (states, *below) for name, state in group.items()}


def function_of(state: dict[str, Any]) -> str:
    """The name of the function that a state invokes: ClassifyImage."""
    return re.fullmatch(r"\$\{(\w+)FunctionArn\}", state["Arguments"]["FunctionName"])[1]


@dataclass(frozen=True, eq=False)
class Machine:
    """A state machine, by the name that its files and its resource in the template share."""

    name: str

    @property
    def file(self) -> Path:
        return ROOT / "statemachine" / f"{snake_case(self.name)}.asl.json"

    @functools.cached_property
    def definition(self) -> dict[str, Any]:
        return json.loads(self.file.read_text())

    @functools.cached_property
    def states(self) -> dict[str, Any]:
        return all_states(self.definition["States"])

    @property
    def properties(self) -> dict[str, Any]:
        return RESOURCES[f"{self.name}StateMachine"]["Properties"]

    @property
    def functions(self) -> dict[str, str]:
        """The function of each state that invokes one."""
        tasks = {name: state for name, state in self.states.items() if ":lambda:invoke" in state.get("Resource", "")}
        return {name: function_of(state) for name, state in tasks.items()}

    def __str__(self) -> str:
        return self.name


def snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


CLASSIFY_IMAGE, RECORD_OUTCOME, CLASSIFY_BATCH, RETRAINING_DUE = MACHINES = [
    Machine(name) for name in ("ClassifyImage", "RecordOutcome", "ClassifyBatch", "RetrainingDue")
]
FUNCTIONS = list(dict.fromkeys(function for machine in MACHINES for function in machine.functions.values()))
