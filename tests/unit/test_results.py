import csv
import io
import json
import re
import sys
from datetime import UTC, datetime, timedelta

import boto3
import duckdb
import pytest
from botocore.response import StreamingBody
from botocore.stub import Stubber

from documents import RESOURCES, ROOT
from local import results as command
from local.command import StackError
from monitoring import outcomes

ACCEPTED = {
    "outcome": "accepted", "s3_bucket": "images", "s3_key": 'odd, "key"\n.png', "label": "7", "confidence": 0.97,
    "threshold": 0.75, "execution_arn": "arn:name", "time": "2026-11-26T02:00:00.250+00:00", "predictions": [],
}  # fmt: skip
ERROR = {
    "outcome": "error",
    "s3_key": "b.png",
    "error": "ImageNotFoundError",
    "cause": "gone",
    "time": ACCEPTED["time"],
}


@pytest.fixture
def s3():
    client = boto3.client("s3")
    with Stubber(client) as stubber:
        yield client, stubber


def listed(stubber, keys, prefix="results/", modified=datetime(2026, 11, 26, tzinfo=UTC)):
    contents = [{"Key": key, "LastModified": modified} for key in keys]
    stubber.add_response("list_objects_v2", {"Contents": contents}, {"Bucket": "results", "Prefix": prefix})


def stored(stubber, *lines):
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    stubber.add_response("get_object", {"Body": StreamingBody(io.BytesIO(data), len(data))})


def test_every_line_of_a_batch_is_a_row_with_every_column(s3):
    client, stubber = s3
    listed(stubber, ["results/execution=name/a.jsonl"], "results/execution=name/")
    stored(stubber, ACCEPTED, ERROR)
    accepted, error = outcomes.from_batches(client, "results", execution="name")
    assert list(accepted) == list(error) == list(outcomes.COLUMNS)
    assert (accepted["s3_key"], accepted["confidence"], accepted["error"]) == ('odd, "key"\n.png', 0.97, None)
    assert (error["label"], error["error"]) == (None, "ImageNotFoundError")


def test_objects_written_before_the_period_are_not_read(s3):
    client, stubber = s3
    listed(stubber, ["results/execution=name/a.jsonl"])
    assert list(outcomes.from_batches(client, "results", since=datetime(2026, 11, 27, tzinfo=UTC))) == []


def test_lines_of_the_prediction_log_become_the_same_rows():
    logs = boto3.client("logs")
    line = {"message": "prediction", "timestamp": "2026-11-26 03:00:00,250+0100", **ACCEPTED, "time": None}
    with Stubber(logs) as stubber:
        stubber.add_response("filter_log_events", {"events": [{"message": json.dumps(line)}]})
        (row,) = outcomes.from_executions(logs, "group")
    assert row == outcomes.row(ACCEPTED)


def test_rows_are_selected_by_outcome_and_label():
    rows = [outcomes.row(ACCEPTED), outcomes.row(ERROR)]
    assert list(outcomes.matching(rows, outcome="error", label="")) == rows[1:]
    assert list(outcomes.matching(rows, outcome="accepted", label="7")) == rows[:1]
    assert list(outcomes.matching(rows, outcome="", label="")) == rows


def test_rows_are_written_as_csv(tmp_path):
    path = tmp_path / "rows.csv"
    assert outcomes.write(map(outcomes.row, [ACCEPTED, ERROR]), path) == 2
    with path.open(newline="") as file:
        accepted, error = csv.DictReader(file)
    assert (accepted["s3_key"], float(accepted["confidence"]), error["label"]) == (ACCEPTED["s3_key"], 0.97, "")


def test_rows_are_written_as_parquet_with_types(tmp_path):
    path = tmp_path / "rows.parquet"
    assert outcomes.write(map(outcomes.row, [ACCEPTED, ERROR]), path) == 2
    query = f"SELECT s3_key, confidence, time FROM '{path}' WHERE outcome = 'accepted'"
    [(key, confidence, time)] = duckdb.sql(query).fetchall()
    assert (key, confidence) == (ACCEPTED["s3_key"], 0.97)
    assert time == datetime(2026, 11, 26, 2, 0, 0, 250_000, tzinfo=UTC)
    assert outcomes.write(iter([]), tmp_path / "none.parquet") == 0


def test_a_period_is_a_duration_or_a_date():
    week = datetime.now(UTC) - timedelta(days=7)
    assert abs(command.start_of("7d") - week) < timedelta(seconds=5)
    for text in ("2026-11-26T00:00:00+00:00", "2026-11-26T00:00Z", "2026-11-26 00:00 UTC", "2026-11-26 UTC"):
        assert command.start_of(text) == datetime(2026, 11, 26, tzinfo=UTC)
    assert command.start_of("2026-11-26 02:00") == datetime(2026, 11, 26, 2).astimezone()
    assert command.start_of("") is None
    for wrong in ("yesterday", "-1d", "7", "9999999d", "99999999999d", "UTC", "now UTC"):
        with pytest.raises(StackError, match=f"SINCE={wrong} is neither"):
            command.start_of(wrong)


def test_labels_keys_and_errors_with_brackets_are_printed_as_they_are(capsys):
    rows = [
        {**ACCEPTED, "s3_key": "a [/b].png", "label": "shoe [left]"},
        {**ERROR, "s3_key": "[red].png", "error": "[E]"},
    ]
    command.show(map(outcomes.row, rows))
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("a [/b].png", "shoe [left]", "[red].png", "[E]"))


@pytest.mark.parametrize("option", ["--since=x", "--output=rows.txt", "--output=/nonexistent/rows.csv"])
def test_a_wrong_option_is_refused_before_a_stack_is_looked_for(option, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["results", option])
    monkeypatch.setattr(command, "target", None)
    with pytest.raises(SystemExit):
        command.main()
    assert capsys.readouterr().out.startswith("UsageError: ")


def test_the_table_shows_the_first_rows_and_counts_all(capsys):
    command.show(map(outcomes.row, [ACCEPTED] * 30 + [ERROR]))
    printed = capsys.readouterr().out
    assert "31 images: 30 accepted, 1 error; the first 20 are shown" in printed
    assert printed.count("0.970") == 20


@pytest.fixture
def stored_lines(tmp_path, monkeypatch):
    """The lines of a batch's execution, in files as in the results bucket."""
    folder = tmp_path / "results/execution=batch-1"
    folder.mkdir(parents=True)
    for number, line in enumerate((ACCEPTED, ERROR)):
        (folder / f"{number}.jsonl").write_text(json.dumps(line) + "\n")
    monkeypatch.chdir(tmp_path)


def test_duckdb_reads_the_results_with_the_documented_query(stored_lines):
    query = re.search(r"```sql\n(.+?)```", (ROOT / "docs/monitoring.md").read_text(), re.DOTALL)[1]
    assert sorted(duckdb.sql(query).fetchall()) == [("accepted", 1), ("error", 1)]


QUERIES = {name: row["Properties"] for name, row in RESOURCES.items() if row["Type"] == "AWS::Athena::NamedQuery"}


@pytest.mark.parametrize("name", QUERIES)
def test_a_saved_query_of_athena_finds_the_lines(stored_lines, name):
    """DuckDB stands in for Athena: both know these functions, and the table has the columns of the template's."""
    table = RESOURCES["ResultsTable"]["Properties"]["TableInput"]["StorageDescriptor"]["Columns"]
    columns = {column["Name"]: duckdb_type(column["Type"]) for column in table}
    with duckdb.connect() as database:
        lines = database.read_json(
            "results/*/*.jsonl", columns=columns | {"execution": "VARCHAR"}, hive_partitioning=True
        )
        lines.create_view("results")
        rows = database.sql(QUERIES[name]["QueryString"]).fetchall()
    expected = {"OutcomesOfBatchesQuery": 2}.get(name, 1)
    assert len(rows) == expected
    assert "batch-1" in rows[0]


def duckdb_type(hive):
    """DuckDB's name of a type of a Hive table."""
    simple = hive.replace("string", "VARCHAR").replace("<", "(").replace(">", ")").replace(":", " ")
    return re.sub(r"array\((.+)\)$", r"\1[]", simple)
