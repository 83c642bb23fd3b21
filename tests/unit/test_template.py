"""Checks of template.yaml that the linters do not make."""

import json
import re
import tomllib

import pytest

from documents import RESOURCES, ROOT, TEMPLATE

TEXT = (ROOT / "template.yaml").read_text()
FUNCTIONS = {name: resource for name, resource in RESOURCES.items() if resource["Type"] == "AWS::Serverless::Function"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_parameter_is_an_environment_variable_of_a_function(name):
    """A version's variables never change, and SAM publishes no version when only a parameter's value changes."""
    own = FUNCTIONS[name]["Properties"].get("Environment", {}).get("Variables", {})
    variables = own | TEMPLATE["Globals"]["Function"]["Environment"]["Variables"]
    assert all(isinstance(value, str) or value == {"Ref": "AWS::StackName"} for value in variables.values())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_invoked_through_an_alias_that_follows_every_property(name):
    assert TEMPLATE["Globals"]["Function"]["AutoPublishAlias"] == "live"
    assert FUNCTIONS[name]["Properties"]["AutoPublishAliasAllProperties"] is True


def test_every_function_is_traced_and_logs_json_with_a_retention():
    assert TEMPLATE["Globals"]["Function"]["Tracing"] == "Active"
    for resource in FUNCTIONS.values():
        group = resource["Properties"]["LoggingConfig"]["LogGroup"]["Ref"]
        assert resource["Properties"]["LoggingConfig"]["LogFormat"] == "JSON"
        assert RESOURCES[group]["Properties"]["RetentionInDays"] == {"Ref": "LogRetentionDays"}


def test_traces_and_the_state_machines_logs_contain_no_images():
    assert TEMPLATE["Globals"]["Function"]["Environment"]["Variables"]["POWERTOOLS_TRACER_CAPTURE_RESPONSE"] == "false"
    for machine in ("ClassifyImageStateMachine", "ClassifyBatchStateMachine"):
        assert RESOURCES[machine]["Properties"]["Logging"]["IncludeExecutionData"] is False


def test_the_upload_trigger_matches_only_its_prefix_so_that_no_output_loops():
    pattern = RESOURCES["ClassifyImageStateMachine"]["Properties"]["Events"]["Upload"]["Properties"]["Pattern"]
    assert pattern["detail"]["object"] == {
        "key": [{"prefix": {"Ref": "UploadPrefix"}}],
        "size": [{"numeric": [">", 0]}],
    }
    assert re.fullmatch(TEMPLATE["Parameters"]["UploadPrefix"]["AllowedPattern"], "") is None


def test_only_the_endpoint_and_the_vended_logs_have_names():
    named = re.findall(r"^\s+(\w*Name): !?\S", TEXT, re.MULTILINE)
    references = {"ModelName", "EndpointConfigName", "MetricName", "Name", "DatabaseName"}
    assert set(named) <= {"EndpointName", "LogGroupName", "VariantName", "PolicyName"} | references


def test_no_partition_region_or_account_is_hard_coded():
    resources = TEXT.partition("\nGlobals:")[2]
    assert "arn:aws:" not in resources
    assert not re.search(r"\b[a-z]{2}-[a-z]+-\d\b|\b\d{12}\b", resources)


def test_parameters_have_the_documented_defaults():
    defaults = {name: parameter["Default"] for name, parameter in TEMPLATE["Parameters"].items()}
    assert defaults["Threshold"] == 0.75
    assert defaults["EndpointType"] == "none"
    assert defaults["Architecture"] == "arm64"


def test_every_output_that_the_local_stack_uses_exists():
    used = {"ImageBucketName", "UploadPrefix", "ClassifyImageStateMachineArn", "ReviewQueueUrl", "EndpointName"}
    used |= {"ClassifyBatchStateMachineArn", "ResultsBucketName"}
    assert used | {f"{name}Name" for name in FUNCTIONS} <= set(TEMPLATE["Outputs"])


@pytest.mark.parametrize("environment", ["default", "local", "staging", "prod"])
def test_every_environment_of_samconfig_is_complete(environment):
    """Environments of samconfig.toml do not inherit from each other."""
    settings = tomllib.loads((ROOT / "samconfig.toml").read_text())[environment]
    assert {"stack_name", "region"} <= set(settings["global"]["parameters"])
    assert {"resolve_s3", "capabilities", "confirm_changeset"} <= set(settings["deploy"]["parameters"])
    assert settings["build"]["parameters"]["parallel"]


@pytest.mark.parametrize("bucket", ["ImageBucket", "ResultsBucket"])
def test_a_bucket_is_private_and_encrypted(bucket):
    properties = RESOURCES[bucket]["Properties"]
    assert set(properties["PublicAccessBlockConfiguration"].values()) == {True}
    assert "BucketEncryption" in properties


def test_the_results_table_has_a_column_for_every_field_of_a_line():
    """The fields of CheckConfidence's output, of the lines of errors, and those that ClassifyBatch adds."""
    table = RESOURCES["ResultsTable"]["Properties"]["TableInput"]
    columns = {column["Name"] for column in table["StorageDescriptor"]["Columns"]}
    event = json.loads((ROOT / "events/check_confidence.json").read_text())
    decision = {"label", "confidence", "threshold", "accepted"}
    assert columns == set(event) | decision | {"s3_version_id", "execution_arn", "outcome", "error", "cause", "time"}
    assert table["PartitionKeys"] == [{"Name": "execution", "Type": "string"}]


def test_failures_of_both_machines_reach_the_failure_queue():
    pattern = RESOURCES["FailedExecutionRule"]["Properties"]["EventPattern"]["detail"]
    machines = [name for name, row in RESOURCES.items() if row["Type"] == "AWS::Serverless::StateMachine"]
    assert pattern["stateMachineArn"] == [{"Ref": name} for name in machines]


def test_only_classify_batch_turns_the_tracer_off():
    off = {"POWERTOOLS_TRACE_DISABLED": "true"}
    variables = {name: row["Properties"].get("Environment", {}).get("Variables") for name, row in FUNCTIONS.items()}
    assert {name for name, value in variables.items() if value == off} == {"ClassifyBatchFunction"}
