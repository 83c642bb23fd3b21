import json

import numpy as np
import pytest
import torch

import inference
import resnet
import train
from class_folders import write_classes
from data import Dataset


@pytest.fixture
def weights():
    """Random weights with the names and shapes of torchvision's resnet18."""
    torch.manual_seed(1)
    return {name: value for name, value in resnet.ResNet18(1000).state_dict().items() if name not in ("mean", "std")}


def test_it_has_the_layers_of_torchvisions_resnet18(weights):
    assert sum(parameter.numel() for parameter in resnet.ResNet18(1000).parameters()) == 11_689_512
    assert len(weights) == 122
    assert weights["layer4.0.downsample.0.weight"].shape == (512, 256, 1, 1)
    assert {"conv1.weight", "bn1.running_var", "layer1.1.bn2.num_batches_tracked", "fc.bias"} < weights.keys()


def test_all_but_the_last_layer_comes_from_the_file(weights, tmp_path):
    torch.save(weights, tmp_path / "resnet18.pth")
    own = resnet.pretrained(tmp_path / "resnet18.pth", 3).state_dict()
    assert all(torch.equal(own[name], value) for name, value in weights.items() if not name.startswith("fc"))
    assert own["fc.weight"].shape == (3, 512)
    assert own["mean"].flatten().tolist() == pytest.approx(resnet.MEAN)


class Hostile:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of the file was run')",)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"<html>404</html>", "without running code"),
        (b"", "without running code"),
        (Hostile(), "without running code"),
        ([1, 2], "does not hold the weights"),
        ({"conv1.weight": 1}, "does not hold the weights"),
        ({"layer1.0.weight": torch.zeros(1)}, "does not hold the weights"),
        (None, "does not exist"),
        ("folder", "without running code"),
    ],
)
def test_a_file_without_these_weights_is_rejected(tmp_path, content, reason):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "folder":
        path.mkdir()
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(resnet.PretrainedWeightsError, match=f"weights.pth.* {reason}"):
        resnet.pretrained(path, 2)


def test_pretrained_weights_get_a_short_training_with_a_low_learning_rate():
    dataset = Dataset(np.random.default_rng(0).random((900, 3, 32, 32), np.float32), np.zeros(900, np.int64), ["cat"])
    options = train.parse_options(["--pretrained", "weights.pth"])
    train.choose_defaults(options, dataset)
    assert (options.networks, options.patches, options.gradients, options.learning_rate) == (1, 0, 0, 0.01)
    assert options.epochs == 13


def test_training_starts_from_the_weights_and_exports_a_model_for_the_endpoint(weights, tmp_path, monkeypatch):
    torch.save(weights, tmp_path / "resnet18.pth")
    monkeypatch.setenv("SM_CHANNEL_TRAIN", str(write_classes(tmp_path / "train", {"cat": 6, "dog": 6})))
    folders = ["--model-dir", f"{tmp_path}/model", "--output-data-dir", f"{tmp_path}/output"]
    train.main(["--pretrained", f"{tmp_path}/resnet18.pth", "--epochs", "1", *folders])
    assert json.loads((tmp_path / "model/metadata.json").read_text())["pretrained"] == "resnet18.pth"
    model = inference.model_fn(tmp_path / "model")
    assert model.size == (resnet.SIDE, resnet.SIDE)
    (response,) = inference.classify([np.zeros((3, *model.size), np.float32)], model)
    assert {each["label"] for each in response["predictions"]} == {"cat", "dog"}
