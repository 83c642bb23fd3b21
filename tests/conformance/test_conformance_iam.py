"""IAM, as AWS documents it."""

import json

import boto3
import pytest
from botocore.exceptions import ClientError

from emulated import Emulator


@pytest.fixture
def enforcing(tmp_path):
    """An emulator that enforces policies, as the local stack's does."""
    emulator = Emulator(tmp_path, AUTH="true")
    yield emulator
    emulator.stop()


def user_of(emulator, service, allowed):
    """A service's client of a user with this right."""
    iam = emulator.client("iam")
    iam.create_user(UserName="reader")
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow"} | allowed]}
    iam.put_user_policy(UserName="reader", PolicyName=service, PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    user = {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}
    return boto3.client(service, endpoint_url=emulator.client("s3").meta.endpoint_url, region_name="us-east-1", **user)


def user_of_s3(emulator, resource):
    """The S3 client of a user who may do everything with a resource."""
    return user_of(emulator, "s3", {"Action": "s3:*", "Resource": resource})


def test_requests_to_the_api_are_over_tls(enforcing):
    """The local stack stands for AWS's APIs, which SDKs call over TLS.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/security-best-practices.html, encryption of data in transit
    """
    s3 = enforcing.client("s3")
    s3.create_bucket(Bucket="conformance")
    deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::conformance/*"}
    deny["Condition"] = {"Bool": {"aws:SecureTransport": "false"}}
    policy = {"Version": "2012-10-17", "Statement": [deny]}
    s3.put_bucket_policy(Bucket="conformance", Policy=json.dumps(policy))
    reader = user_of_s3(enforcing, "*")
    reader.put_object(Bucket="conformance", Key="image.png", Body=b"image")


def test_a_wildcard_matches_every_character_of_a_key(enforcing):
    """https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_resource.html, wildcards"""
    enforcing.client("s3").create_bucket(Bucket="conformance")
    user_of_s3(enforcing, "arn:aws:s3:::conformance/*").put_object(Bucket="conformance", Key="line\nbreak", Body=b"i")


def test_a_policy_can_depend_on_the_source_of_events(enforcing):
    """https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-use-conditions.html, events:source"""
    condition = {"StringEquals": {"events:source": "image-classification"}}
    events = user_of(enforcing, "events", {"Action": "events:PutEvents", "Resource": "*", "Condition": condition})
    entry = {"Source": "image-classification", "DetailType": "Image Reviewed", "Detail": "{}"}
    assert events.put_events(Entries=[entry])["FailedEntryCount"] == 0
    with pytest.raises(ClientError, match="AccessDenied"):
        events.put_events(Entries=[entry | {"Source": "another"}])
