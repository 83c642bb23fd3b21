"""docs/scale.md shows what benchmarks/scale.py computes, and a million images cost what the project promises."""

from benchmarks import scale, usage
from documents import ROOT
from monitoring import cost

BATCHES = cost.cost(scale.realtime(cost.batches_of(500)))
SINGLE = cost.cost(scale.realtime(cost.counted()["single"]))


def test_the_documents_tables_are_computed():
    text = (ROOT / "docs/scale.md").read_text()
    assert scale.cost_table() in text
    assert scale.duration_table() in text


def test_a_million_images_cost_at_most_two_dollars():
    assert sum(BATCHES.values()) <= 2.00
    assert sum(BATCHES.values()) < sum(cost.cost(scale.transform()).values())


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
    priced = {price for part in cost.PARTS.values() for price in part.values()}
    assert priced == set(cost.prices())


def test_reviews_are_counted_per_image_of_their_reason():
    """5 % of a million for review, and 2 % of the others audited."""
    made = cost.counted()["reviews"]
    gets = {reason: run["counts"]["s3_get"] / run["images"] for reason, run in made.items()}
    assert gets == {"low_confidence": 1, "audit": 1}
    assert scale.reviews()["s3_get"] == 69_000


def test_an_index_is_written_only_where_it_changes_and_twice_if_its_key_does():
    indexes = [
        {"KeySchema": [{"AttributeName": "status"}, {"AttributeName": "confidence"}],
         "Projection": {"ProjectionType": "ALL"}},
        {"KeySchema": [{"AttributeName": "status"}, {"AttributeName": "created_at"}],
         "Projection": {"ProjectionType": "INCLUDE", "NonKeyAttributes": ["label"]}},
    ]  # fmt: skip
    item = {"image": {"S": "i" * 1100}, "status": {"S": "pending"}, "confidence": {"N": "0.5"}, "label": {"S": "7"}}
    large = item | {"predictions": {"S": "p" * 1000}}
    claimed = large | {"claimed_by": {"S": "maria"}}
    decided = claimed | {"status": {"S": "reviewed"}}
    assert usage.write_units({}, large, indexes) == 3 + 3 + 2
    assert usage.write_units(large, claimed, indexes) == 3 + 3
    assert usage.write_units(claimed, decided, indexes) == 3 + (3 + 3) + (2 + 2)
    assert usage.write_units(item, item, []) == 2


def test_an_items_size_counts_names_texts_and_half_of_the_digits():
    assert usage.item_bytes({"label": {"S": "é"}, "confidence": {"N": "0.9123"}}) == 5 + 2 + 10 + 2 + 1
