"""PublishReviewMetrics on the deployed stack: reviews and predicted labels become metrics in CloudWatch."""

import json
import shutil
import uuid
from datetime import UTC, datetime, timedelta

import pytest

import review_item
from endpoint import package
from local import deployment, promote, registry
from local.command import LOCAL
from local.redrive import Redrive
from local.target import Target
from workflow import wait_for

PERIOD = 3600


@pytest.fixture
def table(workflow):
    """The review table, emptied of what other tests have left, and again at the end."""
    client, name = workflow.reviews.client, workflow.reviews.name

    def clear():
        for page in client.get_paginator("scan").paginate(TableName=name):
            for item in page["Items"]:
                client.delete_item(TableName=name, Key={key: item[key] for key in ("image", "version")})

    clear()
    yield workflow.reviews
    clear()


def put(table, accepted, created_at, label="7"):
    """Put up an image for review as CheckConfidence does."""
    result = {
        "s3_bucket": "images",
        "s3_key": f"{uuid.uuid4().hex}.png",
        "s3_etag": "etag",
        "label": label,
        "confidence": 0.9 if accepted else 0.5,
        "threshold": 0.75,
        "accepted": accepted,
        "predictions": [{"label": label, "probability": 0.9 if accepted else 0.5}],
        "endpoint": {"name": "endpoint", "variant": "AllTraffic"},
    }
    item = review_item.item_for(result, audit_rate=1)
    item["created_at"] = {"S": created_at.isoformat(timespec="milliseconds")}
    table.client.put_item(TableName=table.name, Item=item)
    return table.get(item["image"]["S"], item["version"]["S"])


def scheduled(workflow):
    """The event that the deployed schedule sends."""
    function = workflow.outputs["PublishReviewMetricsFunctionName"]
    alias = workflow.stack.client("lambda").get_alias(FunctionName=function, Name="live")["AliasArn"]
    events = workflow.stack.client("events")
    (rule,) = events.list_rule_names_by_target(TargetArn=alias)["RuleNames"]
    assert events.describe_rule(Name=rule)["ScheduleExpression"] == "rate(1 hour)"
    (target,) = events.list_targets_by_rule(Rule=rule)["Targets"]
    return json.loads(target["Input"])


def publish(workflow, event=None):
    """Invoke the function, and wait for its metrics. Returns those of this invocation."""
    began = datetime.now(UTC) - timedelta(milliseconds=1)
    response = workflow.stack.client("lambda").invoke(
        FunctionName=workflow.outputs["PublishReviewMetricsFunctionName"],
        Qualifier="live",
        Payload=json.dumps(event or scheduled(workflow)),
    )
    assert "FunctionError" not in response, json.load(response["Payload"])
    cloudwatch = workflow.stack.client("cloudwatch")
    names = ["PendingReviews", "OldestPendingReviewAge", "AcceptedAccuracy", "AcceptedAccuracyLowerBound"]
    names += ["LabelDrift", "LabelDriftByChance"]
    service = {"Name": "service", "Value": "image-classification"}
    queries = [
        {
            "Id": name[0].lower() + name[1:],
            "Label": name,
            "MetricStat": {
                "Metric": {"Namespace": "ImageClassification", "MetricName": name, "Dimensions": [service]},
                "Period": PERIOD,
                "Stat": "Maximum",
            },
        }
        for name in names
    ]

    def found():
        results = cloudwatch.get_metric_data(
            MetricDataQueries=queries, StartTime=began, EndTime=datetime.now(UTC) + timedelta(minutes=1)
        )["MetricDataResults"]
        values = {result["Label"]: result["Values"][-1] for result in results if result["Values"]}
        return values if "PendingReviews" in values else None

    return wait_for(found)


def test_with_too_little_data_only_what_is_pending_is_published(workflow, table):
    empty = publish(workflow)
    assert (empty["PendingReviews"], empty["OldestPendingReviewAge"]) == (0, 0)
    now = datetime.now(UTC)
    put(table, accepted=False, created_at=now - timedelta(hours=1))
    put(table, accepted=True, created_at=now - timedelta(hours=2))
    found = publish(workflow)
    assert found["PendingReviews"] == 2
    assert found["OldestPendingReviewAge"] == pytest.approx(7200, abs=60)
    assert "AcceptedAccuracy" not in empty | found


def test_the_accuracy_of_accepted_images_comes_from_decisions_on_audits_of_the_last_month(workflow, table):
    """With an endpoint that is not the stack's own, whose model's age is unknown: this stack's is minutes old."""
    now, event = datetime.now(UTC), scheduled(workflow)
    event["detail"]["model_name"] = ""
    for number in range(80):
        review = put(table, accepted=True, created_at=now - timedelta(days=1, minutes=number))
        table.decide(review, "reviewer", "label", "7" if number else "1")
    for accepted, days in ((False, 1), (True, 31)):
        table.decide(put(table, accepted, now - timedelta(days=days)), "reviewer", "none_of_these")
    unusable = put(table, accepted=True, created_at=now - timedelta(days=2))
    table.decide(unusable, "reviewer", "not_usable")
    found = publish(workflow, event)
    assert (found["PendingReviews"], found["OldestPendingReviewAge"]) == (0, 0)
    assert found["AcceptedAccuracy"] == pytest.approx(79 / 80)
    assert found["AcceptedAccuracyLowerBound"] == pytest.approx(0.9421, abs=1e-4)  # Clopper and Pearson's, one-sided


def test_a_promotion_and_a_rollback_start_the_accuracy_anew(workflow, table, tmp_path):
    target = Target(deployment.STACK_NAME, workflow.outputs, workflow.stack.client, workflow.stack)
    packaged = registry.in_service(target)
    shutil.copytree(LOCAL / "model", tmp_path / "model")
    metadata = json.loads((tmp_path / "model/metadata.json").read_text())
    (tmp_path / "model/metadata.json").write_text(json.dumps(metadata | {"note": "another archive"}))
    archive = package.build(tmp_path / "model", [], tmp_path)
    deployment.upload_model(workflow.stack, archive)

    def classify_and_review(reviewed_label):
        for _ in range(40):
            table.decide(put(table, accepted=True, created_at=datetime.now(UTC)), "reviewer", "label", reviewed_label)

    classify_and_review("1")
    wrong = publish(workflow)
    assert (wrong["AcceptedAccuracy"], wrong["AcceptedAccuracyLowerBound"]) == (0, 0)  # few, but far below the limit
    try:
        promote.promote(target, archive.parent.name, "a test")
        assert "AcceptedAccuracy" not in publish(workflow)
        classify_and_review("7")
        assert publish(workflow)["AcceptedAccuracy"] == 1
    finally:
        assert promote.rollback(target).model_url == packaged
    assert "AcceptedAccuracy" not in publish(workflow)
    for row in workflow.s3.list_objects_v2(Bucket=deployment.MODEL_BUCKET, Prefix="promotions/")["Contents"]:
        workflow.s3.delete_object(Bucket=deployment.MODEL_BUCKET, Key=row["Key"])


def test_predicted_labels_are_compared_with_those_of_training(workflow, table, seven):
    """The emulated CloudWatch makes metrics of the functions' log lines."""
    assert workflow.classify("drift.png", seven).output["label"] == "7"
    logs, group = workflow.stack.client("logs"), workflow.outputs["PredictionLogGroupName"]
    stream = f"test-{uuid.uuid4().hex}"
    logs.create_log_stream(logGroupName=group, logStreamName=stream)
    now = int(datetime.now(UTC).timestamp() * 1000)
    metric = {"Namespace": "ImageClassification", "Dimensions": [["service", "label"]]}
    metric["Metrics"] = [{"Name": "LabelConfidence"}]
    line = {
        "_aws": {"Timestamp": now, "CloudWatchMetrics": [metric]},
        "service": "image-classification",
        "label": "7",
        "LabelConfidence": [0.9] * 100,
    }
    for _ in range(20):
        event = {"timestamp": now, "message": json.dumps(line)}
        logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=[event])
    found = publish(workflow)
    assert found["LabelDrift"] > 0.25 > found["LabelDriftByChance"] > 0


def test_a_model_without_metadata_beside_it_has_no_drift(workflow, table):
    event = scheduled(workflow)
    event["detail"]["metadata_url"] = event["detail"]["metadata_url"].replace("metadata", "missing")
    assert set(publish(workflow, event)) == {"PendingReviews", "OldestPendingReviewAge"}


def test_an_hour_that_was_not_published_is_published_by_a_redrive(workflow, table, failure_queue):
    body = json.dumps(scheduled(workflow))
    workflow.sqs.send_message(QueueUrl=failure_queue, MessageBody=body)
    assert Redrive(workflow.stack.client, workflow.outputs).run() == ({"metrics": 1}, [])
