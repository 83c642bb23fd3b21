"""StartExecution: an upload -> one execution of the state machine per object version.

Not a state: EventBridge invokes it for every upload, at least once. An EventBridge target cannot name executions, so
this function names each by a hash of bucket, key and version, and Step Functions refuses a second one of that name.

in   EventBridge's event "Object Created"
out  {name, started}; started is false if the object version has its execution already, or if the object is a folder
"""

import hashlib
import json
import os
from typing import Any

from aws_lambda_powertools import Logger, Tracer
from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.config import Config
from botocore.session import get_session

STATE_MACHINE_ARN = os.environ["STATE_MACHINE_ARN"]

logger = Logger()
tracer = Tracer()
# Step Functions throttles bursts of StartExecution. What fails in spite of these retries is retried by Lambda.
states = get_session().create_client(
    "stepfunctions",
    config=Config(connect_timeout=3, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 8}),
)


def is_folder(s3_object: dict[str, Any]) -> bool:
    """Whether this is what the S3 console creates as a folder. Any other empty object is an upload that failed."""
    return s3_object["key"].endswith("/") and not s3_object.get("size")


def request_for(detail: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The execution's name and input. An unversioned bucket has no version, but a sequencer for each upload of a key.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html
    """
    s3_object = detail["object"]
    request = {"s3_bucket": detail["bucket"]["name"], "s3_key": s3_object["key"]}
    if version := s3_object.get("version-id"):
        request["s3_version_id"] = version
    identity = [*request.values(), version or s3_object.get("sequencer") or s3_object["etag"]]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest(), request


@tracer.capture_method(capture_response=False)
def start(name: str, request: dict[str, Any]) -> bool:
    """Start the execution; False if one with this name has ended. For a running one, Step Functions returns success.

    https://docs.aws.amazon.com/step-functions/latest/apireference/API_StartExecution.html
    """
    try:
        states.start_execution(stateMachineArn=STATE_MACHINE_ARN, name=name, input=json.dumps(request))
    except states.exceptions.ExecutionAlreadyExists:
        return False
    return True


@logger.inject_lambda_context
@tracer.capture_lambda_handler(capture_response=False)
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    name, request = request_for(event["detail"])
    logger.set_correlation_id(f"{STATE_MACHINE_ARN.replace(':stateMachine:', ':execution:', 1)}:{name}")
    started = not is_folder(event["detail"]["object"]) and start(name, request)
    logger.info("execution started" if started else "no execution started", **request)
    return {"name": name, "started": started}
