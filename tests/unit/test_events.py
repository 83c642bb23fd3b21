"""events/ is the contract: a function's output, as the next state passes it on, is the next function's event file."""

import base64
import io
import json
import time

import pytest
from botocore.response import StreamingBody
from botocore.stub import Stubber
from jsonata import Jsonata

import check_confidence
import classify_image
import contract
import prepare_batch
import record_outcome
import record_review
import retrieve_image
import start_execution
from documents import CLASSIFY_BATCH, CLASSIFY_IMAGE, RECORD_OUTCOME, RESOURCES, RETRAINING_DUE, ROOT, transformed
from test_permissions import evaluated as cloudformation_value
from test_permissions import policies, statements

EXECUTION = "arn:aws:states:us-east-1:123456789012:execution:machine:name"
PARAMETERS = {
    "Threshold": "0.75",
    "EndpointName": "image-classification",
    "EndpointAccept": "application/json",
    "Labels": "",
    "BatchSize": "300",
    "BatchMaxConcurrency": "8",
    "BatchToleratedFailurePercentage": "0",
    "BatchRequests": "jsonlines",
    "ResultsBucket": "results",
    "ResultsDatabase": "image_classification",
    "ResultsTable": "results",
    "OutcomeTable": "outcomes",
    "ReviewTable": "reviews",
    "Stack": "image-classification",
    "AuditRate": "0.02",
}
CONTEXT = {"Execution": {"Id": EXECUTION, "Name": "name", "StartTime": "2026-11-24T09:00:00.000Z"}}


def evaluated(template, state_input, variables=None, context=CONTEXT, **parameters):
    """A field of a state, its expressions evaluated in a stack with these parameters."""
    if isinstance(template, dict):
        return {name: evaluated(each, state_input, variables, context, **parameters) for name, each in template.items()}
    if isinstance(template, list):
        return [evaluated(each, state_input, variables, context, **parameters) for each in template]
    if not isinstance(template, str):
        return template
    for name, value in (PARAMETERS | parameters).items():
        template = template.replace(f"${{{name}}}", value)
    if not template.startswith("{%"):
        return template
    jsonata = Jsonata(template.removeprefix("{%").removesuffix("%}"))
    for name, value in {"states": {"input": state_input, "context": context}, **(variables or {})}.items():
        jsonata.assign(name, value)
    return jsonata.evaluate(None)


def payload(state, state_input, machine=CLASSIFY_IMAGE, **parameters):
    """The payload that a state passes to its function."""
    return evaluated(machine.states[state]["Arguments"]["Payload"], state_input, **parameters)


def body(data):
    return StreamingBody(io.BytesIO(data), len(data))


def test_retrieve_image_outputs_the_event_of_classify_image(event, context):
    expected = event("classify_image")
    data = base64.b64decode(expected["image"]["data"])
    with Stubber(retrieve_image.s3) as s3:
        version = {"VersionId": expected["s3_version_id"], "ETag": '"etag"'}
        s3.add_response("get_object", {"Body": body(data), "ContentLength": len(data), **version})
        output = retrieve_image.lambda_handler(event("retrieve_image"), context)
    assert payload("ClassifyImage", output) == expected


def test_classify_image_outputs_the_event_of_check_confidence(event, context):
    expected = event("check_confidence")
    response = json.dumps({"predictions": expected["predictions"]}).encode()
    with Stubber(classify_image.runtime) as runtime:
        runtime.add_response("invoke_endpoint", {"Body": body(response), "InvokedProductionVariant": "AllTraffic"})
        output = classify_image.lambda_handler(event("classify_image"), context)
    assert payload("CheckConfidence", output) == expected


def test_the_stacks_parameters_reach_the_functions_and_an_execution_can_override_the_threshold(event):
    request = event("retrieve_image")
    parameters = {"EndpointName": "other", "EndpointAccept": "application/json;verbose", "Labels": "cat, dog"}
    assert payload("ClassifyImage", request, **parameters)["endpoint"] == {
        "name": "other",
        "accept": "application/json;verbose",
        "labels": "cat, dog",
    }
    assert payload("CheckConfidence", request, Threshold="0.9")["threshold"] == 0.9
    assert payload("CheckConfidence", request | {"threshold": 0.5}, Threshold="0.9")["threshold"] == 0.5
    assert payload("CheckConfidence", request | {"audit_rate": 1}, AuditRate="0.1")["audit_rate"] == 0.1


def test_check_confidence_accepts_its_event(event, context):
    assert check_confidence.lambda_handler(event("check_confidence"), context)["accepted"]


@pytest.mark.parametrize(
    ("threshold", "audit_rate", "next_state"),
    [
        (0.75, 0, "PublishImageClassified"),
        (0.75, 1, "SendToAudit"),
        (0.99, 0, "SendToReview"),
        (0.99, 1, "SendToReview"),
    ],
)
def test_what_check_confidence_outputs_leads_to_the_table_or_past_it(event, context, threshold, audit_rate, next_state):
    request = event("check_confidence") | {"threshold": threshold, "audit_rate": audit_rate}
    returned = {"result": {"Payload": check_confidence.lambda_handler(request, context)}}
    state = CLASSIFY_IMAGE.states["CheckConfidence"]
    output = evaluated(state["Output"], None, {"states": returned})
    assigned = evaluated(state["Assign"], None, {"states": returned})
    choices = CLASSIFY_IMAGE.states["IsAccepted"]["Choices"]
    (chosen, *_) = [
        *(each["Next"] for each in choices if evaluated(each["Condition"], output, assigned)),
        CLASSIFY_IMAGE.states["IsAccepted"]["Default"],
    ]
    assert chosen == next_state
    assert "review_item" not in output and "audit_rate" not in output
    if "Item" in CLASSIFY_IMAGE.states[chosen]["Arguments"]:
        arguments = evaluated(CLASSIFY_IMAGE.states[chosen]["Arguments"], output, assigned)
        assert arguments["TableName"] == "reviews"
        assert arguments["Item"]["reason"] == {"S": "audit" if output["accepted"] else "low_confidence"}


@pytest.mark.parametrize("name", ["classify_image_execution", "start_execution"])
def test_an_execution_starts_with_the_event_of_retrieve_image(event, name):
    assert payload("RetrieveImage", event(name)) == event("retrieve_image") | {"execution_arn": EXECUTION}


def test_the_version_in_an_upload_event_is_passed_on(event):
    upload = event("start_execution")
    upload["detail"]["object"]["version-id"] = "v1"
    assert payload("RetrieveImage", upload)["s3_version_id"] == "v1"


@pytest.mark.parametrize("wrong", [{}, {"detail": "text"}, {"detail": {"object": {}}}])
def test_any_other_object_reaches_the_function_unchanged(wrong):
    assert payload("RetrieveImage", wrong) == wrong | {"execution_arn": EXECUTION}


@pytest.mark.parametrize("wrong", [[], "text", 7, None])
def test_an_input_that_is_no_object_reaches_the_function_unchanged(wrong):
    assert payload("RetrieveImage", wrong) == wrong


def test_start_execution_outputs_the_event_of_an_execution(event):
    assert start_execution.request_for(event("start_execution")["detail"])[1] == event("classify_image_execution")


def test_record_outcome_gets_the_event_as_it_was_delivered(event, context):
    assert payload("RecordOutcome", event("record_outcome"), RECORD_OUTCOME) == event("record_outcome")
    assert record_outcome.lambda_handler(event("record_outcome"), context)["outcome"] == "accepted"


def claim_of(event, execution="this execution"):
    """The item that an execution writes, and the owners whose claim it takes over."""
    context = {"Execution": {"Id": execution}}
    arguments = evaluated(RECORD_OUTCOME.states["ClaimOutcome"]["Arguments"], event, context=context)
    owners = {value["S"] for value in arguments["ExpressionAttributeValues"].values()}
    return {name: next(iter(value.values())) for name, value in arguments["Item"].items()}, owners


@pytest.mark.parametrize(("redrives", "number"), [({}, 0), ({"redriveCount": None}, 0), ({"redriveCount": 2}, 2)])
def test_an_outcome_is_claimed_by_its_execution_and_redrive(event, redrives, number):
    ended = event("record_outcome")
    ended["detail"] |= redrives
    item, owners = claim_of(ended)
    assert item["outcome"] == f"{ended['detail']['executionArn']}#{number}"
    assert item["claimed_by"] == "this execution" and owners == {"this execution"}


def test_a_claim_lasts_longer_than_a_message_in_the_failure_queue(event):
    item, _ = claim_of(event("record_outcome"))
    retention = RESOURCES["FailureQueue"]["Properties"]["MessageRetentionPeriod"]
    delivery = 24 * 3600  # https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-rule-retry-policy.html
    assert int(item["expires"]) > time.time() + retention + delivery


@pytest.mark.parametrize("state", ["ClaimOutcome", "RecordOutcome"])
def test_the_message_about_an_outcome_that_was_not_recorded_takes_over_its_claim(event, state):
    ended = event("record_outcome")
    for execution in ("the first", "a redrive of it"):
        failed = {
            "input": ended,
            "errorOutput": {"Error": "Lambda.Unknown"},
            "context": {"Execution": {"Id": execution}},
        }
        caught = evaluated(RECORD_OUTCOME.states[state]["Catch"][-1]["Output"], None, {"states": failed})
        body = evaluated(RECORD_OUTCOME.states["SendToFailureQueue"]["Arguments"]["MessageBody"], caught)
        ended = json.loads(body)
        not_recorded = {"claimed_by": execution, "error": "Lambda.Unknown"}
        assert ended == event("record_outcome") | {"not_recorded": not_recorded}
        assert claim_of(ended)[1] == {execution, "this execution"}


def test_record_review_accepts_its_event(event, context):
    with Stubber(record_review.events) as events:
        events.add_response("put_events", {"FailedEntryCount": 0, "Entries": []})
        record_review.lambda_handler(event("record_review"), context)
        events.assert_no_pending_responses()


def test_the_schedule_sends_the_event_of_publish_review_metrics_which_can_read_what_it_names(event):
    expected = event("publish_review_metrics")
    folder = expected["detail"]["metadata_url"].removesuffix("metadata.json")
    values = {"CreatesEndpoint": True, "ModelDataUrl": f"{folder}model.tar.gz", "AWS::Partition": "aws"}
    values |= {"Model": expected["detail"]["model_name"], "MinAcceptedAccuracy": "0.9"}
    rule = transformed()["Resources"]["PublishReviewMetricsFunctionEveryHour"]["Properties"]
    sent = rule["Targets"][0]["Input"]
    assert json.loads(cloudformation_value(sent, values)) == expected
    (readable,) = [
        cloudformation_value(each["Resource"], values)
        for each in statements(policies("PublishReviewMetricsFunctionRole"))
        if "s3:GetObject" in each["Action"]
    ]
    assert readable == expected["detail"]["metadata_url"].replace("s3://", "arn:aws:s3:::")
    (described,) = [
        each["Resource"]
        for each in statements(policies("PublishReviewMetricsFunctionRole"))
        if each["Action"] == "sagemaker:DescribeModel"
    ]
    assert described == {"Ref": "Model"}  # its ARN
    expected["detail"] |= {"model_name": "", "metadata_url": ""}
    assert json.loads(cloudformation_value(sent, values | {"CreatesEndpoint": False})) == expected


def test_a_batch_starts_with_the_event_of_prepare_batch(event):
    assert payload("PrepareBatch", event("classify_batch_execution"), CLASSIFY_BATCH) == event("prepare_batch")


def batch_input(event, context, name="ClassifyPrefix", **request):
    prepared = event("prepare_batch")
    prepared["request"] |= request
    variables = {"batch": prepare_batch.lambda_handler(prepared, context)}
    return evaluated(CLASSIFY_BATCH.states[name]["ItemBatcher"]["BatchInput"], {}, variables)


def test_prepare_batch_and_a_map_output_the_event_of_classify_batch(event, context):
    expected = event("classify_batch")
    child = CONTEXT | {"Execution": {"Id": "child", "Name": expected["batch"]}}
    child_input = {"BatchInput": batch_input(event, context), "Items": expected["Items"]}
    arguments = CLASSIFY_BATCH.states["ClassifyBatchOfPrefix"]["Arguments"]
    assert evaluated(arguments["Payload"], child_input, context=child) == expected
    assert contract.validator(contract.CLASSIFY_BATCH)(expected) == expected


def test_the_keys_of_an_inventory_are_marked_as_encoded(event, context):
    assert batch_input(event, context, "ClassifyInventory")["url_encoded"] is True


def test_a_batch_names_the_review_table_only_if_its_input_asks_for_review(event, context):
    assert batch_input(event, context, review=True)["review_table"] == "reviews"
    assert batch_input(event, context, review=False)["review_table"] == ""


def test_a_map_outputs_the_event_of_summarise_batch(event):
    expected = event("summarise_batch")
    assert payload("SummariseBatch", expected["map_run"], CLASSIFY_BATCH) == expected
    assert contract.validator(contract.SUMMARISE_BATCH)(expected) == expected


def test_a_batch_without_an_endpoint_fails_before_anything_is_read():
    choice = CLASSIFY_BATCH.states["HasEndpoint"]["Choices"][0]["Condition"]
    assert [evaluated(choice, {}, EndpointName=name) for name in ("", "image-classification")] == [True, False]


@pytest.mark.parametrize(
    ("reason", "due"),
    [
        ("image-classification-LabelDriftAlarm-1A2B3C4D5E6F", {}),
        # https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-run-lambda-schedule.html
        ("schedule", {"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}}),
    ],
)
def test_an_alarm_and_the_schedule_become_the_event_retraining_due(event, reason, due):
    arguments = RETRAINING_DUE.states["PublishRetrainingDue"]["Arguments"]
    (entry,) = evaluated(arguments, event("retraining_due_execution") | due)["Entries"]
    detail = {"stack": "image-classification", "reason": reason}
    assert entry == {"Source": "image-classification", "DetailType": "Retraining Due", "Detail": detail}


def test_the_rule_of_retraining_matches_its_event_and_only_when_an_alarm_goes_off(event):
    pattern = RESOURCES["RetrainingDueRule"]["Properties"]["EventPattern"]["Fn::If"][1]
    alarm = event("retraining_due_execution")
    assert pattern["source"] == [alarm["source"]] and pattern["detail-type"] == [alarm["detail-type"]]
    assert pattern["detail"]["alarmName"] == [{"Ref": "LabelDriftAlarm"}, {"Ref": "AccuracyAlarm"}]
    assert pattern["detail"]["state"]["value"] == [alarm["detail"]["state"]["value"]]


def test_every_event_file_is_tested_here():
    functions = {"retrieve_image", "classify_image", "check_confidence", "record_outcome", "start_execution"}
    functions |= {"record_review", "publish_review_metrics"}
    functions |= {"prepare_batch", "classify_batch", "summarise_batch"}
    names = {path.stem for path in (ROOT / "events").glob("*.json")}
    machines = {"classify_image_execution", "classify_batch_execution", "retraining_due_execution"}
    assert names == functions | machines
