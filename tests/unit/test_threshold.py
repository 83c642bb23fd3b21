import csv

import numpy as np
import pytest
from scipy.stats import binom

import threshold
from benchmarks import threshold as simulation

REVIEW = {
    "s3_bucket": "images",
    "s3_key": "a.png",
    "s3_version_id": "v1",
    "version": "v1",
    "label": "cat",
    "confidence": "0.9",
    "threshold": "0.75",
    "reason": "audit",
    "selection_probability": "0.02",
    "status": "reviewed",
    "decision": "label",
    "reviewed_label": "cat",
    "reviewer": "ann",
    "reviewed_at": "2026-11-26T08:00:00.000+00:00",
}
LOW = {"reason": "low_confidence", "selection_probability": "1", "confidence": "0.6"}


def write_predictions(path, confidences, right, part="test"):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["part", "truth", "label", "confidence"])
        writer.writerows([part, "cat", "cat" if each else "dog", c] for c, each in zip(confidences, right, strict=True))
    return ["--predictions", str(path)]


def write_reviews(path, *changes):
    """A file of reviews: REVIEW with each of the changes, and a key of its own."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, REVIEW)
        writer.writeheader()
        writer.writerows({**REVIEW, "s3_key": f"{number}.png", **change} for number, change in enumerate(changes))
    return path


SAMPLES = 1_000
LEAST = 0.95 - 3 * (0.95 * 0.05 / SAMPLES) ** 0.5  # three standard errors of the simulation


@pytest.mark.parametrize("name", simulation.POPULATIONS)
def test_a_chosen_threshold_has_the_accuracy_in_95_of_100_samples(name):
    covered, _ = simulation.simulate(simulation.POPULATIONS[name], simulation.in_sequence, 1_000, SAMPLES)
    assert covered >= LEAST


@pytest.mark.parametrize("top", [0.98, 0.985, 0.9899])
@pytest.mark.parametrize("images", [2_000, 5_000, 20_000])
def test_the_guarantee_holds_too_if_accuracy_falls_rises_and_falls_again_around_the_start(images, top):
    """The start depends on the confidences, so chance decides whether the first, wrong thresholds are tested."""
    first = float(threshold.first_count(np.array(images), 0.99)) / images  # of the images: half the samples reach it
    second = first * max((0.9901 - top) / (1 - 0.9901), 0.05)  # without a mistake: together just right enough
    shares = np.array([first, second, 0.05 * first, 0])
    shares[3] = 1 - shares.sum()
    right = shares[:3] * [top, 1, 0]
    right[2] = 0.98999 * shares[:3].sum() - right[:2].sum()  # and then just too low
    chances = np.zeros((2, len(threshold.GRID) + 1))
    chances[:, [5, 8, 11, 20]] = [[*right, 0], shares - [*right, 0]]
    counts = np.random.default_rng(0).multinomial(images, chances.ravel(), 5_000).reshape(-1, *chances.shape)
    found = threshold.guaranteed(counts, 0.99)
    accuracies = chances[0].cumsum() / np.maximum(chances.sum(0).cumsum(), 1e-9)
    wrong = (found >= 0) & (accuracies[found] < 0.99)
    assert wrong.mean() <= 0.05 + 3 * (0.95 * 0.05 / 5_000) ** 0.5


def test_a_threshold_is_found_in_most_samples_if_there_is_one():
    population = simulation.POPULATIONS["calibrated, 98% right"]
    assert simulation.simulate(population, simulation.in_sequence, 1_000, 200)[1] > 0.8


@pytest.mark.parametrize("name", simulation.POPULATIONS)
def test_the_lowest_threshold_with_the_accuracy_on_the_sample_has_no_such_guarantee(name):
    covered, _ = simulation.simulate(simulation.POPULATIONS[name], simulation.lowest_accurate, 1_000, SAMPLES)
    assert covered < 0.7


def test_exact_bounds_do_not_hold_for_the_best_of_many_thresholds():
    """What this simulation finds: without the sequence, the same exact tests are wrong in one sample of five."""
    population = simulation.POPULATIONS["98.99% right at every confidence"]
    assert simulation.simulate(population, simulation.lowest_bound, 5_000, 300)[0] < 0.9
    assert simulation.simulate(population, simulation.in_sequence, 5_000, 300)[0] > 0.9


def test_a_threshold_from_reviews_has_the_accuracy_for_all_that_the_stack_classified():
    population = simulation.POPULATIONS["calibrated, 98% right"]
    covered, found = simulation.simulate(population, simulation.from_reviews, simulation.PRODUCTION, 60)
    assert covered >= 0.95 - 3 * (0.95 * 0.05 / 60) ** 0.5
    assert found > 0.5


@pytest.mark.parametrize(("images", "expected"), [(299, None), (300, 0.01)])
def test_300_images_without_a_mistake_are_enough_for_99_percent(images, expected):
    right = np.ones(images, dtype=bool)
    assert threshold.advise(np.linspace(0.5, 1, images), right, 0.99, "images")[1] == expected


def test_the_sequence_ends_at_the_first_threshold_with_too_many_mistakes():
    confidences = np.repeat([0.995, 0.805, 0.605], [700, 20, 5_000])
    right = np.repeat([True, False, True], [700, 20, 5_000])  # 99.7% are right, but 97.2% at 0.8
    lines, found = threshold.advise(confidences, right, 0.99, "test images")
    assert found == 0.81
    assert lines == [
        "threshold 0.81: accepts 12.2% of 5,720 test images, 700 of 700 correct (100.0%)",
        "guarantee: right in at least 99% of what it accepts, with 95% confidence",
    ]


def test_one_early_mistake_does_not_end_the_sequence_if_there_are_many_images():
    right = np.arange(5_000) != 4_990
    assert threshold.advise(np.linspace(0.5, 1, 5_000), right, 0.99, "images")[1] == 0.01


def test_the_grid_has_thresholds_that_the_stack_accepts_and_does_not_depend_on_the_images():
    assert (np.diff(threshold.GRID) < 0).all()
    assert [f"{each:g}" for each in threshold.GRID[[0, 1, -2, -1]]] == ["0.999999", "0.999998", "0.02", "0.01"]


def test_equal_confidences_are_accepted_together_with_a_threshold_that_equals_them():
    counts = threshold.bands(np.array([0.99, 0.99, 0.5, 0.001]), np.array([True, False, True, True]))
    accepted = counts.sum(0).cumsum()
    at = {each: accepted[list(threshold.GRID).index(each)] for each in (0.995, 0.99, 0.51, 0.5, 0.01)}
    assert at == {0.995: 0, 0.99: 2, 0.51: 2, 0.5: 3, 0.01: 3}
    assert accepted[-1] == 4


def test_too_few_images_are_reported_with_the_number_that_it_takes(tmp_path, capsys):
    options = write_predictions(tmp_path / "p.csv", np.linspace(0.5, 1, 100), [True] * 100)
    assert threshold.main([*options, "--accuracy", "0.99"]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first == "no threshold has the guarantee: right in at least 99% of what it accepts, with 95% confidence"
    assert second.startswith("100 test images are too few: it takes at least about 3")
    assert second.endswith(" more)")


def test_a_model_whose_most_confident_predictions_are_wrong_needs_no_more_images(tmp_path, capsys):
    options = write_predictions(tmp_path / "p.csv", [0.99, 0.9, 0.8, 0.7], [False, True, True, True])
    assert threshold.main([*options, "--accuracy", "0.99"]) == 1
    assert "4 test images: more like these would hardly help" in capsys.readouterr().out


def test_the_number_of_images_that_it_takes_is_enough_for_8_of_10_samples():
    confidences, chances = population = simulation.POPULATIONS["calibrated, 90% right"]
    right = np.random.default_rng(0).random(len(chances)) < chances
    counts = (threshold.bands(confidences, right) / 25).round().astype(int)  # about 2,000 images
    needed = threshold.images_needed(counts, 0.99)
    assert simulation.simulate(population, simulation.in_sequence, needed, 300)[1] == pytest.approx(0.8, abs=0.1)


@pytest.mark.parametrize(("images", "first"), [(10, 300), (900, 300), (1_000, 475), (1_300, 630), (10**6, 630)])
def test_the_first_threshold_accepts_enough_images_to_pass_with_up_to_two_mistakes(images, first):
    assert np.ceil(threshold.first_count(np.array(images), 0.99)) == first
    mistakes = [300, 475, 630].index(first)
    assert binom.cdf(mistakes, first, 0.01) <= threshold.LEVEL < binom.cdf(mistakes, first - 3, 0.01)


def test_test_images_are_used_if_there_are_any(tmp_path, capsys):
    options = write_predictions(tmp_path / "p.csv", [0.9] * 400, [True] * 400, "validation")
    assert threshold.main(options) == 0
    out = capsys.readouterr().out
    assert "400 validation images" in out
    assert out.endswith(f"{threshold.SLIGHTLY_OPTIMISTIC}\n")
    with (tmp_path / "p.csv").open("a") as file:
        file.writelines(["test,cat,cat,0.8\n"] * 500)
    assert threshold.main(options) == 0
    assert "500 test images" in (out := capsys.readouterr().out)
    assert threshold.SLIGHTLY_OPTIMISTIC not in out


def test_missing_predictions_are_reported(tmp_path):
    with pytest.raises(threshold.PredictionsError, match="train a model first"):
        threshold.main(["--predictions", str(tmp_path / "none.csv")])
    options = write_predictions(tmp_path / "p.csv", [0.9], [True])
    with pytest.raises(threshold.PredictionsError, match="has no validation images"):
        threshold.main([*options, "--part", "validation"])


def test_a_very_high_accuracy_takes_very_many_images():
    lines, _ = threshold.advise(np.linspace(0.5, 1, 400), np.ones(400, dtype=bool), 0.99999, "images")
    assert lines[0].startswith("no threshold has the guarantee: right in at least 99.999% of what it accepts")
    assert lines[1].startswith("400 images are too few: it takes at least about 3")


@pytest.mark.parametrize("accuracy", ["0", "1", "1.5"])
def test_an_accuracy_of_100_percent_cannot_be_guaranteed(accuracy, capsys):
    with pytest.raises(SystemExit, match="2"):
        threshold.main(["--accuracy", accuracy])
    assert "no number of images guarantees 1" in capsys.readouterr().err


def test_reviews_below_the_threshold_are_thinned_to_the_chance_of_the_audits(tmp_path):
    path = write_reviews(tmp_path / "r.csv", *[LOW] * 10_000, *[{}] * 300)
    confidences, right, (line,) = threshold.read_reviews(path)
    low = int((confidences == 0.6).sum())
    assert (len(confidences) - low, right.all()) == (300, True)
    assert low == pytest.approx(200, abs=3 * 14)
    assert line == f"{300 + low} of 10,300 reviews kept, so that every image had the same chance (0.02)"
    assert (threshold.read_reviews(path)[0] == confidences).all()


def test_audits_of_two_rates_are_thinned_to_the_lower_rate(tmp_path):
    changes = [*[{"selection_probability": "0.04", "confidence": "0.8"}] * 1_000, *[{}] * 100, LOW]
    confidences, _, _ = threshold.read_reviews(write_reviews(tmp_path / "r.csv", *changes))
    assert (confidences == 0.9).sum() == 100
    assert (confidences == 0.8).sum() == pytest.approx(500, abs=3 * 16)


def test_what_is_no_label_of_the_model_is_a_mistake_and_what_is_not_usable_is_left_out(tmp_path):
    all_chosen = {"selection_probability": "1"}
    changes = [
        {**LOW},
        {"decision": "none_of_these", "reviewed_label": "", "confidence": "0.81"},
        {"decision": "not_usable", "reviewed_label": "", "confidence": "0.82", "selection_probability": "0.001"},
        {"reviewed_label": "dog", "confidence": "0.83"},
        {"confidence": "0.84"},
        {"decision": "", "reviewed_label": "", "status": "pending", "confidence": "0.85"},
    ]
    path = write_reviews(tmp_path / "r.csv", *[{**all_chosen, **each} for each in changes])
    confidences, right, lines = threshold.read_reviews(path)
    assert confidences.tolist() == [0.6, 0.81, 0.83, 0.84, 0.85]
    assert right.tolist() == [True, False, False, True, False]
    assert lines == [
        "5 of 5 reviews kept, so that every image had the same chance (1)",
        "1 of them have no decision yet and count as mistakes",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([LOW], "has no audits, so it says nothing about accepted images"),
        ([{}], "has audits only: export the images below the threshold too"),
        ([{}, LOW, {"decision": "maybe"}], "s3://images/2.png has the decision 'maybe'"),
        ([{}, LOW, {"reason": "other"}], "s3://images/2.png has the reason 'other'"),
        ([{}, LOW, {"reviewed_label": ""}], "has the decision label without a reviewed_label"),
        ([{}, LOW, {"selection_probability": "0"}], "'0.9' and '0', not between 0 and 1"),
        ([{}, LOW, {"confidence": "high"}], "'high' and '0.02', not between 0 and 1"),
        ([{}, LOW, {"confidence": "nan"}], "'nan' and '0.02', not between 0 and 1"),
        ([{}, LOW, {"s3_key": "0.png"}], "lists s3://images/0.png more than once"),
    ],
)
def test_reviews_from_which_no_valid_threshold_follows_are_refused(tmp_path, changes, message):
    with pytest.raises(threshold.ReviewsError, match=message):
        threshold.main(["--reviews", str(write_reviews(tmp_path / "r.csv", *changes))])


def test_a_file_that_is_no_export_is_refused(tmp_path):
    with pytest.raises(threshold.ReviewsError, match="is not readable"):
        threshold.read_reviews(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes(b"s3_bucket\n\xe9\n")
    with pytest.raises(threshold.ReviewsError, match="is not readable"):
        threshold.read_reviews(tmp_path / "latin.csv")
    (tmp_path / "short.csv").write_text(",".join(REVIEW).replace(",reason", "") + "\n")
    with pytest.raises(threshold.ReviewsError, match="has no column reason: write it with make review-export"):
        threshold.read_reviews(tmp_path / "short.csv")


def test_reviews_give_a_threshold_and_are_not_mixed_with_predictions(tmp_path, capsys):
    path = str(write_reviews(tmp_path / "r.csv", *[{}] * 400, *[LOW] * 100))
    assert threshold.main(["--reviews", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("threshold 0.01: accepts 100.0% of 40")
    assert "reviewed images" in lines[0]
    assert lines[2].endswith("of 500 reviews kept, so that every image had the same chance (0.02)")
    with pytest.raises(SystemExit, match="2"):
        threshold.main(["--reviews", path, "--part", "test"])
