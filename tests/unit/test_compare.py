"""The comparison of two models: its tests' error rates, what it counts, refuses and writes."""

import functools
import html.parser
import json
import os
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image
from scipy.stats import binomtest, norm

import compare
import comparison_report
import data
import package
import paired
from compare import ModelFileError, NoImagesError
from documents import ROOT
from tiny_model import write_tiny_model

HOSTILE = "<script>alert(1)"  # a folder's name cannot have a slash


@functools.cache
def verdict(gained, lost, images, margin):
    return paired.judge(gained, lost, images, margin).verdict


def most_lost(images, margin):
    """For each number of gained images, the most lost ones with which a challenger is not worse."""
    found = []
    for gained in range(images + 1):
        low, high = -1, images - gained
        while low < high:
            middle = (low + high + 1) // 2
            passed = paired.p_value(gained, middle, images, -margin) <= paired.LEVEL
            low, high = (middle, high) if passed else (low, middle - 1)
        found.append(low)
    return np.array(found)


@pytest.mark.parametrize(("images", "margin"), [(20, 0.1), (40, 0.05)])
def test_a_challenger_worse_by_the_margin_passes_as_not_worse_in_at_most_5_of_100_samples(images, margin):
    """Not simulated but calculated, for every share of images that both models get right or wrong."""
    gains, losses = np.arange(images + 1), most_lost(images, margin)
    shares = (1 - margin) / 2 * np.linspace(0, 1, 1_000)
    passed = [
        paired._probability(gains[losses >= 0], losses[losses >= 0], images, gain, gain + margin) for gain in shares
    ]
    assert 0.03 < max(passed) <= 0.05


@pytest.mark.parametrize(
    ("gain", "loss", "wrong"),
    [
        (0.05, 0.05, ("better",)),
        (0.01, 0.01, ("better",)),
        (0.05, 0.05, ("worse",)),
        (0, 0.02, ("better", "not worse")),
        (0.02, 0.04, ("better", "not worse")),
        (0.1, 0.12, ("better", "not worse")),
    ],
)
def test_a_wrong_verdict_is_given_in_at_most_5_of_100_simulated_comparisons(gain, loss, wrong):
    samples = 2_000
    drawn = np.random.default_rng(0).multinomial(300, [gain, loss, 1 - gain - loss], samples)
    outcomes = Counter(map(tuple, drawn[:, :2].tolist()))
    share = sum(count for (g, n), count in outcomes.items() if verdict(g, n, 300, 0.02) in wrong) / samples
    assert share <= 0.05 + 3 * (0.05 * 0.95 / samples) ** 0.5


def test_without_changes_the_bound_is_the_exact_one_and_not_zero():
    for images in (10, 100, 1_000):
        bound = paired.lower_bound(0, 0, images)
        assert bound == pytest.approx(-(1 - 0.05 ** (1 / images)), abs=1e-4)  # else some image would have been lost
    assert verdict(0, 0, 148, 0.02) == "undecided" and verdict(0, 0, 149, 0.02) == "not worse"


def test_the_exact_p_value_approaches_the_normal_approximation():
    score = paired.score(np.array(120), np.array(140), 10_000, -0.005)
    assert paired.p_value(120, 140, 10_000, -0.005) == pytest.approx(norm.sf(score), rel=0.05)


def test_verdicts_follow_from_gained_and_lost_images():
    assert paired.mcnemar(9, 2) == pytest.approx(binomtest(9, 11, alternative="greater").pvalue)
    cases = {(5, 0): "better", (4, 0): "not worse", (1, 5): "undecided", (1, 8): "worse", (0, 1): "not worse"}
    assert {case: verdict(*case, 359, 0.02) for case in cases} == cases
    assert verdict(3, 0, 3, 0.02) == "undecided"


@pytest.mark.parametrize("gained", [0, 3, 4, 5, 9])
def test_the_bound_is_above_0_only_for_a_better_challenger(gained):
    assert (paired.lower_bound(gained, 0, 100) > 0) == (paired.judge(gained, 0, 100, 0.02).verdict == "better")


def test_the_number_of_images_needed_suffices_in_about_80_of_100_samples():
    needed = paired.images_needed(paired.judge(6, 3, 100, 0.02), 0)
    drawn = np.random.default_rng(0).multinomial(needed, [0.06, 0.03, 0.91], 2_000)
    better = np.mean([paired.mcnemar(gained, lost) <= 0.05 for gained, lost, _ in drawn])
    assert 0.74 < better < 0.86
    assert paired.images_needed(paired.judge(3, 3, 100, 0.02), 0) is None
    assert paired.images_needed(paired.judge(0, 0, 100, 0.02), 0.02) == 150


def test_p_values_of_labels_are_adjusted_for_their_number():
    assert paired.holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])


def test_the_bootstrap_is_paired_and_repeatable_and_says_nothing_if_nothing_changed():
    right = np.random.default_rng(1).random((200, 1)) < 0.9
    other = right.copy()
    other[:8] = ~other[:8]
    sums = paired.bootstrap(np.hstack([right, other]).astype(float), 0)
    low, high = paired.interval((sums[:, 1] - sums[:, 0]) / 200)
    assert -0.08 < low < high < 0.04  # independent samples would vary twice as much
    assert (sums == paired.bootstrap(np.hstack([right, other]).astype(float), 0)).all()
    assert paired.interval(sums[:, 1] - sums[:, 1]) is None


def write_shades(folder, shades):
    """Images of one brightness each, with their number in a corner so that no two are equal: {label: [shade, ...]}."""
    number = 0
    for label, values in shades.items():
        (folder / label).mkdir(parents=True)
        for at, value in enumerate(values):
            pixels = np.full((16, 16, 3), value, dtype=np.uint8)
            pixels[0, 0] = number % 256, number // 256, 0
            Image.fromarray(pixels).save(folder / label / f"{at}.png")
            number += 1
    return folder


def square(folder):
    """Change a tiny model: P(light) is the square of the brightness, so that medium shades count as dark."""
    model = onnx.load(folder / "model.onnx")
    place = next(index for index, node in enumerate(model.graph.node) if node.op_type == "Unsqueeze")
    model.graph.node[place].input[0] = "squared"
    model.graph.node.insert(place, helper.make_node("Mul", ["mean", "mean"], ["squared"]))
    onnx.save_model(model, folder / "model.onnx")
    return folder


@pytest.fixture
def good(tmp_path):
    return write_tiny_model(tmp_path / "good")


@pytest.fixture
def poor(tmp_path):
    """It calls light images of the shade 160 dark."""
    return square(write_tiny_model(tmp_path / "poor"))


@pytest.fixture
def shades(tmp_path):
    return write_shades(tmp_path / "images", {"dark": [10] * 100, "light": [250] * 70 + [160] * 10})


@pytest.fixture
def output(tmp_path):
    return ["--output", str(tmp_path / "comparison")]


def read(tmp_path):
    return json.loads((tmp_path / "comparison/comparison.json").read_text())


def test_a_better_challenger_passes_and_a_worse_one_fails(good, poor, shades, output, tmp_path, capsys):
    assert compare.main([str(poor), str(good), "--data", str(shades), *output]) == 0
    found = read(tmp_path)
    (each,) = found["sets"]
    assert (found["verdict"], found["holds"], each["verdict"]) == ("better", True, "better")
    assert (each["images"], each["gained"], each["lost"]) == (180, 10, 0)
    assert each["p_better"] == pytest.approx(0.5**10) and 0 < each["at_least"] < 10 / 180
    assert (each["champion"]["accuracy"], each["challenger"]["accuracy"]) == (170 / 180, 1)
    assert each["intervals"]["accuracy"][0] > 0
    assert [row["gained"] for row in each["labels"]] == [0, 10] and each["labels"][1]["p"] < 0.01
    assert [row["change"] for row in each["changed"]] == ["gained"] * 10
    assert each["moves"] == [[170, 0, 0], [0, 0, 0], [0, 0, 10]]
    assert each["champion"]["cpu_milliseconds"] > 0 and found["challenger"]["model_bytes"] > 0
    assert "better: gains 10 images and loses 0 (McNemar's test: p = 0.001)" in capsys.readouterr().out
    assert compare.main([str(good), str(poor), "--data", str(shades), *output]) == 4
    assert read(tmp_path)["sets"][0]["verdict"] == "worse"


def test_the_same_model_is_not_worse_but_not_better_and_few_images_decide_nothing(
    good, shades, output, tmp_path, capsys
):
    models = [str(good), str(good)]
    assert compare.main([*models, "--data", str(shades), *output]) == 3
    assert "Both are the same model." in capsys.readouterr().out
    assert compare.main([*models, "--not-worse", str(shades), *output]) == 0
    few = write_shades(tmp_path / "few", {"dark": [10] * 20})
    assert compare.main([*models, "--not-worse", str(shades), str(few), *output]) == 5
    assert "to show that it is not worse by more than 2 points: about 150 images like these" in capsys.readouterr().out
    assert compare.main([*models, "--not-worse", str(shades), "--data", str(few), *output]) == 0  # only compared
    assert [each["holds"] for each in read(tmp_path)["sets"]] == [True, True]


def test_it_can_be_asked_to_be_better_here_and_not_worse_there(good, poor, shades, output, tmp_path):
    other = write_shades(tmp_path / "other", {"dark": [20] * 100, "light": [240] * 60})
    arguments = [str(poor), str(good), "--better", str(shades), "--not-worse", str(other), *output]
    assert compare.main(arguments) == 0
    verdicts = [(each["requirement"], each["verdict"]) for each in read(tmp_path)["sets"]]
    assert verdicts == [("better", "better"), ("not worse", "not worse")]
    assert compare.main([str(poor), str(good), "--better", str(other), "--better", str(shades), *output]) == 3


def test_both_models_may_be_archives(good, poor, shades, output, tmp_path, capsys):
    archives = []
    for model in (poor, good):
        archives.append(tmp_path / f"{model.name}.tar.gz")
        archives[-1].write_bytes(package.pack(package.collect(model, [])))
    assert compare.main([*map(str, archives), "--data", str(shades), *output]) == 0
    found = read(tmp_path)
    assert found["champion"]["model_sha256"] == compare.digest_of(poor / "model.onnx")
    assert found["champion"]["archive_sha256"] == compare.digest_of(archives[0])
    assert found["champion"]["other_code"] is False
    assert "was trained on these images: no data.json" in capsys.readouterr().out
    files = package.collect(good, []) | {"code/inference.py": b"# older"}
    archives[1].write_bytes(package.pack(files))
    compare.main([*map(str, archives), "--data", str(shades), *output])
    assert "The challenger's archive has another version of the inference code" in capsys.readouterr().out


def test_images_of_labels_that_a_model_does_not_know_are_wrong_for_it(good, tmp_path, output, capsys):
    bigger = write_tiny_model(tmp_path / "bigger")
    metadata = json.loads((bigger / "metadata.json").read_text())
    (bigger / "metadata.json").write_text(json.dumps(metadata | {"labels": ["dark", "snow"]}))
    images = write_shades(tmp_path / "images", {"dark": [10] * 30, "snow": [250] * 30, HOSTILE: [200]})
    assert compare.main([str(good), str(bigger), "--data", str(images), *output]) == 0
    (each,) = read(tmp_path)["sets"]
    assert each["champion"]["unknown"] == {"snow": 30, HOSTILE: 1}
    assert (each["champion"]["accuracy"], each["challenger"]["accuracy"]) == (30 / 61, 60 / 61)
    out = capsys.readouterr().out
    assert f"the champion does not know {HOSTILE} (1 image), snow (30 images): wrong for it" in out
    assert "label snow: clearly gains (30 gained, 0 lost)" in out
    page = (tmp_path / "comparison/report.html").read_text()
    assert "<script" not in page and "http" not in page


def test_unreadable_files_duplicates_and_training_images_are_left_out_for_both(
    good, poor, shades, output, tmp_path, capsys
):
    (shades / "dark/text.png").write_text("no image")
    shutil.copy(shades / "dark/0.png", shades / "light/copy.png")
    train = write_shades(tmp_path / "train", {"dark": [30], "light": [230]})
    shutil.copy(shades / "dark/7.png", train / "dark/of-the-test-set.png")
    compare.main([str(poor), str(good), "--data", str(shades), *output])
    before = read(tmp_path)["sets"][0]
    (good / "data.json").write_text(json.dumps({"train": str(train)}))
    assert compare.main([str(poor), str(good), "--data", str(shades), *output]) == 0
    (each,) = read(tmp_path)["sets"]
    assert (before["images"], each["images"]) == (180, 179)
    assert before["sha256"] == each["sha256"]  # of the images, whatever the models
    reasons = {why: [(os.path.basename(path), reason) for path, reason in files]
               for why, files in each["skipped"].items()}  # fmt: skip
    assert reasons["duplicate"] == [("copy.png", f"same as {shades / 'dark/0.png'}, which has another label")]
    assert reasons["training"] == [("7.png", "in the challenger's training or validation data")]
    assert reasons["unreadable"][0][0] == "text.png"
    out = capsys.readouterr().out
    assert "Skipped unreadable files: 1" in out
    assert "Not checked whether the champion or the challenger was trained" in out
    assert "Not checked whether the champion was trained on these images" in out
    shutil.rmtree(train)
    compare.main([str(poor), str(good), "--data", str(shades), *output])
    assert read(tmp_path)["challenger"]["training_data_known"] is False


@pytest.mark.parametrize("kind", ["training images only", "labels of other models", "text only"])
def test_a_folder_without_an_image_to_compare_is_an_error(kind, good, poor, shades, tmp_path, output):
    if kind == "training images only":
        (good / "data.json").write_text(json.dumps({"train": str(shades)}))
    elif kind == "labels of other models":
        shades = write_shades(tmp_path / "cats", {"cat": [10, 20]})
    else:
        shades = tmp_path / "text"
        (shades / "dark").mkdir(parents=True)
        (shades / "dark/a.png").write_text("no image")
    with pytest.raises(NoImagesError, match="has no"):
        compare.main([str(poor), str(good), "--data", str(shades), *output])


def write_broken(tmp_path, kind):
    folder = write_tiny_model(tmp_path / "broken")
    archive = tmp_path / "broken.tar.gz"
    files = package.collect(folder, [])
    match kind:
        case "nowhere":
            return tmp_path / "nowhere"
        case "folder without a model":
            (folder / "model.onnx").unlink()
        case "no metadata":
            (folder / "metadata.json").write_text("[]")
        case "no JSON":
            (folder / "metadata.json").write_text("{")
        case "damaged model":
            (folder / "model.onnx").write_bytes(b"no model")
        case "too few labels":
            metadata = json.loads((folder / "metadata.json").read_text())
            (folder / "metadata.json").write_text(json.dumps(metadata | {"labels": ["dark"]}))
        case "another input":
            model = onnx.load(folder / "model.onnx")
            model.graph.input[0].name = model.graph.node[0].input[0] = "images"
            onnx.save_model(model, folder / "model.onnx")
        case "no archive":
            archive.write_bytes(b"text")
            return archive
        case "truncated archive":
            archive.write_bytes(package.pack(files)[:-200])
            return archive
        case "archive without a model":
            archive.write_bytes(package.pack({"code/inference.py": b""}))
            return archive
    return folder


BROKEN = {
    "nowhere": "there is no such folder or file",
    "folder without a model": "model.onnx cannot be read",
    "no metadata": "holds no model that",
    "no JSON": "holds no model that",
    "damaged model": "holds no model that",
    "too few labels": "holds no model that",
    "another input": "holds no model that",
    "no archive": "is no model.tar.gz",
    "truncated archive": "is no model.tar.gz",
    "archive without a model": "has no model.onnx and no metadata.json",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_anything_but_a_model_is_refused(kind, tmp_path, monkeypatch):
    monkeypatch.delenv("SM_MODEL_DIR", raising=False)
    with pytest.raises(ModelFileError, match=BROKEN[kind]):
        compare.load("champion", write_broken(tmp_path, kind))


def test_wrong_options_have_the_status_2_and_errors_the_status_1(good, shades):
    for wrong in ([], ["--data", str(shades), "--margin", "2"], ["--data", str(shades), "--threshold", "0"]):
        with pytest.raises(SystemExit) as ended:
            compare.main([str(good), str(good), *wrong])
        assert ended.value.code == 2
    command = [sys.executable, str(ROOT / "training/compare.py"), str(good), "s3://models/model.tar.gz", "--data", "x"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr == "ModelFileError: s3:/models/model.tar.gz: download the archive first\n"


def test_progress_is_shown_with_the_time_left(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(data, "SECONDS_BETWEEN_LINES", 0)
    assert list(data.show_progress("abc", 3, str(tmp_path))) == ["a", "b", "c"]
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}: {done} of 3 images, about 0 s left" for done in (1, 2)
    ]


class Tags(html.parser.HTMLParser):
    """Raises if a tag is closed that is not open."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_shows_the_changed_images_and_is_well_formed(good, poor, shades, output, tmp_path):
    compare.main([str(poor), str(good), "--data", str(shades), *output])
    page = (tmp_path / "comparison/report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert page.count('src="data:image/png;base64,') == 10
    assert "Verdict: better, all requirements hold" in page
    assert "light: dark (0.61) → light (0.63)" in page


def test_sentences_about_many_labels_are_shortened():
    rows = [{"label": f"l{n}", "p": 0.01, "gained": 9, "lost": 0} for n in range(100)]
    unknown = {"champion": {"unknown": {f"l{n}": 2 for n in range(100)}}, "challenger": {"unknown": {}}}
    each = {
        "verdict": "better",
        "gained": 900,
        "lost": 0,
        "margin": 0.02,
        "at_least": 0.1,
        "p_better": 0.0,
        "p_worse": 1.0,
    }
    found = comparison_report.sentences(each | {"holds": True, "labels": rows} | unknown)
    assert len(found) == 13 and found[-1] == "90 more labels clearly gain or lose"
    assert found[1].endswith("l9 (2 images) and 90 more labels: wrong for it")


def test_a_table_of_many_labels_shows_those_with_the_largest_changes():
    row = {"images": 10, "champion": 9, "challenger": 9, "gained": 0, "lost": 0, "p": 1.0}
    labels = [{**row, "label": f"label {number}"} for number in range(100)]
    labels[50] |= {"lost": 5}
    shown = comparison_report.labels_table(labels)
    assert shown.count("<tr>") == comparison_report.MAX_LABELS + 2
    assert "label 50" in shown and "60 more in comparison.json" in shown
