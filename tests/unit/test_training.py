import base64
import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

import augment
import calibration
import data
import export
import fit
import folders
import inference
import lineage
import prepare
import schedule
import server
import train
from class_folders import write_classes
from model import DIRECTIONS, Average, Classifier, Gradients, Probabilities

SIZE = (16, 24)  # not square, so that height and width are not mistaken for each other


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    prepare.main(["digits", "--output", str(folder)])
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The output of `SM_CHANNEL_TRAIN=DIR SM_MODEL_DIR=OUT python training/train.py` for a folder of class folders."""
    folder = tmp_path_factory.mktemp("job")
    write_classes(folder / "train", {"bright cat": 20, "dark dog": 10})
    own = {"SM_CHANNEL_TRAIN": "train", "SM_MODEL_DIR": "model", "SM_OUTPUT_DATA_DIR": "output"}
    others = {name: value for name, value in os.environ.items() if not name.startswith("SM_")}
    command = [
        sys.executable,
        train.__file__,
        "--epochs",
        "2",
        "--width",
        "8",
        "--networks",
        "2",
        "--sagemaker_region",
        "eu-west-1",
    ]
    environment = others | {name: str(folder / part) for name, part in own.items()}
    job = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert job.returncode == 0, job.stderr
    return folder, job


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_split_of_the_digits_depends_only_on_the_seed_and_is_written_identically(digits, tmp_path):
    prepare.main(["digits", "--output", str(tmp_path / "again")])
    prepare.main(["digits", "--output", str(tmp_path / "again")])
    prepare.main(["digits", "--output", str(tmp_path / "other"), "--seed", "1"])
    assert files_of(tmp_path / "again") == files_of(digits)
    assert files_of(tmp_path / "other").keys() != files_of(digits).keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "other"]


def test_digits_have_three_parts_with_all_labels_and_no_image_in_common(digits):
    parts = {part: folders.list_images(digits / part) for part in prepare.PARTS}
    assert [list(classes) for classes in parts.values()] == [list("0123456789")] * 3
    names = [path.name for classes in parts.values() for paths in classes.values() for path in paths]
    assert len(set(names)) == len(names) == 1797


def test_digits_are_dark_ink_on_light_paper(digits):
    pixels = np.asarray(Image.open(next((digits / "train/0").iterdir())))
    assert (pixels.shape, pixels[:, 0].min(), pixels.min()) == ((8, 8), 255, 0)


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit, match=r"holds thesis\.txt"):
        prepare.main(["digits", "--output", str(tmp_path)])
    assert files_of(tmp_path) == {"thesis.txt": b"years of work"}


def test_a_split_is_stratified_by_class_and_depends_only_on_the_seed():
    targets = np.repeat(["a", "b"], [100, 10])
    kept, held_out = data.stratified_split(targets, [0.2], seed=0)
    assert sorted([*kept, *held_out]) == list(range(110))
    assert (targets[held_out] == "a").sum() == 20
    assert (targets[held_out] == "b").sum() == 2
    np.testing.assert_array_equal(held_out, data.stratified_split(targets, [0.2], seed=0)[1])
    assert list(held_out) != list(data.stratified_split(targets, [0.2], seed=1)[1])


def test_a_split_of_few_images_puts_one_of_each_class_into_every_part():
    targets = np.repeat(["a", "b"], 3)
    for part in data.stratified_split(targets, [0.8, 0.8], seed=0):
        assert sorted(targets[part]) == ["a", "b"]


def test_the_test_data_can_have_fewer_classes(tmp_path):
    folder = write_classes(tmp_path, {"dog": 2})
    assert data.load(folders.list_images(folder, min_classes=1), SIZE, ["cat", "dog"]).counts() == {"cat": 0, "dog": 2}


def test_images_are_read_as_the_endpoint_reads_them(tmp_path):
    classes = folders.list_images(write_classes(tmp_path, {"cat": 1, "dog": 2}))
    dataset = data.load(classes, SIZE)
    assert (dataset.images.shape, dataset.counts()) == ((3, 3, *SIZE), {"cat": 1, "dog": 2})
    expected = inference.preprocess((tmp_path / "dog/1.png").read_bytes(), SIZE)
    np.testing.assert_array_equal(dataset.images[2], expected)


@pytest.mark.parametrize("side, chosen", [(8, 16), (32, 32), (45, 48), (300, 64)])
def test_the_input_size_follows_from_the_median_size_of_the_images(side, chosen, tmp_path):
    classes = folders.list_images(write_classes(tmp_path, {"cat": 1, "dog": 1}, size=(side, 2 * side)))
    assert data.choose_size(classes) == (chosen, chosen)


def test_problems_with_the_data_raise_errors_that_name_the_file_or_class(tmp_path):
    with pytest.raises(folders.MissingFolderError, match="nowhere is not a folder"):
        folders.list_images(tmp_path / "nowhere")

    (tmp_path / "one" / "empty").mkdir(parents=True)
    with pytest.raises(folders.TooFewClassesError, match="has 1"):
        folders.list_images(write_classes(tmp_path / "one", {"cat": 3}))

    with pytest.raises(data.ClassTooSmallError, match="class dog has 1 images, a split needs at least 2"):
        data.stratified_split(np.array(["cat", "cat", "dog"]), [0.2], seed=0)

    broken = write_classes(tmp_path / "broken", {"cat": 1, "dog": 1})
    (broken / "dog" / "notes.txt").write_text("no image")
    with pytest.raises(data.UnreadableImageError, match=r"notes\.txt: the file is text.*\(1 of 3 files"):
        data.load(folders.list_images(broken), SIZE)

    empty = write_classes(tmp_path / "empty", {"cat": 20, "dog": 1})
    (empty / "dog" / "0.png").write_text("no image")
    with pytest.raises(data.ClassTooSmallError, match="class dog has no readable image"):
        data.load(folders.list_images(empty), SIZE)

    (empty / "\udcff").mkdir()  # not UTF-8
    (empty / "\udcff" / "0.png").write_bytes(b"any")
    with pytest.raises(folders.ClassNameError, match=r"rename the folder '.udcff'"):
        folders.list_images(empty)

    with pytest.raises(data.UnknownClassError, match="dog"):
        data.load(folders.list_images(write_classes(tmp_path / "test", {"cat": 1, "dog": 1})), SIZE, ["cat", "bird"])


def test_a_few_unreadable_files_are_listed_and_skipped(tmp_path, capsys):
    folder = write_classes(tmp_path, {"cat": 10, "dog": 9})
    (folder / "dog" / "broken.png").write_bytes((folder / "dog" / "1.png").read_bytes()[:300])
    classes = folders.list_images(folder)
    assert data.choose_size(classes) == (16, 16)
    assert data.load(classes, SIZE).counts() == {"cat": 10, "dog": 9}
    first, second = capsys.readouterr().out.splitlines()
    assert first == "Skipped unreadable files: 1"
    assert second.startswith(f"  {folder}/dog/broken.png: the PNG ends too early")


def test_of_many_skipped_files_five_are_listed(capsys):
    files = [(Path(f"{number}.png"), "cut") for number in range(300)]
    data.print_skipped("unreadable", files)
    data.print_skipped("duplicate", files[:6], "comparison.json")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["Skipped unreadable files: 300", "  0.png: cut"]
    assert lines[5:8] == ["  4.png: cut", "  and 295 more", "Skipped duplicate files: 6"]
    assert lines[-1] == "  and 1 more (all are in comparison.json)"


def random_images(count, side, colour):
    """A Dataset of random images in two classes, in colour or grey."""
    pixels = np.random.default_rng(0).random((count, 3 if colour else 1, side, side), dtype=np.float32)
    return data.Dataset(np.broadcast_to(pixels, (count, 3, side, side)), np.arange(count) % 2, ["cat", "dog"])


@pytest.mark.parametrize(
    "dataset, expected",
    [
        (
            random_images(100, 16, colour=False),
            {"networks": 1, "width": 16, "blocks": 2, "epochs": 40, "flip": 0, "light": 0, "mix": 0},
        ),
        (
            random_images(100, 16, colour=True),
            {"networks": 1, "width": 16, "epochs": 40, "flip": 0.5, "light": 0.3, "mix": 0.5},
        ),
        (
            random_images(100, 32, colour=False),
            {
                "networks": 2,
                "gradients": 0,
                "width": 32,
                "blocks": 1,
                "epochs": 150,
                "patches": 800,
                "flip": 0,
                "light": 0,
                "mix": 0,
            },
        ),
        (
            random_images(10_000, 32, colour=True),
            {"networks": 1, "blocks": 2, "epochs": 30, "patches": 0, "flip": 0.5, "light": 0.3, "mix": 0.5},
        ),
    ],
)
def test_defaults_depend_on_the_data(dataset, expected):
    options = train.parse_options(["--train", "images"])
    train.choose_defaults(options, dataset)
    assert {name: getattr(options, name) for name in expected} == expected
    assert options.patience == options.epochs // 2


def test_given_options_are_not_changed():
    given = ["--flip", "0", "--width", "8", "--epochs", "3", "--light", "0", "--mix", "0"]
    given += ["--learning-rate", "0.05", "--patience", "2", "--networks", "1", "--gradients", "0", "--patches", "0"]
    given += ["--blocks", "3"]
    options = train.parse_options(["--train", "images", *given])
    before = dict(vars(options))
    train.choose_defaults(options, random_images(100, 32, colour=True))
    assert vars(options) == before


@pytest.mark.parametrize("networks, gradients", [("1", 0), ("2", 1)])
def test_the_second_of_two_networks_for_photographs_sees_gradients(networks, gradients):
    options = train.parse_options(["--train", "images", "--networks", networks])
    photographs = random_images(100, 32, colour=True)

    train.choose_defaults(options, photographs)
    built = [train.build(number, photographs, options).gradients for number in range(1, options.networks + 1)]

    assert options.gradients == gradients
    assert built == [False, True][: options.networks]


def test_augmentation_with_every_option_at_zero_changes_nothing_and_a_flip_mirrors():
    images, truth = torch.rand(4, 3, *SIZE), torch.eye(4)
    nothing = ["--rotate", "0", "--shift", "0", "--scale", "0", "--flip", "0", "--light", "0", "--mix", "0"]
    options = train.parse_options(nothing)
    torch.testing.assert_close(augment.move(images, options), images)
    torch.testing.assert_close(augment.relight(images, options), images)
    torch.testing.assert_close(augment.mix(images, truth, options), (images, truth))
    options.flip = 1
    torch.testing.assert_close(augment.move(images, options), images.flip(3))


def test_relighting_leaves_grey_images_grey():
    images = torch.rand(50, 1, 16, 16).expand(50, 3, 16, 16)
    lit = augment.relight(images, train.parse_options(["--light", "0.5"]))
    torch.testing.assert_close(lit, lit.mean(1, keepdim=True).expand_as(lit))
    assert not torch.allclose(lit, images)


def test_the_truth_of_a_mixed_image_is_divided_by_the_area_of_each_class():
    torch.manual_seed(0)
    numbers = (
        torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, *SIZE)
    )  # each image is uniform, with its class as the value
    for _ in range(20):
        mixed, truth = augment.mix(numbers, torch.eye(4), train.parse_options(["--mix", "1"]))
        shown = torch.stack([(mixed[:, 0] == number).float().mean((1, 2)) for number in range(4)], 1)
        torch.testing.assert_close(shown, truth)


def test_the_default_data_is_the_digits_unless_a_channel_is_given(monkeypatch):
    for name in ("SM_CHANNEL_TRAIN", "SM_CHANNEL_VALIDATION", "SM_CHANNEL_TEST"):
        monkeypatch.delenv(name, raising=False)
    assert train.parse_options([]).test == train.DIGITS / "test"
    monkeypatch.setenv("SM_CHANNEL_TRAIN", "images")
    options = train.parse_options([])
    assert (options.train, options.validation, options.test) == (Path("images"), None, None)


@pytest.mark.parametrize(
    "options, problem",
    [
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--batch-size", "-1"], "--batch-size must be at least 1"),
        (["--blocks", "0"], "--blocks must be at least 1"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--learning-rate", "nan"], "--learning-rate must be at least 0"),
        (["--rotate", "inf"], "--rotate must be at least 0"),
        (["--mix", "1.5"], "--mix must be between 0 and 1"),
        (["--validation-fraction", "1"], "--validation-fraction must be between 0 and 1"),
        (["--test", "images"], "--validation and --test require --train"),
    ],
)
def test_invalid_options_are_rejected_at_once(options, problem, monkeypatch, capsys):
    monkeypatch.delenv("SM_CHANNEL_TRAIN", raising=False)
    with pytest.raises(SystemExit):
        train.parse_options(options)
    assert problem in capsys.readouterr().err


def test_an_output_folder_that_is_not_writable_is_reported_before_training(tmp_path):
    (tmp_path / "file").touch()
    options = train.parse_options(["--model-dir", str(tmp_path / "file"), "--output-data-dir", str(tmp_path)])
    with pytest.raises(train.OutputFolderError, match="file is not writable: File exists"):
        train.make_folders(options)


@pytest.mark.parametrize("gradients, blocks", [(False, 2), (True, 1)])
@pytest.mark.parametrize("side", [16, 18, 28, 56, 64])
def test_the_exported_model_classifies_images_of_any_size(side, gradients, blocks, tmp_path):
    torch.manual_seed(0)
    network = Classifier(2, [0.5] * 3, [0.2] * 3, (side, side), width=8, gradients=gradients, blocks=blocks)
    model = Probabilities(network).eval()
    train.export(model, (side, side), tmp_path / "model.onnx")
    images = random_images(4, side, colour=True)
    assert train.largest_difference(model, tmp_path / "model.onnx", images) < 1e-5


def test_training_ends_early_and_keeps_the_best_epoch_by_validation(tmp_path):
    torch.manual_seed(0)
    dataset = data.load(folders.list_images(write_classes(tmp_path, {"cat": 10, "dog": 10})), (16, 16))
    swapped = data.Dataset(dataset.images, 1 - dataset.targets, dataset.labels)  # the better, the worse
    network = Classifier(2, [0.5] * 3, [0.2] * 3, width=8)
    options = train.parse_options(["--epochs", "30", "--patience", "2", "--batch-size", "5"])
    train.choose_defaults(options, dataset)
    history = fit.fit(network, dataset, swapped, options)
    losses = [line["validation_loss"] for line in history]
    assert len(history) < 30
    assert len(history) - (1 + losses.index(min(losses))) == 2
    assert fit.evaluate(network, swapped)[0].mean() == pytest.approx(min(losses))
    assert [line["kept"] for line in history] == [int(loss == min(losses)) for loss in losses]


@pytest.mark.parametrize(
    "last, ended_early, kept",
    [
        ([0.2, 0.4, 0.6], False, 1),  # worse on every image
        ([0.5, 0.0, 0.2], False, 2),  # worse because of a single image
        ([0.5, 0.0, 0.2], True, 1),
        ([0.0, 0.0, 0.0], False, 2),
    ],
)
def test_the_last_epoch_is_kept_unless_training_ended_early_or_the_best_is_clearly_better(last, ended_early, kept):
    best, last = (1, np.array([0.1, 0.2, 0.3]), {}), (2, np.array(last), {})
    assert fit.choose_epoch(best, last, ended_early)[0] == kept


def test_training_needs_only_one_channel_and_a_model_folder(trained):
    folder, _ = trained
    metadata = json.loads((folder / "model/metadata.json").read_text())
    assert metadata["labels"] == ["bright cat", "dark dog"]
    assert metadata["images"] == {
        "train": {"bright cat": 18, "dark dog": 9},
        "validation": {"bright cat": 2, "dark dog": 1},
    }
    assert metadata["figures"].keys() == {"train", "validation"}
    assert metadata["temperature"] > 0
    validation = metadata["figures"]["validation"]
    assert validation.keys() == {
        "accuracy",
        "loss",
        "expected_calibration_error",
        "area_under_roc",
        "brier_score",
        "thresholds",
    }
    assert [line["threshold"] for line in validation["thresholds"]] == calibration.THRESHOLDS
    assert validation["thresholds"][0] == {
        "threshold": 0.5,
        "coverage": 1,
        "accepted": 3,
        "accuracy": validation["accuracy"],
    }
    assert metadata["lineage"]["data"] == {
        "train": lineage.data_sha256(folder / "train"),
        "validation": None,
        "test": None,
    }
    assert metadata["lineage"]["parent"] is None
    assert metadata["largest_difference_from_pytorch"] <= export.MAX_DIFFERENCE
    assert metadata["sha256"] == hashlib.sha256((folder / "model/model.onnx").read_bytes()).hexdigest()
    assert (metadata["epochs"], metadata["hyperparameters"]["epochs"], metadata["seed"]) == (4, 2, 0)
    assert sorted(path.name for path in (folder / "model").iterdir()) == ["data.json", "metadata.json", "model.onnx"]
    history = list(csv.DictReader((folder / "output/history.csv").open()))
    assert [(line["network"], line["epoch"]) for line in history] == [("1", "1"), ("1", "2"), ("2", "1"), ("2", "2")]
    predictions = list(csv.DictReader((folder / "output/predictions.csv").open()))
    assert [line["truth"] for line in predictions] == ["bright cat"] * 2 + ["dark dog"]
    right = sum(line["label"] == line["truth"] for line in predictions)
    assert right / 3 == validation["accuracy"]


def test_training_prints_one_line_per_epoch_and_nothing_on_stderr(trained):
    _, job = trained
    lines = job.stdout.splitlines()
    epochs = [line.split()[:2] for line in lines if " epoch=" in line]
    assert sorted(epochs) == [[f"network={number}", f"epoch={epoch}"] for number in (1, 2) for epoch in (1, 2)]
    assert lines[0] == "Ignoring unknown options: --sagemaker_region eu-west-1"
    assert job.stderr == ""


def test_the_model_contains_no_paths_of_the_machine_that_trained_it(trained):
    folder, _ = trained
    files = (folder / "model/model.onnx").read_bytes() + (folder / "model/metadata.json").read_bytes()
    assert str(Path(train.__file__).parent).encode() not in files
    assert b"site-packages" not in files


def test_an_error_ends_the_script_with_its_name_and_no_traceback(tmp_path):
    environment = os.environ | {"SM_CHANNEL_TRAIN": str(tmp_path / "nowhere"), "SM_MODEL_DIR": str(tmp_path / "model")}
    job = subprocess.run([sys.executable, train.__file__], env=environment, capture_output=True, text=True, timeout=60)
    assert (job.returncode, job.stderr) == (1, f"MissingFolderError: {tmp_path / 'nowhere'} is not a folder\n")


def test_the_server_returns_the_same_probabilities_as_pytorch(tmp_path):
    torch.manual_seed(0)
    labels = ["cat", "dog", "gnu"]
    dataset = data.load(folders.list_images(write_classes(tmp_path / "data", dict.fromkeys(labels[:2], 3))), SIZE)
    classifier = Average([Classifier(3, [0.3, 0.4, 0.5], [0.2, 0.3, 0.4], width=8) for _ in range(2)], mirrored=True)
    network = Probabilities(classifier, temperature=0.5).eval()
    export.export(network, SIZE, tmp_path / "model.onnx")
    metadata = {"labels": labels, "input": {"height": SIZE[0], "width": SIZE[1]}}
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    assert export.largest_difference(network, tmp_path / "model.onnx", dataset) <= 1e-5
    expected = torch.softmax(2 * fit.outputs_of(classifier, dataset), 1).numpy()

    client = TestClient(server.create_app(inference, inference.model_fn(tmp_path)))
    files = [path.read_bytes() for paths in folders.list_images(tmp_path / "data").values() for path in paths]
    single = [client.post("/invocations", content=file, headers={"content-type": "image/png"}).json() for file in files]
    lines = "".join(json.dumps(base64.b64encode(file).decode()) + "\n" for file in files)
    batch = client.post("/invocations", content=lines, headers={"content-type": "application/jsonlines"})
    for responses in (single, [json.loads(line) for line in batch.text.splitlines()]):
        by_label = [{each["label"]: each["probability"] for each in response["predictions"]} for response in responses]
        np.testing.assert_allclose([[row[label] for label in labels] for row in by_label], expected, atol=1e-5)


def test_an_average_is_the_mean_over_networks_and_mirror_images():
    networks = [Classifier(2, [0.5] * 3, [0.2] * 3, width=8).eval() for _ in range(2)]
    images = torch.rand(3, 3, *SIZE)
    logits = [network(view) for network in networks for view in (images, images.flip(3))]
    torch.testing.assert_close(Average(networks, mirrored=True)(images), sum(logits) / 4)
    torch.testing.assert_close(Average(networks, mirrored=False)(images), (logits[0] + logits[2]) / 2)


def test_an_exported_model_with_different_outputs_is_rejected(tmp_path):
    dataset = data.load(folders.list_images(write_classes(tmp_path / "data", {"cat": 2, "dog": 2})), SIZE)
    trained, other = (Probabilities(Classifier(2, [0.5] * 3, [0.2] * 3, width=8)).eval() for _ in range(2))
    export.export(trained, SIZE, tmp_path / "model.onnx")
    with pytest.raises(export.ExportMismatchError, match="probabilities differ"):
        export.largest_difference(other, tmp_path / "model.onnx", dataset)


def test_the_gradient_of_an_edge_is_counted_in_its_direction():
    edge = torch.zeros(1, 3, 16, 16)
    edge[..., 8:] = 1

    strengths = Gradients()(edge)[0, :DIRECTIONS, 4, 4]
    turned = Gradients()(edge.transpose(2, 3))[0, :DIRECTIONS, 4, 4]

    assert strengths.argmax() == 0  # across
    assert strengths[0] > 5 * strengths[2:-1].max()
    assert turned.argmax() in (4, 5)  # the two next to a right angle


def test_a_flat_image_has_no_gradients_even_when_exported(tmp_path):
    # The exporter drops additions of very small numbers, which would leave a division by zero.
    flat = torch.full((1, 3, 32, 32), 0.5)
    model = Probabilities(Classifier(2, [0.5] * 3, [0.2] * 3, width=8, gradients=True)).eval()
    export.export(model, (32, 32), tmp_path / "model.onnx")

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (exported,) = session.run(["probabilities"], {"pixels": flat.numpy()})

    assert Gradients()(flat)[0, :DIRECTIONS].abs().max() == 0
    with torch.no_grad():
        assert np.allclose(exported, model(flat).numpy(), atol=1e-5)


def test_a_replaced_model_is_kept_under_its_hash_with_its_data(trained, tmp_path):
    folder, _ = trained
    model = shutil.copytree(folder / "model", tmp_path / "model")
    before = json.loads((model / "metadata.json").read_text())
    assert train.keep_previous(model, before["sha256"]) is None  # trained again, with the same result
    kept = train.keep_previous(model, "another")
    assert kept == model / "previous" / before["sha256"][:16]
    assert sorted(path.name for path in kept.iterdir()) == ["data.json", "metadata.json", "model.onnx"]
    assert hashlib.sha256((kept / "model.onnx").read_bytes()).hexdigest() == before["sha256"]
    assert train.keep_previous(tmp_path / "empty", "another") is None


def test_the_model_folder_names_the_data(trained):
    folder, _ = trained
    assert json.loads((folder / "model/data.json").read_text()) == {"train": str((folder / "train").resolve())}


def test_training_says_how_long_it_takes_and_how_much_is_left(trained):
    output = trained[1].stdout
    assert len(re.findall(r"^Takes about \d+s in all, \d+s from now$", output, re.MULTILINE)) == 1
    assert re.search(r"^network=1 epoch=1 .* left=\d+s$", output, re.MULTILINE)
    assert re.search(r"^Exporting to ONNX .* about \d+s$", output, re.MULTILINE)
    assert [schedule.duration(seconds) for seconds in (9, 99.4, 600, 7200)] == ["9s", "99s", "10m", "2h"]


@pytest.mark.parametrize("networks", ["1", "2"])
def test_an_interrupted_training_leaves_the_model_folder_unchanged_and_shows_no_traceback(digits, tmp_path, networks):
    command = [sys.executable, train.__file__, "--train", digits / "train", "--model-dir", tmp_path / "model"]
    command += ["--output-data-dir", tmp_path / "output", "--networks", networks, "--epochs", "100"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's `&` ignores SIGINT
    ) as job:
        lines = iter(job.stdout.readline, "")
        next(line for line in lines if "epoch=1 " in line)
        os.killpg(job.pid, signal.SIGINT)  # as Ctrl-C does, also to the networks' processes
        rest = "".join(lines)
    assert job.returncode == 1
    assert rest.endswith("Interrupted: the model folder is unchanged.\n") and "Traceback" not in rest
    assert list((tmp_path / "model").iterdir()) == []


def test_the_channel_that_sagemakers_examples_call_training_is_read(monkeypatch, tmp_path):
    monkeypatch.delenv("SM_CHANNEL_TRAIN", raising=False)
    monkeypatch.setenv("SM_CHANNEL_TRAINING", str(tmp_path))
    assert train.parse_options([]).train == tmp_path


def test_channels_without_training_data_are_an_error_and_never_the_digits(monkeypatch, capsys):
    monkeypatch.delenv("SM_CHANNEL_TRAIN", raising=False)
    monkeypatch.setenv("SM_CHANNEL_IMAGES", "images")
    with pytest.raises(SystemExit):
        train.parse_options([])
    assert "the channel train (or training) is missing; there is images" in capsys.readouterr().err


def nested(folder):
    """42 images of two classes, 30 of them in folders inside the class folders."""
    for label, inside, count in (("cat", ".", 6), ("cat", "2024/may", 15), ("dog", ".", 6), ("dog", "2024/may", 15)):
        target = folder / label / inside
        target.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            colour = (255 * (label == "cat"), 5 * number, 7 * len(inside))
            Image.new("RGB", (16, 16), colour).save(target / f"{number}.png")
    return folder


def test_folders_inside_a_class_folder_belong_to_the_class(tmp_path):
    classes = folders.list_images(nested(tmp_path))
    assert {label: len(paths) for label, paths in classes.items()} == {"cat": 21, "dog": 21}
    assert len(data.load(classes, SIZE)) == 42


def test_a_folder_that_is_split_already_is_not_read_as_classes(tmp_path):
    for part in ("train", "Val"):
        nested(tmp_path / part)
    with pytest.raises(folders.AlreadySplitError, match="Val and train: pass these folders"):
        folders.list_images(tmp_path)
