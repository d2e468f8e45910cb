"""The run that a checkpoint is of: what a command takes from it, and where it goes on."""

import json
import os
from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningCLI

from manualnn.training.data import ImageData
from manualnn.training.data.reading import Reading
from manualnn.training.run.checkpoints import (
    check_unchanged,
    check_unedited,
    newest_checkpoint,
    otherwise,
    passed_over,
    read_checkpoint,
    well_formed,
)
from manualnn.training.run.configuration import LOGS, logs_of, option, refused_values
from manualnn.training.run.sameness import check_same
from manualnn.training.run.trust import read_configuration


class EarlierRun(LightningCLI):
    """A LightningCLI that finds a checkpoint, compares its run with the command, and chooses the folder."""

    _args: list[str]
    _found: Path | None  # a configuration that no one has named: it lies beside the checkpoint
    _resumed_step: int | None = None  # of the checkpoint that `fit` goes on from
    _resumed_end: int | None = None  # of its cosine
    _logs: str | None = None  # in which that run lies, if not where its configuration says
    _edited = ""  # what is said otherwise in the configuration beside the checkpoint

    def _say(self, line: str) -> None:
        raise NotImplementedError

    def _named_logger(self) -> bool:
        names = ("--trainer.logger.name", "--trainer.logger.init_args.name")
        return any(option(self._args, name) is not None for name in names)

    def _read_earlier(self, wanted: str, ours: list[Namespace]) -> Path:
        """Finds the checkpoint, and takes out of it what this command has to know or to refuse."""
        config = self.config[self.subcommand]
        path, note = Path(wanted), ""
        if wanted in ("best", "last"):
            name = Path(LOGS, config.experiment or config.data.dataset)
            first = ours[0].init_args if ours else None
            folder = Path(first.save_dir, first.name) if ours else name
            path = newest_checkpoint(folder, wanted, going_on=self.subcommand == "fit")
            note = passed_over(folder, path)
        content = read_checkpoint(path, weights_only=config.weights_only)
        config.ckpt_path = str(path)
        with well_formed(path):
            ran = content.get("settings", {}).get("data", {})
            dataset = ran.get("dataset", config.data.dataset)
        self._say(f"checkpoint: {path} ({dataset}, {content['global_step']} steps)")
        if note:
            self._say(note)
        if self._found is not None:
            self._say(f"configuration: {self._found}")
            with well_formed(path):
                now = read_configuration(self._found)
                self._edited = check_unedited(self._found, now, content)
            if self._edited and self.subcommand == "fit":
                self._say(f"note: the configuration was edited: {self._edited}")
        if self.subcommand != "fit" and config.data.dataset == "ImageFolder":
            with well_formed(path):
                reading = content.get(ImageData.__qualname__, {}).get("reading")
                if reading is not None and config.data.classes is None:
                    config.data.classes = list(Reading.of_state(reading).class_names)
        # By way of JSON, which has names that are no UTF-8.
        text = self._parser(self.subcommand).dump(config, skip_none=False, format="json")
        plain = json.loads(text)
        if self.subcommand != "fit":
            with well_formed(path):
                said = check_same(content, plain["model"], plain["data"], self._args)
            if said:
                self._say(said)
        if self.subcommand == "fit":
            self._resumed_step = content["global_step"]
            with well_formed(path), refused_values():
                for state in content.get("lr_schedulers") or ():
                    self._resumed_end = state.get("T_max") if isinstance(state, dict) else None
                check_unchanged(content, plain)
                if said := otherwise(content, plain):
                    self._say(f"note: otherwise than before: {said}")
        return path

    def _choose_folder(self, checkpoint: Path, wanted: str, loggers: list[Namespace]) -> None:
        """The run's own folder, where its curves go on; else a new one, which is said."""
        config = self.config[self.subcommand]
        first = loggers[0].init_args
        run = checkpoint.resolve().parent.parent
        placed = any(option(self._args, x) for x in ("--experiment", "--trainer.logger.save_dir"))
        name = Path(first.name)
        inside = run.parent == Path(first.save_dir, name).resolve()
        goes_on = self.subcommand == "fit" and "last" in (wanted, checkpoint.stem)
        if not inside and goes_on and self._found and not placed:
            # Its own logs are meant, wherever the command is given.
            inside = run.parent.parts[-len(name.parts) :] == name.parts
            self._logs = os.path.relpath(run.parents[len(name.parts)]) if inside else None
        if self.subcommand == "validate":
            # Its numbers would land in the middle of the training's curves.
            config.trainer.logger = False
        elif inside and (goes_on or self.subcommand != "fit"):
            # The curves, the best epoch so far and the test's result belong to that run.
            for logger in loggers:
                logger.init_args.version = run.name
        elif self.subcommand == "fit":
            if self._found and not option(self._args, "--trainer.logger.version"):
                # The configuration of a run that was gone on with names its folder.
                for logger in loggers:
                    logger.init_args.version = None
            self._say(f"note: it goes on in a new folder in {logs_of(config.trainer)}")
