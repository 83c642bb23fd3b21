"""Many uploads at once, on the local stack."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from local.executions import Watch
from workflow import wait_for


def test_many_images_uploaded_at_once_are_throttled_and_all_have_an_outcome(workflow, seven):
    """A hundred executions start within seconds; the account's limit keeps the machine usable."""
    prefix = f"{workflow.outputs['UploadPrefix']}hundred/"
    keys = {f"{prefix}{number:03}.png" for number in range(100)}
    watch = Watch(workflow.states, workflow.machine, prefix)
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda key: workflow.upload(key, seven), keys))
    outcomes = []
    wait_for(lambda: outcomes.extend(watch.ended()) or len(outcomes) >= len(keys), seconds=200)
    assert {(outcome.key, outcome.label) for outcome in outcomes} == {(key, "7") for key in keys}

    def logged():
        """The keys in the prediction log, whose function was throttled as well."""
        pages = (
            workflow.stack.client("logs")
            .get_paginator("filter_log_events")
            .paginate(logGroupName=workflow.outputs["PredictionLogGroupName"])
        )
        messages = [event["message"] for page in pages for event in page["events"]]
        return all(any(key in message for message in messages) for key in keys)

    wait_for(logged, seconds=100)
    assert throttles(workflow) > 0


def throttles(workflow):
    """How often functions were throttled in the last hour."""
    now = datetime.now(UTC)
    names = [value for name, value in workflow.outputs.items() if name.endswith("FunctionName")]
    points = [
        point["Sum"]
        for name in names
        for point in workflow.stack.client("cloudwatch").get_metric_statistics(
            Namespace="AWS/Lambda",
            MetricName="Throttles",
            Dimensions=[{"Name": "FunctionName", "Value": name}],
            StartTime=now - timedelta(hours=1),
            EndTime=now + timedelta(minutes=1),
            Period=3600,
            Statistics=["Sum"],
        )["Datapoints"]
    ]
    return sum(points)
