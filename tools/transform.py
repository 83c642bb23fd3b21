"""Print the CloudFormation template that SAM makes of template.yaml.  python tools/transform.py [PARAMETER=VALUE ...]

For cfn-lint and the tests; it runs in the SAM CLI's environment. The definition of the state machine is put into it,
which cfn-lint checks only there. What SAM makes depends on the parameters: CloudFormation's conditions stay in it.
"""

import json
import logging
import sys
from pathlib import Path

from samcli.lib.translate.sam_template_validator import SamTemplateValidator
from samcli.yamlhelper import yaml_parse

ROOT = Path(__file__).resolve().parent.parent


class NoManagedPolicies:
    def load(self):
        """The template names no managed policy that would have to be looked up."""
        return {}


def transformed(parameters: dict[str, str]) -> str:
    template = yaml_parse((ROOT / "template.yaml").read_text())
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::Serverless::StateMachine":
            definition = (ROOT / resource["Properties"].pop("DefinitionUri")).read_text()
            resource["Properties"]["Definition"] = json.loads(definition)
    validator = SamTemplateValidator(template, NoManagedPolicies(), region="us-east-1", parameter_overrides=parameters)
    return validator.get_translated_template_if_valid()


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # SAM tells of features of its own that are switched off
    print(transformed(dict(argument.split("=", 1) for argument in sys.argv[1:])))
