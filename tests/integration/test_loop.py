"""make loop, whole, in its smallest size: the images change, and the model follows."""

import json

from local import loop
from local.report import loop as report


def test_the_images_change_and_a_retrained_model_is_promoted_and_follows(tmp_path, capsys):
    made = loop.live(loop.SIZES["small"], tmp_path / "loop")
    before, changed, promoted = (made["stages"][stage]["accuracy"] for stage in report.STAGES)
    assert before["low"] > changed["high"] < promoted["low"]
    alarms = [(hour["stage"], hour["alarms"]) for hour in made["hours"]]
    assert alarms[:2] == [("before", []), ("before", [])]
    assert "AcceptanceRateAlarm" in alarms[4][1] and alarms[4][0] == "changed"
    assert alarms[-1] == ("promoted", [])
    assert made["model"] != made["champion"]

    comparison = json.loads((tmp_path / "loop/retrain/comparison/comparison.json").read_text())
    verdicts = {each["requirement"]: each["verdict"] for each in comparison["sets"] if each["requirement"]}
    assert verdicts["better"] == "better"
    assert verdicts["not worse"] in ("not worse", "better")
    printed = capsys.readouterr().out
    assert "counts as an hour for the alarms, which are evaluated here: the emulator only records them" in printed
