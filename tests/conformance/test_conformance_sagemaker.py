"""SageMaker, as AWS documents it, through CloudFormation."""

import io
import json
import re
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from botocore.exceptions import ClientError, WaiterError

from emulated import ROLE, deploy
from resources import eventually


def upload_model(client, weights):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as file:
        member = tarfile.TarInfo("weights.txt")
        member.size = len(weights)
        file.addfile(member, io.BytesIO(weights.encode()))
    client("s3").create_bucket(Bucket="models")
    client("s3").put_object(Bucket="models", Key=f"{weights}/model.tar.gz", Body=archive.getvalue())
    return f"s3://models/{weights}/model.tar.gz"


def shadow_template(model_data_url, shadow_url, name):
    """A realtime endpoint with a shadow variant and data capture."""
    template = json.loads(endpoint_template(model_data_url, name))
    resources = template["Resources"]
    model = resources["Model"]["Properties"]
    container = model["PrimaryContainer"] | {"ModelDataUrl": shadow_url}
    resources["Challenger"] = resources["Model"] | {"Properties": model | {"PrimaryContainer": container}}
    instance = {"InstanceType": "ml.c6i.large", "InitialInstanceCount": "1", "InitialVariantWeight": 1}
    resources["EndpointConfig"]["Properties"] = {
        kind: [instance | {"VariantName": variant, "ModelName": {"Fn::GetAtt": [model, "ModelName"]}}]
        for kind, variant, model in [
            ("ProductionVariants", "AllTraffic", "Model"),
            ("ShadowProductionVariants", "Shadow", "Challenger"),
        ]
    } | {
        "DataCaptureConfig": {
            "EnableCapture": True,
            "InitialSamplingPercentage": "100",
            "DestinationS3Uri": "s3://models/captured",
            "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
            "CaptureContentTypeHeader": {"JsonContentTypes": ["application/json"]},
        }
    }
    return json.dumps(template)


def captured(client, name, variant):
    """The keys of the variant's captured data after the endpoint's prefix, and the events."""
    s3, prefix = client("s3"), f"captured/{name}/{variant}/"
    keys = [row["Key"] for row in s3.list_objects_v2(Bucket="models", Prefix=prefix).get("Contents", [])]
    texts = [s3.get_object(Bucket="models", Key=key)["Body"].read().decode() for key in keys]
    return [key.removeprefix(prefix) for key in keys], [
        json.loads(line) for text in texts for line in text.splitlines()
    ]


def endpoint_template(model_data_url, name):
    variables = {"SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code", "PYTHONPATH": "/opt/ml/model/lib"}
    container = {"Image": "image", "ModelDataUrl": model_data_url, "Environment": variables}
    serverless = {"MemorySizeInMB": "2048", "MaxConcurrency": "1"}
    variant = {"VariantName": "AllTraffic", "ModelName": {"Fn::GetAtt": ["Model", "ModelName"]}}
    config_name = {"Fn::GetAtt": ["EndpointConfig", "EndpointConfigName"]}
    resources = {
        "Model": {"PrimaryContainer": container, "ExecutionRoleArn": ROLE},
        "EndpointConfig": {"ProductionVariants": [variant | {"ServerlessConfig": serverless}]},
        "Endpoint": {"EndpointName": name, "EndpointConfigName": config_name},
    }
    return json.dumps(
        {
            "Resources": {
                kind: {"Type": f"AWS::SageMaker::{kind}", "Properties": properties}
                for kind, properties in resources.items()
            },
            "Outputs": {
                "ModelRef": {"Value": {"Ref": "Model"}},
                "EndpointRef": {"Value": {"Ref": "Endpoint"}},
                "EndpointName": {"Value": {"Fn::GetAtt": ["Endpoint", "EndpointName"]}},
                "EndpointConfigName": {"Value": config_name},
            },
        }
    )


def invoke(client, name, body=b"{}"):
    return client("sagemaker-runtime").invoke_endpoint(
        EndpointName=name, Body=body, ContentType="application/json", Accept="application/json"
    )


@pytest.fixture(scope="module")
def endpoint(emulator):
    deploy(emulator.client, "served", endpoint_template(upload_model(emulator.client, "first"), "served"))
    return "served"


def refusal(client, endpoint):
    """The error of an invocation, if it fails. While an endpoint is deleted, its container can cut the connection."""
    try:
        invoke(client, endpoint)
    except ClientError as error:
        return str(error)
    return ""


def test_a_deployed_endpoint_serves_its_model_and_can_be_updated(client):
    """An update replaces Model and EndpointConfig, while the endpoint keeps its name; Ref returns the ARN.

    https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-sagemaker-endpoint.html
    https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-sagemaker-model.html
    """
    first = deploy(client, "stack", endpoint_template(upload_model(client, "old"), "digits"))
    assert first["EndpointRef"] == "arn:aws:sagemaker:us-east-1:000000000000:endpoint/digits"
    assert first["ModelRef"].startswith("arn:aws:sagemaker:us-east-1:000000000000:model/")
    assert first["EndpointName"] == "digits"
    assert json.load(invoke(client, "digits")["Body"])["weights"] == "old"
    second = deploy(client, "stack", endpoint_template(upload_model(client, "new"), "digits"), "update")
    assert first["EndpointRef"] == second["EndpointRef"] and first["ModelRef"] != second["ModelRef"]
    assert json.load(invoke(client, "digits")["Body"])["weights"] == "new"
    described = client("sagemaker").describe_endpoint(EndpointName="digits")
    assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("InService", second["EndpointConfigName"])
    with pytest.raises(ClientError, match="Could not find"):
        client("sagemaker").describe_endpoint_config(EndpointConfigName=first["EndpointConfigName"])
    client("cloudformation").delete_stack(StackName="stack")
    assert eventually(lambda: "Endpoint digits of account 000000000000 not found" in refusal(client, "digits"))


@pytest.mark.parametrize("weights, reason", [("broken", "these weights are broken"), ("missing", "Not Found")])
def test_a_model_that_does_not_start_fails_the_stack_with_the_reason(client, weights, reason):
    """https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_DescribeEndpoint.html, FailureReason"""
    url = upload_model(client, weights) if weights == "broken" else "s3://models/missing/model.tar.gz"
    with pytest.raises(WaiterError):
        deploy(client, f"stack-{weights}", endpoint_template(url, weights))
    events = client("cloudformation").describe_stack_events(StackName=f"stack-{weights}")["StackEvents"]
    reasons = [event["ResourceStatusReason"] for event in events if event["ResourceStatus"] == "CREATE_FAILED"]
    assert reason in reasons[-1]


def test_a_container_gets_the_documented_environment_variables(client, endpoint):
    """https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html"""
    response = invoke(client, endpoint)
    environment = json.load(response["Body"])["environment"]
    assert environment["SAGEMAKER_SUBMIT_DIRECTORY"] == environment["SM_MODEL_DIR"] + "/code"
    assert environment.get("PYTHONPATH") != "/opt/ml/model/lib"
    assert (response["InvokedProductionVariant"], response["ContentType"]) == ("AllTraffic", "application/json")


def error_of(client, endpoint, body):
    with pytest.raises(ClientError) as error:
        invoke(client, endpoint, body)
    response = error.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"], response


def test_the_runtime_api_returns_the_documented_errors(client, endpoint):
    """https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html#API_runtime_InvokeEndpoint_Errors
    https://docs.aws.amazon.com/sagemaker/latest/dg/serverless-endpoints.html, 4 MB and the maximum concurrency
    """
    status, code, response = error_of(client, endpoint, b"fail")
    assert (status, code, response["OriginalStatusCode"], response["OriginalMessage"]) == (
        424, "ModelError", 500, "no such label",
    )  # fmt: skip
    assert error_of(client, "absent", b"{}")[:2] == (400, "ValidationError")
    assert error_of(client, endpoint, b"x" * 4_194_305)[:2] == (413, "413")
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(invoke, client, endpoint, b"slow")
        time.sleep(0.3)
        assert error_of(client, endpoint, b"{}")[:2] == (429, "ThrottlingException")
        assert slow.result()["ContentType"] == "application/json"
    assert error_of(client, endpoint, b"die")[:2] == (503, "ServiceUnavailable")


def test_a_shadow_variant_answers_copies_and_the_data_of_both_variants_is_captured(client):
    """The caller gets the production variant's answer.

    https://docs.aws.amazon.com/sagemaker/latest/dg/model-shadow-deployment.html
    https://docs.aws.amazon.com/sagemaker/latest/dg/model-monitor-data-capture-endpoint.html, layout and format
    https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html, InferenceId
    """
    template = shadow_template(upload_model(client, "champion"), upload_model(client, "challenger"), "shadowed")
    deploy(client, "shadowed", template)
    response = client("sagemaker-runtime").invoke_endpoint(
        EndpointName="shadowed", Body=b"\x89PNG", ContentType="image/png", InferenceId="mine"
    )
    assert json.load(response["Body"])["weights"] == "champion"
    assert response["InvokedProductionVariant"] == "AllTraffic"
    for variant, weights in [("AllTraffic", "champion"), ("Shadow", "challenger")]:
        assert eventually(lambda variant=variant: captured(client, "shadowed", variant)[1])
        (key,), (event,) = captured(client, "shadowed", variant)
        assert re.fullmatch(r"\d{4}/\d\d/\d\d/\d\d/\d\d-\d\d-\d{3}-[0-9a-f-]{36}\.jsonl", key)
        sides = event["captureData"]
        assert sides["endpointInput"] == {
            "observedContentType": "image/png", "mode": "INPUT", "data": "iVBORw==", "encoding": "BASE64"
        }  # fmt: skip
        assert sides["endpointOutput"]["encoding"] == "JSON"
        assert json.loads(sides["endpointOutput"]["data"])["weights"] == weights
        assert set(event["eventMetadata"]) == {"eventId", "inferenceId", "inferenceTime"}
    client("cloudformation").delete_stack(StackName="shadowed")


def test_a_shadow_variant_that_dies_does_not_affect_the_caller_and_counts_errors(client):
    """https://docs.aws.amazon.com/sagemaker/latest/dg/monitoring-cloudwatch.html, by EndpointName and VariantName"""
    deploy(client, "dying", shadow_template(upload_model(client, "champion"), upload_model(client, "dies"), "dying"))
    assert [json.load(invoke(client, "dying")["Body"])["weights"] for _ in range(3)] == ["champion"] * 3

    def total(variant, metric):
        now = datetime.now(UTC)
        rows = client("cloudwatch").get_metric_statistics(
            Namespace="AWS/SageMaker", MetricName=metric, StartTime=now - timedelta(hours=1), EndTime=now,
            Dimensions=[{"Name": "EndpointName", "Value": "dying"}, {"Name": "VariantName", "Value": variant}],
            Period=60, Statistics=["Sum"],
        )["Datapoints"]  # fmt: skip
        return sum(row["Sum"] for row in rows)

    assert eventually(lambda: total("Shadow", "Invocation5XXErrors") == 3)
    assert (total("AllTraffic", "Invocations"), total("AllTraffic", "Invocation5XXErrors")) == (3, 0)
    assert captured(client, "dying", "Shadow") == ([], [])
    client("cloudformation").delete_stack(StackName="dying")
