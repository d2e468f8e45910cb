"""A learning-rate scheduler tried out before the run."""

import math

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.cli import instantiate_class
from torch.optim.lr_scheduler import ReduceLROnPlateau

from manualnn.training.errors import TrainingError

MOST_MOVES = 20_000  # a fifth of a second; a longer schedule is tried out to here


def planned_moves(trainer: Trainer, interval: str) -> int | float:
    """How often the scheduler will be asked to move on, with a part for an epoch that `max_steps` cuts off;
    infinity for a run without an end."""
    most_steps = math.inf if trainer.max_steps == -1 else trainer.max_steps
    most_epochs = math.inf if trainer.max_epochs == -1 else max(trainer.max_epochs, 1)
    if most_steps == most_epochs == math.inf:
        return math.inf
    trainer.fit_loop.setup_data()
    gathered = {0: trainer.accumulate_grad_batches}  # batches a step, by the epoch from which on
    for callback in trainer.callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            gathered = callback.scheduling
    starts, steps, epochs = sorted(gathered), 0, 0
    for start, end in zip(starts, [*starts[1:], math.inf], strict=True):
        an_epoch = max(1, math.ceil(trainer.num_training_batches / gathered[start]))
        many = min(end, most_epochs) - start
        if many > 0 and steps + many * an_epoch <= most_steps:
            steps, epochs = steps + many * an_epoch, epochs + many
        elif many > 0:
            return most_steps if interval == "step" else epochs + (most_steps - steps) / an_epoch
    return steps if interval == "step" else epochs


def to_the_end(scheduler: dict, moves: int | float) -> dict:
    """The scheduler; with a T_max of 0, which means the whole run, that run's number of moves."""
    end = (scheduler.get("init_args") or {}).get("T_max")
    if isinstance(end, int) and end < 0:
        raise TrainingError(f"--lr_scheduler.T_max is {end}; it cannot be negative")
    if end != 0:
        return scheduler
    if moves == math.inf:
        raise TrainingError(
            "--lr_scheduler.T_max: this run has no end for it to follow; give it a number of moves"
        )
    scheduler = scheduler.clone()
    scheduler.init_args.T_max = max(1, math.ceil(moves))
    return scheduler


def ends_early(end: object, moves: int | float) -> str:
    """That a cosine has come to its end before the run has, and turns back; "" where it has not.

    Args:
        end: The scheduler's T_max, if it has one.
    """
    if not isinstance(end, int) or moves == math.inf or end >= int(moves):
        return ""
    return (
        f"note: the rate is lowest after move {end} of the {int(moves)} of this run (--lr_scheduler.T_max), "
        "and rises again"
    )


def rehearse_schedule(optimizer: dict, scheduler: dict, moves: int | float) -> None:
    """Lets a scheduler of the same arguments move on as often as the run will ask it to, MOST_MOVES at most.

    Without this a step size of 0 or a schedule that is too short would end the run in its middle.

    Raises:
        TrainingError: the scheduler fails; the message says at which move and why.
    """
    weight = torch.nn.Parameter(torch.zeros(1, 1))
    stand_in = instantiate_class([weight], optimizer)
    chosen = instantiate_class(stand_in, scheduler)
    arguments = (0.0,) if isinstance(chosen, ReduceLROnPlateau) else ()
    stand_in.step(lambda: 0.0)  # LBFGS takes no step without a closure
    for move in range(1, int(min(moves, MOST_MOVES)) + 1):
        try:
            chosen.step(*arguments)
        except Exception as error:  # what a scheduler raises is its author's choice
            reason = " ".join(str(error).split()) or type(error).__name__
            raise TrainingError(
                f"the scheduler {type(chosen).__name__} fails at move {move} of the {int(moves)} of "
                f"this run: {reason}; look at the values of --lr_scheduler"
            ) from error
