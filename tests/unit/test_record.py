import base64
import io
from datetime import UTC, datetime, timedelta

from PIL import Image

from local.report import record

START = datetime(2026, 11, 24, 9, tzinfo=UTC)


def event(seconds, kind, **details):
    return {"timestamp": START + timedelta(seconds=seconds), "type": kind, **details}


def entered(seconds, name):
    return event(seconds, "TaskStateEntered", stateEnteredEventDetails={"name": name})


def exited(seconds, name):
    return event(seconds, "TaskStateExited", stateExitedEventDetails={"name": name})


def test_the_states_of_a_history_have_their_times_and_tries():
    failed = {"taskFailedEventDetails": {"error": "EndpointUnavailableError"}}
    history = [
        event(0, "ExecutionStarted"),
        entered(0.25, "ClassifyImage"),
        event(0.25, "TaskScheduled"),
        event(0.5, "TaskFailed", **failed),
        event(1, "TaskScheduled"),
        exited(1.5, "ClassifyImage"),
        entered(1.5, "CheckConfidence"),
        event(1.5, "TaskScheduled"),
        event(1.75, "TaskFailed", taskFailedEventDetails={"error": "EndpointResponseError"}),
        event(1.75, "ExecutionFailed"),
    ]
    assert record.visits(history) == [
        {"name": "ClassifyImage", "start": 0.25, "seconds": 1.25, "tries": 2, "error": None},
        {"name": "CheckConfidence", "start": 1.5, "seconds": 0.25, "tries": 1, "error": "EndpointResponseError"},
    ]
    assert record.visits([]) == []


def test_thumbnails_are_small_and_made_only_of_images():
    buffer = io.BytesIO()
    Image.effect_noise((1200, 800), 60).convert("CMYK").save(buffer, "JPEG")
    header, _, data = record.thumbnail(buffer.getvalue()).partition(",")
    assert header == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as small:
        assert small.size == (96, 64)
    assert len(data) < 12_000
    assert record.thumbnail(b"This is a text file.") is None


def test_the_segments_of_a_trace_are_those_of_each_invocation_in_its_state():
    def segment(id, parent, start, **annotations):
        times = {"start_time": START.timestamp() + start, "end_time": START.timestamp() + start + 0.1}
        return {"id": id, "parent_id": parent, "trace_id": "1-1", "name": "x", **times, "annotations": annotations}

    states = [{"name": name, "start": at} for name, at in (("RetrieveImage", 0.2), ("ClassifyImage", 1.2))]
    first = [segment("b", "a", 0.35), segment("a", "first", 0.3), segment("c", "b", 0.36)]
    retried, classified = [segment("d", "second", 0.9, s3_key_hash="hash")], [segment("e", "third", 1.3)]
    recorder = segment("f", "fourth", 2, execution_arn="arn") | {"trace_id": "1-2"}
    stranger = segment("g", "fifth", 2) | {"trace_id": "1-3"}
    all_segments = [*first, *classified, *retried, recorder, stranger]
    for owners in ({"1-1": "arn", "arn": "arn"}, {"hash": "arn", "arn": "arn"}):
        traces = record.traces_of(all_segments, owners)
        assert list(traces) == ["arn"]
        found = record.by_function(traces["arn"], states, START.timestamp())
        assert {(trace["function"], "".join(each["id"] for each in trace["segments"])) for trace in found} == {
            ("RetrieveImage", "bac"),
            ("RetrieveImage", "d"),
            ("ClassifyImage", "e"),
            ("RecordOutcome", "f"),
        }
        assert {trace["trace_id"] for trace in found} == {"1-1", "1-2"}


def test_broken_unfinished_and_older_segments_are_skipped(tmp_path):
    path = tmp_path / "xray.jsonl"
    now = START.timestamp()
    path.write_text(
        f'{{"id": "old", "start_time": {now - 1}, "end_time": {now}}}\n'
        f'{{"id": "open", "start_time": {now}}}\n'
        f'{{"id": "whole", "start_time": {now}, "end_time": {now + 1}}}\n'
        '{"id": "brok'
    )
    assert [segment["id"] for segment in record.segments(path, START)] == ["whole"]
    assert list(record.segments(tmp_path / "none.jsonl", START)) == []
