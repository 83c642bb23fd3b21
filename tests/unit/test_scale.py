"""docs/scale.md shows what benchmarks/scale.py computes, and a million images cost what the project promises."""

from benchmarks import scale
from documents import ROOT

BATCHES = scale.cost(scale.realtime(scale.batches_of(500)))
SINGLE = scale.cost(scale.realtime(scale.counted()["single"]))


def test_the_documents_tables_are_computed():
    text = (ROOT / "docs/scale.md").read_text()
    assert scale.cost_table() in text
    assert scale.duration_table() in text


def test_a_million_images_cost_at_most_two_dollars():
    assert sum(BATCHES.values()) <= 2.00
    assert sum(BATCHES.values()) < sum(scale.cost(scale.transform()).values())


def test_batches_cost_a_small_fraction_of_single_executions():
    assert SINGLE["Step Functions"] / BATCHES["Step Functions"] >= 500
    assert SINGLE["Lambda"] / BATCHES["Lambda"] >= 20


def test_the_part_of_an_execution_that_does_not_grow_is_counted_once():
    run = {
        "images": 1000,
        "counts": {"transitions": 11, "endpoint_bytes": 5e7, "log_bytes": 1e3},
        "fixed": {"transitions": 6},
    }
    used = scale.million(run)
    assert (used["transitions"], used["endpoint_gb"], used["log_gb"]) == (5006, 50, 0.001)


def test_every_price_is_used_and_every_used_one_has_a_price():
    priced = {price for part in scale.PARTS.values() for price in part.values()}
    assert priced == set(scale.prices())
