"""What the commands on a trained model share: their parser, the checkpoint they start from."""

import argparse
import sys
from pathlib import Path

from manualnn.training.deploy.trained import Trained
from manualnn.training.errors import TrainingError
from manualnn.training.run.checkpoints import newest_checkpoint, passed_over
from manualnn.training.run.configuration import LOGS, check_experiment
from manualnn.training.text.messages import explain
from manualnn.training.text.names import shown


class Parser(argparse.ArgumentParser):
    """An argparse parser whose refusals are one line, as the training's are."""

    def __init__(self, **options):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(**options, formatter_class=formatter, allow_abbrev=False)
        self.add_argument(
            "--ckpt_path", metavar="CKPT", help="a checkpoint; best or last: of the newest run"
        )
        self.add_argument(
            "--experiment", help=f"the folder in {LOGS}/ in which to look for best or last"
        )
        self.add_argument(
            "-c",
            "--config",
            help="the run's configuration, for a network of one's own whose config.yaml is not "
            "where the run left it",
        )

    def error(self, message: str):
        names = [name for action in self._actions for name in action.option_strings]
        raise TrainingError(explain(ValueError(message.removeprefix("argument ")), names))

    def trained(self, given: argparse.Namespace) -> Trained:
        """The model that the arguments name."""
        path = given.ckpt_path
        if path is None:
            subcommand = self.prog.rpartition(" ")[2]
            raise TrainingError(
                f"{subcommand} needs a trained model: --ckpt_path best, last or a file"
            )
        if path in ("best", "last"):
            check_experiment(given.experiment or "")
            folder = Path(LOGS, given.experiment or "")
            path = newest_checkpoint(folder, path)
            print(f"checkpoint: {shown(path)}", file=sys.stderr)
            if note := passed_over(folder, path):
                print(shown(note), file=sys.stderr)
        elif given.experiment is not None:
            raise TrainingError("--experiment goes with --ckpt_path best or last, not with a file")
        return Trained.load(path, given.config)


def positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number above 0")
    return number
