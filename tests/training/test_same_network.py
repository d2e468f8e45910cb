"""What uses a checkpoint uses the network that was trained, on images as they were, or says what differs."""

import pytest
import yaml
from command_line import SMALL, message

TANH = [*SMALL, "--model.activation", "tanh", "--trainer.max_epochs", "1", "--monitor.every", "off"]
BEST = "logs/Digits/version_0/checkpoints/best.ckpt"


@pytest.fixture
def tanh(run, tmp_path):
    assert run("fit", *TANH) == 0
    return tmp_path


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--model.activation relu", "--model.activation is relu here and tanh in the checkpoint"),
        ("--model.loss quadratic", "--model.loss is quadratic here and cross_entropy in the"),
        ("--model.label_smoothing 0.5", "--model.label_smoothing is 0.5 here and 0.0 in the"),
        ("--model.dropout 0.5", "--model.dropout is 0.5 here and 0.0 in the checkpoint"),
        ("--data.normalize null", "--data.normalize is null here and auto in the checkpoint"),
    ],
)
@pytest.mark.one_in(4)
def test_another_network_of_the_same_shapes_is_refused(tanh, run, capsys, command, option, words):
    capsys.readouterr()
    assert run(command, "--ckpt_path", BEST, *option.split()) == 2
    assert words in message(capsys)


def test_a_configuration_of_another_network_is_refused(tanh, run, capsys):
    own = yaml.safe_load((tanh / "logs/Digits/version_0/config.yaml").read_text())
    other = {"data": {"dataset": "Digits"}, "trainer": {}}
    words = "--model.activation is relu here and tanh in the checkpoint"
    for model in ({"hidden_units": [8], "activation": "relu"}, {"hidden_units": [8]}):
        (tanh / "other.yaml").write_text(yaml.safe_dump({**other, "model": model}))
        capsys.readouterr()
        config = ["--config", "other.yaml", "--ckpt_path", BEST]
        assert run("test", *config) == 2
        said = message(capsys)
        assert words.replace("relu", str(model.get("activation", "null"))) in said
        assert "leave the option out, or the --config that says so" in said
    (tanh / "other.yaml").write_text(
        yaml.safe_dump({**other, "model": {"hidden_units": [8], "activation": "relu"}})
    )
    assert run("export", "--format", "safetensors", *config) == 2
    assert words in message(capsys)
    # What trains it alone may be another's; what is the same may be said.
    own["model"] |= {"activation": "Tanh", "weight_init": "normal"}
    (tanh / "same.yaml").write_text(yaml.safe_dump(own))
    assert run("test", "--config", "same.yaml", "--ckpt_path", BEST) == 0


def test_a_checkpoint_away_from_its_configuration_asks_for_it(tanh, run, capsys):
    (tanh / BEST).rename(tanh / "alone.ckpt")
    capsys.readouterr()
    assert run("test", "--ckpt_path", "alone.ckpt") == 2
    said = message(capsys)
    assert "--model.activation is null here and tanh in the checkpoint" in said
    assert said.endswith(
        "no config.yaml was found by the checkpoint: give --config, that of its run"
    )


def test_the_checkpoints_own_scale_is_used_and_said(run, capsys):
    assert run("fit", *TANH, "--data.normalize", "[[0.5],[0.25]]") == 0
    figures = []
    for more in ([], ["--data.normalize", "auto"]):
        capsys.readouterr()
        assert run("test", "--ckpt_path", BEST, *more) == 0
        said = capsys.readouterr().out
        figures.append([line for line in said.splitlines() if "test/" in line])
        note = "note: the images are scaled as in the run, --data.normalize [[0.5], [0.25]]"
        assert (note in said) == bool(more)
    assert figures[0] == figures[1] != []


def test_a_network_of_ones_own_is_compared_by_its_options(run, tmp_path, monkeypatch, capsys):
    text = (
        "import torch\n\n\nclass Net(torch.nn.Module):\n"
        "    def __init__(self, slope: float = 1.0):\n        super().__init__()\n"
        "        self.slope, self.layer = slope, torch.nn.Linear(64, 10)\n\n"
        "    def forward(self, x):\n        return self.layer((self.slope * x.flatten(1)).sin())\n"
    )
    (tmp_path / "sloping.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    options = ["--model.network", "sloping.Net", "--model.network.slope", "2"]
    options += ["--data.batch_size", "512", "--trainer.max_epochs", "1", "--monitor.every", "off"]
    assert run("fit", *options) == 0
    config = tmp_path / "logs/Digits/version_0/config.yaml"
    content = yaml.safe_load(config.read_text())
    content["model"]["network"]["init_args"]["slope"] = 3.0
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(content))
    for command in ("test", "export --format safetensors", "predict --image x.png"):
        (tmp_path / "x.png").write_bytes(b"")
        capsys.readouterr()
        assert run(*command.split(), "--config", "other.yaml", "--ckpt_path", BEST) == 2
        assert "--model.network.slope is 3.0 here and 2.0 in the checkpoint" in message(capsys)
    capsys.readouterr()
    assert run("test", "--ckpt_path", BEST, "--model.network.slope", "4") == 2
    assert "--model.network.slope is 4.0 here and 2.0 in the checkpoint" in message(capsys)
    export = ["export", "--format", "safetensors", "--config", config, "--ckpt_path", BEST]
    assert run(*export) == 0
