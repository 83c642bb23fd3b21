"""An emulated AWS in this process; the real one is out of reach."""

import json
import os

import boto3
import pytest
from moto import mock_aws
from moto.core.responses import ActionResult
from moto.iam.responses import IamResponse
from PIL import Image

TRUST = {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch, tmp_path):
    """Hide the credentials, profile and region of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "SAGEMAKER_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def aws(monkeypatch):
    """A session with a bucket `models` and a role `training` in us-east-1."""
    # moto lacks this call; the empty response means "allowed".
    monkeypatch.setattr(IamResponse, "simulate_principal_policy", lambda self: ActionResult({}), raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        session = boto3.Session()
        session.client("s3").create_bucket(Bucket="models")
        trust = json.dumps({"Version": "2012-10-17", "Statement": [TRUST]})
        session.client("iam").create_role(RoleName="training", AssumeRolePolicyDocument=trust)
        yield session


@pytest.fixture
def images(tmp_path):
    """A folder of two classes that are easy to distinguish."""
    for label, brightness in {"dark dog": 10, "bright cat": 200}.items():
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (20, 16), (brightness + number,) * 3).save(tmp_path / "images" / label / f"{number}+.png")
    return tmp_path / "images"
