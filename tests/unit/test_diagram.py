from itertools import combinations

from local.report import diagram
from recorded import DEFINITION


def test_no_two_states_overlap():
    boxes = diagram.layout(DEFINITION)["boxes"]
    assert [box["name"] for box in boxes] == list(DEFINITION["States"])
    for one, other in combinations(boxes, 2):
        assert abs(one["x"] - other["x"]) >= diagram.WIDTH or abs(one["y"] - other["y"]) >= diagram.HEIGHT


def test_every_transition_of_the_definition_has_an_arrow():
    arrows = diagram.layout(DEFINITION)["arrows"]
    assert [(arrow["source"], arrow["target"], arrow["condition"]) for arrow in arrows] == [
        ("RetrieveImage", "ClassifyImage", ""),
        ("ClassifyImage", "CheckConfidence", ""),
        ("CheckConfidence", "IsAccepted", ""),
        ("IsAccepted", "PublishImageClassified", "accepted and $not($audited)"),
        ("IsAccepted", "SendToAudit", "accepted"),
        ("IsAccepted", "SendToReview", "otherwise"),
        ("SendToAudit", "PublishImageClassified", ""),
        ("SendToReview", "PublishImageNeedsReview", ""),
        ("PublishImageNeedsReview", "ThresholdConfidenceNotMet", ""),
    ]


def test_arrows_point_down_except_back_to_an_earlier_state():
    states = {
        "Ask": {"Type": "Task", "Resource": "arn:aws:states:::lambda:invoke", "Next": "Done?"},
        "Done?": {
            "Type": "Choice",
            "Choices": [{"Condition": "{% $states.input.done %}", "Next": "End"}],
            "Default": "Ask",
        },
        "End": {"Type": "Succeed"},
    }
    drawing = diagram.layout({"StartAt": "Ask", "States": states})
    tops = {box["name"]: box["y"] for box in drawing["boxes"]}
    assert tops["Ask"] < tops["Done?"] < tops["End"]
    assert {arrow["target"]: len(arrow["points"]) for arrow in drawing["arrows"]} == {"Done?": 2, "End": 2, "Ask": 4}
    assert [(box["kind"], box["ends"]) for box in drawing["boxes"]] == [
        ("lambda:invoke", False),
        ("Choice", False),
        ("Succeed", True),
    ]
