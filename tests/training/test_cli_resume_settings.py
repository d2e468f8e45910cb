"""A run that goes on with other settings: what it keeps of before, what it says, what it refuses."""

from types import SimpleNamespace

import pytest
import torch
from command_line import SMALL, message

from manualnn.training.experiments.runs import figures

RUN = "logs/Digits/version_0"
# It falls, and then is lost: the first epochs are the best.
WORSE = [*SMALL, "--optimizer.lr", "3", "--data.batch_size", "64", "--monitor.every", "off"]
STOPPING = ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.patience", "50"]


def state_of(folder, kind="BestCheckpoint"):
    content = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    (state,) = [state for key, state in content["callbacks"].items() if key.startswith(kind)]
    return state


def test_the_best_epoch_stays_the_best_where_it_is_looked_for_less_often(run, tmp_path):
    loss = ["--checkpoint.monitor", "val/loss"]
    assert run("fit", *WORSE, *loss, "--trainer.max_epochs", "3") == 0
    best, before = tmp_path / RUN / "checkpoints/best.ckpt", state_of(tmp_path / RUN)
    content = best.read_bytes()
    # As if nothing that comes could be better.
    last = tmp_path / RUN / "checkpoints/last.ckpt"
    changed = torch.load(last, weights_only=True)
    (state,) = [s for key, s in changed["callbacks"].items() if key.startswith("BestCheckpoint")]
    score = torch.tensor(1e-6)
    state |= {"best_model_score": score, "kth_value": score}
    state["best_k_models"] = dict.fromkeys(state["best_k_models"], score)
    torch.save(changed, last)
    more = ["--trainer.max_epochs", "5", "--checkpoint.every_n_epochs", "5"]
    assert run("fit", "--ckpt_path", "last", *more) == 0
    assert best.read_bytes() == content
    after = state_of(tmp_path / RUN)
    assert after["best_model_path"] == before["best_model_path"]
    assert after["best_model_score"] == score


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--checkpoint.monitor val/loss", "--checkpoint.monitor is val/loss here and val/acc in"),
        ("--checkpoint.mode min", "--checkpoint.mode is min here and max in the run"),
        ("--trainer.limit_val_batches 0", "of validation there is none here, and there was some"),
        ("--trainer.callbacks.monitor val/acc", "EarlyStopping.monitor is val/acc here and val/l"),
    ],
)
def test_another_figure_to_watch_is_another_run(run, tmp_path, capsys, more, words):
    stopping = [*STOPPING, "--trainer.callbacks.monitor", "val/loss"]
    assert run("fit", *SMALL, *stopping, "--trainer.max_epochs", "1") == 0
    (last,) = tmp_path.rglob("last.ckpt")
    before = {path: path.read_bytes() for path in last.parent.iterdir()}
    capsys.readouterr()
    if "callbacks" in more:
        more = " ".join([*STOPPING, more])
    args = ["--ckpt_path", "last", "--trainer.max_epochs", "2", *more.split()]
    assert run("fit", *args) == 2
    said = message(capsys)
    assert words in said and "would be another run" in said
    assert {path: path.read_bytes() for path in last.parent.iterdir()} == before


def test_a_state_that_nobody_takes_and_one_that_is_not_there_are_said(run, capsys):
    assert run("fit", *SMALL, "--trainer.max_epochs", "1") == 0
    capsys.readouterr()
    on = ["--ckpt_path", "last", "--trainer.max_epochs"]
    assert run("fit", *on, "2", *STOPPING, "--trainer.callbacks.monitor", "val/loss") == 0
    new = "note: EarlyStopping (val/loss) begins anew: the checkpoint holds no state of it\n"
    assert new in capsys.readouterr().out
    assert run("fit", *on, "3") == 0  # with the callbacks of the part before
    assert "note: " not in capsys.readouterr().out
    assert run("fit", *on, "4", "--trainer.callbacks", "null") == 0
    lost = "note: the checkpoint holds a state of EarlyStopping (val/loss), and nothing in this run"
    assert lost in capsys.readouterr().out


def test_what_is_told_of_a_run_is_of_the_epoch_that_was_kept(run, tmp_path):
    options = ["--trainer.max_epochs", "5", "--checkpoint.every_n_epochs", "2"]
    assert run("fit", *SMALL, *options, "--optimizer.lr", "0.01") == 0
    path = tmp_path / RUN / "checkpoints/best.ckpt"
    steps = torch.load(path, weights_only=True)["global_step"]
    assert steps in (6, 12)
    # Epochs that were not looked at were as good by this figure, and not by the other.
    curves = {"val/acc": [(x, 0.5) for x in (1.0, 2.0, 3.0, 4.0, 5.0)]}
    curves["val/loss"] = [(x, 10 * x) for x in (1.0, 2.0, 3.0, 4.0, 5.0)]
    kept = SimpleNamespace(monitor="val/acc", best_model_score=0.5, best_model_path=path)
    trainer = SimpleNamespace(num_training_batches=3, callback_metrics={})
    found = figures(
        SimpleNamespace(checkpoint=kept, trainer=trainer), SimpleNamespace(curves=curves)
    )
    assert found == {"epoch": steps / 3, "val/acc": 0.5, "val/loss": steps / 3 * 10}


def test_what_is_learned_otherwise_from_here_on_is_said(run, capsys):
    assert run("fit", *SMALL, "--trainer.max_epochs", "1") == 0
    on = ["--ckpt_path", "last", "--trainer.max_epochs", "2"]
    for option in ("limit_train_batches", "overfit_batches"):
        capsys.readouterr()
        assert run("fit", *on, f"--trainer.{option}", "1") == 2
        assert f"--trainer.{option} is 1 here and" in message(capsys)
    options = "--trainer.accumulate_grad_batches 2 --trainer.gradient_clip_val 0.5"
    assert run("fit", *on, *options.split()) == 0
    said = (
        "note: otherwise than before: --trainer.accumulate_grad_batches is 2 here and 1 in the run; "
        "--trainer.gradient_clip_val is 0.5 here and null in the run\n"
    )
    assert said in capsys.readouterr().out
    assert run("fit", *on[:-1], "3") == 0  # with the settings of the part before
    assert "note" not in capsys.readouterr().out
