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
from local.command import LOCAL, ROOT, StackError
from local.deployment import BUILD, BUILT, deploy, model_archive, sam, upload_model
from local.retrain import retrain
from local.target import Target
from workflow import DIGITS, Workflow

ENDPOINT = {"Model", "ModelRole", "EndpointConfig", "Endpoint"}
ALARMS = {"EndpointErrorsAlarm", "EndpointLatencyAlarm", "EndpointUpdateErrorsAlarm", "EndpointUpdateLatencyAlarm"}
SCALING = {"EndpointScalableTarget", "EndpointScalingPolicy"}
RETRAINING = {f"RetrainingDue{name}" for name in ("StateMachine", "StateMachineRole", "Rule", "RuleRole")}
EVERYTHING = {
    "InstanceCount": "2",
    "MaxInstanceCount": "4",
    "NetworkIsolation": "true",
    "KmsKeyArn": "arn:aws:kms:us-east-1:000000000000:key/own",
    "DataCaptureUrl": "s3://models/captured",
    "InferenceImageUri": "000000000000.dkr.ecr.us-east-1.amazonaws.com/team/endpoint:1",
}
SHADOW = {"ShadowModelDataUrl": "s3://models/shadow/model.tar.gz"}


@pytest.fixture
def build_folder():
    """A copy of the build, next to the original: the template's paths are relative."""
    folder = BUILD.with_name("changed")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(BUILD, folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def packaged(workflow, stack, tmp_path_factory):
    """The built template with its code in S3: sam deploy would zip it for each test, and parse YAML for seconds."""
    template = tmp_path_factory.mktemp("packaged") / "template.json"
    output = ["--output-template-file", str(template), "--use-json", "--resolve-s3"]
    sam(stack, "package", "--template-file", str(BUILT), *output)
    return template


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
    stack, packaged, model, seven, request, endpoint_type, parameters, created, endpoint
):
    name = f"type-{request.node.callspec.id}"
    outputs = deploy(stack, name, packaged, EndpointType=endpoint_type, ModelDataUrl=model, **parameters)
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


def test_a_stack_is_updated_step_by_step(stack, packaged, model, seven, build_folder, tmp_path):
    """First without an endpoint; then with one, another threshold, new code, a new model, and a realtime endpoint."""

    def update(template=packaged, **parameters):
        return Workflow(stack, deploy(stack, "updated", template, **parameters))

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

    (code,) = build_folder.glob("*/check_confidence.py")
    code.write_text(code.read_text().replace('"label": best["label"]', '"label": best["label"] + " (new)"'))
    shutil.rmtree(code.parent / "__pycache__")
    coded = update(build_folder / "template.yaml", Threshold="0.75")
    assert coded.classify("seven.png", seven).output["label"] == "7 (new)"
    assert alias(coded) == "2"

    renamed = tmp_path / "model"
    shutil.copytree(LOCAL / "model", renamed)
    metadata = json.loads((renamed / "metadata.json").read_text())
    metadata["labels"] = [f"digit {label}" for label in metadata["labels"]]
    (renamed / "metadata.json").write_text(json.dumps(metadata))
    new_model = upload_model(stack, package.build(renamed, [], tmp_path))
    assert update(ModelDataUrl=new_model).classify("seven.png", seven).output["label"] == "digit 7"

    realtime = update(EndpointType="realtime")
    assert realtime.classify("seven.png", seven).output["endpoint"]["name"] == "updated-realtime"
    again = update(EndpointType="serverless").classify("seven.png", seven)
    assert (again.output["endpoint"]["name"], again.output["label"]) == ("updated", "digit 7")
    stack.client("cloudformation").delete_stack(StackName="updated")


def test_an_alarm_that_goes_off_publishes_that_retraining_is_due(workflow, stack, packaged, outcome_events, tmp_path):
    """Nobody but AWS can send CloudWatch's events, so the test does what the rule would."""
    events_on = {"RetrainOnAlarm": "true", "RetrainSchedule": "rate(30 days)"}
    outputs = deploy(stack, "retraining", packaged, EndpointType="none", **events_on)
    with pytest.raises(StackError, match="EndpointType none"):
        retrain(Target("retraining", outputs, stack.client, stack), DIGITS, tmp_path)
    assert resources(stack, "retraining") >= RETRAINING
    assert not resources(stack, "image-classification") & RETRAINING
    events, states = stack.client("events"), stack.client("stepfunctions")
    rule = events.describe_rule(Name=physical_id(stack, "retraining", "RetrainingDueRule").rpartition("|")[2])
    (target,) = events.list_targets_by_rule(Rule=rule["Name"])["Targets"]
    assert (rule["ScheduleExpression"], rule["State"]) == ("rate(30 days)", "ENABLED")

    alarm = json.loads((ROOT / "events/retraining_due_execution.json").read_text())
    name = alarm["detail"]["alarmName"] = physical_id(stack, "retraining", "AccuracyAlarm")
    recovered = alarm | {"detail": alarm["detail"] | {"state": {"value": "OK"}}}
    another = alarm | {"detail": alarm["detail"] | {"alarmName": "another"}}
    sent = [alarm, recovered, another]
    matches = [events.test_event_pattern(EventPattern=rule["EventPattern"], Event=json.dumps(each)) for each in sent]
    assert [each["Result"] for each in matches] == [True, False, False]

    states.start_execution(stateMachineArn=target["Arn"], input=json.dumps(alarm))
    message = workflow.message_about(outcome_events, "Retraining Due", seconds=30)
    assert message["detail-type"] == "Retraining Due" and message["source"] == "image-classification"
    assert message["detail"] == {"stack": "retraining", "reason": name}
    stack.client("cloudformation").delete_stack(StackName="retraining")


def physical_id(stack, name, resource):
    described = stack.client("cloudformation").describe_stack_resource(StackName=name, LogicalResourceId=resource)
    return described["StackResourceDetail"]["PhysicalResourceId"]


def test_a_second_stack_reads_another_bucket_only_if_a_parameter_names_it(workflow, stack, seven):
    buckets = f"arn:aws:s3:::{workflow.bucket},arn:aws:s3:::none"
    reader = Workflow(stack, deploy(stack, "reader", EndpointType="none", FurtherImageBuckets=buckets))
    request = {"s3_bucket": workflow.bucket, "s3_key": workflow.upload("shared.png", seven)}
    assert reader.execute(request).task_errors == ["EndpointNotConfiguredError"]  # the state after RetrieveImage
    assert reader.execute(request | {"s3_key": "missing.png"}).error == "ImageNotFoundError"
    own = {"s3_bucket": reader.bucket, "s3_key": reader.upload("own.png", seven)}
    assert workflow.execute(own).error == "ImageAccessDeniedError"
    stack.client("cloudformation").delete_stack(StackName="reader")


@pytest.fixture(scope="module")
def functions(workflow, stack):
    """The deployed functions, as Lambda's API describes them."""
    names = [value for name, value in workflow.outputs.items() if name.endswith("FunctionName")]
    return [stack.client("lambda").get_function(FunctionName=name) for name in names]


@pytest.fixture(scope="module")
def deployed_code(functions, tmp_path_factory):
    """A folder with the deployed package."""
    folder = tmp_path_factory.mktemp("deployed")
    url = functions[0]["Code"]["Location"]
    with urllib.request.urlopen(url) as response, zipfile.ZipFile(io.BytesIO(response.read())) as package_:
        package_.extractall(folder)
    return folder


def python(folder, *arguments, **variables):
    """Run the functions' Python with nothing but this package."""
    command = [LOCAL / "venvs/lambda/bin/python", *arguments]
    environment = {"PYTHONPATH": str(folder)} | variables
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_compiled_code_is_uploaded_once_and_used(functions, deployed_code):
    assert len({function["Configuration"]["CodeSha256"] for function in functions}) == 1
    imported = python(deployed_code, "-v", "-c", "import contract, json; contract.validator(contract.CHECK_CONFIDENCE)")
    sources = re.findall(rf"code object from '?{deployed_code}/([^'\n]+)", imported.stderr)
    assert "__pycache__/contract.cpython-313.pyc" in sources
    assert "__pycache__/compiled_schemas.cpython-313.pyc" in sources
    assert [source for source in sources if not source.endswith(".pyc") or "fastjsonschema" in source] == []


def test_a_compiled_schema_is_the_librarys(deployed_code):
    """In the package and in the source, an invalid event gives the same message."""
    program = "import contract; contract.validator(contract.CHECK_CONFIDENCE)({'s3_bucket': 'b', 's3_key': 1})"
    compiled = python(deployed_code, "-c", program)
    (deployed_code / "source").mkdir()
    shutil.copy(deployed_code / "contract.py", deployed_code / "source")
    library = python(deployed_code / "source", "-c", program, PYTHONPATH=f"{deployed_code}/source:{deployed_code}")
    messages = [result.stderr.splitlines()[-1] for result in (compiled, library)]
    assert messages[0] == messages[1]
    assert "InvalidInputError: The input is not valid: it must contain" in messages[0]


def test_the_deployed_package_has_the_clients_that_the_functions_use_and_no_others(deployed_code, stack):
    program = """
import botocore.session

session = botocore.session.get_session()
print(session.create_client("s3").list_buckets()["ResponseMetadata"]["HTTPStatusCode"])
print(session.create_client("sts").get_caller_identity()["Account"])
print(session.create_client("sagemaker-runtime").meta.service_model.operation_names[:1])
print(session.get_available_services())
session.create_client("ec2")
"""
    result = python(deployed_code, "-c", program, **stack.aws_variables)
    assert result.stdout.splitlines() == [
        "200",
        "000000000000",
        "['InvokeEndpoint']",
        "['cloudwatch', 'dynamodb', 'events', 'glue', 's3', 'sagemaker', 'sagemaker-runtime', "
        "'stepfunctions', 'sts', 'xray']",
    ]
    assert "UnknownServiceError: Unknown service: 'ec2'" in result.stderr


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"EndpointType": "serverless"}, "need ModelDataUrl="),
        ({"EndpointType": "realtime"}, "need ModelDataUrl="),
        ({"EndpointType": "existing"}, "needs ExistingEndpointName"),
        ({"EndpointType": "serverless", "DataCaptureUrl": "s3://b/p"}, "omit DataCaptureUrl"),
        ({"EndpointType": "serverless", "KmsKeyArn": EVERYTHING["KmsKeyArn"]}, "omit KmsKeyArn"),
        ({"EndpointType": "serverless", "NetworkIsolation": "true"}, "omit NetworkIsolation"),
        ({"EndpointType": "serverless", **SHADOW}, "use EndpointType realtime"),
        ({"EndpointType": "none", **SHADOW}, "use EndpointType realtime"),
        ({"EndpointType": "existing", "ExistingEndpointName": "own", **SHADOW}, "use EndpointType realtime"),
        ({"EndpointType": "realtime", **SHADOW}, "ShadowModelDataUrl needs DataCaptureUrl"),
        ({"EndpointType": "realtime", **SHADOW, "InstanceType": "ml.inf1.xlarge"}, "ml.inf1 instances"),
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


def test_sam_deploy_prints_the_sentence_of_a_rule(stack, packaged):
    with pytest.raises(StackError, match="need ModelDataUrl="):
        deploy(stack, "invalid", packaged, EndpointType="serverless")
