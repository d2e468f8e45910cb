"""The subcommands of the trainer: LightningCLI over ImageClassifier and ImageData, for people."""

import re
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import torch
from jsonargparse import ArgumentError
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    LearningRateFinder,
    ProgressBar,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.cli import (
    LightningArgumentParser,
    LightningCLI,
    ReduceLROnPlateau,
    instantiate_class,
)
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from manualnn.training.data.notes import PictureNotes
from manualnn.training.errors import DiskError, Interrupted, TrainingError
from manualnn.training.fit.earlier_run import EarlierRun
from manualnn.training.model.criterion import Prediction
from manualnn.training.model.metrics import MONITORED
from manualnn.training.model.schedule import (
    ends_early,
    planned_moves,
    rehearse_schedule,
    to_the_end,
)
from manualnn.training.model.transfer import unfilled, weights_fetched, weights_of
from manualnn.training.monitors import Monitor
from manualnn.training.run.callbacks import (
    Bar,
    BestCheckpoint,
    EpochClock,
    GoingOn,
    RunRecord,
    has_stopped,
)
from manualnn.training.run.checkpoints import OwnCheckpoints, well_formed
from manualnn.training.run.configuration import (
    LOGS,
    check_experiment,
    check_numbers,
    check_writable,
    empty_section,
    fit_to_data,
    hyperparameters,
    logs_of,
    option,
    refused_by_libraries,
    refused_values,
    set_modes,
)
from manualnn.training.run.folder import locked, new_run, remove_unused
from manualnn.training.run.heartbeat import Heartbeat
from manualnn.training.run.loggers import UNNAMED, append, configured, in_folder, move
from manualnn.training.run.processes import ProcessLost, ProcessWatch
from manualnn.training.run.rehearsal import Rehearsal
from manualnn.training.run.results import print_result, write_predictions
from manualnn.training.run.saved_settings import SaveConfig
from manualnn.training.run.saving import AtomicCheckpointIO, disk_fault, writers_report_once
from manualnn.training.text.messages import explain, quote
from manualnn.training.text.names import brief, shown

# They run `fit` many times; `train.py sweep --help` and `train.py compare --help` tell more.
EXPERIMENTS = {
    "sweep": "searches the best learning rate, layers, ... over many runs of fit",
    "compare": "runs fit with several values of an option, with several seeds each",
}
# Callbacks that set an option of the run when it starts.
FINDERS = {BatchSizeFinder: "data.batch_size", LearningRateFinder: "optimizer.lr"}
TRAINER_DEFAULTS = {
    "accelerator": "auto",
    "max_epochs": 10,
    "logger": {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        # HParams are RunRecord's to write; the logger would add a metric of its own, hp_metric.
        "init_args": {"save_dir": LOGS, "name": "", "default_hp_metric": False},
    },
    # The record of the run has the table of layers; the bar is drawn every 20th batch, because
    # drawing it costs more than a small network's step.
    "enable_model_summary": False,
}


class CommandLine(EarlierRun):
    """`fit`, `validate`, `test`, `predict`, with every argument of the model, the data, the
    trainer, the optimiser and the scheduler as an option.

    Beyond LightningCLI:
    - `--experiment NAME`: the folder under `logs/`, by default the dataset's name;
    - `--test_best true`: after `fit`, test the best checkpoint and print the result;
    - `--checkpoint.monitor NAME`: which quantity says which epoch is best;
    - `--monitor.every auto|N|off`: how often the layers are watched while they train;
    - `--lr_scheduler_interval step`: the scheduler moves on each step instead of each epoch; without
      a T_max a cosine ends where the run does;
    - `--early_stopping N`: the run ends when `--checkpoint.monitor` was not better for N validations;
    - `--ckpt_path last` or `best`: of the newest run of this experiment; `fit` goes on in the
      folder of that run, with the settings of that run. A checkpoint without `--config` is used
      with the configuration it was made with.
    """

    def __init__(self, *classes, args: list[str], found: Path | None = None, **settings):
        self._asked, self._args = args[0], args
        self._found = found  # a configuration that no one has named: it lies beside the checkpoint
        with refused_by_libraries(self._has_begun):
            super().__init__(*classes, args=args, **settings)

    def _has_begun(self) -> bool:
        """Whether a step has been taken."""
        trainer = getattr(self, "trainer", None)
        return trainer is not None and trainer.global_step > (self._resumed_step or 0)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--experiment", type=str | None, default=None, help="folder in logs/")
        parser.add_argument(
            "--test_best", type=bool, default=False, help="after fit, test the best checkpoint"
        )
        parser.add_argument(
            "--early_stopping",
            type=int | None,
            default=None,
            help="validations without a better --checkpoint.monitor after which the run ends",
        )
        parser.add_argument(
            "--lr_scheduler_interval",
            type=str,
            choices=["epoch", "step"],
            default="epoch",
            help="when the scheduler moves on",
        )
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.add_lightning_class_args(Monitor, "monitor")
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.link_arguments("data.image_shape", "model.image_shape", apply_on="instantiate")
        parser.add_optimizer_args((torch.optim.Optimizer,))
        parser.set_defaults(
            # Twice that has been too much for pictures of one colour.
            {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05}}}
        )
        for action in parser._actions:
            if action.dest == "model.network":
                # Every Module there is in PyTorch and torchvision: 690 lines of help.
                action.extra_help = _no_help

    def parse_arguments(self, parser: LightningArgumentParser, args) -> None:
        try:
            try:
                super().parse_arguments(parser, args)
            except ArgumentError as error:
                if not re.search(r"arguments are required: T_max\b", str(error)):
                    raise
                # Of a cosine without an end the run's is meant, which is not known yet: see `to_the_end`.
                super().parse_arguments(parser, [*args, "--lr_scheduler.init_args.T_max=0"])
        except UnicodeDecodeError as error:
            raise TrainingError(f"a --config is no text in UTF-8: {error}") from error
        except (ArgumentError, AttributeError, NotImplementedError, TypeError) as error:
            named = [option(args, name) for name in ("--config", "-c")]
            for path in filter(None, named):
                if section := empty_section(Path(path)):
                    raise TrainingError(
                        f"{path}: the section {section} is empty: leave it out, or give it options"
                    ) from error
            if not isinstance(error, ArgumentError):
                raise
            chosen = self._subcommand_parsers.get(args[0], parser)
            names = [name.replace(".init_args", "") for name in chosen.get_defaults().keys()]
            names += ["image"] * (args[0] == "predict")  # a command of its own, see main
            raise TrainingError(explain(error, [f"--{name}" for name in names])) from error

    def _set_seed(self) -> None:
        check_numbers(self.config[self.subcommand], self.subcommand)
        super()._set_seed()

    def subcommands(self) -> dict[str, set[str]]:
        """The one that is asked for, all of them for `--help`: each takes a tenth of a second to make."""
        known = super().subcommands()
        return {self._asked: known[self._asked]} if self._asked in known else known

    def init_parser(self, **kwargs) -> LightningArgumentParser:
        return super().init_parser(**{"exit_on_error": False, **kwargs})

    # Checkpoints of earlier runs.

    def _parse_ckpt_path(self) -> None:
        # Lightning would put the checkpoint's hyperparameters in place of the ones given on the
        # command line, without a word. Here a checkpoint that does not fit them is an error.
        pass

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        fit_to_data(config)
        if config.trainer.get("logger") is True:  # Lightning's would know no --experiment
            config.trainer.logger = self._parser(self.subcommand).get_defaults().trainer.logger
        logger = config.trainer.get("logger")
        name = config.experiment or config.data.dataset
        check_experiment(name)
        monitor = (config.get("lr_scheduler") or {}).get("init_args", {}).get("monitor")
        if monitor is not None and monitor not in MONITORED:
            raise TrainingError(
                f"--lr_scheduler.monitor {monitor}: nothing of that name is logged; known: "
                f"{', '.join(MONITORED)}"
            )
        if self.subcommand == "fit" and config.get("ckpt_path") is None:
            for note in set_modes(
                config, self._args
            ):  # a run that goes on has the one that it was begun with
                self._say(note)
        ours = configured(logger)
        # What a run's configuration says is of that run; the command says what is meant now.
        meant = option(self._args, "--experiment") and not self._named_logger()
        for one in ours:
            given = one.init_args.get("name")
            if meant or not given or self._found is None and given in UNNAMED:
                one.init_args.name = name
        if self.subcommand != "validate" and not config.trainer.fast_dev_run:
            check_writable(logs_of(config.trainer))
        if config.get("weights_only") is False and option(self._args, "--weights_only") is None:
            raise TrainingError(
                "weights_only: false in a configuration is not followed, for it lets a checkpoint run "
                "any code: leave it out, or say --weights_only false in the command"
            )
        config.weights_only = config.get("weights_only") is not False
        wanted = config.get("ckpt_path")
        if wanted is None:
            if self.subcommand != "fit":
                raise TrainingError(
                    f"{self.subcommand} needs a trained model: --ckpt_path best, last or a file"
                )
            return
        path = self._read_earlier(wanted, ours)
        if ours:
            self._choose_folder(path, wanted, ours)
        elif self.subcommand == "fit" and logger:
            self._say(
                "note: the first of its loggers writes into no folder of the run: it goes on in a new one, and "
                f"what was best so far stays in {path.parent}"
            )

    # The run.

    def instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        weights = weights_of(config)
        fetched = unfilled() if config.get("ckpt_path") else weights_fetched(weights)
        with self._may_not_fit(), fetched if weights else nullcontext(), refused_values():
            super().instantiate_classes()
        for line in self.model.changes if self.subcommand == "fit" else ():
            self._say(f"network: {line}")

    def _run_subcommand(self, subcommand: str) -> None:
        with self._may_not_fit():
            super()._run_subcommand(subcommand)

    def _may_not_fit(self):
        """Of a configuration that no run has written anything may come."""
        return well_formed(f"{self._found} ({self._edited})") if self._edited else nullcontext()

    def instantiate_trainer(self, **kwargs):
        config = self.config[self.subcommand]
        given = self._get(self.config_init, "trainer")["callbacks"] or []
        callbacks = [*given] if isinstance(given, list) else [given]
        for callback in callbacks if self.subcommand == "fit" else ():
            for kind, sought in FINDERS.items():
                if isinstance(callback, kind):
                    raise TrainingError(
                        f"{type(callback).__name__} looks at each start for a --{sought} that the run's "
                        "config.yaml does not say: the run could not be gone on with. Leave it out, and say "
                        f"--{sought}; train.py sweep searches a good one"
                    )
        heartbeat = Heartbeat()
        self._watch = ProcessWatch(self._what_is_kept, heartbeat)
        callbacks = [heartbeat, *callbacks, self._watch, Rehearsal(self._say), EpochClock()]
        callbacks.append(GoingOn(tests=bool(config.get("test_best"))))
        if config.get("early_stopping") is not None:
            if config.early_stopping < 1:
                raise TrainingError(
                    f"--early_stopping is {config.early_stopping}; 1 at least is needed"
                )
            watched = self.checkpoint
            options = {"mode": watched.mode, "patience": config.early_stopping}
            callbacks.append(EarlyStopping(watched.monitor, **options))
        callbacks.append(RunRecord(hyperparameters(config)))
        callbacks.append(PictureNotes(self._say))
        wanted = config.trainer.enable_progress_bar is not False
        if wanted and not any(isinstance(callback, ProgressBar) for callback in callbacks):
            callbacks.append(Bar(refresh_rate=20))
        plugins = self._get(self.config_init, "trainer")["plugins"] or []
        plugins = [*plugins] if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(AtomicCheckpointIO())
        try:
            trainer = super().instantiate_trainer(callbacks=callbacks, plugins=plugins, **kwargs)
        except RuntimeError as error:
            if "SLURM" in str(error):  # a mistake in its script
                raise TrainingError(error) from error
            raise
        if getattr(trainer.strategy, "_start_method", "popen") in ("spawn", "forkserver"):
            raise TrainingError(
                "--trainer.strategy: a run cannot be handed to processes that are spawned; ddp starts them anew"
            )
        trainer._checkpoint_connector = OwnCheckpoints(trainer, self._say)
        if self._logs is not None:
            move(trainer, self._logs)  # no setting of the run is another one
        return trainer

    def configure_optimizers(self, lightning_module, optimizer, lr_scheduler=None):
        # Lightning's own know one rate for all parameters, and not how long the run is.
        made_with = self.config_init[self.subcommand]
        groups, trainer = lightning_module.parameter_groups(), lightning_module.trainer
        with refused_values():
            optimizer = instantiate_class((groups,), made_with.optimizer)
        if lightning_module.warmup_steps > planned_moves(trainer, "step"):
            self._say("note: the run ends before its --model.warmup_steps do")
        if lr_scheduler is None:
            return optimizer
        interval = self.config[self.subcommand].lr_scheduler_interval
        if isinstance(lr_scheduler, ReduceLROnPlateau):
            interval = "epoch"
        moves = planned_moves(trainer, interval)
        wanted = to_the_end(made_with.lr_scheduler, moves)
        rehearse_schedule(made_with.optimizer, wanted, moves)
        rates = [group["lr"] for group in optimizer.param_groups]
        scheduler = instantiate_class((optimizer,), wanted)
        kept = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
        if lightning_module.head_lr is not None and kept != rates:
            raise TrainingError(
                f"--model.head_lr: {type(scheduler).__name__} gives all parameters rates of its own"
            )
        # A run that goes on has the end that it began with.
        if said := ends_early(self._resumed_end or getattr(scheduler, "T_max", None), moves):
            self._say(said)
        chosen = {"scheduler": scheduler, "interval": interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            return LightningCLI.configure_optimizers(lightning_module, optimizer, scheduler)
        return {"optimizer": optimizer, "lr_scheduler": chosen}

    def fit(self, **kwargs) -> None:
        if any(isinstance(x, StochasticWeightAveraging) for x in self.trainer.callbacks):
            self._say(
                "note: once StochasticWeightAveraging averages, the run cannot be gone on with"
            )
        self._guarded(self.trainer.fit, **kwargs)
        if self.checkpoint.has_average is False:
            self._say(
                "note: there is no averaged.ckpt: the run ended before the last of --trainer.max_epochs, after "
                "which StochasticWeightAveraging puts its average into the network"
            )
        trainer = self.trainer
        stopped = any(has_stopped(callback) for callback in trainer.callbacks)
        if self._resumed_step == trainer.global_step and stopped:
            self._say(f"nothing to do: the run was stopped early, after {self._resumed_step} steps")
        elif self._resumed_step == trainer.global_step:
            limit = "max_steps" if 0 <= trainer.max_steps <= trainer.global_step else "max_epochs"
            self._say(
                f"nothing to do: the run has taken all of its {self._resumed_step} steps; a larger "
                f"--trainer.{limit} lets it go on"
            )
        if self.config.fit.test_best and not trainer.fast_dev_run:
            self._test_best()
        self._print_result()

    def _test_best(self) -> None:
        if not self.datamodule.has_test:
            self._say("nothing to test: there are no test images, for --data.test_fraction is 0")
            return
        kept = self.checkpoint
        tested = kept.best_model_path or kept.last_model_path or self.config.fit.ckpt_path
        if not tested:
            self._say("nothing to test: no step was taken, and no checkpoint written")
            return
        if Path(tested).name == "last.ckpt":
            self._say(
                f"no epoch was judged by {kept.monitor}: the last weights are tested, {tested}"
            )
        kwargs = {"model": self.model, "datamodule": self.datamodule, "ckpt_path": str(tested)}
        # An average that lives on would load the weights that it is the average of.
        self.trainer.callbacks = [
            callback
            for callback in self.trainer.callbacks
            if not isinstance(callback, WeightAveraging)
        ]
        self._guarded(self.trainer.test, verbose=False, **kwargs)

    def validate(self, **kwargs) -> None:
        self._guarded(self.trainer.validate, **kwargs)

    def test(self, **kwargs) -> None:
        self._guarded(self.trainer.test, **kwargs)

    def predict(self, **kwargs) -> None:
        """Writes predictions.csv: the image's file or number, class, its probability."""
        if self.trainer.world_size > 1:
            raise TrainingError("predict runs in one process: --trainer.devices 1")
        self._guarded(self.trainer.predict, **kwargs)
        folder = Path(self.trainer.log_dir or ".")
        if not self.trainer.is_global_zero:
            return
        batches = self.trainer.predict_loop.predictions
        if not batches:
            raise TrainingError("predict: --trainer.limit_predict_batches leaves no image")
        predictions = Prediction(*map(torch.cat, zip(*batches, strict=True)))
        path = folder / "predictions.csv"
        data, count = self.datamodule, len(predictions.order)
        names = data.predict_names()
        write_predictions(path, names[:count], data.class_names, predictions)
        first = "the first of " if count < len(names) else ""  # --trainer.limit_predict_batches
        self._say(f"{count} predictions, of {first}{data.predicted_words()}: {path}")

    def _guarded(self, action, **kwargs) -> None:
        try:
            with (
                self._run_locked(),
                writers_report_once(),
                self._watch.launching(self.trainer.num_devices),
            ):
                action(**kwargs)
        except SystemExit:
            if not self.trainer.interrupted:
                raise
            kept = f"; {self._what_is_kept()}" if self.subcommand == "fit" else ""
            raise Interrupted(f"interrupted{kept}") from None
        except Interrupted as stop:
            raise Interrupted(f"ended by {stop}; {self._what_is_kept()}", stop.status) from None
        except BaseException as error:
            if self._watch.lost:
                raise self._watch.lost from error
            if worker := re.search(r"DataLoader worker .*?(?=[.;\n]|$)", str(error)):
                raise ProcessLost(f"{worker[0]}; {self._what_is_kept()}") from error
            log_dir = getattr(self.trainer.logger, "log_dir", None)
            if fault := disk_fault(error, log_dir and Path(log_dir)):
                raise DiskError(f"{fault}; {self._what_is_kept()}") from error
            goes_on = self._resumed_step is not None and self.trainer.state.fn == "fit"
            if goes_on and not self._has_begun():
                # Nothing has been trained yet: the state of an optimiser is first used in a step.
                with well_formed(self.config.fit.ckpt_path):
                    raise
            raise

    @contextmanager
    def _run_locked(self):
        """A new run's folder is made here, and is this process's alone; so is one that is gone on with."""
        loggers = in_folder(self.trainer)
        with ExitStack() as stack:
            # Not trainer.log_dir, in which every process takes part; one of them may be gone by then.
            if loggers and self.trainer.is_global_zero:
                logger = loggers[0]
                if logger._version is None:
                    places = dict.fromkeys(Path(one.root_dir) for one in loggers)
                    number = stack.enter_context(new_run(*places))
                    for one in loggers:
                        one._version = number if one._version is None else one._version
                    new = True
                else:
                    new = not Path(logger.log_dir).exists()
                    if self.subcommand == "fit":
                        stack.enter_context(locked(Path(logger.log_dir)))
                for one in loggers:
                    append(one)
                if new:
                    stack.push(
                        lambda kind, *_: remove_unused(Path(logger.log_dir)) if kind else None
                    )
            yield

    @property
    def checkpoint(self) -> BestCheckpoint:
        """The run's own; Lightning's `checkpoint_callback` may be one of the user's."""
        return self._get(self.config_init, "checkpoint")

    def _what_is_kept(self) -> str:
        if self.subcommand != "fit":
            return "the checkpoint is as it was"
        callback = self.checkpoint
        named = [getattr(callback, f"{name}_model_path", "") for name in ("last", "best")]
        # Lightning names the file before it writes it.
        named.append(self.config.fit.ckpt_path)
        last = next((path for path in named if path and Path(path).is_file()), None)
        if not last:
            if callback.has_left_one:
                return f"the checkpoints are no longer there: {callback.dirpath} was removed"
            return "no checkpoint was written yet, it comes at the end of an epoch"
        return f"kept: {last}; go on with: python train.py fit --ckpt_path {quote(last)}"

    def _say(self, line: str) -> None:
        if rank_zero_only.rank == 0:
            print(brief(shown(line)))

    def _print_result(self) -> None:
        log_dir = self.trainer.log_dir  # every process must ask, or the first waits for the rest
        if self.trainer.is_global_zero:
            print_result(self.trainer, self.checkpoint, log_dir)


def _no_help() -> str:
    return ""


# A command line is made with these; a run of a sweep is made with the same.
SETTINGS = {
    "trainer_defaults": TRAINER_DEFAULTS,
    "seed_everything_default": 0,
    "save_config_callback": SaveConfig,
    "save_config_kwargs": {"overwrite": True},
    "parser_kwargs": {
        "epilog": "Experiments of many runs: "
        + "; ".join(f"{name} {does}" for name, does in EXPERIMENTS.items())
        + ". On what was trained: predict --ckpt_path CKPT --image PATH, and export --ckpt_path CKPT "
        "--format onnx|pt2|safetensors. Each has its own --help."
    },
}
