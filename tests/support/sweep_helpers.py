"""What the tests of sweeps share."""

import optuna
import yaml
from optuna.trial import TrialState

from manualnn.training.experiments import study as studies
from manualnn.training.experiments import trial as trials
from manualnn.training.experiments.sweep import command, report

BASE = {
    "experiment": "small",
    "seed_everything": 5,
    "model": {"hidden_units": [8], "activation": "relu", "dropout": 0.1},
    "data": {"batch_size": 512},
    "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
    "trainer": {"max_epochs": 2, "accelerator": "cpu"},
}
SEARCH = {
    "optimizer.lr": {"low": 0.01, "high": 1.0, "log": True},
    "model.hidden_units": {"layers": {"low": 1, "high": 2}, "units": [4, 8]},
    "model.activation": ["relu", "tanh"],
}
FOLDER = "logs/small-sweep"


def written(folder, search=SEARCH, sweep=None, **changes):
    path = folder / "sweep.yaml"
    content = {**BASE, **changes, "search": search, "sweep": {"n_trials": 3, **(sweep or {})}}
    path.write_text(yaml.safe_dump(content))
    return path


def study_in(folder, name="small-sweep"):
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/logs/{name}/study.db")


def states(study) -> list[TrialState]:
    return [trial.state for trial in study.trials]


def without_training(monkeypatch) -> dict[int, Exception]:
    """Trials without their runs: the value of one is a function of its learning rate, or what is
    returned says how it ends, by its place in the order of runs."""
    begun, ends = [], {}

    class NoRun:
        def __init__(self, args, callbacks, folder):
            begun.append(folder[1])
            self.args = args
            self.lr = float(
                next(a for a in args if a.startswith("--optimizer.lr=")).partition("=")[2]
            )
            if len(begun) - 1 in ends:
                raise ends[len(begun) - 1]

    def figures(run, watch):
        return {"val/acc": 1 - abs(run.lr - 0.1), "val/loss": run.lr, "epoch": 1.0}

    monkeypatch.setattr(command, "_check_ends", lambda *given: None)
    monkeypatch.setattr(trials, "FitRun", NoRun)
    monkeypatch.setattr(trials, "figures", figures)
    monkeypatch.setattr(report, "pictures", lambda *given: [])
    monkeypatch.setattr(studies, "forget", lambda: None)
    return ends
