"""`train.py`: what the user typed goes to the command it names, and what comes of it is an exit status."""

import logging
import os
import select
import sys
import warnings
from pathlib import Path
from typing import TextIO

from lightning.pytorch.utilities import rank_zero_only

from manualnn.training.data import ImageData
from manualnn.training.deploy import command_on_trained
from manualnn.training.errors import Interrupted, TrainingError
from manualnn.training.fit.command_line import EXPERIMENTS, SETTINGS, CommandLine
from manualnn.training.model.classifier import ImageClassifier
from manualnn.training.run.checkpoints import configuration_of, newest_checkpoint
from manualnn.training.run.configuration import LOGS, USER_ERRORS, option
from manualnn.training.run.processes import ProcessLost
from manualnn.training.run.saving import disk_fault
from manualnn.training.run.trust import only_known_classes, read_configuration
from manualnn.training.text.messages import one_line
from manualnn.training.text.named import readable

SUBCOMMANDS = ("fit", "validate", "test", "predict", "export")
DEFAULT_EXPERIMENT = Path(__file__).parents[3] / "configs" / "digits.yaml"


def with_defaults(args: list[str]) -> tuple[list[str], Path | None]:
    """The arguments, the default experiment in place of none, a checkpoint's configuration where
    none is named; and that configuration, which no one has named.

    Raises:
        TrainingError: the first argument is neither a subcommand nor a request for help.
    """
    if not args:
        return ["fit", "--config", str(DEFAULT_EXPERIMENT), "--test_best", "true"], None
    first = args[0]
    if first in ("-h", "--help"):
        return args, None
    if first.startswith("-"):
        raise TrainingError(
            f"{first} comes after the subcommand: train.py {{{','.join(SUBCOMMANDS)}}} {first} ..."
        )
    if first not in SUBCOMMANDS:
        known = ", ".join((*SUBCOMMANDS, *EXPERIMENTS))
        raise TrainingError(f"no subcommand is called {first!r}; known: {known}")
    checkpoint = option(args, "--ckpt_path")
    if checkpoint is None or option(args, "--config") is not None or option(args, "-c") is not None:
        return configurations_first(args), None
    path = Path(checkpoint)
    if checkpoint in ("best", "last"):
        logs = option(args, "--trainer.logger.save_dir") or LOGS
        folder = Path(logs, option(args, "--experiment") or "")
        path = newest_checkpoint(folder, checkpoint, going_on=first == "fit")
    config = configuration_of(path)
    if not config.exists():
        return args, None
    read_configuration(config)  # a broken one is refused in words of its own
    return [first, "--config", str(config), *args[1:]], config


def configurations_first(args: list[str]) -> list[str]:
    """The arguments in the order in which an option goes before what a file says."""
    files, others = [], []
    rest = iter(args[1:])
    for arg in rest:
        if arg in ("--config", "-c"):
            files += [arg, *(value for value in [next(rest, None)] if value is not None)]
        else:
            (files if arg.startswith(("--config=", "-c=")) else others).append(arg)
    return [args[0], *files, *others]


def quiet() -> None:
    """Silences what Lightning says that does not help the user at this command line."""
    # Advertisements and the list of accelerators that are not there; warnings still come through.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        # main() passes on the arguments that it has looked at; nothing else is meant by it.
        ".*args parameter is intended to run from within Python.*",
        # The model's own optimiser serves a plain Trainer; the command line always has one.
        ".*configure_optimizers` will be overridden.*",
        # Whole batches come from memory; a worker would only copy them.
        ".*does not have many workers.*",
        # The run's windows are logged by the model itself, and at the end of each epoch.
        ".*smaller than the logging interval.*",
        # What is logged at an epoch's end already is the figure over all processes.
        ".*recommended to use `self.log.*sync_dist=True.*",
        # In several processes each image is measured once, whatever their number.
        ".*it is recommended to use .*devices=1.*",
        # A continued run writes to its own folder on purpose.
        ".*exists and is not empty.*",
        # A checkpoint is validated, or gone on from, outside its run; what was best there stays there.
        ".*The dirpath has changed from.*",
        # Said in one line of its own, where it is so; see hand_over.
        ".*callbacks used to create the checkpoint need to be provided.*",
        # Parts that are frozen are evaluated on purpose.
        ".*module\\(s\\) in eval mode at the start of training.*",
        # What cannot be written down is refused, see SaveConfig.
        "\\s*Unable to serialize instance.*",
        # Said by PyTorch about a deprecation inside Lightning; nothing the user here can change.
        ".*isinstance\\(treespec, LeafSpec\\).*",
    ):
        warnings.filterwarnings("ignore", message=message)


def main(args: list[str] | None = None) -> int:
    """Runs the command line; the exit status is 0, 2 for a mistake of the user's or a disk that
    takes no more, 1 (or its own) when another process of the run has died, 130 for Ctrl-C, 141 where
    no one reads what is printed. A fault of the program's own ends in its traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal may not know the letters of a class's name
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            status = _status(sys.argv[1:] if args is None else args)
        except SystemExit:  # of --help; argparse writes to a reader that is gone without a word
            sys.stdout.flush()
            if _silenced():
                return 141
            raise
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        if not _silenced():
            raise
        return 141


def _silenced() -> bool:
    """Whether the reader of what is printed is gone, such as `head`; no more is printed to it then."""
    gone = [stream for stream in (sys.stdout, sys.stderr) if not _is_read(stream)]
    for stream in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return bool(gone)


def _is_read(stream: TextIO) -> bool:
    try:
        watch = select.poll()
        watch.register(stream.fileno(), 0)
        gone = select.POLLERR | select.POLLHUP
        return not any(event & gone for _, event in watch.poll(0))
    except (AttributeError, OSError, ValueError):  # on Windows; of what is no file
        return True


def _status(args: list[str]) -> int:
    quiet()
    try:
        if command := command_on_trained(args):
            return command(args[1:])
        with readable(args) as args:
            if args and args[0] in EXPERIMENTS:
                from manualnn.training import experiments

                experiments.main(args[0], args[1:])
            else:
                args, found = with_defaults(args)
                with only_known_classes(found, args):
                    CommandLine(ImageClassifier, ImageData, args=args, found=found, **SETTINGS)
    except (Interrupted, KeyboardInterrupt) as stop:
        if rank_zero_only.rank == 0:
            print(one_line(stop) or "interrupted", file=sys.stderr)
        return getattr(stop, "status", 130)
    except USER_ERRORS as error:
        print(f"train.py: {one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        # A file that is not there, or has no room; not an error of the network's or of a process.
        if not (error.filename or disk_fault(error, None)):
            raise
        print(f"train.py: {one_line(disk_fault(error, None) or error)}", file=sys.stderr)
        return 2
    except ProcessLost as lost:
        print(f"train.py: {one_line(lost)}", file=sys.stderr)
        return lost.status
    return 0
