"""PublishReviewMetrics: what it publishes, and above all when it publishes nothing."""

import contextlib
import io
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from botocore.response import StreamingBody
from botocore.stub import ANY, Stubber

import publish_review_metrics as module
from accuracy import MIN_REVIEWED

TRAINING = {"cat": 500, "dog": 500}
ACCURACY = {"AcceptedAccuracy", "AcceptedAccuracyLowerBound"}
DRIFT = {"LabelDrift", "LabelDriftByChance"}
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


def now():
    return datetime.now(UTC)


def ago(**time):
    return (now() - timedelta(**time)).isoformat(timespec="milliseconds")


def item(created_at, **more):
    """An item of the index, in DynamoDB's JSON."""
    values = {"status": "pending", "created_at": created_at, "label": "cat", "reason": "audit", **more}
    return {name: {"S": value} for name, value in values.items()} | {"selection_probability": {"N": "0.02"}}


def reviewed(created_at, right=True):
    return item(created_at, status="reviewed", decision="label", reviewed_label="cat" if right else "dog")


def model(created):
    """The deployed model, from DescribeModel."""
    arn = "arn:aws:sagemaker:us-east-1:123456789012:model/model-0123456789ab"
    role = "arn:aws:iam::123456789012:role/model"
    return {"ModelName": "Model-0123456789ab", "ModelArn": arn, "ExecutionRoleArn": role, "CreationTime": created}


def page(*items, scanned=None, last=None):
    found = {"Items": list(items), "Count": len(items), "ScannedCount": len(items) if scanned is None else scanned}
    return found | ({"LastEvaluatedKey": last} if last else {})


@pytest.fixture
def published(event, context, capsys):
    """Invoke the function with these responses of AWS; returns its metrics."""

    def invoke(pages, metadata=None, counts=None, deployed=LONG_AGO, since=ANY):
        event_ = event("publish_review_metrics")
        stubbers = [Stubber(client) for client in (module.dynamodb, module.s3, module.cloudwatch, module.sagemaker)]
        with contextlib.ExitStack() as stack:
            table, s3, cloudwatch, sagemaker = map(stack.enter_context, stubbers)
            for each in pages:
                table.add_response("query", each)
            if isinstance(deployed, str):
                sagemaker.add_client_error("describe_model", deployed)
            else:
                sagemaker.add_response("describe_model", model(deployed), {"ModelName": model(deployed)["ModelName"]})
            if metadata is None:
                event_["detail"]["metadata_url"] = ""
            elif isinstance(metadata, str):
                s3.add_client_error("get_object", metadata)
            else:
                data = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
                expected = {"Bucket": "models", "Key": "models/0123456789abcdef/metadata.json"}
                body = StreamingBody(io.BytesIO(data), len(data))
                s3.add_response("get_object", {"Body": body}, expected)
            if counts is not None:
                results = [{"Id": f"label{number}", "Values": values} for number, values in enumerate(counts)]
                expected = {"MetricDataQueries": ANY, "StartTime": since, "EndTime": ANY}
                cloudwatch.add_response("get_metric_data", {"MetricDataResults": results}, expected)
            module.lambda_handler(event_, context)
            for stubber in stubbers:
                stubber.assert_no_pending_responses()
        (line,) = [json.loads(text) for text in capsys.readouterr().out.splitlines() if "_aws" in text]
        (group,) = line["_aws"]["CloudWatchMetrics"]
        assert (group["Namespace"], group["Dimensions"]) == ("ImageClassification", [["service"]])
        return {metric["Name"]: line[metric["Name"]][0] for metric in group["Metrics"]}

    return invoke


NOTHING = [page(), page(), page()]  # the oldest, all pending, the reviewed audits


def test_an_empty_table_has_nothing_pending_and_no_accuracy(published):
    assert published(NOTHING) == {"PendingReviews": 0, "OldestPendingReviewAge": 0}


def test_all_pages_of_pending_items_count_and_the_oldest_has_an_age(published):
    oldest = item(ago(hours=5), reason="low_confidence")
    key = {"image": {"S": "a"}, "version": {"S": "1"}, "status": {"S": "pending"}, "created_at": {"S": "2026"}}
    found = published(
        [page(oldest, last=key), page(scanned=3500, last=key), page(item(ago(hours=1)), scanned=7), page()]
    )
    assert found["PendingReviews"] == 3507
    assert found["OldestPendingReviewAge"] == pytest.approx(5 * 3600, abs=60)


def test_a_clock_that_is_behind_gives_no_negative_age(published):
    assert published([page(item(ago(minutes=-5))), page(scanned=1), page()])["OldestPendingReviewAge"] == 0


def test_the_accuracy_and_its_bound_come_from_the_audits_of_the_last_month(published):
    audits = [reviewed(ago(days=1), right=number > 0) for number in range(100)]
    found = published([page(), page(), page(*audits)])
    assert set(found) == {"PendingReviews", "OldestPendingReviewAge"} | ACCURACY
    assert found["AcceptedAccuracy"] == pytest.approx(0.99)
    assert found["AcceptedAccuracyLowerBound"] == pytest.approx(0.9534, abs=1e-4)  # of Clopper and Pearson


@pytest.fixture
def queries(event, context):
    """Invoke the function, with the model deployed then or without one; returns its queries of the review table."""

    def invoke(deployed=None):
        event_ = event("publish_review_metrics")
        event_["detail"]["metadata_url"] = ""
        with Stubber(module.dynamodb) as table, Stubber(module.sagemaker) as sagemaker:
            for each in NOTHING:
                table.add_response("query", each)
            if deployed:
                sagemaker.add_response("describe_model", model(deployed))
            else:
                event_["detail"]["model_name"] = ""
            sent, query = [], "provide-client-params.dynamodb.Query"
            module.dynamodb.meta.events.register(query, lambda params, **_: sent.append(params), "test")
            module.lambda_handler(event_, context)
            module.dynamodb.meta.events.unregister(query, unique_id="test")
        return sent

    return invoke


def test_audits_are_read_by_the_time_of_their_image_and_only_they_are_sent(queries):
    oldest, pending, audits = queries()
    assert all(each["IndexName"] == "ByAge" for each in (oldest, pending, audits))
    assert oldest["Limit"] == 1
    for each in (pending, audits):
        assert each["FilterExpression"] == "reason = :audit"
    since = datetime.fromisoformat(audits["ExpressionAttributeValues"][":since"]["S"])
    assert datetime.now(UTC) - since == pytest.approx(timedelta(days=30), abs=timedelta(minutes=1))


@pytest.mark.parametrize(("days", "counted"), [(2, 2), (29, 29), (31, 30), (400, 30)])
def test_audits_count_from_the_deployment_of_the_model_and_for_a_month_at_most(queries, days, counted):
    deployed = datetime.now(timezone(timedelta(hours=5))) - timedelta(days=days)
    *_, audits = queries(deployed)
    since = audits["ExpressionAttributeValues"][":since"]["S"]
    assert datetime.now(UTC) - datetime.fromisoformat(since) == pytest.approx(
        timedelta(days=counted), abs=timedelta(minutes=1)
    )
    assert since.endswith("+00:00")  # as created_at, with which DynamoDB compares it as text


def test_a_pending_audit_of_the_model_before_does_not_silence_the_audits_of_the_new_one(published):
    audits = [reviewed(ago(hours=1), right=False)] * 100
    found = published([page(), page(item(ago(hours=3)), scanned=1), page(*audits)], deployed=now() - timedelta(hours=2))
    assert found["AcceptedAccuracy"] == 0


def test_too_few_audits_publish_no_accuracy(published):
    few, enough = (
        published([page(), page(), page(*[reviewed(ago(days=1))] * number)])
        for number in (MIN_REVIEWED - 1, MIN_REVIEWED)
    )
    assert not ACCURACY & set(few)
    assert ACCURACY & set(enough) == {"AcceptedAccuracy"}


def test_the_alarm_gets_no_bound_that_three_mistakes_of_a_new_model_would_take_below_ninety_percent(published):
    def bound(number):
        audits = [reviewed(ago(days=1), right=each > 2) for each in range(number)]
        return published([page(), page(), page(*audits)]).get("AcceptedAccuracyLowerBound")

    assert bound(module.MIN_BOUNDED) >= 0.9
    assert bound(module.MIN_BOUNDED - 1) is None


def test_few_audits_of_which_too_many_are_wrong_set_the_alarm_off(published):
    audits = [reviewed(ago(days=1), right=number > 3) for number in range(MIN_REVIEWED)]
    found = published([page(), page(), page(*audits)])
    assert found["AcceptedAccuracyLowerBound"] < found["AcceptedAccuracy"] < 0.9


@pytest.mark.parametrize("error", ["AccessDeniedException", "ValidationException"])
def test_while_another_model_is_deployed_neither_accuracy_nor_drift_is_published(published, error):
    assert published([page(), page()], deployed=error) == {"PendingReviews": 0, "OldestPendingReviewAge": 0}


def test_the_schedule_of_an_earlier_version_names_no_model(event, context, capsys):
    old = event("publish_review_metrics")
    old["detail"] = {"metadata_url": ""}
    with Stubber(module.dynamodb) as table:
        for each in NOTHING:
            table.add_response("query", each)
        module.lambda_handler(old, context)
    assert "PendingReviews" in capsys.readouterr().out


def test_audits_that_are_newer_than_a_pending_one_do_not_count_yet(published):
    """Reviewers begin with the least confident, so what they have reviewed so far is wrong more often than all."""
    audits = [reviewed(ago(hours=hours), right=hours > 24) for hours in range(1, 101)]
    found = published([page(), page(item(ago(hours=24.5)), scanned=1), page(*audits)])
    assert found["AcceptedAccuracy"] == 1


def test_an_audit_that_is_older_than_the_audits_that_count_does_not_silence_them(published):
    audits = [reviewed(ago(days=29), right=False)] * 100
    found = published([page(), page(item(ago(days=31)), scanned=1), page(*audits)])
    assert found["AcceptedAccuracy"] == 0


def test_a_query_ends_after_its_maximum_of_pages(monkeypatch):
    monkeypatch.setattr(module, "MAX_PAGES", 2)
    key = {"image": {"S": "a"}, "version": {"S": "1"}}
    with Stubber(module.dynamodb) as table:
        for _ in range(2):
            table.add_response("query", page(scanned=10, last=key))
        assert module.pending() == (20, [])


def test_drift_is_published_with_its_chance_level(published):
    metadata = {"images": {"train": TRAINING}}
    same, other = (published(NOTHING, metadata, counts) for counts in ([[30, 20], [50]], [[90], [5, 5]]))
    assert set(same) == {"PendingReviews", "OldestPendingReviewAge"} | DRIFT
    assert same["LabelDrift"] < same["LabelDriftByChance"] == other["LabelDriftByChance"] < 0.1
    assert other["LabelDrift"] > 0.5


def test_labels_of_the_model_before_are_no_drift(published):
    deployed = now() - timedelta(hours=30)
    published(NOTHING, {"images": {"train": TRAINING}}, [[50], [50]], deployed, since=deployed)


@pytest.mark.parametrize("number", [49, 50])
def test_too_few_predictions_publish_no_drift(published, number):
    found = published(NOTHING, {"images": {"train": TRAINING}}, [[number], [50]])
    assert bool(DRIFT & set(found)) == (number == 50)


@pytest.mark.parametrize(
    "metadata",
    [
        "NoSuchKey",
        "AccessDenied",
        "NoSuchBucket",
        b"no JSON",
        b"\xff\xfe",
        {},
        [],
        {"images": {"train": 7}},
        {"images": {"train": {str(number): 50 for number in range(11)}}},
        {"images": {"train": {"caf\u00e9": 50, "tea": 50}}},
        {"images": {"train": {"cat": 50}}},
    ],
)
def test_without_training_s_mix_or_metrics_of_all_its_labels_there_is_no_drift_and_no_error(published, metadata):
    """Models of more than ten labels, or with labels that CloudWatch does not accept, have no LabelConfidence."""
    assert set(published(NOTHING, metadata)) == {"PendingReviews", "OldestPendingReviewAge"}


def test_the_reason_for_missing_drift_is_logged(published, log):
    written = log(module)
    published(NOTHING, "AccessDenied")
    line = json.loads(written.getvalue().splitlines()[-1])
    assert line["message"] == "training's mix is unknown"
    assert "AccessDenied" in line["reason"]


@pytest.mark.parametrize("service", ["dynamodb", "sagemaker", "s3", "cloudwatch"])
def test_an_error_of_aws_fails_the_invocation_which_lambda_repeats(event, context, service):
    stubbers = [Stubber(client) for client in (module.dynamodb, module.s3, module.cloudwatch, module.sagemaker)]
    with contextlib.ExitStack() as stack:
        table, s3, cloudwatch, sagemaker = map(stack.enter_context, stubbers)
        if service == "dynamodb":
            table.add_client_error("query", "ProvisionedThroughputExceededException")
        else:
            for each in NOTHING:
                table.add_response("query", each)
        if service == "sagemaker":
            sagemaker.add_client_error("describe_model", "ThrottlingException")
        else:
            sagemaker.add_response("describe_model", model(LONG_AGO))
        if service == "s3":
            s3.add_client_error("get_object", "SlowDown")
        else:
            data = json.dumps({"images": {"train": TRAINING}}).encode()
            body = StreamingBody(io.BytesIO(data), len(data))
            s3.add_response("get_object", {"Body": body})
        cloudwatch.add_client_error("get_metric_data", "Throttling")
        with pytest.raises(module.ClientError):
            module.lambda_handler(event("publish_review_metrics"), context)
