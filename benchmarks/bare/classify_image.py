"""ClassifyImage with boto3 only: no validation, logs, traces or metrics."""

import base64
import json

import boto3

runtime = boto3.client("sagemaker-runtime")


def lambda_handler(event: dict, context: object) -> dict:
    image = event["image"]
    response = runtime.invoke_endpoint(
        EndpointName=event["endpoint"]["name"],
        ContentType=image["content_type"],
        Body=base64.b64decode(image["data"]),
    )
    return {"s3_key": event["s3_key"], "predictions": json.loads(response["Body"].read())["predictions"]}
