"""The emulated SageMaker's copies of requests and captured data: bounded queues, and shares."""

import threading
from email.message import Message

from local.emulator import variants
from local.emulator.variants import Recorder, Shadow


def test_requests_for_which_the_shadow_is_too_slow_are_dropped_and_counted(capsys):
    copied, free = [], threading.Event()

    def answer(body, headers):
        free.wait(10)
        copied.append(body)

    shadow = Shadow(answer, 1)
    for number in range(variants.MAX_COPIES + 10):
        shadow.copy(b"%d" % number, Message())
    assert 9 <= shadow.dropped <= 10  # the first can be in work already, or still queued
    assert f"requests dropped: {shadow.dropped}" in capsys.readouterr().err
    free.set()
    while len(copied) + shadow.dropped < variants.MAX_COPIES + 10:
        free.wait(0.01)
    shadow.stop()
    assert copied[0] == b"0"


def test_the_share_of_copied_requests_is_the_shadows_weight(monkeypatch):
    draws = iter([0.0, 0.49, 0.5, 0.99])
    monkeypatch.setattr(variants.random, "random", lambda: next(draws))
    shadow = Shadow(lambda *_: None, 0.5)
    shadow.stop()
    while shadow.thread.is_alive():
        shadow.thread.join(5)
    for _ in range(4):
        shadow.copy(b"", Message())
    assert shadow.copies.qsize() == 2


def test_an_event_that_exceeds_the_queue_is_dropped_and_counted(monkeypatch, capsys):
    writing = threading.Event()
    monkeypatch.setattr(Recorder, "_run", lambda self: writing.wait(10))
    config = {
        "DestinationS3Uri": "s3://bucket/captured",
        "InitialSamplingPercentage": "100",
        "CaptureOptions": [{"CaptureMode": "Input"}],
    }
    recorder = Recorder("endpoint", config, "us-east-1")
    for _ in range(variants.MAX_EVENTS + 1):
        recorder.add("AllTraffic", 0.1, b"image", Message(), 200, (b"{}", "application/json"))
    assert recorder.dropped == 1
    assert "data capture: events dropped: 1" in capsys.readouterr().err
    variant, _, status, event = recorder.events.get()
    assert (variant, status) == ("AllTraffic", 200)
    assert "endpointInput" in event and "endpointOutput" not in event
    writing.set()
