"""Monitor: the callback that looks at a run while it trains, and says what it sees."""

import statistics
import time
from collections import deque
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from manualnn.training.errors import Diverged, TrainingError
from manualnn.training.model.criterion import QuadraticLoss
from manualnn.training.monitors.budget import Budget
from manualnn.training.monitors.findings import Finding, findings
from manualnn.training.monitors.history import Epoch, History, Record, chance_loss
from manualnn.training.monitors.layers import LayerHooks
from manualnn.training.monitors.writing import Board, as_line
from manualnn.training.text.names import shown

# Of the training time. Together less than 3 %, with what each step and each validation costs anyway.
FOR_STEPS, FOR_FLOW, FOR_VALIDATION = 0.010, 0.007, 0.006
LEAST = 10  # steps between two that are watched
DRAIN = 100  # losses that may wait on the device


class Monitor(Callback):
    """Watches what flows through the network: scalars, histograms and pictures in TensorBoard, findings there
    and in the terminal.

    Watched steps have hooks on the layers; all others run untouched, and no number of the run changes.

    Args:
        every: auto: as many steps and pictures as 3 % of the training time pays for, and the last ones in
            any case; a number: every so many steps, and pictures at each epoch, whatever that costs; off:
            nothing is watched.
        embedding: Also write what the last hidden layer makes of validation images, for TensorBoard's
            projector.

    Raises:
        TrainingError: `every` is a number below 1.
    """

    def __init__(self, every: Literal["auto", "off"] | int = "auto", embedding: bool = False):
        if every not in ("auto", "off") and (isinstance(every, (str, bool)) or every < 1):
            raise TrainingError(f"monitor.every is {every!r}; needed is auto, off or 1 and more")
        self.every, self.embedding = every, embedding
        self.history = History()
        self._said: list[str] = []
        # Of the classes: in all training images, or, where no one says, in the watched batches.
        self._counts: Tensor | None = None
        self._counted = False
        self._resumed: dict = {}
        self._watch: LayerHooks | None = None
        self._writes = False  # the first process alone
        self._watching = False
        self._moved = True  # the next batch is a step's first
        self._gathered: dict = {}
        self._handles: list = []
        self._pass = self._matrix = None
        self._losses: list[Tensor] = []  # of steps, not read yet
        self._epoch_loss, self._epoch_steps = 0.0, 0  # sum of this epoch's losses, and their number
        self._val_loss: float | None = None

    # The run.

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._writes = self.every != "off" and trainer.is_global_zero
        if not self._writes:
            self._watching = False
            return
        self._watch, self._board = LayerHooks(pl_module.network), Board(trainer)
        self._watch.load_state_dict(self._resumed)
        self._steps = Budget(FOR_STEPS)
        self._flow, self._pictures = (
            Budget(share, at_end=True) for share in (FOR_FLOW, FOR_VALIDATION)
        )
        for budget in (self._steps, self._flow, self._pictures):
            budget.start()
        self._plain: deque[float] = deque(maxlen=50)  # seconds of steps that were not watched
        self._step = self._last = trainer.global_step
        self._cost = 0.0
        if self._watching:  # a step that the run goes on within
            self._watch.go_on(self._gathered)
        self._batches_a_step = trainer.accumulate_grad_batches
        self._images: Tensor | None = None
        self._kept: list[float] | None = None
        self._drawn = self._last_record = None
        if hasattr(trainer.datamodule, "class_counts"):  # of all that it trains on, watched or not
            self._counted = True
            self._chance_of(trainer.datamodule.class_counts().double(), pl_module)
        if trainer.global_step == 0:
            self._board.layout()

    def on_train_batch_start(self, trainer, pl_module, batch: Any, batch_idx: int) -> None:
        if not self._writes:
            return
        self._began = time.perf_counter()
        if self._moved and self._is_due(self._step + 1):
            self._watching, self._cost = True, 0.0
            self._watch.begin()
        self._moved = False

    def _is_due(self, step: int) -> bool:
        if step == 1:
            return True  # how the weights were drawn shows at once
        if self.every != "auto":
            return step % self.every == 0
        return step - self._last >= LEAST and self._steps.allows("step", 0.002)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if self._watching:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            self._scale = scaler.get_scale() if scaler is not None else 1.0
            self._watch.before_update()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch: Any, batch_idx: int) -> None:
        if not self._writes:
            return
        if outputs is not None:
            self._losses.append(outputs["loss"])
        step = trainer.global_step
        self._moved, self._step = step != self._step, step
        if not self._watching:
            if len(self._losses) >= DRAIN:
                self._drain()
            self._plain.append(time.perf_counter() - self._began)
            return
        ended = time.perf_counter()
        if self._moved:
            self._record(trainer, pl_module, batch, step)
        now = time.perf_counter()
        # The first step has none to compare with; what it takes is the warming up of the process.
        usual = statistics.median(self._plain) if self._plain else ended - self._began
        self._cost += now - self._began - usual
        if self._moved:
            self._watching, self._last = False, step
            self._steps.spend("step", self._cost)

    def _record(self, trainer, pl_module, batch, step: int) -> None:
        images, labels = batch
        signals = self._watch.end(self._scale)
        self._drain()
        if self._kept is None:
            self._images = images[:2].detach().clone()
        if not self._counted:
            counts = torch.bincount(labels.cpu(), minlength=pl_module.num_classes).double()
            counts = counts if self._counts is None else self._counts + counts
            self._chance_of(counts, pl_module)
        rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        self._last_record = Record(step, float(rate), signals)
        self.history.labels, self.history.step = self._watch.labels, step
        self.history.add_record(self._last_record)
        self._board.scalars(as_line(self.history.labels, signals), step)
        self._look(trainer)

    def _chance_of(self, counts: Tensor, pl_module: LightningModule) -> None:
        self._counts = counts
        criterion = pl_module.criterion
        if isinstance(criterion, QuadraticLoss):
            self.history.chance = chance_loss(counts.tolist(), "quadratic")
            return
        options = criterion.class_weights, criterion.label_smoothing
        self.history.chance = chance_loss(counts.tolist(), "cross_entropy", *options)

    def _drain(self) -> None:
        if self._losses:
            # Lightning has divided each by the number of batches in a step.
            losses = (torch.stack(self._losses).double() * self._batches_a_step).tolist()
            self._losses = []
            self._epoch_loss += sum(losses)
            self._epoch_steps += len(losses)
            self.history.add_losses(losses)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._writes:
            return
        self._end_epoch(trainer.current_epoch, trainer.global_step)
        self._look(trainer)
        if self._may(self._flow, "flow", 0.004):
            self._draw_flow(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._writes and trainer.current_epoch and self._is_new_epoch(trainer):
            # The run was cut off between the validation, which leaves a checkpoint, and its epoch's end.
            self._end_epoch(trainer.current_epoch - 1, trainer.global_step)

    def _is_new_epoch(self, trainer: Trainer) -> bool:
        return trainer.fit_loop.epoch_loop.batch_progress.current.ready == 0

    def _end_epoch(self, number: int, step: int) -> None:
        self._drain()
        self.history.step = step
        if self._epoch_steps:
            mean = self._epoch_loss / self._epoch_steps
            self.history.add_epoch(Epoch(number, step, mean, self._val_loss))
        self._epoch_loss, self._epoch_steps, self._val_loss = 0.0, 0, None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._writes:
            return
        self._drain()
        self._draw_flow(trainer, pl_module)
        self._draw_validation(trainer, pl_module)
        self._write_embedding(trainer)
        self._board.flush()

    def on_exception(self, trainer, pl_module, exception: BaseException) -> None:
        self._remove_hooks()
        if self._watch is None:
            return
        self._board.flush()
        if isinstance(exception, Diverged):
            self._drain()
            self.history.diverged, self.history.step = True, trainer.global_step
            self._look(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._remove_hooks()
        self._pass = self._matrix = None
        self._writes = False  # the loggers close now

    def _remove_hooks(self) -> None:
        if self._watch is not None:
            self._watch.remove()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    # Words.

    def _look(self, trainer: Trainer) -> None:
        for finding in findings(self.history):
            if finding.kind not in self._said:
                self._said.append(finding.kind)
                self._say(trainer, finding)

    def _say(self, trainer: Trainer, finding: Finding) -> None:
        from tqdm import tqdm

        tqdm.write(str(finding))  # above the progress bar, where there is one
        name = f"findings/{finding.kind.replace(' ', '_')}"
        self._board.words(name, finding.markdown(), finding.step)

    # Pictures.

    def _may(self, budget: Budget, what: str, guess: float) -> bool:
        return self.every != "auto" or budget.allows(what, guess)

    @contextmanager
    def _spending(self, budget: Budget, what: str):
        start = time.perf_counter()
        yield
        self._board.settle()  # the writer's thread has its share in the cost
        budget.spend(what, time.perf_counter() - start)

    def _draw_flow(self, trainer: Trainer, pl_module: LightningModule) -> None:
        record = self._last_record
        if record is None or record is self._drawn:
            return
        self._drawn = record
        if not self._board.writers:
            return
        from manualnn.training.monitors import flow

        with self._spending(self._flow, "flow"):
            watch, labels = self._watch, self.history.labels
            if self._kept is None:
                precision = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
                kept = flow.kept_bytes(
                    *(pl_module.network, self._images, watch.layers),
                    precision.get(trainer.precision),
                )
                self._kept = kept or []
            title = f"step {record.step}, epoch {trainer.current_epoch}"
            picture = flow.draw_flow(labels, record, self._kept or None, title)
            self._board.images({"flow": picture}, record.step)
            self._board.histograms(labels, watch.layers, record.step)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every == "off" or not trainer.state.fn == "fit" or trainer.sanity_checking:
            return
        from manualnn.training.monitors.validation import Pass

        self._pass = Pass(quadratic=isinstance(pl_module.criterion, QuadraticLoss))
        self._matrix = self._scores = self._features = None

        def keep(module, args, output):
            self._scores = output.detach()

        self._handles.append(pl_module.network.register_forward_hook(keep))
        if self.embedding and self._watch is not None and self._watch.layers:

            def keep_features(module, args):
                self._features = args[0].detach() if args else None

            last = self._watch.layers[-1].module
            self._handles.append(last.register_forward_pre_hook(keep_features))

    def on_validation_batch_end(
        self, trainer, pl_module, outputs, batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._pass is None or self._scores is None:
            return
        images, labels = batch
        if len(labels) == 1 and labels[0] < 0:
            return  # this process has no image left
        self._pass.see(self._scores, images, labels)
        if self._features is not None:
            self._pass.see_features(self._features, images)
        self._scores = self._features = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._pass is None or trainer.sanity_checking:
            return
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if not (self._pass.waiting or self._pass.labels):
            self._pass = None
            return
        if trainer.world_size > 1:  # what all processes saw, and each must ask for it
            self._matrix = self._confusion(pl_module)
        if not self._writes:
            self._pass = None
            return
        loss = trainer.callback_metrics.get("val/loss")
        self._val_loss = None if loss is None else float(loss)
        if self._may(self._pictures, "validation", 0.03):
            self._draw_validation(trainer, pl_module)

    def _confusion(self, pl_module: LightningModule) -> Tensor:
        from manualnn.training.monitors import validation

        return validation.confusion(self._pass, pl_module.num_classes)

    def _draw_validation(self, trainer, pl_module) -> None:
        seen = self._pass
        if seen is None or seen.drawn:
            return
        from manualnn.training.monitors import validation

        board, data = self._board, trainer.datamodule
        names, step = tuple(map(shown, data.class_names)), trainer.global_step
        with self._spending(self._pictures, "validation"):
            matrix = self._confusion(pl_module) if self._matrix is None else self._matrix
            seen.drawn = True
            board.scalars(validation.accuracy_line(matrix, names), step)
            if not board.writers:
                return
            pictures = {
                "validation/confusion": validation.draw_confusion(matrix, names),
                "validation/mistakes": validation.draw_mistakes(seen, data.as_seen, names),
                "weights/first_layer": validation.draw_first_layer(
                    self._watch.layers, pl_module.image_shape
                ),
            }
            board.images(pictures, step)
            for writer in board.writers:
                validation.write_pr_curves(writer, seen, names, step)

    def _write_embedding(self, trainer: Trainer) -> None:
        if self._pass is not None and self._pass.features:
            from manualnn.training.monitors import validation

            data = trainer.datamodule
            names = tuple(map(shown, data.class_names))
            for writer in self._board.writers:
                validation.write_embedding(
                    *(writer, self._pass, data.as_seen, names), trainer.global_step
                )

    # Checkpoints: a continued run says nothing twice, and goes on in the same windows.

    def on_save_checkpoint(self, trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        if self._writes:
            self._board.settle()

    def state_dict(self) -> dict:
        if self._watch is None:
            return {}
        self._drain()
        return {
            "history": self.history.state_dict(),
            "said": list(self._said),
            "counts": self._counts,
            "epoch": (self._epoch_loss, self._epoch_steps, self._val_loss),
            "units": self._watch.state_dict(),
            "step": [self._moved, self._watching, self._watch.gathered()],
        }

    def load_state_dict(self, state_dict: dict) -> None:
        if state_dict:
            self.history.load_state_dict(state_dict["history"])
            self._said, self._counts = list(state_dict["said"]), state_dict["counts"]
            self._epoch_loss, self._epoch_steps, self._val_loss = state_dict["epoch"]
            self._resumed = state_dict["units"]
            unknown = [True, False, {}]  # of an older version's
            self._moved, self._watching, self._gathered = state_dict.get("step", unknown)
