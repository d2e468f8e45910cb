"""Networks with weights of others': their head, their first layer, what stays; and the command line's way."""

import copy
import re
from pathlib import Path

import pytest
import torch
import torchvision
from battery import EVERY_ROW
from command_line import message
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from manualnn.training import ImageClassifier, TrainingError
from manualnn.training.model.schedule import planned_moves
from manualnn.training.model.transfer import freeze, head_of, replace_head, take_channels, unfilled
from manualnn.training.run.configuration import fit_to_data

MODELS = torchvision.models
# The regnets compute their widths with tensors, which the meta device has not: the small ones are made in full.
NAMES = MODELS.list_models(module=MODELS, exclude=["regnet_*"]) + [
    "regnet_x_400mf",
    "regnet_y_400mf",
]
SMALLEST = {re.match("[a-z]+", name)[0]: name for name in reversed(NAMES)}.values()
SHORT = "--trainer.max_epochs 1 --trainer.limit_train_batches 2 --monitor.every off --data.batch_size 16"


@pytest.mark.parametrize("name", NAMES if EVERY_ROW else SMALLEST)
def test_every_classifier_of_torchvisions_gets_a_head(name):
    size = MODELS.get_model_weights(name).DEFAULT.transforms().crop_size[0]
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    options |= {"image_size": size} if name.startswith("vit_") else {}
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        network = MODELS.get_model(name, **options)
        assert replace_head(network, 1000) == ""
        done = replace_head(network, 7)
        assert done == f"the head {head_of(network)} is new: 7 scores in place of 1000"
        assert network.eval()(torch.empty(1, 3, size, size)).shape == (1, 7)


@pytest.mark.parametrize("name", ["squeezenet1_1", "convnext_tiny"])
def test_a_grey_image_gives_what_three_equal_channels_give(name):
    torch.manual_seed(0)
    network = MODELS.get_model(name).eval()
    image = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        wanted = network(image.expand(-1, 3, -1, -1))
        assert "takes one channel" in take_channels(network, 1)
        assert torch.allclose(network(image), wanted, atol=1e-4)
    assert take_channels(network, 1) == ""
    assert take_channels(MODELS.resnet18(), 3) == ""


def step(model):
    model.train()
    optimizer = torch.optim.SGD(model.parameter_groups(), lr=0.1, weight_decay=0.1, momentum=0.9)
    loss = model.criterion(model(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    optimizer.step()
    return optimizer


def moved(model, before):
    return {
        n for n, value in model.network.state_dict().items() if not torch.equal(value, before[n])
    }


@pytest.mark.parametrize("convert", ["less", "off"])
@pytest.mark.parametrize("parts", ["backbone", ["conv1", "bn1", "layer1"], "layer4.1", None])
def test_what_is_frozen_stays_to_the_last_bit(parts, convert):
    torch.manual_seed(0)
    network = MODELS.resnet18()
    model = ImageClassifier(
        3, (3, 32, 32), network=network, replace_head=True, freeze=parts, convert=convert
    )
    before = copy.deepcopy(model.network.state_dict())
    step(model)
    named = [parts] if isinstance(parts, str) else parts or ["none"]
    stays = tuple(f"{name}." for name in named)
    wanted = {n for n in before if not n.startswith(stays) and (parts != "backbone" or "fc." in n)}
    assert moved(model, before) == wanted


def test_parameters_of_no_layer_are_frozen_with_the_backbone():
    network = MODELS.vit_b_16(image_size=32)
    freeze(network, "backbone")
    learns = [n for n, p in network.named_parameters() if p.requires_grad]
    assert learns == ["heads.head.weight", "heads.head.bias"]


def test_the_head_has_a_rate_of_its_own():
    network = MODELS.resnet18()
    model = ImageClassifier(3, (3, 32, 32), network=network, replace_head=True, head_lr=0.5)
    first, head = step(model).param_groups
    assert (first["lr"], head["lr"]) == (0.1, 0.5)
    assert [p is q for p, q in zip(head["params"], model.network.fc.parameters(), strict=True)] == [
        True,
        True,
    ]
    assert len(first["params"]) + 2 == len(list(model.parameters()))


def test_a_network_without_a_layer_that_gives_scores_is_named():
    with pytest.raises(TrainingError, match="Sequential has no linear layer"):
        replace_head(torch.nn.Sequential(torch.nn.Flatten()), 3)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Weights for resnet18 that need no network: drawn at random, in the place of the fetched ones."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    file = Path(MODELS.ResNet18_Weights.DEFAULT.url).name
    folder = Path(torch.hub.get_dir(), "checkpoints")
    folder.mkdir(parents=True)
    torch.manual_seed(7)
    state = MODELS.resnet18().state_dict()
    torch.save(state, folder / file)
    return folder / file, state


TAKEN = "--model.network torchvision.models.resnet18 --model.network.weights DEFAULT".split()


def test_weights_of_others_are_trained_on_and_needed_no_more(run, weights, capsys, tmp_path):
    file, state = weights
    assert (
        run("fit", *TAKEN, *SHORT.split(), "--model.freeze", "backbone", "--model.head_lr", "0.1")
        == 0
    )
    said = capsys.readouterr().out
    assert "network: the first layer conv1 takes one channel" in said
    assert "network: the head fc is new: 10 scores in place of 1000" in said
    best = next(tmp_path.glob("logs/*/version_0/checkpoints/best.ckpt"))
    content = torch.load(best, weights_only=True)
    there = {name.removeprefix("network."): v for name, v in content["state_dict"].items()}
    assert torch.equal(there["conv1.weight"], state["conv1.weight"].sum(1, keepdim=True))
    same = [name for name in state if name in there and torch.equal(there[name], state[name])]
    assert len(same) == len(state) - 3  # all but conv1 and the head's two
    file.unlink()
    assert run("test", "--ckpt_path", str(best)) == 0
    assert (
        run("fit", "--ckpt_path", str(best.with_name("last.ckpt")), "--trainer.max_epochs", "2")
        == 0
    )
    again = torch.load(best.with_name("last.ckpt"), weights_only=True)["state_dict"]
    assert all(torch.equal(again[f"network.{name}"], state[name]) for name in same)


def test_weights_that_cannot_be_fetched_are_said_in_one_line(run, weights, capsys, monkeypatch):
    weights[0].unlink()

    def refused(*args, **options):
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr("urllib.request.OpenerDirector.open", refused)
    assert run("fit", *TAKEN, *SHORT.split()) == 2
    said = message(capsys)
    assert (
        "cannot be fetched: [Errno 111] Connection refused. Where there is no network, put https://"
        in said
    )


def test_a_fault_of_the_network_is_not_one_of_its_weights(run, weights, monkeypatch, capsys):
    def broken(*args, **options):
        raise RuntimeError("a layer of its own does not fit")

    monkeypatch.setattr(MODELS.resnet.BasicBlock, "__init__", broken)
    assert run("fit", *TAKEN, *SHORT.split()) == 2
    assert message(capsys) == "a layer of its own does not fit"


def test_without_fetching_a_network_is_made_as_with_its_weights(weights):
    weights[0].unlink()
    with unfilled():
        network = MODELS.resnet18(weights="DEFAULT")
    assert network.fc.out_features == 1000
    with pytest.raises(RuntimeError):
        network.load_state_dict({})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--early_stopping", "0"], "--early_stopping is 0; 1 at least is needed"),
        (["--early_stopping", "2", "--data.val_fraction", "0"], "there are no validation images"),
        (["--checkpoint.monitor", "val/top5_acc"], "nothing of that name is logged"),
        (
            ["--lr_scheduler", "CosineAnnealingLR", "--trainer.max_epochs", "-1"],
            "has no end for it to follow",
        ),
        (
            ["--data.augment", "Rotate"],
            "torchvision.transforms.v2 has no transform 'Rotate'; such as",
        ),
        (["--data.augment", "[Normalize]"], "augment: Normalize takes other options: "),
        (
            ["--data.augment", "{RandomCrop: {size: 5}}"],
            "augment: RandomCrop makes (1, 5, 5) torch.uint8",
        ),
        (
            ["--data.augment", "{RandAugment: {size: 5}}"],
            "augment: RandAugment takes other options",
        ),
        (["--data.augment", "RandomIoUCrop"], "augment: RandomIoUCrop fails on these images"),
        (["--data.augment", "os.system"], "has no transform 'os.system'"),
        (["--data.augment", "{MixUp: {num_classes: 3}}"], "augment: MixUp fails on these images"),
        (
            ["--optimizer", "LBFGS", "--model.head_lr", "0.1"],
            "LBFGS doesn't support per-parameter options",
        ),
        (
            ["--lr_scheduler", "CosineAnnealingLR", "--lr_scheduler.T_max", "-3"],
            "--lr_scheduler.T_max is -3; it cannot be negative",
        ),
        (
            "--model.head_lr 0.5 --lr_scheduler OneCycleLR --lr_scheduler.max_lr 0.2 "
            "--lr_scheduler.total_steps 5 --lr_scheduler_interval step".split(),
            "--model.head_lr: OneCycleLR gives all parameters rates of its own",
        ),
        (  # which begins with the rate that the head is to have
            "--model.head_lr 0.02 --lr_scheduler OneCycleLR --lr_scheduler.max_lr 0.5 "
            "--lr_scheduler.total_steps 500".split(),
            "--model.head_lr: OneCycleLR gives all parameters rates of its own",
        ),
    ],
)
@pytest.mark.one_in(3)
def test_what_a_run_could_not_do_is_refused_before_its_first_step(run, capsys, options, words):
    assert run("fit", "--model.hidden_units", "[8]", *SHORT.split(), *options) == 2
    assert words in message(capsys)


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize(
    "name", ["resnext50_32x4d", "wide_resnet50_2", "mobilenet_v3_small", "swin_t", "densenet121"]
)
def test_a_builder_gets_what_was_said_and_not_the_defaults_of_its_class(name, weights):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=torch.nn.Module)
    options = ["--network.weights", "DEFAULT"] if weights else []
    network = parser.parse_args(["--network", f"torchvision.models.{name}", *options]).network
    config = Namespace(
        model=Namespace(network=network, replace_head=False),
        data=Namespace(dataset="Digits", normalize="auto"),
    )
    fit_to_data(config)
    assert config.data.normalize == (
        [[pytest.approx(0.449)], [pytest.approx(0.226)]] if weights else "auto"
    )
    with torch.device("meta"), unfilled():
        made = parser.instantiate_classes(Namespace(network=network)).network
        if config.model.replace_head:
            replace_head(made, 10)
        assert made.eval()(torch.empty(1, 3, 64, 64)).shape == (1, 10)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model.freeze", "layer9"], "the network has no part 'layer9'; it has conv1"),
        (["--model.freeze", "[backbone, fc]"], "the network has no part 'backbone'"),
        (["--model.warmup_steps", "-1"], "warmup_steps is -1; it cannot be negative"),
        (
            ["--model.network.weights", "IMAGENET"],
            "needed is one of IMAGENET1K_V1, DEFAULT or null",
        ),
    ],
)
def test_a_mistake_beside_weights_is_one_line(run, weights, capsys, options, words):
    assert run("fit", *TAKEN, *SHORT.split(), *options) == 2
    assert words in message(capsys)


def test_a_run_that_was_stopped_early_has_nothing_to_do(run, tmp_path, capsys):
    options = "--optimizer.lr 1e-30 --trainer.max_epochs 30 --early_stopping 1 --monitor.every off"
    assert run("fit", "--model.hidden_units", "[8]", *options.split()) == 0
    last = next(tmp_path.glob("logs/*/version_0/checkpoints/last.ckpt"))
    step = torch.load(last, weights_only=True)["global_step"]
    assert run("fit", "--ckpt_path", "last") == 0
    assert f"the run was stopped early, after {step} steps" in capsys.readouterr().out
    assert torch.load(last, weights_only=True)["global_step"] == step


def test_a_cosine_reaches_its_end_in_an_epoch_that_is_cut_off(run, tmp_path):
    options = "--trainer.max_steps 9 --trainer.limit_train_batches 5 --trainer.log_every_n_steps 1"
    more = [*options.split(), "--lr_scheduler", "CosineAnnealingLR", "--monitor.every", "off"]
    assert run("fit", "--model.hidden_units", "[8]", *more) == 0
    found = rates(next(tmp_path.glob("logs/*/version_0")))
    assert found == pytest.approx([0.05] * 5 + [0.025] * 4)


def rates(folder):
    from stopped_runs import curves

    return [value for _, value in curves(folder)["lr"]]


def test_a_cosine_without_an_end_ends_with_the_run_and_the_rate_rises_first(run, tmp_path):
    options = "--trainer.max_epochs 2 --trainer.limit_train_batches 5 --trainer.log_every_n_steps 1"
    cosine = "--lr_scheduler CosineAnnealingLR --lr_scheduler_interval step --optimizer.lr 1e-3"
    more = [
        *options.split(),
        *cosine.split(),
        "--model.warmup_steps",
        "4",
        "--monitor.every",
        "off",
    ]
    assert run("fit", "--model.hidden_units", "[8]", *more) == 0
    found = rates(next(tmp_path.glob("logs/*/version_0")))
    weight = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([weight], lr=1e-3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for step, rate in enumerate(found):
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"] * min(1, (step + 1) / 4))
        optimizer.step()
        cosine.step()
    assert len(found) == 10


def test_a_run_without_progress_ends(run, tmp_path, capsys):
    options = "--optimizer.lr 1e-30 --trainer.max_epochs 30 --early_stopping 2 --monitor.every off"
    assert run("fit", "--model.hidden_units", "[8]", *options.split()) == 0
    assert re.search(r"epochs, steps +3, ", capsys.readouterr().out)


def test_a_head_of_its_own_rate_with_a_plateau(run, tmp_path):
    options = "--model.head_lr 0.5 --lr_scheduler ReduceLROnPlateau --lr_scheduler.monitor val/loss"
    more = [*options.split(), "--trainer.max_epochs", "1", "--monitor.every", "off"]
    assert run("fit", "--model.hidden_units", "[8]", *more) == 0


@pytest.mark.parametrize(
    ("limits", "scheduling", "steps", "epochs"),
    [
        ({"max_epochs": 3}, {0: 1}, 21, 3),
        ({"max_epochs": 3}, {0: 2, 1: 7}, 4 + 1 + 1, 3),
        ({"max_epochs": 5}, {2: 4}, 7 + 7 + 3 * 2, 5),
        ({"max_steps": 9, "max_epochs": -1}, {0: 1}, 9, 9 / 7),
        ({"max_steps": 9, "max_epochs": -1}, {0: 2, 1: 7}, 9, 1 + 5),
        ({"max_steps": 5, "max_epochs": 3}, {0: 2, 1: 7}, 5, 2),
        ({"max_steps": 50, "max_epochs": 2}, {0: 1}, 14, 2),
    ],
)
def test_a_schedule_knows_how_long_the_run_is(limits, scheduling, steps, epochs):
    callback = GradientAccumulationScheduler(scheduling)
    run = Trainer(
        **limits, callbacks=[callback], logger=False, accelerator="cpu", limit_val_batches=0
    )
    run.strategy.connect(ImageClassifier(10, (1, 8, 8), [8], "relu"))
    loader = DataLoader(torch.zeros(7, 1))
    run._data_connector.attach_data(run.lightning_module, train_dataloaders=loader)
    run.state.fn, run.training = TrainerFn.FITTING, True
    assert planned_moves(run, "step") == steps
    assert planned_moves(run, "epoch") == pytest.approx(epochs)


def test_a_part_that_has_nothing_to_learn_cannot_be_frozen():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    with pytest.raises(TrainingError, match="the part 0, a Flatten, has nothing that learns"):
        freeze(network, ["0"])
    with pytest.raises(TrainingError, match="head_lr: freeze keeps the head from learning"):
        ImageClassifier(2, (1, 2, 2), network=network, freeze=["2"], head_lr=0.1, convert="off")
