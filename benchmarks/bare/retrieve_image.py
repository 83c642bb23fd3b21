"""RetrieveImage with boto3 only: no validation, logs, traces or metrics."""

import base64

import boto3

s3 = boto3.client("s3")


def lambda_handler(event: dict, context: object) -> dict:
    data = s3.get_object(Bucket=event["s3_bucket"], Key=event["s3_key"])["Body"].read()
    return {**event, "image": {"content_type": "image/png", "data": base64.b64encode(data).decode()}}
