"""A checkpoint with code in it is refused, wherever one is loaded, and none of ours has any."""

import pathlib
import pickle
import sys
import zipfile

import pytest
import torch
from command_line import SMALL, message

from manualnn.training.run.saving import AtomicCheckpointIO

RUN = "logs/Digits/version_0"
LAST = f"{RUN}/checkpoints/last.ckpt"


class Bomb:
    """Makes a file when it is unpickled by something that runs what it is told to."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def planted(folder, form: str) -> None:
    """Puts code into the run's last.ckpt, beside everything that a checkpoint has."""
    content = torch.load(folder / LAST, weights_only=True)
    content["hyper_parameters"]["network"] = Bomb(folder / "exploded")
    if form == "zip":
        torch.save(content, folder / LAST)
    elif form == "legacy":
        torch.save(content, folder / LAST, _use_new_zipfile_serialization=False)
    else:
        (folder / LAST).write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_is_refused_and_not_run(trained, tmp_path, capsys, form):
    planted(tmp_path, form)
    for subcommand in ("fit", "validate", "test", "predict"):
        capsys.readouterr()
        assert trained(subcommand, "--ckpt_path", "last", "--trainer.accelerator", "cpu") == 2
        said = message(capsys)
        assert said.startswith(f"{LAST} ")
        if form == "zip":
            assert "is not loaded: it holds" in said and "open" in said and "any code" in said
    assert not (tmp_path / "exploded").exists()


def test_the_bomb_would_explode(trained, tmp_path):
    planted(tmp_path, "zip")
    torch.load(tmp_path / LAST, weights_only=False)
    assert (tmp_path / "exploded").exists()


def test_lightnings_own_loading_refuses_it_too(trained, tmp_path):
    planted(tmp_path, "zip")
    for chosen in ({}, {"weights_only": None}, {"weights_only": True}):
        with pytest.raises(pickle.UnpicklingError):
            AtomicCheckpointIO().load_checkpoint(tmp_path / LAST, **chosen)
    assert not (tmp_path / "exploded").exists()


def test_the_environment_does_not_open_the_door(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    planted(tmp_path, "zip")
    assert trained("test", "--ckpt_path", "last") == 2
    assert not (tmp_path / "exploded").exists()


def test_a_file_that_was_cut_off_is_refused(trained, tmp_path, capsys):
    whole = (tmp_path / LAST).read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / LAST).write_bytes(whole[:size])
        capsys.readouterr()
        assert trained("test", "--ckpt_path", "last") == 2
        assert message(capsys) == f"{LAST} cannot be read as a checkpoint"


SCHEDULERS = [
    ("MultiStepLR", ["--lr_scheduler.milestones", "[1,2]"]),
    ("OneCycleLR", ["--lr_scheduler.max_lr", "0.1", "--lr_scheduler.total_steps", "9"]),
    ("CyclicLR", ["--lr_scheduler.base_lr", "0.1", "--lr_scheduler.max_lr", "0.2"]),
    ("ReduceLROnPlateau", ["--lr_scheduler.monitor", "val/loss"]),
]


@pytest.mark.parametrize(("name", "options"), SCHEDULERS, ids=[name for name, _ in SCHEDULERS])
@pytest.mark.one_in(3)
def test_what_a_run_saves_can_be_loaded(run, tmp_path, name, options):
    args = [*SMALL, "--trainer.max_epochs", "1", "--lr_scheduler", name, *options]
    adam = ["--optimizer", "Adam"] if name != "CyclicLR" else []
    early = "lightning.pytorch.callbacks.EarlyStopping"
    stop = [f"--trainer.callbacks={early}", "--trainer.callbacks.monitor=val/loss"]
    assert run("fit", *args, *adam, *stop) == 0
    assert run("fit", "--ckpt_path", "last", "--trainer.max_epochs", "2") == 0
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == 6
    with zipfile.ZipFile(tmp_path / LAST) as archive:
        assert archive.testzip() is None


ODD = """
from pathlib import PurePosixPath
from lightning.pytorch import Callback

class Odd(Callback):
    def state_dict(self):
        return {"path": PurePosixPath("a")}
"""


def test_what_could_not_be_loaded_again_is_refused_before_the_first_step(
    run, tmp_path, capsys, monkeypatch
):
    (tmp_path / "odd_callback.py").write_text(ODD)
    monkeypatch.syspath_prepend(tmp_path)
    odd = ["--trainer.callbacks", "odd_callback.Odd"]
    assert run("fit", *SMALL, "--trainer.max_epochs", "1", *odd) == 2
    kind = f"{pathlib.PurePosixPath.__module__}.PurePosixPath"  # pathlib._local in Python 3.13
    assert f"would hold {kind}, and none could be loaded again" in (said := message(capsys))
    assert said.endswith("It is in the state of Odd")
    assert not (tmp_path / "logs").exists()


UNSAVED = """
from lightning.pytorch import Callback
from torch.optim.lr_scheduler import StepLR

def fail():
    raise OSError("my state")

class Raises(Callback):
    def state_dict(self):
        fail()

class Lambda(Callback):
    def state_dict(self):
        return {"inner": [lambda: 0]}

class Generator(Callback):
    def state_dict(self):
        return {"inner": (i for i in "ab")}

class Hook(Callback):
    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        checkpoint["mine"] = lambda: 0

class Schedule(StepLR):
    def state_dict(self):
        return {"inner": lambda: 0}

class Later(Callback):
    seen = 0

    def on_train_batch_end(self, *args):
        self.count = 1

    def state_dict(self):
        return {"count": self.count}

class Spoiled(Callback):
    def state_dict(self):
        return {"value": 1 if getattr(self, "trainer", None) is None else lambda: 0}

    def on_train_batch_end(self, trainer, *args):
        self.trainer = trainer
"""


@pytest.fixture
def unsaved(tmp_path, monkeypatch):
    (tmp_path / "unsaved.py").write_text(UNSAVED)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("unsaved", None)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ("--lr_scheduler LambdaLR --lr_scheduler.lr_lambda math.cos", "LambdaLR"),
        ("--lr_scheduler unsaved.Schedule --lr_scheduler.step_size 1", "Schedule"),
        ("--trainer.callbacks unsaved.Raises", "Raises"),
        ("--trainer.callbacks unsaved.Lambda", "Lambda"),
        ("--trainer.callbacks unsaved.Generator", "Generator"),
        ("--trainer.callbacks unsaved.Hook", "Hook"),
    ],
)
def test_a_state_that_cannot_be_saved_is_refused_before_the_first_step(
    run, tmp_path, capsys, unsaved, options, kind
):
    assert run("fit", *SMALL, "--trainer.max_epochs", "1", *options.split()) == 2
    assert message(capsys).startswith(f"the state of {kind} cannot be saved, and the run's")
    assert not (tmp_path / "logs").exists()


def test_a_state_that_steps_make(run, tmp_path, capsys, unsaved):
    args = ["fit", *SMALL, "--trainer.max_epochs", "1", "--trainer.callbacks"]
    assert run(*args, "unsaved.Later") == 0
    capsys.readouterr()
    assert run(*args, "unsaved.Spoiled") == 2
    assert message(capsys).startswith("the run's checkpoints would hold what cannot be saved: ")
    assert not list(tmp_path.glob("logs/Digits/version_1/**/*.*t"))
