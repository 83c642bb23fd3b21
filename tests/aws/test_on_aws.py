"""The scenarios of tests/integration on AWS, the conformance tests that the emulator's adapter must pass, and what only
AWS can show."""

import base64
import json
import os
import uuid
from datetime import UTC, datetime, timedelta

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from documents import TEMPLATE, transformed
from local import promote, shadow
from local.target import Target
from test_batches import (  # noqa: F401
    test_a_batch_decides_as_single_executions_do,
    test_a_prefix_is_classified_and_its_summary_is_an_event,
    test_an_empty_prefix_succeeds_and_says_so,
    test_an_invalid_input_fails_by_name_and_reaches_the_failure_queue,
    test_low_confidence_is_sent_to_review_only_if_the_input_asks,
    test_manifests_and_inventories_name_images_in_any_bucket_and_version,
    test_the_same_input_started_twice_is_two_batches,
    test_the_table_of_results_has_a_partition_for_each_batch,
)
from test_conformance_lambda import (  # noqa: F401
    test_a_retry_matches_the_class_name_of_an_exception,
    test_a_throttled_invocation_fails_with_too_many_requests_exception,
    test_invocations_by_a_state_machine_are_counted,
    test_reserved_concurrency_applies_to_every_version_of_a_function,
    test_simultaneous_cold_starts_each_get_a_process,
)
from test_conformance_s3 import (  # noqa: F401
    bucket,
    queue,
    test_the_event_of_an_upload_to_a_versioned_bucket_has_the_objects_version,
)
from test_conformance_stepfunctions import (  # noqa: F401
    test_an_event_names_its_state_machine_and_execution,
    test_an_express_execution_emits_no_events_and_leaves_no_history,
    test_full_jitter_randomises_the_delay_of_a_retry,
    test_max_delay_seconds_limits_the_delay_of_a_retry,
    test_the_functions_of_an_execution_share_its_trace,
    test_the_input_of_a_task_has_a_maximum_size_and_states_all_does_not_catch_the_error,
    test_the_output_of_a_state_has_a_maximum_size,
)
from test_delivery import (  # noqa: F401
    test_an_empty_object_that_is_no_folder_ends_in_an_execution_with_a_named_error,
    test_an_upload_that_is_delivered_again_after_its_execution_starts_no_other,
)
from test_destroy import test_a_bucket_of_thousands_of_versions_is_emptied  # noqa: F401
from test_evaluate_and_trace import (  # noqa: F401
    labelled,
    test_a_named_stack_is_evaluated_with_the_users_own_credentials,
    test_an_image_in_a_named_stack_is_followed,
)
from test_redrive import (  # noqa: F401
    redrive,
    test_an_interrupted_redrive_starts_nothing_twice,
    test_what_fails_again_returns_to_the_queue_under_its_next_name,
)
from test_replay import (  # noqa: F401
    classified,
    test_a_threshold_decides_as_executions_with_it,
    test_the_deployed_model_changes_nothing,
)
from test_review_exchange import (  # noqa: F401
    reviews,
    test_a_presigned_url_shows_the_version_that_was_classified,
    test_decisions_in_a_csv_are_imported,
)
from test_review_metrics import scheduled
from test_review_table import (  # noqa: F401
    desk,
    test_a_claim_is_a_sessions_and_ends_by_release_decision_or_expiry,
    test_a_decision_without_a_session_respects_other_reviewers_claims,
    test_of_many_claims_at_once_one_succeeds,
    test_of_many_decisions_at_once_one_is_written,
    test_only_the_reviewer_can_undo_and_only_this_decision,
    test_the_same_decision_again_changes_nothing_and_another_is_refused,
    test_times_are_dynamodbs_when_this_clock_is_wrong,
    test_what_was_deleted_is_not_found_and_not_made_again,
)
from test_workflow import (  # noqa: F401
    test_a_broken_image_fails_by_name,
    test_a_large_photograph_is_shrunk_and_classified,
    test_a_missing_object_fails_by_name_without_a_retry,
    test_a_photograph_from_a_rotated_camera_is_classified_upright,
    test_an_execution_can_override_the_threshold,
    test_an_image_with_high_confidence_is_accepted,
    test_an_object_outside_the_prefix_or_a_folder_starts_no_execution,
    test_an_overwritten_image_is_classified_as_it_was_uploaded,
    test_an_upload_starts_an_execution_whatever_its_key,
    test_invalid_input_fails_with_the_name_of_its_field,
    test_low_confidence_goes_to_review_and_is_no_function_error,
    test_other_keys_of_the_input_are_dropped,
    test_technical_failures_reach_the_failure_queue_and_low_confidence_does_not,
)
from tools import destroy
from tools.empty_bucket import empty
from workflow import wait_for

ON_THE_EMULATOR = "AWS_ENDPOINT_URL" in os.environ


@pytest.mark.skipif(ON_THE_EMULATOR, reason="the emulator has no TLS")
def test_the_bucket_denies_requests_without_tls(workflow):
    plain = boto3.client("s3", use_ssl=False, config=Config(retries={"total_max_attempts": 1}))
    workflow.s3.list_objects_v2(Bucket=workflow.bucket, MaxKeys=1)
    with pytest.raises(ClientError, match="AccessDenied"):
        plain.list_objects_v2(Bucket=workflow.bucket, MaxKeys=1)


@pytest.mark.skipif("AWS_ENDPOINT_URL" in os.environ, reason="the emulator encrypts nothing and has no access points")
def test_an_image_under_a_disabled_key_and_one_behind_an_access_point_fail_by_name(workflow, seven):
    kms = boto3.client("kms")
    key = kms.create_key(Description="image classification: make test-aws")["KeyMetadata"]["KeyId"]
    encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key}
    try:
        workflow.s3.put_object(Bucket=workflow.bucket, Key="under-a-key.png", Body=seven, **encryption)
        denied = {"s3_bucket": workflow.bucket, "s3_key": "under-a-key.png"}
        executions = [workflow.execute(denied)]
        kms.disable_key(KeyId=key)
        executions.append(workflow.execute(denied))
    finally:
        kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
    region, account = workflow.machine.split(":")[3:5]
    point = f"arn:aws:s3:{region}:{account}:accesspoint/no-such-point"
    executions.append(workflow.execute({"s3_bucket": point, "s3_key": "seven.png"}))
    for execution in executions:
        assert execution.error in ("ImageAccessDeniedError", "ImageNotFoundError")
        assert f"s3://{execution.input['s3_bucket']}/{execution.input['s3_key']}" in execution.message


def test_the_log_levels_keep_the_prediction_log(workflow, seven):
    execution = workflow.classify("logged.png", seven)
    group = workflow.outputs["PredictionLogGroupName"]
    pattern = f'{{ $.message = "prediction" && $.execution_arn = "{execution.arn}" }}'
    logs = boto3.client("logs")
    found = wait_for(lambda: logs.filter_log_events(logGroupName=group, filterPattern=pattern)["events"], 300)
    assert json.loads(found[0]["message"])["outcome"] == "accepted"


def test_the_claim_of_an_outcome_that_is_delivered_again_is_refused(workflow, seven):
    """A synchronous execution returns its output, which is the refusal here."""
    execution = workflow.classify("again.png", seven)
    detail = {"executionArn": execution.arn, "status": execution.status, "startDate": 0, "stopDate": 0}
    detail |= {"input": json.dumps(execution.input), "output": json.dumps(execution.output), "redriveCount": 0}
    states = boto3.client("stepfunctions", config=Config(inject_host_prefix=not ON_THE_EMULATOR))

    def refused():
        ended = states.start_sync_execution(
            stateMachineArn=workflow.outputs["RecordOutcomeStateMachineArn"], input=json.dumps({"detail": detail})
        )
        assert ended["status"] == "SUCCEEDED"
        return "DynamoDB.ConditionalCheckFailedException" in ended["output"]

    assert wait_for(refused, 60)  # the first may come before EventBridge's, and is then recorded


def test_the_policy_allows_the_endpoint_in_the_case_that_sagemaker_gives_its_arn(workflow):
    """With a stack of EndpointType existing whose endpoint's name has capitals, invoked by the tests above."""
    arn = boto3.client("sagemaker").describe_endpoint(EndpointName=workflow.outputs["EndpointName"])["EndpointArn"]
    assert arn.rpartition("/")[2] == workflow.outputs["EndpointName"].lower()


def test_the_metrics_on_reviews_arrive_and_the_alarm_on_drift_has_a_valid_expression(workflow, stack_name):
    name = workflow.outputs["PublishReviewMetricsFunctionName"]
    event = json.dumps(scheduled(workflow))
    response = boto3.client("lambda").invoke(FunctionName=name, Qualifier="live", LogType="Tail", Payload=event)
    lines = base64.b64decode(response["LogResult"])
    assert "FunctionError" not in response and b"training's mix is unknown" not in lines, lines
    now, service = datetime.now(UTC), [{"Name": "service", "Value": stack_name}]

    def published(*queries):
        hours = {"StartTime": now - timedelta(hours=2), "EndTime": now + timedelta(minutes=5)}
        return boto3.client("cloudwatch").get_metric_data(MetricDataQueries=queries, **hours)["MetricDataResults"]

    metric = {"Namespace": "ImageClassification", "MetricName": "PendingReviews", "Dimensions": service}
    pending = {"Id": "pending", "MetricStat": {"Metric": metric, "Period": 3600, "Stat": "Maximum"}}
    wait_for(lambda: published(pending)[0]["Values"], 300)
    if not ON_THE_EMULATOR:  # which has no expressions
        drifted, *measured = TEMPLATE["Resources"]["LabelDriftAlarm"]["Properties"]["Metrics"]
        for each in measured:
            each["MetricStat"]["Metric"]["Dimensions"] = service
        expression = drifted["Expression"]["Fn::Sub"].replace("${MaxLabelDrift}", "0.25")
        published(drifted | {"Expression": expression}, *measured)  # or a ValidationError


def test_the_previous_template_and_its_transform_are_deployed_with_another_parameter(workflow, stack_name):
    """As make promote does, but for a parameter that changes no more than an alarm."""
    target, cloudformation = Target(stack_name, workflow.outputs, boto3.client), boto3.client("cloudformation")
    (stack,) = cloudformation.describe_stacks(StackName=stack_name)["Stacks"]
    kept = [{"ParameterKey": row["ParameterKey"], "UsePreviousValue": True} for row in stack["Parameters"]]
    kept.remove({"ParameterKey": "MaxReviewAge", "UsePreviousValue": True})
    age = int(target.parameter("MaxReviewAge"))
    for value in (str(age - 1), str(age)):
        cloudformation.update_stack(
            StackName=stack_name,
            UsePreviousTemplate=True,
            Parameters=[*kept, {"ParameterKey": "MaxReviewAge", "ParameterValue": value}],
            Capabilities=promote.CAPABILITIES,
        )
        promote.wait(target)
        assert target.parameter("MaxReviewAge") == value


def test_what_the_stack_would_leave_is_listed(stack_name):
    assert "aws-sam-cli-managed-default" in destroy.leftovers(boto3.client, stack_name)[-1]


@pytest.mark.skipif(ON_THE_EMULATOR, reason="the emulator has no TestEventPattern")
def test_an_upload_of_more_than_eventbridges_largest_number_matches_the_rule(workflow, stack_name):
    """https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-create-pattern-operators.html: up to 5.0e9"""
    events, cloudformation = boto3.client("events"), boto3.client("cloudformation")
    resource = {"StackName": stack_name, "LogicalResourceId": "StartExecutionFunctionUpload"}
    name = cloudformation.describe_stack_resource(**resource)["StackResourceDetail"]["PhysicalResourceId"]
    uploaded = {"key": workflow.outputs["UploadPrefix"] + "large.tif", "size": 6_000_000_000}
    event = {"source": "aws.s3", "detail-type": "Object Created", "account": "1", "region": "r", "id": "1"}
    event |= {"time": "2026-01-01T00:00:00Z", "resources": []}
    event["detail"] = {"bucket": {"name": workflow.bucket}, "object": uploaded}
    pattern = events.describe_rule(Name=name)["EventPattern"]
    assert events.test_event_pattern(EventPattern=pattern, Event=json.dumps(event))["Result"]


def test_an_alarm_reaches_the_topics_subscribers(workflow, stack_name, alarms):
    cloudwatch, cloudformation = boto3.client("cloudwatch"), boto3.client("cloudformation")
    resource = {"StackName": stack_name, "LogicalResourceId": "FailureAlarm"}
    name = cloudformation.describe_stack_resource(**resource)["StackResourceDetail"]["PhysicalResourceId"]
    cloudwatch.set_alarm_state(AlarmName=name, StateValue="OK", StateReason="test")
    cloudwatch.set_alarm_state(AlarmName=name, StateValue="ALARM", StateReason="test")
    assert workflow.message_about(alarms, name, seconds=60)
    cloudwatch.set_alarm_state(AlarmName=name, StateValue="OK", StateReason="the test is over")


def test_the_metrics_of_a_realtime_endpoint_name_its_configuration(workflow, seven):
    """The alarms that roll back an update watch the new configuration alone."""
    name = workflow.outputs["EndpointName"]
    if not name.endswith("-realtime") or ON_THE_EMULATOR:
        pytest.skip("needs EndpointType realtime, on AWS")
    config = boto3.client("sagemaker").describe_endpoint(EndpointName=name)["EndpointConfigName"]
    assert workflow.classify("measured.png", seven).status == "SUCCEEDED"
    dimensions = {"EndpointName": name, "VariantName": "AllTraffic", "EndpointConfigName": config}
    wanted = [{"Name": key, "Value": value} for key, value in dimensions.items()]
    for metric in ("ModelLatency", "Invocation5XXErrors"):
        query = {"Namespace": "AWS/SageMaker", "MetricName": metric, "Dimensions": wanted}
        assert wait_for(lambda query=query: boto3.client("cloudwatch").list_metrics(**query)["Metrics"], 900)


def test_a_shadow_variant_gets_copies_and_both_variants_are_captured_and_measured(workflow, stack_name, seven):
    """What make shadow relies on: the layout, the image's bytes in both events, and the metrics of both variants."""
    stack = Target(stack_name, workflow.outputs, boto3.client)
    if not stack.parameter("ShadowModelDataUrl"):
        pytest.skip("needs EndpointType realtime with DataCaptureUrl and ShadowModelDataUrl")
    variants, start = shadow.variants_of(stack), datetime.now(UTC)
    assert workflow.classify("shadowed.png", seven).output["endpoint"]["variant"] == "AllTraffic"
    found = {}
    for role, name in variants.roles.items():
        url = f"{variants.url}/{variants.endpoint}/{name}"
        found[role] = wait_for(
            lambda url=url: shadow.collect(shadow.events(boto3.client("s3"), url, start), []).answers, 900
        )
        measure = (boto3.client("cloudwatch"), variants.endpoint, name, start - timedelta(minutes=1))
        assert wait_for(lambda measure=measure: shadow.metrics(*measure)["milliseconds"], 900)
    assert found["champion"].keys() & found["challenger"].keys()


def test_a_region_without_a_scikit_learn_image_demands_another_and_takes_it(stack_name):
    """In a region of that kind, if the account has enabled one: a change set, which creates nothing."""
    rows = TEMPLATE["Mappings"]["ScikitLearnRegistry"]
    enabled = {row["RegionName"] for row in boto3.client("ec2").describe_regions()["Regions"]}
    region = next((name for name in sorted(enabled) if rows.get(name) == {"Account": "none"}), None)
    if not region:
        pytest.skip("the account has enabled no region without AWS's scikit-learn image")
    s3, cloudformation = (boto3.client(name, region_name=region) for name in ("s3", "cloudformation"))
    name = f"region-{uuid.uuid4().hex}"
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": region})
    s3.put_object(Bucket=name, Key="template.json", Body=json.dumps(transformed()))
    image = f"000000000000.dkr.ecr.{region}.amazonaws.com/endpoint:1"
    parameters = {"EndpointType": "serverless", "ModelDataUrl": f"s3://{name}/model.tar.gz", "InferenceImageUri": image}

    def create_change_set(**values):
        return cloudformation.create_change_set(
            StackName=name,
            ChangeSetName="test",
            ChangeSetType="CREATE",
            TemplateURL=f"{s3.meta.endpoint_url}/{name}/template.json",
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in values.items()],
            Capabilities=["CAPABILITY_IAM"],
        )

    try:
        with pytest.raises(ClientError, match="set InferenceImageUri"):
            create_change_set(**parameters | {"InferenceImageUri": ""})
        create_change_set(**parameters)
        waiter = cloudformation.get_waiter("change_set_create_complete")
        waiter.wait(StackName=name, ChangeSetName="test", WaiterConfig={"Delay": 5})
    finally:
        cloudformation.delete_stack(StackName=name)
        empty(s3, name)
        s3.delete_bucket(Bucket=name)
