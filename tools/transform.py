"""Print template.yaml as SAM transforms it to CloudFormation: python tools/transform.py [PARAMETER=VALUE ...]

For cfn-lint and the tests; runs in the SAM CLI's environment. The state machine's definition is inlined, because
cfn-lint checks only inline definitions. Parameters change what SAM generates; CloudFormation's conditions are kept.
"""

import json
import logging
import sys
from pathlib import Path

from samcli.lib.translate.sam_template_validator import SamTemplateValidator
from samcli.yamlhelper import yaml_parse

ROOT = Path(__file__).resolve().parent.parent


class NoManagedPolicies:
    def load(self) -> dict[str, str]:
        """No managed policies: the template names none that would have to be looked up."""
        return {}


def transformed(parameters: dict[str, str]) -> str:
    """The CloudFormation template for these parameters, as YAML."""
    template = yaml_parse((ROOT / "template.yaml").read_text())
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::Serverless::StateMachine":
            definition = (ROOT / resource["Properties"].pop("DefinitionUri")).read_text()
            resource["Properties"]["Definition"] = json.loads(definition)
    validator = SamTemplateValidator(template, NoManagedPolicies(), region="us-east-1", parameter_overrides=parameters)
    return validator.get_translated_template_if_valid()


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # SAM warns about its own disabled features
    print(transformed(dict(argument.split("=", 1) for argument in sys.argv[1:])))
