"""Print the CloudFormation template that SAM makes of template.yaml, for cfn-lint. Runs in the SAM CLI's environment.

The definition of the state machine is put into it, which cfn-lint checks only there.
"""

import json
from pathlib import Path

from samcli.lib.translate.sam_template_validator import SamTemplateValidator
from samcli.yamlhelper import yaml_parse

ROOT = Path(__file__).resolve().parent.parent


class NoManagedPolicies:
    def load(self):
        """The template names no managed policy that would have to be looked up."""
        return {}


def transformed() -> str:
    template = yaml_parse((ROOT / "template.yaml").read_text())
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::Serverless::StateMachine":
            definition = (ROOT / resource["Properties"].pop("DefinitionUri")).read_text()
            resource["Properties"]["Definition"] = json.loads(definition)
    return SamTemplateValidator(template, NoManagedPolicies(), region="us-east-1").get_translated_template_if_valid()


if __name__ == "__main__":
    print(transformed())
