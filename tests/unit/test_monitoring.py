"""Dashboard, alarms and saved queries against what the code and AWS emit, and against docs/monitoring.md."""

import ast
import json
import re

import pytest

import classify_batch
import summarise_batch
from documents import RESOURCES, ROOT
from monitoring.dashboard import expanded
from test_docs import rows

MONITORING = (ROOT / "docs/monitoring.md").read_text()
NAMESPACE = "ImageClassification"
# The metrics used here that AWS documents, by namespace.
AWS_METRICS = {
    # https://docs.aws.amazon.com/step-functions/latest/dg/procedure-cw-metrics.html
    "AWS/States": {
        "ExecutionTime",
        "ExecutionThrottled",
        "ExecutionsAborted",
        "ExecutionsFailed",
        "ExecutionsStarted",
        "ExecutionsSucceeded",
        "ExecutionsTimedOut",
    },
    # https://docs.aws.amazon.com/lambda/latest/dg/monitoring-metrics-types.html
    "AWS/Lambda": {"ConcurrentExecutions", "Duration", "Errors", "Throttles"},
    # https://docs.aws.amazon.com/sagemaker/latest/dg/monitoring-cloudwatch.html
    "AWS/SageMaker": {
        "Invocation4XXErrors",
        "Invocation5XXErrors",
        "Invocations",
        "InvocationsPerInstance",
        "ModelLatency",
        "ModelSetupTime",
        "OverheadLatency",
    },
    "/aws/sagemaker/Endpoints": {"CPUUtilization", "MemoryUtilization"},
    # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-available-cloudwatch-metrics.html
    "AWS/SQS": {"ApproximateAgeOfOldestMessage", "ApproximateNumberOfMessagesVisible"},
    # https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/CloudWatch-Logs-Monitoring-CloudWatch-Metrics.html
    "AWS/Logs": {"IncomingBytes"},
}
DIMENSIONS = {
    "AWS/States": {"StateMachineArn"},
    "AWS/Lambda": {"FunctionName"},
    "AWS/SageMaker": {"EndpointName", "VariantName"},
    "/aws/sagemaker/Endpoints": {"EndpointName", "VariantName"},
    "AWS/SQS": {"QueueName"},
    "AWS/Logs": {"LogGroupName"},
    NAMESPACE: {"service"},
}
# https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/CWL_QuerySyntax.html
QUERY_WORDS = {"and", "as", "asc", "avg", "bin", "by", "count", "desc", "fields", "filter", "ispresent", "latest"}
QUERY_WORDS |= {"limit", "max", "pct", "sort", "stats", "sum"}
ALARMS = {name: row["Properties"] for name, row in RESOURCES.items() if row["Type"] == "AWS::CloudWatch::Alarm"}
DEPLOYMENT_ALARMS = {"RetrieveImageErrorsAlarm", "ClassifyImageErrorsAlarm", "CheckConfidenceErrorsAlarm"}
LIMITS = ("Threshold", "MinAcceptanceRate", "MinAcceptedAccuracy", "MaxLabelDrift")  # parameters on the dashboard
UPDATE_ALARMS = {"EndpointUpdateErrorsAlarm", "EndpointUpdateLatencyAlarm"}
QUERIES = {name: row["Properties"] for name, row in RESOURCES.items() if row["Type"] == "AWS::Logs::QueryDefinition"}


def emitted():
    """The functions' metrics: {name: (unit, dimensions other than service)}."""
    found = {}
    for path in (ROOT / "functions").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.With) and "single_metric" in ast.unparse(node.items[0]):
                name, unit, _ = node.items[0].context_expr.args
                found[name.value] = (unit.attr, {node.body[0].value.args[0].value})
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "metrics.add_metric":
                found[node.args[0].value] = (node.args[1].attr, set())
    return found


def dashboard():
    """The dashboard's body, its metrics expanded, with a number in place of each numeric substitution."""
    body, variables = RESOURCES["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
    names = set(re.findall(r"\$\{([\w:.]+)\}", body))
    known = {name.partition(".")[0] for name in names} <= {*RESOURCES, *variables, "AWS::Region", "AWS::StackName",
                                                          *LIMITS}  # fmt: skip
    assert known
    parsed = json.loads(re.sub(rf"\$\{{({'|'.join(LIMITS)})\}}", "0.5", body))
    for widget in parsed["widgets"]:
        widget["properties"]["metrics"] = expanded(widget["properties"].get("metrics", []))
    return parsed


def shown():
    """Every metric on the dashboard: (namespace, name, dimension names)."""
    for widget in dashboard()["widgets"]:
        for metric in widget["properties"]["metrics"]:
            if isinstance(metric[0], dict):
                match = re.fullmatch(r"SEARCH\('\{(\w+),([\w,]+)\} MetricName=\"(\w+)\".*", metric[0]["expression"])
                yield match[1], match[3], set(match[2].split(","))
            else:
                namespace, name, *pairs = metric[:-1]
                yield namespace, name, set(pairs[::2])


def test_every_metric_on_the_dashboard_is_emitted_with_its_dimensions():
    ours = emitted()
    metrics = list(shown())
    assert len(metrics) > 50
    for namespace, name, dimensions in metrics:
        if namespace == NAMESPACE:
            assert dimensions == {"service"} | ours[name][1], name
        else:
            assert name in AWS_METRICS[namespace], (namespace, name)
            assert dimensions == DIMENSIONS[namespace], name


def test_every_metric_of_the_code_is_on_the_dashboard_and_documented():
    ours = emitted()
    assert {name for namespace, name, _ in shown() if namespace == NAMESPACE} == set(ours)
    documented = {name.strip("`"): (unit, kind) for name, unit, kind, _ in rows(MONITORING, "## Metrics")}
    units = {"NoUnit": "None"} | {name: name for name in ("Count", "Bytes", "Milliseconds", "Seconds")}
    assert documented == {
        name: (units[unit], ", ".join(f"`{dimension}`" for dimension in sorted(dimensions)))
        for name, (unit, dimensions) in ours.items()
    }


def test_shorthand_repeats_the_row_above():
    first = ["AWS/Lambda", "Errors", "FunctionName", "a", {"stat": "Sum"}]
    rows = [first, ["...", "b", {}], [".", "Throttles", ".", ".", {}], ["...", "Resource", ".", {}], ["...", {"id": 1}]]
    assert expanded([*rows, [{"expression": "SEARCH('x', 'Sum')"}]]) == [
        first,
        ["AWS/Lambda", "Errors", "FunctionName", "b", {}],
        ["AWS/Lambda", "Throttles", "FunctionName", "b", {}],
        ["AWS/Lambda", "Throttles", "Resource", "b", {}],
        ["AWS/Lambda", "Throttles", "Resource", "b", {"id": 1}],
        [{"expression": "SEARCH('x', 'Sum')"}],
    ]


def test_widgets_do_not_overlap():
    taken = set()
    for widget in dashboard()["widgets"]:
        columns = range(widget["x"], widget["x"] + widget["width"])
        cells = {(x, y) for x in columns for y in range(widget["y"], widget["y"] + widget["height"])}
        assert not cells & taken
        assert max(columns) < 24
        taken |= cells


@pytest.mark.parametrize("name", ALARMS)
def test_an_alarm_watches_an_emitted_metric_and_stays_off_without_data(name):
    alarm = ALARMS[name]
    metrics = [row["MetricStat"]["Metric"] for row in alarm.get("Metrics", []) if "MetricStat" in row] or [alarm]
    for metric in metrics:
        if metric["Namespace"] == NAMESPACE:
            assert metric["MetricName"] in emitted()
        else:
            assert metric["MetricName"] in AWS_METRICS[metric["Namespace"]]
        dimensions = {dimension["Name"] for dimension in metric["Dimensions"]}
        extra = {"Resource", "ExecutedVersion"} if name in DEPLOYMENT_ALARMS else set()
        extra = {"EndpointConfigName"} if name in UPDATE_ALARMS else extra
        assert dimensions == DIMENSIONS[metric["Namespace"]] | extra
    assert alarm["TreatMissingData"] == "notBreaching"


def test_failures_notify_alone_and_the_other_alarms_together_and_each_has_a_runbook():
    composite = RESOURCES["WorkflowAlarm"]["Properties"]
    named = set(re.findall(r'ALARM\("\$\{(\w+)\}"\)', json.dumps(composite["AlarmRule"]).replace('\\"', '"')))
    assert named == set(ALARMS) - DEPLOYMENT_ALARMS - UPDATE_ALARMS - {"FailureAlarm"}
    assert composite["AlarmActions"] == [{"Ref": "AlarmTopic"}]
    assert {name for name, alarm in ALARMS.items() if "AlarmActions" in alarm} == {"FailureAlarm"}
    runbooks = set(re.findall(r"^### `(\w+)`", MONITORING, re.MULTILINE))
    assert runbooks == named | {"FailureAlarm"}


def test_an_update_of_the_endpoint_is_rolled_back_by_the_new_configurations_errors_alone():
    """Otherwise a broken live model's errors would roll back its repair.

    https://docs.aws.amazon.com/sagemaker/latest/dg/deployment-guardrails-configuration.html
    """
    endpoint, config = RESOURCES["Endpoint"]["Properties"], {"Fn::GetAtt": ["EndpointConfig", "EndpointConfigName"]}
    rollback = endpoint["DeploymentConfig"]["Fn::If"][1]["AutoRollbackConfiguration"]["Alarms"]
    assert {alarm["AlarmName"]["Ref"] for alarm in rollback} == UPDATE_ALARMS
    assert endpoint["EndpointConfigName"] == config
    for name in UPDATE_ALARMS:
        assert {"Name": "EndpointConfigName", "Value": config} in ALARMS[name]["Dimensions"]
        watched = {key: ALARMS[name][key] for key in ("MetricName", "Threshold", "EvaluationPeriods")}
        assert watched.items() <= ALARMS[name.replace("Update", "")].items()


def test_low_confidence_does_not_set_off_the_failure_alarm():
    assert ALARMS["FailureAlarm"]["Dimensions"][0]["Value"] == {"Fn::GetAtt": ["FailureQueue", "QueueName"]}
    pattern = RESOURCES["FailedExecutionRule"]["Properties"]["EventPattern"]["detail"]["$or"][0]
    assert pattern["error"] == [{"anything-but": "THRESHOLD_CONFIDENCE_NOT_MET"}]


@pytest.mark.parametrize("name", QUERIES)
def test_a_saved_query_uses_only_logged_fields(name):
    query = re.sub(r'"[^"]*"', "", QUERIES[name]["QueryString"])
    computed = set(re.findall(r"\bas (\w+)", query))
    used = set(re.findall(r"(?<![@.\w])[a-z][a-z_]*(?:\.\w+)*\b", query)) - QUERY_WORDS - computed
    assert used <= logged_fields(), used - logged_fields()


def logged_fields():
    """The fields of the prediction log, of the functions' log lines and of Lambda's reports."""
    lines = (ROOT / "functions/prediction_log.py").read_text() + (ROOT / "functions/classify_image.py").read_text()
    ours = set(re.findall(r"[a-z_0-9]+", lines)) & {
        "confidence", "cause", "endpoint_ms", "error", "execution_arn", "label", "outcome", "s3_key", "threshold",
    }  # fmt: skip
    powertools = {"message", "service", "location", "correlation_id", "xray_trace_id", "milliseconds"}
    # https://docs.aws.amazon.com/lambda/latest/dg/telemetry-schema-reference.html#platform-report
    reports = {"type"} | {
        f"record.metrics.{name}" for name in ("initDurationMs", "durationMs", "maxMemoryUsedMB", "billedDurationMs")
    }
    return ours | powertools | reports


def test_the_dashboard_shows_batches_from_the_fields_that_their_functions_log():
    """A field of these lines is a key of what the function counts; "." separates those of nested objects."""
    sums = summarise_batch.add_up(iter([]))
    none_failed = {"children": 0, "images": 0, "items": 0, "errors": {}}
    summary = summarise_batch.summarise(sums, none_failed) | dict.fromkeys(("execution_arn", "seconds"))
    costs = {f"estimated_cost_usd.{name}" for name in summary["estimated_cost_usd"]}
    lines = {"batch classified": set(classify_batch.count([])), "batch summarised": {*summary} | costs}
    texts = [row["properties"]["query"] for row in dashboard()["widgets"] if row["type"] == "log"]
    queries = [text for text in texts if "BatchLogGroup" in text]
    assert len(queries) == 2
    for text in queries:
        _, chosen, *rest = text.split(" | ")
        message = re.fullmatch(r"filter message = '(.+)'", chosen)[1]
        computed = set(re.findall(r"\bas (\w+)", text))
        used = set(re.findall(r"(?<![@.\w])[a-z][a-z_]*(?:\.\w+)*\b", " ".join(rest))) - QUERY_WORDS - computed
        assert used and used <= lines[message], used - lines[message]


def test_every_saved_query_is_documented():
    titles = {row["Name"]["Fn::Sub"].removeprefix("${AWS::StackName}/") for row in QUERIES.values()}
    assert len(titles) == 10
    assert {name.strip("`") for name, _ in rows(MONITORING, "## Saved queries")} == titles


def test_the_documented_price_of_idle_monitoring_follows_from_the_template():
    """$0.10 for each metric of an alarm, $0.50 for a composite one; $3 for a dashboard with more than 50 metrics.

    A custom metric is $0.30; two of them are published without any images.

    https://aws.amazon.com/cloudwatch/pricing/
    """
    operations = (ROOT / "docs/operations.md").read_text()

    def price(alarms):
        watched = sum(len([row for row in each.get("Metrics", [{}]) if "Expression" not in row]) for each in alarms)
        return f"${0.1 * watched + 0.5:.2f}"

    always = [alarm for name, alarm in ALARMS.items() if "Condition" not in RESOURCES[name]]
    realtime = [alarm for name, alarm in ALARMS.items() if name not in DEPLOYMENT_ALARMS]
    created = [alarm for name, alarm in ALARMS.items() if name not in DEPLOYMENT_ALARMS | UPDATE_ALARMS]
    others = f"({price(created)} with a serverless endpoint, {price(realtime)} with a realtime one)"
    assert f"Alarms are {price(always)} a month {others}" in operations.replace("\n", " ")
    assert len(list(shown())) > 50
    readme = (ROOT / "README.md").read_text()
    for alarms in (always, created):
        assert f"${3 + 2 * 0.3 + float(price(alarms)[1:]):.2f} a month: monitoring" in readme
