"""docs/scale.md shows what benchmarks/scale.py computes, and a million images cost what the project promises."""

from benchmarks import scale
from documents import ROOT


def test_the_documents_tables_are_computed():
    text = (ROOT / "docs/scale.md").read_text()
    assert scale.cost_table() in text
    assert scale.duration_table() in text


def test_a_million_images_cost_at_most_two_dollars():
    assert sum(scale.batch_cost(500, "realtime").values()) <= 2.00


def test_batches_cost_a_small_fraction_of_single_executions():
    batch, single = scale.batch_cost(500, "realtime"), scale.single_cost()
    assert single["Step Functions"] / batch["Step Functions"] >= 500
    assert single["Lambda"] / batch["Lambda"] >= 20
