"""Checks of template.yaml that the linters do not make."""

import json
import re
import subprocess
import tomllib

import pytest
from botocore.loaders import Loader

from documents import RESOURCES, ROOT, TEMPLATE, transformed

TEXT = (ROOT / "template.yaml").read_text()
BUCKETS = ["ImageBucket", "ResultsBucket"]
FUNCTIONS = {name: resource for name, resource in RESOURCES.items() if resource["Type"] == "AWS::Serverless::Function"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_parameter_is_an_environment_variable_of_a_function(name):
    """A version's variables never change, and SAM publishes no version when only a parameter's value changes."""
    own = FUNCTIONS[name]["Properties"].get("Environment", {}).get("Variables", {})
    variables = own | TEMPLATE["Globals"]["Function"]["Environment"]["Variables"]
    references = [value["Ref"] for value in variables.values() if not isinstance(value, str)]
    assert set(references) <= {"AWS::StackName", *RESOURCES}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_invoked_through_an_alias_that_follows_every_property(name):
    assert TEMPLATE["Globals"]["Function"]["AutoPublishAlias"] == "live"
    assert FUNCTIONS[name]["Properties"]["AutoPublishAliasAllProperties"] is True


def test_every_function_is_traced_and_logs_json_with_a_retention():
    assert TEMPLATE["Globals"]["Function"]["Tracing"] == "Active"
    assert TEMPLATE["Globals"]["Function"]["LoggingConfig"]["LogFormat"] == "JSON"
    for resource in FUNCTIONS.values():
        group = resource["Properties"]["LoggingConfig"]["LogGroup"]["Ref"]
        assert RESOURCES[group]["Properties"]["RetentionInDays"] == {"Ref": "LogRetentionDays"}


def test_traces_and_the_state_machines_logs_contain_no_images():
    assert TEMPLATE["Globals"]["Function"]["Environment"]["Variables"]["POWERTOOLS_TRACER_CAPTURE_RESPONSE"] == "false"
    for machine in ("ClassifyImageStateMachine", "ClassifyBatchStateMachine"):
        assert RESOURCES[machine]["Properties"]["Logging"]["IncludeExecutionData"] is False


def test_the_upload_trigger_matches_only_its_prefix_so_that_no_output_loops():
    pattern = RESOURCES["StartExecutionFunction"]["Properties"]["Events"]["Upload"]["Properties"]["Pattern"]
    assert pattern["detail"]["object"] == {"key": [{"prefix": {"Ref": "UploadPrefix"}}]}
    assert re.fullmatch(TEMPLATE["Parameters"]["UploadPrefix"]["AllowedPattern"], "") is None


def test_only_the_endpoint_the_vended_logs_and_the_package_group_have_names():
    named = re.findall(r"^\s+(\w*Name): !?\S", TEXT, re.MULTILINE)
    references = {"ModelName", "EndpointConfigName", "MetricName", "Name", "DatabaseName", "FunctionName"}
    names = {"EndpointName", "LogGroupName", "VariantName", "PolicyName", "ModelPackageGroupName"}
    assert set(named) <= names | references


def test_no_partition_region_or_account_is_hard_coded():
    resources = TEXT.partition("\nGlobals:")[2]
    assert "arn:aws:" not in resources
    assert not re.search(r"\b[a-z]{2}-[a-z]+-\d\b|\b\d{12}\b", resources)


def test_parameters_have_the_documented_defaults():
    defaults = {name: parameter["Default"] for name, parameter in TEMPLATE["Parameters"].items()}
    assert defaults["Threshold"] == "0.75"
    assert defaults["EndpointType"] == "none"
    assert defaults["Architecture"] == "arm64"


def test_every_output_that_the_local_stack_uses_exists():
    used = {"ImageBucketName", "UploadPrefix", "ClassifyImageStateMachineArn", "ReviewTableName", "EndpointName"}
    used |= {"ClassifyBatchStateMachineArn", "ResultsBucketName"}
    assert used | {f"{name}Name" for name in FUNCTIONS} <= set(TEMPLATE["Outputs"])


@pytest.mark.parametrize("environment", ["default", "local", "staging", "prod"])
def test_every_environment_of_samconfig_is_complete(environment):
    """Environments of samconfig.toml do not inherit from each other."""
    settings = tomllib.loads((ROOT / "samconfig.toml").read_text())[environment]
    assert {"stack_name", "region"} <= set(settings["global"]["parameters"])
    assert {"resolve_s3", "capabilities", "confirm_changeset"} <= set(settings["deploy"]["parameters"])
    assert settings["build"]["parameters"]["parallel"]


@pytest.mark.parametrize("bucket", BUCKETS)
def test_a_bucket_is_private_and_encrypted(bucket):
    properties = RESOURCES[bucket]["Properties"]
    assert set(properties["PublicAccessBlockConfiguration"].values()) == {True}
    assert "BucketEncryption" in properties


def test_the_log_level_is_lambdas_own_and_keeps_the_prediction_log():
    """Powertools ignores POWERTOOLS_LOG_LEVEL where Lambda sets AWS_LAMBDA_LOG_LEVEL, as it does with JSON logs.

    https://docs.aws.amazon.com/lambda/latest/dg/monitoring-cloudwatchlogs-log-level.html
    """
    settings = TEMPLATE["Globals"]["Function"]
    assert settings["LoggingConfig"] == {"LogFormat": "JSON", "ApplicationLogLevel": "INFO", "SystemLogLevel": "INFO"}
    assert "POWERTOOLS_LOG_LEVEL" not in settings["Environment"]["Variables"]


def test_every_region_has_a_row_and_those_without_an_image_require_one():
    """CloudFormation looks up every FindInMap, in the branch of an If that is not taken too."""
    partitions = Loader().load_data("partitions")["partitions"]
    regions = {region for partition in partitions for region in partition["regions"] if not region.endswith("-global")}
    registries = TEMPLATE["Mappings"]["ScikitLearnRegistry"]
    assert set(registries) == regions
    (assertion,) = TEMPLATE["Rules"]["ImageForRegion"]["Assertions"]
    refused = assertion["Assert"]["Fn::Not"][0]["Fn::Contains"][0]
    assert set(refused) == {region for region, row in registries.items() if row["Account"] == "none"}


@pytest.mark.parametrize("name", ["Threshold", "MinAcceptanceRate"])
def test_a_parameter_in_the_dashboards_json_is_a_json_number(name):
    parameter = TEMPLATE["Parameters"][name]
    allowed = [text for text in ("1", "0.5", "1.0", "0.000001") if re.fullmatch(parameter["AllowedPattern"], text)]
    assert [json.loads(text) for text in allowed] == [1, 0.5, 1, 0.000001]
    refused = (".5", "5.", "01", "1e-1", "1.5", "-0.5", "0,5", "")
    assert [text for text in refused if re.fullmatch(parameter["AllowedPattern"], text)] == []
    assert bool(re.fullmatch(parameter["AllowedPattern"], "0")) == (name == "MinAcceptanceRate")


def test_parameters_are_substituted_into_the_dashboard_only_where_a_json_value_stands():
    body, _ = RESOURCES["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
    used = set(re.findall(r"\$\{(\w+)\}", body)) & set(TEMPLATE["Parameters"])
    assert used == {"Threshold", "MinAcceptanceRate", "MinAcceptedAccuracy", "MaxLabelDrift"}


def test_every_parameter_is_in_one_group_of_the_console():
    groups = TEMPLATE["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    shown = [name for group in groups for name in group["Parameters"]]
    assert sorted(shown) == sorted(TEMPLATE["Parameters"])


def test_numbers_in_rules_and_conditions_are_quoted():
    """A parameter's value is a string; Equals and Contains compare strings."""

    def compared(node):
        if isinstance(node, dict):
            for function, arguments in node.items():
                if function in ("Fn::Equals", "Fn::Contains"):
                    yield from (each for each in arguments if not isinstance(each, dict))
                yield from compared(arguments)
        elif isinstance(node, list):
            for each in node:
                yield from compared(each)

    values = [*compared(TEMPLATE["Rules"]), *compared(TEMPLATE["Conditions"])]
    assert "0" in values
    assert {type(value) for value in values} == {str, list}


@pytest.mark.parametrize("bucket", BUCKETS)
def test_a_bucket_refuses_plain_http_and_deletes_incomplete_uploads(bucket):
    policy = RESOURCES[f"{bucket}Policy"]["Properties"]
    assert policy["Bucket"] == {"Ref": bucket}
    (statement,) = policy["PolicyDocument"]["Statement"]
    assert (statement["Effect"], statement["Principal"], statement["Action"]) == ("Deny", "*", "s3:*")
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    rules = RESOURCES[bucket]["Properties"]["LifecycleConfiguration"]["Rules"]
    assert any("AbortIncompleteMultipartUpload" in rule and "Prefix" not in rule for rule in rules)


def test_the_image_bucket_keeps_old_versions_for_a_time():
    properties = RESOURCES["ImageBucket"]["Properties"]
    assert properties["VersioningConfiguration"] == {"Status": "Enabled"}
    (rule,) = properties["LifecycleConfiguration"]["Rules"]
    assert "NoncurrentVersionExpiration" in rule


def test_only_this_accounts_rules_may_send_to_the_failure_queue():
    (statement,) = RESOURCES["FailureQueuePolicy"]["Properties"]["PolicyDocument"]["Statement"]
    assert statement["Condition"]["StringEqualsIfExists"] == {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}
    assert "${AWS::AccountId}" in statement["Condition"]["ArnLike"]["aws:SourceArn"]["Fn::Sub"]


def test_buckets_queues_topic_and_logs_can_have_a_key_and_buckets_and_queues_are_encrypted_without():
    key = {"Ref": "EncryptionKeyArn"}
    own = {"Fn::If": ["HasEncryptionKey", key, {"Ref": "AWS::NoValue"}]}
    properties = {"AWS::SQS::Queue": "KmsMasterKeyId", "AWS::SNS::Topic": "KmsMasterKeyId"}
    properties["AWS::Logs::LogGroup"] = "KmsKeyId"
    for resource in RESOURCES.values():
        if resource["Type"] in properties:
            assert resource["Properties"][properties[resource["Type"]]] == own
        if resource["Type"] == "AWS::SQS::Queue":
            assert resource["Properties"]["SqsManagedSseEnabled"] == {"Fn::If": ["HasEncryptionKey", False, True]}
    for bucket in BUCKETS:
        (rule,) = RESOURCES[bucket]["Properties"]["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        _, with_key, without = rule["ServerSideEncryptionByDefault"]["Fn::If"]
        assert with_key == {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}
        assert without == {"SSEAlgorithm": "AES256"}


def test_every_role_can_have_a_permissions_boundary():
    roles = [row for row in transformed()["Resources"].values() if row["Type"] == "AWS::IAM::Role"]
    boundary = {"Fn::If": ["HasBoundary", {"Ref": "PermissionsBoundaryArn"}, {"Ref": "AWS::NoValue"}]}
    assert len(roles) == 17
    assert all(role["Properties"]["PermissionsBoundary"] == boundary for role in roles)


def test_an_existing_endpoints_name_may_have_capitals():
    """IAM sees the endpoint's ARN in lower case."""
    resources = json.dumps([RESOURCES[f"Classify{name}Function"]["Properties"] for name in ("Image", "Batch")])
    assert "endpoint/*" in resources
    assert "ExistingEndpointName" not in resources


@pytest.mark.parametrize("parameters", ["", "EndpointType=none", "Architecture=x86_64 EndpointType=none"])
def test_functions_are_built_for_the_architecture_that_is_deployed(parameters):
    """sam deploy keeps the deployed value of a parameter that is left out; sam build knows only the default."""
    command = ["make", "--dry-run", "deploy", f"PARAMETERS={parameters}", "ENV=staging"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    options = [found[2].strip() for line in lines if (found := re.search(r" samcli (build|deploy) (.*)", line))]
    assert len(options) == 2 and options[0] == options[1]
    assert "--config-env staging" in options[0]
    if parameters:
        assert len(re.findall(r"Architecture=\w+", options[0])) == 1


@pytest.mark.parametrize("environment", ["default", "staging", "prod"])
def test_every_environment_names_its_architecture_for_build_and_deploy(environment):
    settings = tomllib.loads((ROOT / "samconfig.toml").read_text())[environment]
    assert "Architecture=" in settings["global"]["parameters"]["parameter_overrides"]


def test_the_results_table_has_a_column_for_every_field_of_a_line():
    """The fields of CheckConfidence's output, of the lines of errors, and those that ClassifyBatch adds."""
    table = RESOURCES["ResultsTable"]["Properties"]["TableInput"]
    columns = {column["Name"] for column in table["StorageDescriptor"]["Columns"]}
    event = json.loads((ROOT / "events/check_confidence.json").read_text())
    decision = {"label", "confidence", "threshold", "accepted"}
    del event["audit_rate"]
    assert columns == set(event) | decision | {"s3_version_id", "execution_arn", "outcome", "error", "cause", "time"}
    assert table["PartitionKeys"] == [{"Name": "execution", "Type": "string"}]


def test_failures_of_both_standard_machines_reach_the_failure_queue():
    """An Express execution emits no event when it ends."""
    pattern = RESOURCES["FailedExecutionRule"]["Properties"]["EventPattern"]["detail"]
    machines = {name: row for name, row in RESOURCES.items() if row["Type"] == "AWS::Serverless::StateMachine"}
    standard = [name for name, row in machines.items() if row["Properties"].get("Type") != "EXPRESS"]
    assert pattern["stateMachineArn"] == [{"Ref": name} for name in standard]


def test_only_classify_batch_turns_the_tracer_off():
    variables = {name: row["Properties"].get("Environment", {}).get("Variables", {}) for name, row in FUNCTIONS.items()}
    off = {name for name, value in variables.items() if value.get("POWERTOOLS_TRACE_DISABLED") == "true"}
    assert off == {"ClassifyBatchFunction"}


def test_the_shadow_model_is_served_like_the_model():
    model, shadow = (RESOURCES[name]["Properties"] for name in ("Model", "ShadowModel"))
    archive = shadow["PrimaryContainer"] | {"ModelDataUrl": {"Ref": "ModelDataUrl"}}
    assert shadow["PrimaryContainer"]["ModelDataUrl"] == {"Ref": "ShadowModelDataUrl"}
    assert shadow | {"PrimaryContainer": archive} == model
    config = RESOURCES["EndpointConfig"]["Properties"]
    (production,) = (variant["Fn::If"][2] for variant in config["ProductionVariants"])
    condition, (copy,), nothing = config["ShadowProductionVariants"]["Fn::If"]
    assert (condition, nothing) == ("HasShadow", {"Ref": "AWS::NoValue"})
    assert copy == production | {"VariantName": "Shadow", "ModelName": {"Fn::GetAtt": ["ShadowModel", "ModelName"]}}
