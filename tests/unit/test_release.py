"""The workflow that deploys a release."""

import yaml

from documents import ROOT


def test_the_workflow_checks_releases_to_production_before_it_deploys():
    jobs = yaml.safe_load((ROOT / ".github/workflows/deploy.yml").read_text())["jobs"]
    steps = jobs["production"]["steps"]
    (number,) = [number for number, step in enumerate(steps) if "tools/check_model.py" in step.get("run", "")]
    assert steps[number]["if"] == "github.event_name == 'push'"
    assert steps[number + 1]["name"] == "Deploy"
    assert steps[number + 1]["env"]["PARAMETERS"] == steps[number]["env"]["PARAMETERS"]
    assert steps[number]["run"].endswith(" image-classification-prod")
    assert "--config-env prod" in steps[number + 1]["run"]
