"""A run goes on in its own folder whichever of the loggers that write there it has."""

import csv

import pytest
import torch
from command_line import SMALL
from test_cli_resume import scalars

KIND = "{{class_path: {}, init_args: {{save_dir: logs}}}}"
LOGGERS = {
    "one table": ["CSVLogger"],
    "a list": ["TensorBoardLogger", "CSVLogger"],
}
ARGS = [*SMALL, "--monitor.every", "off", "--experiment", "x", "--trainer.log_every_n_steps", "2"]
FOLDER = "logs/x/version_0"


def points(table) -> dict[str, list[int]]:
    """name -> the steps at which it was logged."""
    with table.open() as file:
        rows = [*csv.DictReader(file)]
    return {name: [int(row["step"]) for row in rows if row[name]] for name in rows[0]}


@pytest.mark.parametrize("chosen", LOGGERS)
def test_a_run_goes_on_in_its_own_folder(run, tmp_path, capsys, chosen):
    kinds = [KIND.format(kind) for kind in LOGGERS[chosen]]
    logger = ["--trainer.logger", f"[{', '.join(kinds)}]" if kinds[1:] else kinds[0]]
    assert run("fit", *ARGS, *logger, "--trainer.max_epochs", "2") == 0
    run_folder = tmp_path / FOLDER
    last = run_folder / "checkpoints/last.ckpt"
    content = torch.load(last, weights_only=True)
    (state,) = [s for key, s in content["callbacks"].items() if key.startswith("BestCheckpoint")]
    state |= {"best_model_score": torch.tensor(2.0), "kth_value": torch.tensor(2.0)}
    state["best_k_models"] = dict.fromkeys(state["best_k_models"], torch.tensor(2.0))
    torch.save(content, last)  # no epoch to come is better
    best = (run_folder / "checkpoints/best.ckpt").read_bytes()
    table = run_folder / "metrics.csv"
    with table.open("a") as file:  # what was logged after the checkpoint
        names = list(csv.DictReader(table.open()).fieldnames)
        csv.DictWriter(file, names).writerow({"step": 8, "train/loss": 1.0})
        file.write("cut o")
    assert run("test", "--ckpt_path", "last", "--experiment", "x") == 0
    assert run("predict", "--ckpt_path", "last", "--experiment", "x") == 0
    assert points(table)["val/acc"] == [3, 6] and points(table)["test/acc"] == [6]
    capsys.readouterr()
    assert run("fit", "--ckpt_path", "last", "--experiment", "x", "--trainer.max_epochs", "3") == 0
    assert "note" not in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "logs").glob("*/*")] == ["version_0"]
    assert (run_folder / "checkpoints/best.ckpt").read_bytes() == best
    assert points(table)["train/loss"] == [2, 3, 5, 6, 8, 9]
    assert points(table)["val/acc"] == [3, 6, 9] and points(table)["test/acc"] == [6]
    if kinds[1:]:
        assert [step for step, _ in scalars(run_folder)["val/acc"]] == [3, 6, 9]


def test_an_experiment_that_is_named_is_where_it_goes_on(run, tmp_path, capsys):
    assert run("fit", *ARGS, "--trainer.max_epochs", "1") == 0
    checkpoints = tmp_path / FOLDER / "checkpoints"
    before = {path: path.read_bytes() for path in checkpoints.iterdir()}
    more = ["--ckpt_path", checkpoints / "last.ckpt", "--trainer.max_epochs", "2"]
    capsys.readouterr()
    assert run("fit", *more, "--experiment", "y") == 0
    assert "note: it goes on in a new folder in logs/y\n" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in checkpoints.iterdir()} == before
    assert (tmp_path / "logs/y/version_0/checkpoints/last.ckpt").is_file()
    # Its own name, and none, mean its own folder.
    for count, named in ((2, ["--experiment", "x"]), (3, [])):
        more[-1] = count
        assert run("fit", *more, *named) == 0
        assert "note" not in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "logs/x").iterdir()] == ["version_0"]
