"""The record of a run, collected from every source while the stack is up."""

from datetime import UTC, datetime

from local import run
from local.report import record, render


def test_each_execution_has_its_states_traces_and_log_line(workflow, seven):
    since = datetime.now(UTC)
    prefix = f"{workflow.outputs['UploadPrefix']}recorded/"
    images = {f"{prefix}7/seven.png": seven, f"{prefix}text.png": b"This is a text file."}
    outcomes = run.classify_all(workflow.stack, workflow.outputs, prefix, images)
    made = record.collect(workflow.stack, workflow.outputs, outcomes, images, since)

    accepted, failed = made["executions"]
    assert (accepted["outcome"], accepted["label"], accepted["truth"]) == ("accepted", "7", "7")
    path = ["RetrieveImage", "ClassifyImage", "CheckConfidence", "IsAccepted", "PublishImageClassified"]
    assert [state["name"] for state in accepted["states"]] == path
    assert sorted(trace["function"] for trace in accepted["traces"]) == sorted([*path[:3], "RecordOutcome"])
    assert accepted["log"]["confidence"] == accepted["confidence"] >= accepted["threshold"] == 0.75

    assert (failed["outcome"], failed["error"], failed["truth"]) == ("error", "UnsupportedImageError", None)
    assert failed["cause"].startswith(f"s3://{workflow.bucket}/{prefix}text.png: the file is text")
    assert [(state["name"], state["error"]) for state in failed["states"]] == [("RetrieveImage", failed["error"])]
    assert sorted(trace["function"] for trace in failed["traces"]) == ["RecordOutcome", "RetrieveImage"]
    assert failed["log"]["cause"] == failed["cause"]
    assert (bool(accepted["thumbnail"]), failed["thumbnail"]) == (True, None)

    names = [row[2] for row in render.waterfall(accepted)]
    assert [name for name in names if "Get" in name or "Invoke" in name] == [
        "s3 GetObject",
        "runtime.sagemaker InvokeEndpoint",
    ]
