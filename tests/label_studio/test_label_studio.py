"""The tasks of make review-export, and what comes back, with Label Studio's own SDK and converter."""

import json

import pytest
from label_studio_sdk.converter import Converter
from label_studio_sdk.label_interface import LabelInterface
from label_studio_sdk.label_interface.objects import AnnotationValue, PredictionValue, TaskValue

from review import exchange
from reviews import LABELS, decided, review

CONFIG = exchange.labelling_config(LABELS)


@pytest.fixture
def interface():
    """Label Studio's view of the labelling configuration."""
    return LabelInterface(CONFIG)


@pytest.fixture
def tasks():
    """One pending review for each label, and reviewed ones."""
    pending = [review(f"{number}.png", label) for number, label in enumerate(LABELS)]
    reviewed = [decided("motorcycle"), decided(None, "none_of_these"), decided(None, "not_usable")]
    return [exchange.task(each, each.image, LABELS) for each in [*pending, *reviewed]]


def test_label_studio_accepts_the_labelling_configuration(interface):
    interface.validate()
    assert interface.get_control("decision").labels == [*LABELS, *exchange.CHOICES]


def test_label_studio_accepts_every_task_with_its_prediction_and_decision(interface, tasks):
    for task in tasks:
        TaskValue.model_validate({name: task[name] for name in ("data", "predictions")})
        assert interface.validate_task({"data": task["data"]})  # this version cannot check more at once
        for prediction in task["predictions"]:
            PredictionValue.model_validate(prediction)
            assert interface.validate_prediction(prediction, return_errors=True) == []
        for annotation in task.get("annotations", []):
            assert interface.validate_annotation(annotation)


def test_label_studio_refuses_a_choice_that_is_not_in_the_configuration(interface):
    """Otherwise the tests above would prove nothing."""
    assert not interface.validate_prediction({"result": [exchange.choice("aeroplane")]})


def annotated(interface, task, number):
    """The task as Label Studio exports it, after its user has chosen the configuration's choice of this number."""
    control = interface.get_control("decision")
    region = control.label(control.labels[number]).model_dump()
    annotation = AnnotationValue(
        result=[interface.create_regions({"decision": control.labels[number]})[0]], completed_by=1
    )
    exported = annotation.model_dump() | {"id": 1, "completed_by": {"id": 1, "email": "ada@example.com"}}
    assert region["value"] == exported["result"][0]["value"]
    return task | {"id": number + 1, "annotations": [exported]}


def test_what_label_studio_exports_is_imported(interface, tasks, tmp_path):
    choices = [*LABELS, *exchange.CHOICES]
    exported = [annotated(interface, tasks[number % len(tasks)], number) for number in range(len(choices))]
    assert all(interface.validate_annotation(task["annotations"][0]) for task in exported)
    (tmp_path / "export.json").write_text(json.dumps(exported))
    found = list(exchange.read_label_studio(tmp_path / "export.json"))
    assert [(row.decision, row.label, row.reviewer) for row in found] == [
        *[("label", label, "ada@example.com") for label in LABELS],
        ("none_of_these", None, "ada@example.com"),
        ("not_usable", None, "ada@example.com"),
    ]
    assert [row.image for row in found] == [task["data"]["s3_uri"] for task in exported]


def test_label_studios_converter_reads_the_same_choices(interface, tasks, tmp_path):
    exported = [annotated(interface, tasks[number], number) for number in range(3)]
    (tmp_path / "export.json").write_text(json.dumps(exported))
    Converter(CONFIG, project_dir=str(tmp_path)).convert(
        str(tmp_path / "export.json"), str(tmp_path / "out"), "JSON_MIN", is_dir=False
    )
    converted = json.loads((tmp_path / "out/result.json").read_text())
    assert [(row["decision"], row["s3_uri"], row["version"]) for row in converted] == [
        (label, f"s3://images/{number}.png", "v1") for number, label in enumerate(LABELS[:3])
    ]
    with pytest.raises(exchange.ExchangeError, match="choose the format JSON there, not JSON-MIN"):
        list(exchange.read_label_studio(tmp_path / "out/result.json"))
