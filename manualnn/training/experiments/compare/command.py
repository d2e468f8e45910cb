"""`train.py compare`: its options, and the runs."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from manualnn.training.errors import TrainingError
from manualnn.training.experiments.compare import report
from manualnn.training.experiments.compare.study import begun
from manualnn.training.experiments.compare.variants import Variant, variants_of
from manualnn.training.experiments.runs import (
    IMAGE_OPTIONS,
    LOSS_OPTIONS,
    FitRun,
    check_base,
    experiment_of,
    hush,
    rehearse,
)
from manualnn.training.experiments.study import going_on
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

# What a comparison sets itself, or by which it sets its runs beside each other.
OWN = (
    "seed_everything", "experiment", "ckpt_path", "test_best", "checkpoint.monitor", "checkpoint.mode",
    "trainer.logger", "trainer.default_root_dir", "trainer.enable_progress_bar",
)  # fmt: skip


def run(args: Sequence[str]) -> None:
    """Runs the comparison, or goes on with it.

    Raises:
        Interrupted: by Ctrl-C; the table and the picture show the runs that had finished.
        TrainingError: a mistake of the user's, before the first run; or no run finished.
    """
    hush()
    chosen, base = _parser().parse_known_args(list(args))
    variants = list(variants_of(chosen.vary or [], chosen.variant or []))
    template = rehearse(base, data=True)
    check_base(template, base, "a comparison")
    first = template.config.fit.seed_everything
    seeds = range(first, first + chosen.seeds)
    for variant in variants:
        _check_own(template, base, variant)
        whole, where = [*base, *variant.args], f"{variant.name}: "
        check_base(rehearse(whole, where, data=True), whole, f"{where}a comparison")
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
    with begun(Path(logs, name), settings, runs) as (comparison, note):
        folder = comparison.folder
        if note:
            print(f"note: {shown(note)}")
        if done := comparison.count_done():
            print(f"goes on with {shown(folder)}: {done} of {len(runs)} runs are done", flush=True)
        standing = f"of {len(runs)} runs are done"
        with going_on(
            "compare", args, comparison.url, lambda: f"{comparison.count_done()} {standing}"
        ):
            try:
                comparison.run(base, monitor, (logs, f"{name}/{folder.name}"))
            finally:
                comparison.fill()
                if any(variant.found for variant in variants):
                    report.write(variants, monitor, folder)
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


def _check_own(template: FitRun, base: list[str], variant: Variant) -> None:
    """TrainingError: the variant sets what is the comparison's to set, or must be one for all its runs."""
    another = (
        template.config.fit.seed_everything + 2**31
    ) % 2**32  # so that the run's own is seen too
    base = [*base, f"--seed_everything={another}"]
    ours, theirs = (template.chosen([*base, *args]) for args in ([], variant.args))
    for name in OWN:
        if ours.get(name) != theirs.get(name):
            what = "it is one for all runs of a comparison, and no variant's"
            if name == "seed_everything":
                what = "--seeds N runs each variant with N seeds"
            raise TrainingError(f"{variant.name}: --{name}: {what}")


def _note_inherited(template: FitRun, base: list[str], variants: list[Variant]) -> None:
    """Another optimiser keeps the configuration's learning rate, which rarely suits it."""
    ours = template.config.fit.optimizer
    for variant in variants:
        theirs = template.chosen([*base, *variant.args]).optimizer
        given = any(
            re.match(r"--optimizer\S*lr\b", arg) or "init_args" in arg for arg in variant.args
        )
        lr = theirs.init_args.get("lr")
        if theirs.class_path != ours.class_path and lr == ours.init_args.get("lr") and not given:
            print(
                f"note: {shown(variant.name)} runs with the configuration's --optimizer.lr {lr}; "
                "--variant gives each optimiser its own"
            )


def _note_measured(template: FitRun, base: list[str], variants: list[Variant]) -> None:
    """Figures of different losses, or of different images, are no better or worse than each other."""
    chosen = [template.chosen([*base, *variant.args]) for variant in variants]
    for names, measured in (
        (LOSS_OPTIONS, "what val/loss measures"),
        (IMAGE_OPTIONS, "the images that are measured"),
    ):
        several = [x for x in names if any(one.get(x) != chosen[0].get(x) for one in chosen)]
        if several:
            print(f"note: {', '.join(several)}: the variants differ in {measured}")
