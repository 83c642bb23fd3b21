"""S3, as AWS documents it."""

import json
import uuid

import pytest

from resources import eventually


@pytest.fixture
def bucket(client):
    s3 = client("s3")
    name = f"conformance-{uuid.uuid4().hex}"
    s3.create_bucket(Bucket=name)
    s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    s3.put_bucket_notification_configuration(Bucket=name, NotificationConfiguration={"EventBridgeConfiguration": {}})
    yield name
    rows = s3.list_object_versions(Bucket=name).get("Versions", [])
    for row in rows:
        s3.delete_object(Bucket=name, Key=row["Key"], VersionId=row["VersionId"])
    s3.delete_bucket(Bucket=name)


@pytest.fixture
def queue(client, bucket):
    """A queue that receives the bucket's events."""
    events, sqs = client("events"), client("sqs")
    url = sqs.create_queue(QueueName=bucket)["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    pattern = {"source": ["aws.s3"], "detail": {"bucket": {"name": [bucket]}}}
    events.put_rule(Name=bucket[:64], EventPattern=json.dumps(pattern))
    events.put_targets(Rule=bucket[:64], Targets=[{"Id": "queue", "Arn": arn}])
    yield url
    events.remove_targets(Rule=bucket[:64], Ids=["queue"])
    events.delete_rule(Name=bucket[:64])
    sqs.delete_queue(QueueUrl=url)


def test_the_event_of_an_upload_to_a_versioned_bucket_has_the_objects_version(client, bucket, queue):
    """https://docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html, version-id"""
    put = [client("s3").put_object(Bucket=bucket, Key="image.png", Body=body) for body in (b"first", b"second")]
    versions = {}

    def receive():
        for message in client("sqs").receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", []):
            received = json.loads(message["Body"])["detail"]["object"]
            versions[received["size"]] = received.get("version-id")
        return len(versions) == 2

    assert eventually(receive)
    assert versions == {5: put[0]["VersionId"], 6: put[1]["VersionId"]}
