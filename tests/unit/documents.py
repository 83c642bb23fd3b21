"""template.yaml and the state machine's definition as data."""

import functools
import json
import os
import subprocess
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
DEFINITION_FILE = ROOT / "statemachine" / "classify_image.asl.json"
DEFINITION = json.loads(DEFINITION_FILE.read_text())
STATES = DEFINITION["States"]
LAMBDA_STATES = [name for name, state in STATES.items() if ":lambda:invoke" in state.get("Resource", "")]
