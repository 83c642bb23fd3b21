"""The files in which reviews leave the table and decisions come back."""

import csv
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import threshold
from documents import ROOT
from local import review_drain, review_export, review_import
from local.command import StackError, UsageError
from review import exchange
from review.exchange import Decision, ExchangeError, Rejected
from reviews import LABELS, decided, review

CURRENT = re.escape(str(ROOT.resolve()))


def of(found: Iterator) -> list:
    """Decisions as (key, decision, label, reviewer), others as their reason."""
    return [
        (row.image.partition("images/")[2], row.decision, row.label, row.reviewer)
        if isinstance(row, Decision)
        else f"{row.where}: {row.reason}"
        for row in found
    ]


def written(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


# CSV


def test_csv_returns_every_decision_whatever_its_texts_are(tmp_path):
    reviews = [
        decided(label, s3_key=f"{label}/,\n\"'.png", image=f"s3://images/{label}/,\n\"'.png") for label in LABELS
    ]
    reviews += [decided(None, "none_of_these"), decided(None, "not_usable"), review()]
    assert exchange.write_csv(reviews, tmp_path / "r.csv") == len(reviews)
    assert list(exchange.read_csv(tmp_path / "r.csv")) == [
        Decision(each.image, "v1", each.decision, each.reviewed_label, "ada", row.where)
        for each, row in zip(reviews[:-1], exchange.read_csv(tmp_path / "r.csv"), strict=True)
    ]


def test_csv_has_the_documented_columns_and_no_formula(tmp_path):
    exchange.write_csv([decided("=1+1", s3_key="@key", execution_arn="-1", reviewer="\tx")], tmp_path / "r")
    with (tmp_path / "r").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert tuple(row) == exchange.COLUMNS
    assert [cell for cell in row.values() if cell[:1] in tuple("=+-@\t\r")] == []
    assert (row["reviewed_label"], row["s3_key"], row["confidence"]) == ("'=1+1", "'@key", "0.5")


def test_a_threshold_is_chosen_from_the_csv(tmp_path):
    audit = decided("bicycle", reason="audit", selection_probability=1.0, confidence=0.9, version="v2")
    exchange.write_csv([audit, decided(None, "none_of_these"), decided(None, "not_usable")], tmp_path / "r.csv")
    confidences, right, _ = threshold.read_reviews(tmp_path / "r.csv")
    assert (confidences.tolist(), right.tolist()) == ([0.9, 0.5], [True, False])


def test_the_columns_are_documented():
    section = (ROOT / "docs/review.md").read_text().partition("**CSV** has the columns")[2].partition(";")[0]
    assert tuple(re.findall(r"`(\w+)`", section)) == exchange.COLUMNS


def test_no_formula_begins_after_another_delimiter(tmp_path):
    exchange.write_csv([decided("cat", s3_key='a;=HYPERLINK("x");\t=1.png')], tmp_path / "r")
    cells = re.split(r"[,;\t\n]", (tmp_path / "r").read_text())
    assert [cell for cell in cells if cell[:1] in tuple("=+-@")] == []


@given(st.text() | st.text(alphabet="a'=;\t-"))
@settings(max_examples=300, deadline=None)
def test_a_cell_is_read_as_it_was_written(text):
    assert exchange.from_text(exchange.as_text(text)) == text


HEADER = "s3_bucket,s3_key,version,decision,reviewed_label"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (f"{HEADER}\nimages,é,v1,label,cat\n", "utf-8-sig"),
        (f"{HEADER}\r\nimages,é,v1,,cat\r\n\r\n,,,,\r\n".replace(",", ";"), "utf-8"),
        (f"{HEADER}\nimages,é,v1,label,cat\n".replace(",", "\t"), "utf-8"),
    ],
)
def test_a_csv_that_a_spreadsheet_saved_is_read(tmp_path, text, encoding):
    assert of(exchange.read_csv(written(tmp_path / "r.csv", text, encoding))) == [("é", "label", "cat", None)]


@pytest.mark.parametrize(
    ("text", "encoding", "sentence"),
    [
        ("s3_bucket,s3_key,version\n", "utf-8", "has no column decision, reviewed_label"),
        ("", "utf-8", "has no column s3_bucket"),
        (f"{HEADER}\nimages,é,v1,label,cat\n", "cp1252", "is not UTF-8: save it as CSV UTF-8"),
        (f"{HEADER}\n", "utf-16", "is not UTF-8"),
        (f"{HEADER}\n{'x' * 200_000},a,v1,label,cat\n", "utf-8", "line .*: field larger than field limit"),
    ],
)
def test_a_csv_that_cannot_be_read_is_refused(tmp_path, text, encoding, sentence):
    with pytest.raises(ExchangeError, match=sentence):
        list(exchange.read_csv(written(tmp_path / "r.csv", text, encoding)))


def test_a_row_that_is_no_decision_is_named(tmp_path):
    rows = ["a,v1,maybe,", "b,v1,label,", "c,v1,not_usable,cat", "d,v1,label,cat,x", "e,v1", "f,v1,label,cat"]
    text = "\n".join([HEADER, *(f"images,{row}" for row in rows)])
    found = of(exchange.read_csv(written(tmp_path / "r.csv", text)))
    one_of = "use one of label, none_of_these, not_usable"
    assert found == [
        f"line 2: decision 'maybe' with reviewed_label '': {one_of}",
        f"line 3: decision 'label' with reviewed_label '': {one_of}",
        f"line 4: decision 'not_usable' with reviewed_label 'cat': {one_of}",
        "line 5: it has more or fewer cells than the first row",
        "line 6: it has more or fewer cells than the first row",
        ("f", "label", "cat", None),
    ]


# Label Studio; tests/label_studio has its own code check the format


def exported(each, *names, **more):
    """The task as Label Studio exports it, after these choices."""
    annotations = [
        {"result": [exchange.choice(name)], "completed_by": {"id": n, "email": f"{n}@example.com"}, **more}
        for n, name in enumerate(names)
    ]
    return exchange.task(each, each.image, LABELS) | {"id": 7, "annotations": annotations}


def test_the_labelling_configuration_has_every_label_and_what_is_none(tmp_path):
    choices = ElementTree.fromstring(exchange.labelling_config(LABELS)).findall("Choices/Choice")
    assert [choice.get("value") for choice in choices] == [*LABELS, "(none of these)", "(not usable)"]
    assert {choice.get("hotkey") for choice in choices} == {None}
    digits = ElementTree.fromstring(exchange.labelling_config("0123456789")).findall("Choices/Choice")
    assert [choice.get("hotkey") for choice in digits] == [*"0123456789", None, None]


@pytest.mark.parametrize("label", ["(not usable)", "$image", "a\x00", "a\nb", "\ud800"])
def test_a_label_that_label_studio_cannot_show_is_refused_by_name(label):
    with pytest.raises(ExchangeError, match="Label Studio has no choice named"):
        exchange.labelling_config(["a", label])


def test_an_export_of_label_studio_returns_the_choices(tmp_path):
    tasks = [
        exported(review("a"), "bicycle"),
        exported(review("b"), "(none of these)"),
        exported(review("c"), "(not usable)", "(not usable)"),
        exported(review("d")),
        exported(review("e"), "bicycle", was_cancelled=True),
        exported(review("f"), "bicycle", "motorcycle"),
    ]
    found = of(exchange.read_label_studio(written(tmp_path / "e.json", json.dumps(tasks), "utf-8-sig")))
    assert found == [
        ("a", "label", "bicycle", "0@example.com"),
        ("b", "none_of_these", None, "0@example.com"),
        ("c", "not_usable", None, "1@example.com"),
        "task 7: the annotators disagree (0@example.com: bicycle, 1@example.com: motorcycle)",
    ]


def test_a_reviewed_image_comes_back_unchanged_from_label_studio(tmp_path):
    tasks = [
        exchange.task(each, each.image, LABELS) for each in (decided("motorcycle"), decided(None, "none_of_these"))
    ]
    found = of(exchange.read_label_studio(written(tmp_path / "e.json", json.dumps(tasks))))
    assert [row[1:3] for row in found] == [("label", "motorcycle"), ("none_of_these", None)]


def test_a_label_that_is_no_longer_known_is_in_no_task():
    task = exchange.task(decided("cow"), "s3://images/a", ["cat"])
    assert set(task) == {"data"} and task["data"]["label"] == "bicycle"


def test_tasks_that_nobody_has_annotated_are_refused_as_such(tmp_path):
    tasks = [exchange.task(each, each.image, LABELS) for each in (review("a"), review("b"))]
    path = written(tmp_path / "e.json", json.dumps(tasks))
    with pytest.raises(ExchangeError, match=r"the tasks in .* have no annotations yet"):
        list(exchange.read_label_studio(path))
    written(path, json.dumps([*tasks, exported(review("c"), "bicycle")]))
    assert of(exchange.read_label_studio(path)) == [("c", "label", "bicycle", "0@example.com")]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": 1}', '[{"id": 1, "label": "cat"}]', "[" * 100_000, "\ud800x"])
def test_a_file_that_is_not_label_studios_export_is_refused(tmp_path, text):
    path = tmp_path / "e.json"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ExchangeError, match=r"is no JSON|is not Label Studio's export"):
        list(exchange.read_label_studio(path))


@pytest.mark.parametrize(
    "change",
    [
        {"data": {}},
        {"data": None},
        {"annotations": 1},
        {"annotations": [1]},
        {"annotations": [{"result": []}]},
        {"annotations": [{"result": [exchange.choice("a"), exchange.choice("b")]}]},
        {"annotations": [{"result": [{"from_name": "decision", "value": {"choices": ["a", "b"]}}]}]},
        {"annotations": [{"result": [{"from_name": "decision", "value": {"choices": [1]}}]}]},
        {"annotations": [{"result": [{"from_name": "decision", "value": {"choices": [[]]}}]}]},
    ],
)
def test_a_task_that_is_not_ours_is_named(tmp_path, change):
    tasks = [exported(review("a"), "bicycle") | change, exported(review("b"), "bicycle")]
    rejected, good = exchange.read_label_studio(written(tmp_path / "e.json", json.dumps(tasks)))
    assert isinstance(rejected, Rejected) and rejected.where == "task 7"
    assert good.image == "s3://images/b"


# class folders


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_a_labels_folder_is_one_visible_name_of_its_own(label):
    try:
        name = exchange.folder_name(label)
    except ExchangeError:
        return
    assert name and not set(name) & set("/\\\0:") and name[0] not in "._" and name not in ("..", "thumbs.db")
    assert exchange.folders([label])[name] == ("label", label)


def test_different_labels_have_different_folders():
    labels = [*LABELS, "%2E./x", "..", ".", "_x", "%5Fx", "", "%", "a ", "a", "Thumbs.db", "_none_of_these"]
    assert len(exchange.folders(labels)) == len(labels) + 2


def test_folders_return_the_decision_of_each_image_that_was_moved(tmp_path):
    reviews = [review(f"{number}/../a b.PNG") for number in range(6)]
    items = {exchange.image_hash(each.image, each.version): (each.image, each.version) for each in reviews}
    places = [
        exchange.folder(each) for each in (*[decided(label) for label in LABELS[:3]], decided(None, "not_usable"))
    ]
    for each, place in zip(reviews, [*places, exchange.folder(reviews[4]), "stranger"], strict=True):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / exchange.file_name(each)).touch()
    (tmp_path / "bicycle/holiday.png").touch()
    (tmp_path / "bicycle/.DS_Store").touch()
    found = sorted(map(str, of(exchange.read_folders(tmp_path, LABELS, items))))
    no = "no image of this stack has this name: keep the names of make review-export"
    assert found == sorted(
        map(
            str,
            [
                ("0/../a b.PNG", "label", "bicycle", None),
                ("1/../a b.PNG", "label", "motorcycle", None),
                ("2/../a b.PNG", "label", "../x", None),
                ("3/../a b.PNG", "not_usable", None, None),
                ("5/../a b.PNG", "label", "stranger", None),
                f"bicycle/holiday.png: {no}",
            ],
        )
    )


def test_a_label_in_another_unicode_form_is_the_same_label(tmp_path):
    each = review()
    (tmp_path / "caf\u00e9").mkdir()
    (tmp_path / "ca\u0301fe").mkdir()
    (tmp_path / "cafe\u0301").mkdir()
    (tmp_path / "cafe\u0301" / exchange.file_name(each)).touch()
    items = {exchange.image_hash(each.image, each.version): (each.image, each.version)}
    (found,) = exchange.read_folders(tmp_path, ["caf\u00e9"], items)
    assert found.label == "caf\u00e9"


def test_a_folder_without_folders_is_refused(tmp_path):
    with pytest.raises(ExchangeError, match="is not a folder"):
        list(exchange.read_folders(tmp_path / "none", LABELS, {}))


def test_folders_of_other_images_are_refused_with_one_sentence(tmp_path):
    each = review()
    items = {exchange.image_hash(each.image, each.version): (each.image, each.version)}
    for name in ("bicycle/holiday.png", "bicycle/.DS_Store", "other/deep/holiday.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ExchangeError, match="has no image of this stack in its folders: give the folder that make"):
        list(exchange.read_folders(tmp_path, LABELS, items))
    pending = tmp_path / exchange.folder(each) / exchange.file_name(each)
    pending.parent.mkdir(parents=True)
    pending.touch()
    found = [row.where for row in exchange.read_folders(tmp_path, LABELS, items)]
    assert found == ["bicycle/holiday.png", "other/deep/holiday.png"]


def test_folders_in_which_nothing_was_exported_are_no_error(tmp_path):
    (tmp_path / "bicycle").mkdir()
    assert list(exchange.read_folders(tmp_path, LABELS, {})) == []


# the commands


def test_decisions_that_contradict_each_other_or_are_unknown_are_not_written():
    def row(key, label, where, reviewer=None):
        return Decision(f"s3://images/{key}", "v1", "label", label, reviewer, where)

    rows = [row("a", "cat", "line 2"), row("a", "dog", "line 3"), row("b", "cat", "line 4"), row("b", "cat", "line 5")]
    rows += [
        row("c", "cow", "line 6"),
        row("d", "cow", "line 7"),
        row("g", "hen", "1"),
        row("\ud800", "cat", "line 8"),
        Rejected("9", "bad"),
    ]
    rows += [Decision("s3://images/e", "", "label", "cat", None, "line 10"), row("f", "cat", "line 11", "\ud800")]
    usable, problems = review_import.sort_out(rows, ["cat", "dog"])
    assert usable == [rows[2]]
    not_stored = "it names no image and version, or its texts are not Unicode"
    assert sorted(problems) == sorted(
        [
            ("Rejected", f"line 8: {not_stored}"),
            ("Rejected", "9: bad"),
            ("Rejected", f"line 10: {not_stored}"),
            ("Rejected", f"line 11: {not_stored}"),
            ("Unknown labels", "'cow' (2 times): known are cat, dog"),
            ("Unknown labels", "'hen' (once): known are cat, dog"),
            ("Rejected", "s3://images/a is decided in several ways (line 2: cat, line 3: dog)"),
        ]
    )


MESSAGE = {
    "s3_bucket": "images", "s3_key": "a", "label": "cat", "confidence": 0.5, "threshold": 0.75,
    "predictions": [{"label": "cat", "probability": 0.5}],
}  # fmt: skip


def test_a_message_of_the_old_queue_is_read():
    assert review_import.message_in(json.dumps(MESSAGE)) == MESSAGE


@pytest.mark.parametrize(
    "change",
    [
        {"s3_key": ""}, {"s3_key": 1}, {"s3_key": "\ud800"}, {"label": None}, {"confidence": "high"}, {"confidence": 2},
        {"threshold": True}, {"predictions": []}, {"predictions": {}}, {"predictions": [{"label": "cat"}]},
        {"predictions": [{"label": 1, "probability": 1}]}, {"s3_version_id": 1}, {"sent_at": "yesterday"},
    ],
)  # fmt: skip
def test_a_line_that_is_no_message_is_refused(change):
    with pytest.raises(review_import.MessageError):
        review_import.message_in(json.dumps(MESSAGE | change))


@pytest.mark.parametrize("line", ["", "null", "[]", '"text"', "{}", "{", "NaN", "[" * 100_000])
def test_a_line_that_is_not_even_an_object_is_refused(line):
    with pytest.raises(review_import.MessageError):
        review_import.message_in(line)


def test_a_message_that_is_no_json_is_saved_too():
    message = {"Body": "hello\nworld", "Attributes": {"SentTimestamp": "1700000000000"}}
    assert review_drain.line_of(message) == '"hello\\nworld"'
    line = review_drain.line_of(message | {"Body": '{"s3_key": "é"}'})
    assert json.loads(line) == {"s3_key": "é", "sent_at": "2023-11-14T22:13:20.000+00:00"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "FORMAT is missing: give FORMAT=labelstudio, csv or folders"),
        (["--format=xml"], "FORMAT=xml is not one of labelstudio, csv, folders"),
        (["--format=csv"], "OUTPUT is missing: give OUTPUT=path"),
        (["--format=csv", "--output=none/x.csv"], f"OUTPUT={CURRENT}/none/x.csv is not in a folder that exists"),
        (["--format=csv", "--output=README.md"], f"{CURRENT}/README.md exists already: choose another OUTPUT"),
        (["--format=csv", "--output=x", "--status=done"], "STATUS=done is not one of pending, reviewed, all"),
        (["--format=labelstudio", "--output=x", "--urls=web"], "URLS=web is not one of s3, presigned"),
        (["--format=csv", "--urls=presigned"], "URLS=presigned is only for FORMAT=labelstudio: FORMAT=csv has no URLs"),
        (["--format=labelstudio", "--output=x"], f"OUTPUT={CURRENT}/x does not end in .json"),
    ],
)
def test_a_wrong_variable_is_refused_before_a_stack_is_looked_for(monkeypatch, arguments, sentence):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UsageError, match=f"^{sentence}$"):
        review_export.check_options(review_export.parse(arguments))


NO_NAME = "REVIEWER is not a name of at most 256 characters, none of them a control character"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "FORMAT is missing: give FORMAT=labelstudio, csv, folders or queue"),
        (["--format=csv"], "FILE is missing: give FILE=path"),
        (["--format=csv", "--file=none"], f"FILE={CURRENT}/none is not a file"),
        (["--format=folders", "--file=README.md"], f"FILE={CURRENT}/README.md is not a folder"),
        (["--format=csv", "--file=README.md", f"--reviewer={'x' * 257}"], NO_NAME),
        (["--format=csv", "--file=README.md", "--reviewer=a\nb"], NO_NAME),
        (["--format=csv", "--file=README.md", "--reviewer=\udcff"], NO_NAME),
    ],
)
def test_a_wrong_variable_of_an_import_is_refused_before_a_stack_is_looked_for(monkeypatch, arguments, sentence):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UsageError, match=f"^{sentence}$"):
        review_import.check_options(review_import.parse(arguments))


def test_an_imports_options_are_completed(monkeypatch):
    monkeypatch.chdir(ROOT)
    options = review_import.parse(["--format=csv", "--file=docs/../README.md", f"--reviewer={'é' * 256}"])
    review_import.check_options(options)
    assert options.file == str(ROOT.resolve() / "README.md")


def test_an_import_says_that_the_rest_was_written_only_if_it_was(capsys):
    rejected, rest = ("Rejected", "line 2: bad"), "the rest was, and another import does not repeat it"
    for kind in ("decided", "added"):
        with pytest.raises(StackError, match=f"^What is listed was not written; {rest}.$"):
            review_import.report([rejected, (kind, "line 3")], "f")
    for outcomes in ([rejected], [rejected, ("unchanged", "line 3")]):
        with pytest.raises(StackError, match=r"^What is listed was not written\.$"):
            review_import.report(outcomes, "f")
    assert "Rejected (1):\n  line 2: bad" in capsys.readouterr().out
