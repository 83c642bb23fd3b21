"""Each type of endpoint deployed, a stack updated, and invalid parameters rejected."""

import io
import json
import re
import shutil
import subprocess
import urllib.request
import zipfile

import pytest
from botocore.exceptions import ClientError

from documents import transformed
from endpoint import package
from local.command import LOCAL, StackError
from local.deployment import BUILD, deploy, model_archive, upload_model
from workflow import Workflow

ENDPOINT = {"Model", "ModelRole", "EndpointConfig", "Endpoint"}
ALARMS = {"EndpointErrorsAlarm", "EndpointLatencyAlarm"}
SCALING = {"EndpointScalableTarget", "EndpointScalingPolicy"}
EVERYTHING = {
    "InstanceCount": "2",
    "MaxInstanceCount": "4",
    "NetworkIsolation": "true",
    "KmsKeyArn": "arn:aws:kms:us-east-1:000000000000:key/own",
    "DataCaptureUrl": "s3://models/captured",
    "InferenceImageUri": "000000000000.dkr.ecr.us-east-1.amazonaws.com/team/endpoint:1",
}


@pytest.fixture
def build_folder():
    """A build with a copy of CheckConfidence, next to the original: the template's paths are relative."""
    folder = BUILD.with_name("changed")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in BUILD.iterdir():
        (folder / path.name).symlink_to(path)
    changed = folder / "CheckConfidenceFunction"
    changed.unlink()
    shutil.copytree(BUILD / changed.name, changed)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def model(workflow, stack):
    return upload_model(stack, model_archive())


def resources(stack, name):
    """The logical ids of a stack's resources."""
    pages = stack.client("cloudformation").get_paginator("list_stack_resources").paginate(StackName=name)
    return {row["LogicalResourceId"] for page in pages for row in page["StackResourceSummaries"]}


@pytest.mark.parametrize(
    ("endpoint_type", "parameters", "created", "endpoint"),
    [
        ("realtime", {}, ENDPOINT | ALARMS, "type-realtime-realtime"),
        ("realtime", EVERYTHING, ENDPOINT | ALARMS | SCALING, "type-everything-realtime"),
        ("existing", {"ExistingEndpointName": "image-classification"}, set(), "image-classification"),
    ],
    ids=["realtime", "everything", "existing"],
)
def test_each_type_of_endpoint_is_created_and_invoked(
    stack, model, seven, request, endpoint_type, parameters, created, endpoint
):
    name = f"type-{request.node.callspec.id}"
    outputs = deploy(stack, name, EndpointType=endpoint_type, ModelDataUrl=model, **parameters)
    assert resources(stack, name) & (ENDPOINT | ALARMS | SCALING) == created
    execution = Workflow(stack, outputs).classify("seven.png", seven)
    assert (execution.status, outputs["EndpointName"]) == ("SUCCEEDED", endpoint)
    assert execution.output["endpoint"]["name"] == endpoint
    if parameters is EVERYTHING:
        assert created_endpoint(stack, endpoint) == EVERYTHING
    stack.client("cloudformation").delete_stack(StackName=name)


def created_endpoint(stack, endpoint):
    """An endpoint's settings, by the template's parameters."""
    sagemaker = stack.client("sagemaker")
    described = sagemaker.describe_endpoint(EndpointName=endpoint)
    config = sagemaker.describe_endpoint_config(EndpointConfigName=described["EndpointConfigName"])
    (variant,) = config["ProductionVariants"]
    model = sagemaker.describe_model(ModelName=variant["ModelName"])
    assert described["EndpointStatus"] == "InService"
    return {
        "InstanceCount": str(variant["InitialInstanceCount"]),
        "MaxInstanceCount": "4",  # not checked: the local stack only records the scaling policy
        "NetworkIsolation": str(model["EnableNetworkIsolation"]).lower(),
        "KmsKeyArn": config["KmsKeyId"],
        "DataCaptureUrl": config["DataCaptureConfig"]["DestinationS3Uri"],
        "InferenceImageUri": model["PrimaryContainer"]["Image"],
    }


def test_a_stack_is_updated_step_by_step(stack, model, seven, build_folder, tmp_path):
    """First without an endpoint; then with one, another threshold, new code, a new model, and a realtime endpoint."""

    def update(**parameters):
        return Workflow(stack, deploy(stack, "updated", **parameters))

    def alias(workflow):
        function = workflow.outputs["CheckConfidenceFunctionName"]
        return stack.client("lambda").get_alias(FunctionName=function, Name="live")["FunctionVersion"]

    bare = update(EndpointType="none")
    failed = bare.classify("seven.png", seven)
    assert (failed.status, failed.error) == ("FAILED", "EndpointNotConfiguredError")
    assert "EndpointType" in failed.message

    served = update(EndpointType="serverless", ModelDataUrl=model)
    assert served.bucket == bare.bucket
    assert served.classify("seven.png", seven).output["threshold"] == 0.75

    strict = update(Threshold="1")
    rejected = strict.classify("seven.png", seven)
    assert (rejected.error, json.loads(rejected.cause)["threshold"]) == ("THRESHOLD_CONFIDENCE_NOT_MET", 1)
    assert alias(strict) == "1"

    code = build_folder / "CheckConfidenceFunction/check_confidence.py"
    code.write_text(code.read_text().replace('"label": best["label"]', '"label": best["label"] + " (new)"'))
    shutil.rmtree(code.parent / "__pycache__")
    coded = update(build=build_folder, Threshold="0.75")
    assert coded.classify("seven.png", seven).output["label"] == "7 (new)"
    assert alias(coded) == "2"

    renamed = tmp_path / "model"
    shutil.copytree(LOCAL / "model", renamed)
    metadata = json.loads((renamed / "metadata.json").read_text())
    metadata["labels"] = [f"digit {label}" for label in metadata["labels"]]
    (renamed / "metadata.json").write_text(json.dumps(metadata))
    archive = package.pack(package.collect(renamed, []))
    package.write(archive, tmp_path / package.key_of(archive))
    new_model = upload_model(stack, tmp_path / package.key_of(archive))
    assert update(ModelDataUrl=new_model).classify("seven.png", seven).output["label"] == "digit 7"

    realtime = update(EndpointType="realtime")
    assert realtime.classify("seven.png", seven).output["endpoint"]["name"] == "updated-realtime"
    again = update(EndpointType="serverless").classify("seven.png", seven)
    assert (again.output["endpoint"]["name"], again.output["label"]) == ("updated", "digit 7")
    stack.client("cloudformation").delete_stack(StackName="updated")


def test_a_second_stack_reads_another_bucket_only_if_a_parameter_names_it(workflow, stack, seven):
    buckets = f"arn:aws:s3:::{workflow.bucket},arn:aws:s3:::none"
    reader = Workflow(stack, deploy(stack, "reader", EndpointType="none", FurtherImageBuckets=buckets))
    request = {"s3_bucket": workflow.bucket, "s3_key": workflow.upload("shared.png", seven)}
    assert reader.execute(request).task_errors == ["EndpointNotConfiguredError"]  # the state after RetrieveImage
    assert reader.execute(request | {"s3_key": "missing.png"}).error == "ImageNotFoundError"
    own = {"s3_bucket": reader.bucket, "s3_key": reader.upload("own.png", seven)}
    assert workflow.execute(own).error == "ImageAccessDeniedError"
    stack.client("cloudformation").delete_stack(StackName="reader")


def test_the_compiled_code_is_uploaded_once_and_used(workflow, stack, tmp_path):
    names = [value for name, value in workflow.outputs.items() if name.endswith("FunctionName")]
    functions = [stack.client("lambda").get_function(FunctionName=name) for name in names]
    assert len({function["Configuration"]["CodeSha256"] for function in functions}) == 1
    url = functions[0]["Code"]["Location"]
    with urllib.request.urlopen(url) as response, zipfile.ZipFile(io.BytesIO(response.read())) as package_:
        package_.extractall(tmp_path)
    imported = subprocess.run(
        [LOCAL / "venvs/lambda/bin/python", "-v", "-c", "import contract"],
        cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    sources = re.findall(rf"code object from '?{tmp_path}/([^'\n]+)", imported.stderr)
    assert "__pycache__/contract.cpython-313.pyc" in sources
    assert [source for source in sources if not source.endswith(".pyc")] == []


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"EndpointType": "serverless"}, "need ModelDataUrl="),
        ({"EndpointType": "realtime"}, "need ModelDataUrl="),
        ({"EndpointType": "existing"}, "needs ExistingEndpointName"),
        ({"EndpointType": "serverless", "DataCaptureUrl": "s3://b/p"}, "omit DataCaptureUrl"),
        ({"EndpointType": "serverless", "KmsKeyArn": EVERYTHING["KmsKeyArn"]}, "omit KmsKeyArn"),
        ({"EndpointType": "serverless", "NetworkIsolation": "true"}, "omit NetworkIsolation"),
        ({"EndpointType": "realtime", "MaxInstanceCount": "8", "InstanceCount": "5"}, "InstanceCount must be 1 to 4"),
        ({"EndpointType": "realtime", "MaxInstanceCount": "8", "InstanceType": "ml.t2.large"}, "ml.t2 instances"),
        ({"ModelDataUrl": "bucket/model.tar.gz"}, "ModelDataUrl"),
        ({"FurtherImageBuckets": "arn:aws:s3:::*"}, "FurtherImageBuckets"),
        ({"Labels": "it's, that"}, "Labels"),
        ({"Threshold": "1.5"}, "Threshold"),
        ({"Threshold": ".5"}, "Threshold"),
    ],
)
def test_invalid_parameters_fail_before_anything_is_created(stack, parameters, sentence):
    """sam deploy creates a change set first; without one, nothing is created."""
    if "need ModelDataUrl" not in sentence:
        parameters = {"ModelDataUrl": "s3://models/model.tar.gz"} | parameters
    with pytest.raises(ClientError, match=sentence):
        stack.client("cloudformation").create_change_set(
            StackName="invalid",
            ChangeSetName="invalid",
            ChangeSetType="CREATE",
            TemplateBody=json.dumps(transformed()),
            Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()],
            Capabilities=["CAPABILITY_IAM"],
        )


def test_sam_deploy_prints_the_sentence_of_a_rule(stack):
    with pytest.raises(StackError, match="need ModelDataUrl="):
        deploy(stack, "invalid", EndpointType="serverless")
