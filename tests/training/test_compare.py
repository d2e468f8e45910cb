"""`train.py compare`: each run is fit's, the table and the picture are of all seeds, what is refused."""

import csv
import statistics
from types import SimpleNamespace

import optuna
import pytest
import sqlalchemy
import torch
import torchvision_files as files
from command_line import SMALL, message
from matplotlib.image import imread
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from test_cli_resume import scalars

from manualnn.tools.palette import SERIES
from manualnn.training import ImageClassifier, TrainingError, experiments
from manualnn.training.errors import Diverged
from manualnn.training.experiments import study as studies
from manualnn.training.experiments import trial as trials
from manualnn.training.experiments.compare.report import columns_of, draw_curves, mean_curve
from manualnn.training.experiments.compare.study import SavedProgress
from manualnn.training.experiments.compare.variants import Variant
from manualnn.training.experiments.runs import spread
from manualnn.training.run.folder import locked

BASE = [*SMALL, "--experiment", "small", "--trainer.max_epochs", "2", "--seed_everything", "4"]
FOLDER = "logs/small-compare/version_0"
PLAIN = ["--variant", "plain: --model.dropout 0.1", "--variant"]
ACTIVATIONS = ["--vary", "model.activation", "[relu, tanh]"]


def table(path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def trials_of(folder):
    """The last trial of each run, by the run's folder."""
    study = optuna.load_study(study_name="comparison", storage=f"sqlite:///{folder}/study.db")
    return {trial.user_attrs["run"]: trial for trial in study.trials}


def test_what_a_variant_is_called_is_neither_obeyed_nor_computed(run, tmp_path, capsys):
    named = ["--variant", "=1+1\x1b[31m: --optimizer.lr 0.1", "--variant", "b: --optimizer.lr 0.2"]
    assert run("compare", *BASE, *named, "--seeds", "1") == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and printed.count(r"=1+1\x1b[31m") == 2
    assert table(tmp_path / FOLDER / "runs.csv")[0]["variant"] == r"'=1+1\x1b[31m"


def test_each_run_is_fits_and_the_table_is_of_all_seeds(run, tmp_path, capsys):
    assert run("compare", *BASE, *ACTIVATIONS, "--seeds", "2", "--test_best", "true") == 0
    printed = capsys.readouterr().out
    rows = table(tmp_path / FOLDER / "runs.csv")
    assert [(row["variant"], row["seed"]) for row in rows] == [
        ("relu", "4"), ("relu", "5"), ("tanh", "4"), ("tanh", "5"),
    ]  # fmt: skip
    for name in ("relu", "tanh"):
        (line,) = [x for x in printed.splitlines() if x.startswith(f"  {name} ")]
        for column, scale, digits in (
            ("val/acc", 100, 2),
            ("val/loss", 1, 4),
            ("test/acc", 100, 2),
        ):
            values = [float(row[column]) for row in rows if row["variant"] == name]
            assert values[0] != values[1]
            mean, deviation = statistics.fmean(values), abs(values[0] - values[1]) / 2**0.5
            unit = " %" if scale == 100 else ""
            assert f"{scale * mean:.{digits}f}{unit} ± {scale * deviation:.{digits}f}" in line
    picture = imread(tmp_path / FOLDER / "curves.png")
    for colour in SERIES[:2]:
        rgb = torch.tensor([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        pixels = torch.tensor(picture[..., :3])
        assert int(((pixels - rgb).abs().amax(-1) < 0.02).sum()) > 100, colour

    assert run("fit", *BASE, "--model.activation", "tanh", "--seed_everything", "5") == 0
    ends = [
        torch.load(tmp_path / path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for path in (f"{FOLDER}/tanh/seed_5", "logs/small/version_0")
    ]
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


@pytest.fixture
def no_training(monkeypatch):
    """Runs without training: the curves are made up, or the run ends as `ends` says."""
    begun, ends = [], {}

    class NoRun:
        def __init__(self, args, callbacks, folder):
            begun.append((args, folder))
            if len(begun) - 1 in ends:
                raise ends[len(begun) - 1]
            callbacks[0]._trial.set_user_attr("curves", {"val/acc": [(1.0, 0.5)]})

    monkeypatch.setattr(trials, "FitRun", NoRun)
    monkeypatch.setattr(studies, "forget", lambda: None)
    monkeypatch.setattr(
        trials, "figures", lambda *given: {"val/acc": 0.5, "val/loss": 1.0, "epoch": 1.0}
    )
    return begun, ends


def test_combinations_and_variants_reach_fit(run, tmp_path, no_training, capsys):
    begun, _ = no_training
    options = ["--vary", "optimizer.lr", "[0.1, 1e-2]", "--vary", "optimizer", "[SGD, Adam]"]
    assert run("compare", *BASE, *options, "--seeds", "1") == 0
    given = [[arg for arg in args if arg.startswith("--optimizer")] for args, _ in begun]
    assert given == [
        [f"--optimizer={kind}", f"--optimizer.lr={lr}"]
        for kind in ("SGD", "Adam") for lr in ("0.1", "0.01")
    ]  # fmt: skip
    named = ["--variant", "plain: --optimizer SGD", "--variant", "fast: --optimizer.lr 0.5"]
    assert run("compare", *BASE, *named, "--seeds", "2") == 0
    assert [folder for _, folder in begun[4:]] == [
        (f"small-compare/version_1/{name}", f"seed_{seed}")
        for seed in (4, 5) for name in ("plain", "fast")
    ]  # fmt: skip
    capsys.readouterr()
    value = "{class_path: Adam, init_args: {lr: 0.001}}"
    assert run("compare", *BASE, "--vary", "optimizer", f"[SGD, Adam, {value}]") == 0
    printed = capsys.readouterr().out
    assert "note: Adam runs with the configuration's --optimizer.lr 0.05" in printed
    assert printed.count("note:") == 1
    assert "Adam(lr=0.001)" in printed


@pytest.mark.parametrize(
    ("name", "values", "note"),
    [
        ("model.label_smoothing", "[0, 0.1]", "the variants differ in what val/loss measures"),
        ("model.class_weights", "[null, balanced]", "differ in what val/loss measures"),
        ("data.val_fraction", "[0.1, 0.2]", "the variants differ in the images that are measured"),
        ("data.seed", "[0, 1]", "the variants differ in the images that are measured"),
        ("model.dropout", "[0, 0.1]", ""),
        ("data.seed", "[0]", ""),
    ],
)
def test_figures_that_cannot_be_set_beside_each_other(
    run, tmp_path, no_training, capsys, name, values, note
):
    options = ["--variant", "a: --model.dropout 0", "--variant", "b: --model.dropout 0.2"]
    options = options if values == "[0]" else []
    assert run("compare", *BASE, "--vary", name, values, *options, "--seeds", "1") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert [line.startswith(f"note: {name}: ") and note in line for line in said] == [True] * bool(
        note
    )


def test_a_run_that_is_lost_has_its_place_in_the_table(run, tmp_path, no_training, capsys):
    begun, ends = no_training
    ends[1] = Diverged("the loss is no longer finite")
    ends[2] = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
    assert run("compare", *BASE, *ACTIVATIONS, "--seeds", "2") == 0
    assert len(begun) == 4
    printed = capsys.readouterr().out
    assert "tanh, seed 4: lost: the loss is no longer finite" in printed
    assert printed.count("1, 1 lost") == 2
    rows = table(tmp_path / FOLDER / "runs.csv")
    assert [row["why"][:8] for row in rows] == ["", "out of m", "", "lost: th"]
    # What did not fit in memory is tried again, what is lost would be lost again.
    assert run("compare", *BASE, *ACTIVATIONS, "--seeds", "2") == 0
    assert [folder for _, folder in begun[4:]] == [("small-compare/version_0/relu", "seed_5")]
    assert [row["why"][:8] for row in table(tmp_path / FOLDER / "runs.csv")] == [
        "",
        "",
        "",
        "lost: th",
    ]
    capsys.readouterr()
    ends.update(dict.fromkeys(range(5, 9), Diverged("the loss is no longer finite")))
    assert run("compare", *BASE, *ACTIVATIONS, "--seeds", "2") == 2
    assert message(capsys) == "no run finished"


def test_a_fault_of_the_program_is_not_taken_for_a_lost_run(run, no_training):
    _, ends = no_training
    ends[0] = RuntimeError("a fault")
    with pytest.raises(RuntimeError, match="a fault"):
        run("compare", *BASE, *ACTIVATIONS)


# Going on.


def test_ctrl_c_shows_what_has_finished_and_how_to_go_on(run, tmp_path, no_training, capsys):
    begun, ends = no_training
    ends[3] = KeyboardInterrupt()
    assert run("compare", *BASE, *ACTIVATIONS, "--seeds", "2") == 130
    said = capsys.readouterr()
    assert said.err.startswith(
        "interrupted; 3 of 4 runs are done; go on with: python train.py compare --model.hidden_units "
    )
    assert said.err.endswith("--vary model.activation '[relu, tanh]' --seeds 2\n")
    assert "50.00 % ± 0.00" in said.out
    assert len(table(tmp_path / FOLDER / "runs.csv")) == 3

    assert run("compare", *BASE, *ACTIVATIONS, "--seeds", "2") == 0
    said = capsys.readouterr().out
    assert "goes on with logs/small-compare/version_0: 3 of 4 runs are done" in said
    assert [folder for _, folder in begun[3:]] == [("small-compare/version_0/tanh", "seed_5")] * 2
    rows = table(tmp_path / FOLDER / "runs.csv")
    assert [row["val/acc"] for row in rows] == ["0.5"] * 4


def test_more_seeds_go_on_and_a_finished_comparison_begins_anew(run, tmp_path, no_training):
    begun, _ = no_training
    for seeds in (1, 2, 2):
        assert run("compare", *BASE, *ACTIVATIONS, "--seeds", seeds) == 0
    assert [folder for _, folder in begun] == [
        (f"small-compare/version_{version}/{name}", f"seed_{seed}")
        for version, seed in ((0, 4), (0, 5), (1, 4), (1, 5)) for name in ("relu", "tanh")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model.dropout", "0.2"], "--model.dropout is 0.2 here and 0.0 there"),
        (["--test_best", "true"], "--test_best is True here and False there"),
        (["--vary", "model.dropout", "[0.1]"], "variants is another one"),
    ],
)
@pytest.mark.one_in(3)
def test_other_settings_begin_another_comparison_and_say_so(
    run, tmp_path, no_training, capsys, options, words
):
    begun, ends = no_training
    ends[1] = KeyboardInterrupt()
    assert run("compare", *BASE, *ACTIVATIONS) == 130
    capsys.readouterr()
    assert run("compare", *BASE, *ACTIVATIONS, *options) == 0
    said = capsys.readouterr().out
    assert (
        f"note: logs/small-compare/version_0 was not finished, and had other settings ({words}): "
        "logs/small-compare/version_1 begins anew"
    ) in said
    assert all(folder[0].startswith("small-compare/version_1/") for _, folder in begun[2:])
    assert run("compare", *BASE, *ACTIVATIONS) == 0  # each goes on with its own
    assert begun[-1][1] == ("small-compare/version_0/tanh", "seed_6")


def test_another_folder_of_pictures_begins_another_comparison(run, tmp_path, no_training, capsys):
    _, ends = no_training
    files.pictures(tmp_path / "d", {"cat": 12, "dog": 12})
    options = [*BASE, "--data.dataset", "ImageFolder", "--data.root", "d", *ACTIVATIONS]
    options += ["--data.batch_size", "4"]
    ends[1] = KeyboardInterrupt()
    assert run("compare", *options) == 130
    (tmp_path / "d/cat/000.png").unlink()
    assert run("compare", *options) == 0
    assert "had other settings (the folder of pictures is another one): " in capsys.readouterr().out


def test_a_comparison_that_is_at_work_is_left_alone(run, tmp_path, no_training):
    begun, ends = no_training
    ends[0] = KeyboardInterrupt()
    assert run("compare", *BASE, *ACTIVATIONS) == 130
    with locked(tmp_path / FOLDER):
        assert run("compare", *BASE, *ACTIVATIONS) == 0
    assert begun[-1][1][0] == "small-compare/version_1/tanh"


THREE = [*BASE, "--trainer.max_epochs", "3", "--seeds", "1", *ACTIVATIONS]


@pytest.mark.parametrize(
    ("step", "left"),
    [
        (4, 6),  # in the second epoch: the first is kept
        (1, 9),  # in the first: nothing is left of it
    ],
)
@pytest.mark.one_in(2)
def test_a_run_that_was_cut_off_ends_as_it_would_have(run, tmp_path, monkeypatch, step, left):
    assert run("compare", *THREE, "--experiment", "whole") == 0

    steps = []
    original = ImageClassifier.training_step

    def training_step(model, *given):
        steps.append(model.trainer.logger.version)
        if len(steps) == 9 + step + 1:  # in the second of the two runs
            raise KeyboardInterrupt
        return original(model, *given)

    monkeypatch.setattr(ImageClassifier, "training_step", training_step)
    assert run("compare", *THREE) == 130
    del steps[:]
    assert run("compare", *THREE) == 0
    assert len(steps) == left

    def compared(folder):
        path = tmp_path / f"logs/{folder}-compare/version_0/tanh/seed_4"
        state = torch.load(path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        trial = trials_of(tmp_path / f"logs/{folder}-compare/version_0")["tanh/seed_4"]
        kept = {name: trial.user_attrs[name] for name in ("curves", "figures")}
        assert 0 < trial.user_attrs["seconds"] <= 600
        curves = {name: points for name, points in scalars(path).items() if "time/" not in name}
        return kept, curves, {name: value.tolist() for name, value in state.items()}

    assert compared("small") == compared("whole")
    parts = list((tmp_path / "logs/small-compare/version_0/tanh/seed_4").glob("events*"))
    assert len(parts) == (1 if left == 9 else 2)  # of a run that starts anew nothing old is there
    rows = [
        table(tmp_path / f"logs/{name}-compare/version_0/runs.csv") for name in ("small", "whole")
    ]
    for row in rows[0] + rows[1]:
        del row["seconds"]
    assert rows[0] == rows[1]


def test_what_came_after_the_checkpoint_is_forgotten():
    """On a GPU it need not come again to the last bit."""
    points = {"val/acc": [[1.0, 0.5], [2.0, 0.6]], "train/acc": [[1.0, 0.4]]}
    trial = SimpleNamespace(user_attrs={"seconds": 3.0, "curves": points})
    progress = SavedProgress(trial, goes_on=True)
    trainer = SimpleNamespace(global_step=3, num_training_batches=6, accumulate_grad_batches=2)
    progress.on_train_start(trainer, None)
    assert progress.curves == {"val/acc": [(1.0, 0.5)], "train/acc": [(1.0, 0.4)]}
    assert progress.seconds >= 3
    assert SavedProgress(trial, goes_on=False).curves == {}


def test_a_comparison_of_an_earlier_release_is_left_as_it_is(run, tmp_path, no_training, capsys):
    old = tmp_path / FOLDER
    old.mkdir(parents=True)
    (old / "comparison.json").write_text("{}")
    assert run("compare", *BASE, *ACTIVATIONS, "--seeds", "1") == 0
    assert (
        "note: logs/small-compare/version_0 is an earlier release's, which alone can go on with it: "
        "logs/small-compare/version_1 begins anew"
    ) in capsys.readouterr().out
    assert [path.name for path in old.iterdir()] == ["comparison.json"]


def test_a_full_disk_under_the_database_spends_no_run(run, tmp_path, no_training, capsys):
    begun, ends = no_training
    ends[1] = sqlalchemy.exc.OperationalError("INSERT", {}, Exception(studies.NO_ROOM))
    assert run("compare", *BASE, *ACTIVATIONS, "--seeds", "1") == 2
    said = message(capsys)
    assert said.startswith("the database sqlite:///logs/small-compare/version_0/study.db: ")
    assert f"{studies.NO_ROOM}; 1 of 2 runs are done; go on with: python train.py" in said
    assert run("compare", *BASE, *ACTIVATIONS, "--seeds", "1") == 0
    assert [folder for _, folder in begun[1:]] == [("small-compare/version_0/tanh", "seed_4")] * 2


def test_a_database_that_takes_no_end_of_a_run_is_one_line(
    run, tmp_path, no_training, capsys, monkeypatch
):
    tell = RDBStorage.set_trial_state_values

    def full(storage, trial_id, state, values=None):
        if state.is_finished():
            try:
                raise sqlalchemy.exc.OperationalError("UPDATE", {}, Exception(studies.NO_ROOM))
            except sqlalchemy.exc.OperationalError as error:
                raise StorageInternalError("An exception is raised during the commit.") from error
        return tell(storage, trial_id, state, values)

    monkeypatch.setattr(RDBStorage, "set_trial_state_values", full)
    assert run("compare", *BASE, *ACTIVATIONS, "--seeds", "1") == 2
    said = message(capsys)
    assert said.startswith("the database sqlite:///logs/small-compare/version_0/study.db: ")
    assert f"{studies.NO_ROOM}; 0 of 2 runs are done; go on with: python train.py" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "nothing to compare: --vary model.activation"),
        (["--vary", "model.activation", "[relu]"], "there is one variant alone, relu"),
        (["--vary", "model.activation", "relu"], "--vary model.activation relu: needed is a list"),
        (["--vary", "model.activation", "[relu"], "--vary model.activation [relu: that is no YAML"),
        (["--vary", "model.activation", "[relu, relu]"], "two variants are called relu"),
        (["--vary", "model.activation", "[relu, rely]"], "rely: activation 'rely' cannot be used"),
        (
            ["--vary", "model.actvation", "[relu, tanh]"],
            "no option is called --model.actvation; did",
        ),
        (["--vary", "model.dropout", "[0.5, 1.5]"], "dropout 1.5: dropout is 1.5; it must be in"),
        (["--vary", "data.batch_size", "[64, 5000]"], "batch_size 5000: "),
        (["--vary", "model.activation"], "--vary: expected 2 arguments"),
        (["--variant", "Adam --optimizer Adam"], "needed is 'NAME: OPTIONS'"),
        (["--variant", "a: --optimizer.lr '0.1"], "--optimizer.lr '0.1\": No closing quotation"),
        (["--variant", "a: --optimizer.lr 0.1\\"], ": No escaped character"),
        (["--vary", "optimizer.lr", "[!!int x]"], "--vary optimizer.lr [!!int x]: that is no YAML"),
        (["--vary", "optimizer.lr", "[!!timestamp x]"], "[!!timestamp x]: that is no YAML"),
        (["--vary", "model.hidden_units", "[&a [*a]]"], "[&a [*a]]: that is no YAML"),
        ([*ACTIVATIONS, "--trainer.max_epochs", "0"], "--trainer.max_epochs is 0: nothing would"),
        ([*ACTIVATIONS, "--trainer.max_steps", "0"], "--trainer.max_steps is 0: nothing would"),
        (["--vary", "trainer.max_epochs", "[0, 1]"], "max_epochs 0: --trainer.max_epochs is 0: no"),
        ([*PLAIN, "a: --trainer.fast_dev_run true"], "a: a comparison needs whole runs: leave"),
        ([*PLAIN, "a: --data.val_fraction 0"], "a: a comparison judges by validation images"),
        ([*PLAIN, "a: --seed_everything 4"], "a: --seed_everything: --seeds N runs each variant"),
        ([*PLAIN, "a: --seed_everything=5"], "a: --seed_everything: --seeds N runs each variant"),
        ([*PLAIN, "a: --experiment x"], "a: --experiment: it is one for all runs of a comparison"),
        ([*PLAIN, "a: --ckpt_path x.ckpt"], "a: --ckpt_path: it is one for all runs"),
        ([*PLAIN, "a: --test_best true"], "a: --test_best: it is one for all runs"),
        ([*PLAIN, "a: --checkpoint.monitor val/loss"], "a: --checkpoint.monitor: it is one for"),
        ([*PLAIN, "a: --trainer.logger false"], "a: --trainer.logger: it is one for all runs"),
        ([*PLAIN, "a: --trainer.default_root_dir x"], "a: --trainer.default_root_dir: it is one"),
        (["--vary", "experiment", "[x, y]"], "x: --experiment: it is one for all runs"),
        ([*ACTIVATIONS, "--seeds", "0"], "--seeds: 0: needed is a whole number from 1"),
        ([*ACTIVATIONS, "--ckpt_path", "last"], "no run in logs/small has left a checkpoint"),
        ([*ACTIVATIONS, "--trainer.logger", "false"], "leave --trainer.logger as it is"),
        ([*ACTIVATIONS, "--data.val_fraction", "0"], "--data.val_fraction is 0"),
        ([*ACTIVATIONS, "--seed_everything", "true"], "--seed_everything needs a number"),
        (["--vary", "seed_everything", "[1, 2]"], "--seeds"),
    ],
)
def test_a_mistake_is_one_line_before_the_first_run(run, tmp_path, capsys, options, words):
    assert run("compare", *BASE, *options) == 2
    said = message(capsys)
    assert words in said
    assert len(said) < 300
    assert not list(tmp_path.glob("logs/**/seed_*"))


def test_what_the_runs_are_judged_by_has_a_column():
    found = {0: {"val/acc": 1, "val/loss": 1, "val/macro_f1": 1, "test/macro_f1": 1, "epoch": 2}}
    variants = [Variant("a", [], found=found)]
    assert columns_of(variants, "val/acc") == ["val/acc", "val/loss"]
    judged = ["val/macro_f1", "val/acc", "val/loss", "test/macro_f1"]
    assert columns_of(variants, "val/macro_f1") == judged


def test_spread_and_mean_curve():
    assert spread([]) == "–"
    assert spread([0.98], percent=True) == "98.00 %"
    assert spread([0.97, 0.99], percent=True) == "98.00 % ± 1.41"
    assert spread([1.0, 2.0, 3.0]) == "2.0000 ± 1.0000"
    curves = {
        0: {"val/loss": [(1.0, 2.0), (2.0, 1.0), (3.0, 0.5)]},
        1: {"val/loss": [(1.0, 4.0), (2.0, 1.0)]},
    }
    variant = Variant("a", [], curves=curves)
    epochs, mean, deviation = mean_curve(variant, "val/loss")
    assert epochs == [1.0, 2.0]
    assert mean == [3.0, 1.0]
    assert deviation == pytest.approx([2**0.5, 0.0])
    assert mean_curve(variant, "val/acc") == ([], [], [])


def test_a_curve_that_is_lost_on_the_way_is_drawn_to_there(tmp_path):
    curves = {0: {"train/loss": [(1.0, 1.0), (2.0, float("nan")), (3.0, float("inf"))]}}
    draw_curves([Variant("a", [], curves=curves), Variant("b", [])], "val/acc", tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_nothing_is_begun(run, monkeypatch, capsys):
    found = experiments.importlib.util.find_spec
    monkeypatch.setattr(
        experiments.importlib.util,
        "find_spec",
        lambda name: None if name == "matplotlib" else found(name),
    )
    for subcommand in ("compare", "sweep"):
        assert run(subcommand, *BASE, *ACTIVATIONS) == 2
        assert "needs matplotlib: pip install matplotlib" in message(capsys)


def test_errors_are_the_trainings():
    with pytest.raises(TrainingError):
        experiments.main("compare", ["--seeds", "many"])
