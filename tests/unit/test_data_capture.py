import base64
import json
import re
import resource
import signal
from datetime import UTC, datetime

import data_capture
from data_capture import Capture, capture_event

NOON = datetime(2026, 1, 31, 12, 0, 59, tzinfo=UTC)
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def events_of(folder):
    return [json.loads(line) for file in folder.rglob("*.jsonl") for line in file.read_text().splitlines()]


def test_an_event_has_sagemakers_format_with_binary_data_in_base64_and_json_as_text():
    event = capture_event(NOON, "image/png", b"\x89PNG", "application/json", b'{"predictions": []}', "mine")
    assert re.fullmatch(UUID, event["eventMetadata"].pop("eventId"))
    assert event == {
        "captureData": {
            "endpointInput": {
                "observedContentType": "image/png",
                "mode": "INPUT",
                "data": base64.b64encode(b"\x89PNG").decode(),
                "encoding": "BASE64",
            },
            "endpointOutput": {
                "observedContentType": "application/json",
                "mode": "OUTPUT",
                "data": '{"predictions": []}',
                "encoding": "JSON",
            },
        },
        "eventMetadata": {"inferenceTime": "2026-01-31T12:00:59Z", "inferenceId": "mine"},
        "eventVersion": "0",
    }


def test_json_lines_are_captured_as_text_and_an_inference_id_only_if_the_request_had_one():
    event = capture_event(NOON, "application/jsonlines; a=b", b'"aW1hZ2U="\n', "application/jsonlines", b"{}\n")
    sides = event["captureData"]
    assert [side["data"] for side in sides.values()] == ['"aW1hZ2U="\n', "{}\n"]
    assert [side["encoding"] for side in sides.values()] == ["JSON", "JSON"]
    assert sorted(event["eventMetadata"]) == ["eventId", "inferenceTime"]


def test_events_are_written_in_order_to_a_folder_per_hour(tmp_path):
    writer = Capture(tmp_path)
    for body in (b"one", b"two"):
        writer.add("image/png", body, "application/json", b"{}")
    writer.close()
    assert [event["captureData"]["endpointInput"]["data"] for event in events_of(tmp_path)] == ["b25l", "dHdv"]
    (file,) = tmp_path.rglob("*.jsonl")
    assert re.fullmatch(rf"\d{{4}}/\d\d/\d\d/\d\d/{UUID}\.jsonl", str(file.relative_to(tmp_path)))


def test_an_event_that_cannot_be_written_is_dropped_and_logged_and_the_next_is_tried(tmp_path, capsys):
    (tmp_path / "file").touch()
    writer = Capture(tmp_path / "file")
    writer.add("image/png", b"one", "application/json", b"{}")
    writer.add("image/png", b"two", "application/json", b"{}")
    writer.close()
    assert capsys.readouterr().err.count("data capture: events dropped: 1 (NotADirectoryError") == 2


def test_a_full_disk_drops_whole_events(tmp_path, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = Capture(tmp_path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, limits[1]))
        for body in (b"one", bytes(3_000), b"two"):
            writer.add("image/png", body, "application/json", b"{}")
        writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [event["captureData"]["endpointInput"]["data"] for event in events_of(tmp_path)] == ["b25l", "dHdv"]
    assert capsys.readouterr().err.count("data capture: events dropped: 1 (OSError") == 1


def test_an_event_that_exceeds_the_queue_is_dropped_and_counted(tmp_path, capsys):
    writer = Capture(tmp_path)
    writer.add("image/png", bytes(data_capture.MAX_QUEUED_BYTES + 1), "application/json", b"{}")
    writer.add("image/png", b"two", "application/json", b"{}")
    writer.close()
    assert [event["captureData"]["endpointInput"]["data"] for event in events_of(tmp_path)] == ["dHdv"]
    assert "data capture: events dropped: 1 (" in capsys.readouterr().err
