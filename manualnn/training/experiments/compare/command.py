"""`train.py compare`: its options, and the runs."""

import argparse
import re
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from manualnn.training.errors import DiskError, Diverged, Interrupted, TrainingError, out_of_memory
from manualnn.training.experiments.compare import report
from manualnn.training.experiments.compare.kept import KeptRun, begin, folder_of
from manualnn.training.experiments.compare.variants import Variant, variants_of
from manualnn.training.experiments.runs import (
    IMAGE_OPTIONS,
    LOSS_OPTIONS,
    Run,
    cheap_collection,
    check_base,
    experiment_of,
    figures,
    forget,
    hush,
    rehearse,
)
from manualnn.training.run.configuration import MISTAKES
from manualnn.training.run.folder import alone, held
from manualnn.training.run.saving import disk_fault
from manualnn.training.text.messages import one_line
from manualnn.training.text.names import shown

USAGE = """Runs fit with several values of an option, each with several seeds; prints a table of mean and
standard deviation, and draws the learning curves into one picture.

  train.py compare --config configs/digits.yaml --vary model.activation '[relu, tanh, sigmoid]'
  train.py compare --config configs/digits.yaml --seeds 5 \\
      --variant 'SGD: --optimizer SGD --optimizer.lr 0.1 --optimizer.momentum 0.9' \\
      --variant 'Adam: --optimizer Adam --optimizer.lr 0.001'

Every option of fit may be given too and holds for all runs. The same command goes on with a
comparison that was interrupted; with more --seeds, also with one that was not.
"""


def run(args: Sequence[str]) -> None:
    """Runs the comparison, or goes on with it.

    Raises:
        Interrupted: by Ctrl-C; the table and the picture show the runs that had finished.
        TrainingError: a mistake of the person's, before the first run; or no run finished.
    """
    hush()
    chosen, base = _parser().parse_known_args(list(args))
    variants = list(variants_of(chosen.vary or [], chosen.variant or []))
    template = rehearse(base, data=True)
    check_base(template, base, "a comparison")
    first = template.config.fit.seed_everything
    seeds = range(first, first + chosen.seeds)
    for variant in variants:
        rehearse([*base, *variant.args], where=f"{variant.name}: ", data=True)
    _note_inherited(template, base, variants)
    _note_measured(template, base, variants)
    config = template.config.fit
    logs = config.trainer.logger.init_args.save_dir
    name = f"{config.experiment or config.data.dataset}-compare"
    monitor = config.checkpoint.monitor
    settings = {
        "variants": {variant.name: variant.args for variant in variants},
        **experiment_of(template),
        "test_best": config.test_best,
    }
    # Seed by seed: after a Ctrl-C every variant has about as many runs.
    runs = {
        f"{variant.folder}/seed_{seed}": (variant, seed) for seed in seeds for variant in variants
    }
    stopped = None
    with ExitStack() as stack:
        parent = Path(logs, name)
        with alone(parent):  # two that begin at once get a folder each
            folder, note = folder_of(parent, settings, list(runs))
            stack.enter_context(held(folder))
            begin(folder, settings, runs)
        stack.enter_context(cheap_collection())
        if note:
            print(f"note: {shown(note)}")
        kept = {place: KeptRun(folder / place) for place in runs}
        done = sum(run.is_done for run in kept.values())
        if done:
            print(f"goes on with {shown(folder)}: {done} of {len(runs)} runs are done", flush=True)
        try:
            for place, (variant, seed) in runs.items():
                _run(variant, seed, kept[place], base, Path(logs), monitor)
        except (Interrupted, KeyboardInterrupt) as stop:
            stopped = Interrupted("interrupted", getattr(stop, "status", 130))
        except OSError as error:  # a run's progress, which is written when it has ended, too
            stopped = DiskError(disk_fault(error, folder) or error)
        except DiskError as error:
            stopped = error
    done = sum(run.is_done for run in kept.values())
    if any(variant.found for variant in variants):
        try:
            report.write(variants, monitor, folder)
        except OSError as error:
            stopped = stopped or DiskError(disk_fault(error, folder) or error)
    if stopped is not None:
        command = shlex.join(["python", "train.py", "compare", *args])
        raise type(stopped)(
            f"{stopped}; {done} of {len(runs)} runs are done; go on with: {command}"
        )
    if not any(variant.found for variant in variants):
        raise TrainingError("no run finished")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train.py compare",
        usage="train.py compare --config FILE [options of fit] --vary OPTION VALUES [--seeds N]",
        description=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.error = _refuse
    parser.add_argument(
        "--vary", nargs=2, action="append", metavar=("OPTION", "VALUES"),
        help="an option by its name on the command line and a YAML list of values; several: every "
        "combination",
    )  # fmt: skip
    parser.add_argument(
        "--variant", action="append", metavar="'NAME: OPTIONS'", help="options of fit under a name"
    )
    parser.add_argument("--seeds", type=_count, default=3, help="runs of each variant (default: 3)")
    return parser


def _refuse(message: str) -> None:
    raise TrainingError(message.removeprefix("argument "))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: needed is a whole number from 1")
    return int(text)


def _note_inherited(template: Run, base: list[str], variants: list[Variant]) -> None:
    """Another optimiser keeps the configuration's learning rate, which rarely suits it."""
    ours = template.config.fit.optimizer
    for variant in variants:
        theirs = template.chosen([*base, *variant.args]).optimizer
        told = any(
            re.match(r"--optimizer\S*lr\b", arg) or "init_args" in arg for arg in variant.args
        )
        lr = theirs.init_args.get("lr")
        if theirs.class_path != ours.class_path and lr == ours.init_args.get("lr") and not told:
            print(
                f"note: {shown(variant.name)} runs with the configuration's --optimizer.lr {lr}; "
                "--variant gives each optimiser its own"
            )


def _note_measured(template: Run, base: list[str], variants: list[Variant]) -> None:
    """Figures of different losses, or of different images, are no better or worse than each other."""
    chosen = [template.chosen([*base, *variant.args]) for variant in variants]
    for names, measured in (
        (LOSS_OPTIONS, "what val/loss measures"),
        (IMAGE_OPTIONS, "the images that are measured"),
    ):
        several = [x for x in names if any(one.get(x) != chosen[0].get(x) for one in chosen)]
        if several:
            print(f"note: {', '.join(several)}: the variants differ in {measured}")


def _run(
    variant: Variant, seed: int, kept: KeptRun, base: list[str], logs: Path, monitor: str
) -> None:
    """Trains what is missing of a run, and puts down its end."""
    if not kept.is_done:
        args = [*base, *variant.args, f"--seed_everything={seed}", *kept.going_on()]
        place = (str(kept.folder.parent.relative_to(logs)), kept.folder.name)
        try:
            kept.finish(figures(Run(args, [kept], folder=place), kept))
        except (RuntimeError, *MISTAKES) as error:
            if isinstance(error, DiskError) or not (
                out_of_memory(error) or isinstance(error, MISTAKES)
            ):
                raise
            variant.lost[seed] = one_line(error)
            if isinstance(
                error, Diverged
            ):  # of others there may be more next time, such as of memory
                kept.lose(one_line(error))
        finally:
            forget()
        result = variant.lost.get(seed) or f"{monitor} {kept.found[monitor]:.4f}"
        print(shown(f"{variant.name}, seed {seed}: {result}"), flush=True)
    if kept.found is not None:
        variant.found[seed], variant.curves[seed] = kept.found, kept.curves
    elif kept.lost is not None:
        variant.lost[seed] = kept.lost
