"""The configuration that a run was trained with, as it is written beside its checkpoints."""

import errno
from enum import Enum
from functools import cached_property
from pathlib import Path

import torch
import yaml
from jsonargparse import get_loader
from jsonargparse.typing import register_type
from lightning.pytorch.cli import SaveConfigCallback

from manualnn.tools.files import replacing
from manualnn.training.errors import TrainingError
from manualnn.training.run.checkpoints import settings_of
from manualnn.training.run.folder import in_order
from manualnn.training.run.trust import read_configuration, sealed

# StochasticWeightAveraging has a device by default, Timer a member of an Enum where it takes text.
register_type(torch.device)
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, one: dumper.represent_data(one.value))
_UNWRITTEN = "Unable to serialize instance "  # jsonargparse's words in the place of a value


class SaveConfig(SaveConfigCallback):
    """Keeps the configuration that a run was trained with, from when training has begun.

    A start that fails writes none over the one of the run it was to go on with; neither does a
    later test. Each checkpoint holds what of it may not change.
    """

    @cached_property
    def _settings(self) -> dict:
        return settings_of(get_loader("yaml")(self._text()))

    def on_save_checkpoint(self, trainer, pl_module, checkpoint: dict) -> None:
        checkpoint["settings"] = self._settings

    def _text(self) -> str:
        config = self.config.clone()
        config.weights_only = None  # what was believed once is no setting of the run
        return self.parser.dump(config, skip_none=False)

    def setup(self, trainer, pl_module, stage: str) -> None:
        if stage == "fit" and (lost := _unwritten(self._settings)):
            option, value = lost
            raise TrainingError(
                f"--{option.replace('.init_args', '')}: {value} cannot be written into the run's "
                "config.yaml, and the run could not be gone on with"
            )

    def on_train_start(self, trainer, pl_module) -> None:
        folder = trainer.log_dir  # every process must ask
        if trainer.is_global_zero and folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            path = Path(folder, self.config_filename)
            text = in_order(self._text(), Path(getattr(trainer.logger, "save_dir", folder)))
            text = sealed(text, path)
            with replacing(path) as file:
                file.write(text.encode())
            if path.read_bytes() != text.encode():
                raise OSError(errno.EIO, "what was written is not what is there", str(path))
            read_configuration(path)


def _unwritten(settings: object, name: str = "") -> tuple[str, str] | None:
    """(name, value) of the first setting that the parser could not write down."""
    if isinstance(settings, str) and settings.startswith(_UNWRITTEN):
        return name, settings.removeprefix(_UNWRITTEN)
    inner = [(name, x) for x in settings] if isinstance(settings, list) else []
    if isinstance(settings, dict):
        inner = [(f"{name}.{key}".lstrip("."), x) for key, x in settings.items()]
    return next((found for key, x in inner if (found := _unwritten(x, key))), None)
