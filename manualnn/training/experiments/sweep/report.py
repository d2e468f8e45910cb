"""What a sweep leaves: a table, the best configuration, Optuna's pictures."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from manualnn.tools.files import replacing, replacing_text
from manualnn.tools.palette import SERIES
from manualnn.training.errors import TrainingError
from manualnn.training.experiments.runs import FitRun, options, spread
from manualnn.training.experiments.study import Standing, standing
from manualnn.training.experiments.sweep.finals import Finalist, Finals
from manualnn.training.experiments.sweep.space import Axis, Branches, suggest
from manualnn.training.experiments.trial import listed, short
from manualnn.training.run.results import print_rows, write_csv
from manualnn.training.text.messages import quote
from manualnn.training.text.names import shown

BEST = 10  # rows of the printed table


def write(
    study: optuna.Study,
    finals: Finals,
    axes: Sequence[Axis | Branches],
    base: Sequence[str],
    template: FitRun,
    folder: Path,
) -> None:
    """Prints the tables and writes trials.csv, best.yaml, history.png and importance.png.

    Raises:
        TrainingError: no trial is complete.
    """
    monitor = template.config.fit.checkpoint.monitor
    now, finalists = standing(study), finals.result(monitor)
    folder.mkdir(parents=True, exist_ok=True)
    write_trials(now, finalists, monitor, folder / "trials.csv")
    complete = now.of(TrialState.COMPLETE)
    if not complete:
        reasons = [trial.user_attrs.get("why", "") for trial in now.done]
        raise TrainingError(
            f"none of the {len(now.done)} trials is complete; the last ended with: {reasons[-1]}"
        )
    print_trials(study, now, monitor)
    print_finals(finalists, finals, monitor)
    chosen, note = finals.chosen(finalists, monitor)
    if note:
        print(f"\n  {shown(note)}")
    best, value = chosen.trial, value_of(chosen, monitor)
    path = folder / "best.yaml"
    text = best_configuration(best, axes, base, template)
    about = (
        f"# {best.user_attrs['folder']}: {value}\n# python train.py fit --config {quote(path)}\n"
    )
    with replacing_text(path) as file:
        file.write(about + text)
    checkpoint = Path(best.user_attrs["folder"], "checkpoints", "best.ckpt")
    rows = [
        ("best", f"trial {best.number}: {value}  {listed(best.params)}"),
        ("train it again", f"python train.py fit --config {quote(path)}"),
        ("all trials", str(folder / "trials.csv")),
        ("pictures", ", ".join(map(str, pictures(study, now, monitor, folder)))),
        ("curves", f"tensorboard --logdir {quote(folder)}"),
    ]
    if checkpoint.is_file():  # the trial may have run on another machine
        test = f"python train.py test --ckpt_path {quote(checkpoint)}"
        rows.insert(1, ("test it", test))
    print_rows(rows)


def best_configuration(
    trial: FrozenTrial, axes: Sequence[Axis | Branches], base: Sequence[str], template: FitRun
) -> str:
    """The YAML with which `fit` repeats the trial: what differs from the defaults."""
    config = template.chosen([*base, *options(suggest(axes, trial))])
    text = template.dump(config, skip_default=True, skip_link_targets=True)
    reread = template.chosen([f"--config={text}"])
    same = template.plain(reread) == template.plain(config)
    return text if same else template.dump(config, skip_none=False)


def value_of(finalist: Finalist, monitor: str) -> str:
    """ "val/loss 0.0612 ± 0.0047 (3 runs)", or the trial's own value if it had no further runs."""
    values = finalist.values(monitor)
    if not values:
        return f"{monitor} {finalist.trial.value:.4f}"
    return f"{monitor} {spread(values)} ({len(values)} runs)"


def print_trials(study: optuna.Study, now: Standing, monitor: str) -> None:
    """The best trials, a row each, and what became of the others."""
    complete = sorted(
        now.of(TrialState.COMPLETE),
        key=lambda trial: trial.value,
        reverse=study.direction == optuna.study.StudyDirection.MAXIMIZE,
    )
    other = "val/acc" if monitor == "val/loss" else "val/loss"
    names = list(dict.fromkeys(name for trial in complete for name in trial.params))
    rows = [["trial", monitor, other, "epoch", "seconds", *map(_heading, names)]]
    for trial in complete[:BEST]:
        found = trial.user_attrs["figures"]
        rows.append(
            [
                str(trial.number),
                f"{trial.value:.4f}",
                f"{found[other]:.4f}",
                f"{found['epoch']:g}",
                f"{trial.user_attrs['seconds']:.0f}",
                *(short(trial.params.get(name, ""), 4) for name in names),
            ]
        )
    print_rows(rows, right=range(len(rows[0])))
    print(f"\n  {ends(now)}")


def print_finals(finalists: Sequence[Finalist], finals: Finals, monitor: str) -> None:
    """Mean and standard deviation of the finalists' further runs."""
    if not any(finalist.runs for finalist in finalists):
        return
    other = "val/acc" if monitor == "val/loss" else "val/loss"
    rows = [["trial", "its own", monitor, other, "runs", ""]]
    for finalist in finalists:
        trial = finalist.trial
        spreads = [spread(finalist.values(name)) for name in (monitor, other)]
        itself = "the configuration itself" if finals.is_first(trial) else ""
        rows.append(
            [str(trial.number), f"{trial.value:.4f}", *spreads, str(len(finalist.runs)), itself]
        )
    print("\n  finals: other seeds, other validation images")
    print_rows(rows, right=range(len(rows[0])))


def _heading(name: str) -> str:
    """optimizer.SGD.lr -> SGD.lr"""
    name = name.replace(".init_args", "")
    return name.partition(".")[2] or name


def ends(now: Standing) -> str:
    """ "30 trials: 20 complete, 8 pruned, 2 lost"."""
    kinds = {"complete": 0, "pruned": 0, "lost": 0, "out of memory": 0, "failed": 0}
    for trial in now.done:
        kinds[end(trial)] += 1
    parts = [f"{count} {kind}" for kind, count in kinds.items() if count]
    return f"{len(now.done)} trials: {', '.join(parts)}"


def end(trial: FrozenTrial) -> str:
    why = trial.user_attrs.get("why", "")
    for kind in ("lost", "out of memory"):
        if why.startswith(f"{kind}:"):
            return kind
    return {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}.get(trial.state, "failed")


def write_trials(now: Standing, finalists: Sequence[Finalist], monitor: str, path: Path) -> None:
    """Every trial that counts, with all its figures and values, and its mean in the finals."""
    means = {
        finalist.trial.number: statistics.fmean(finalist.values(monitor))
        for finalist in finalists
        if finalist.runs
    }
    names = list(dict.fromkeys(name for trial in now.done for name in trial.params))
    figures = dict.fromkeys(("val/acc", "val/loss", monitor, "train/acc", "train/loss", "epoch"))
    final = f"finals {monitor}"
    rows = [["trial", "end", *figures, final, "seconds", *names, "folder", "why"]]
    for trial in now.done:
        saved = trial.user_attrs
        rows.append(
            [trial.number, end(trial), *map(saved.get("figures", {}).get, figures)]
            + [means.get(trial.number), saved.get("seconds"), *map(trial.params.get, names)]
            + [saved.get("folder"), saved.get("why")]
        )
    write_csv(path, rows)


def pictures(study: optuna.Study, now: Standing, monitor: str, folder: Path) -> list[Path]:
    """Optuna's history and, where there is something to compare, the options' importance."""
    import matplotlib

    backend = matplotlib.get_backend()
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from optuna.visualization.matplotlib import plot_optimization_history, plot_param_importances

    complete = len(now.of(TrialState.COMPLETE))

    def history():
        axes = plot_optimization_history(study, target_name=monitor)
        axes.collections[0].set_label("complete")
        axes.lines[0].set(drawstyle="steps-post", label="best so far")
        last = [
            (trial.number, trial.intermediate_values[trial.last_step])
            for trial in now.of(TrialState.PRUNED)
            if trial.last_step is not None
        ]
        if last:
            axes.scatter(
                *zip(*last, strict=True),
                marker="x",
                color=SERIES[-1],
                label="pruned, at its last look",
            )
        axes.set_title("")  # Optuna's own, in the middle
        axes.set_title(f"{study.study_name}: {ends(now)}", loc="left", fontsize="medium")
        if monitor == "val/loss":
            axes.set_yscale("log")
        axes.legend(frameon=False)
        return axes

    def importance():
        # By default the best tenth is set against all; of a few trials that is one, and chance.
        best = min(0.5, max(0.1, 8 / complete))
        evaluator = PedAnovaImportanceEvaluator(target_quantile=best)
        axes = plot_param_importances(study, evaluator, target_name=monitor)
        axes.set_ylabel("")
        title = f"{study.study_name}: what decides {monitor}, from {complete} complete trials"
        axes.set_title(title, loc="left", fontsize="medium")
        axes.set_xlabel("importance (PED-ANOVA), a share of 1")
        axes.get_legend().remove()
        return axes

    plots = {"history": history}
    if len({trial.value for trial in now.of(TrialState.COMPLETE)}) > 1:
        plots["importance"] = importance
    else:
        print("  no picture of importance: it needs two complete trials with different results")
    made = []
    try:
        with pyplot.style.context("default"):
            for name, plot in plots.items():
                axes = plot()
                _plain(axes)
                made.append(folder / f"{name}.png")
                with replacing(made[-1]) as file:
                    axes.figure.savefig(file, dpi=120, bbox_inches="tight")
                pyplot.close(axes.figure)
    finally:
        matplotlib.use(backend)
    return made


def _plain(axes) -> None:
    """Black on white, like the other pictures; Optuna's are grey."""
    axes.figure.set_size_inches(8, 3.6)
    axes.set_facecolor("white")
    axes.grid(False)
    axes.tick_params(colors="black")
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color("black")
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color="black")
