"""The folder of a run: who is writing to it, and what a run that was killed has left there."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from manualnn.training.errors import TrainingError
from manualnn.training.saving import replacing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

EVENTS = "events.out.tfevents.*"


# Who is writing.

_held: set[int] = set()


def _let_go() -> None:
    while _held:
        os.close(_held.pop())


# A worker of the data would hold the folder for seconds after the run itself was killed.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Makes the folder, and keeps other processes from going on with the run meanwhile.

    The operating system lets go of it however the process ends. Where folders cannot be locked
    (Windows, some network file systems) nothing is kept from anyone.

    Raises:
        TrainingError: another process holds it.
    """
    run.mkdir(parents=True, exist_ok=True)
    handle = _lock(run)
    try:
        yield
    finally:
        if handle in _held:
            _held.remove(handle)
            os.close(handle)


def _lock(run: Path) -> int | None:
    if fcntl is None:
        return None
    handle = os.open(run, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise TrainingError(f"the run {run} is still going on, in another process") from None
    except OSError:
        os.close(handle)
        return None
    _held.add(handle)
    return handle


def is_held(run: Path) -> bool:
    """Whether a process is at work on the run."""
    try:
        with held(run):
            return False
    except TrainingError:
        return True


# What is left.


def stopped_early(folder: Path, since: int = 0) -> Path | None:
    """The newest run in `folder`, or below it, of those that have begun and left no checkpoint.

    Args:
        folder: Of one run or of many.
        since: It began after this time, in nanoseconds.
    """
    begun = {
        config.parent: config.stat().st_mtime_ns
        for config in folder.glob("**/config.yaml")
        if not any(config.parent.glob("checkpoints/*.ckpt"))
    }
    newest = max(begun, key=begun.get, default=None)
    return newest if newest is not None and begun[newest] > since else None


def remove_stillborn(folder: Path) -> None:
    """Removes the folders of runs in `folder` that were killed before their first step.

    They have no configuration yet. A test of a checkpoint from elsewhere has none either, but it has
    logged its result, at the checkpoint's step.
    """
    for run in folder.glob("version_*"):
        known = [x for pattern in (EVENTS, "hparams.yaml", ".*.part") for x in run.glob(pattern)]
        if sorted(known) != sorted(run.glob("*")) or is_held(run):
            continue
        if any(step for file in run.glob(EVENTS) for _, step in records(file)):
            continue
        with suppress(OSError):
            for file in known:
                file.unlink()
            run.rmdir()


def cut_curves(run: Path, step: int) -> None:
    """Takes out of TensorBoard's files in `run` whatever a killed run logged after `step`.

    The run that goes on from there logs it again; without this each point would be there twice, and
    the curves would step back. A record that is not complete goes too.
    """
    for file in run.rglob(EVENTS):
        sizes = [len(record) for record, at in records(file) if at is None or at <= step]
        if sum(sizes) == file.stat().st_size:
            continue
        with replacing(file) as new:
            for record, at in records(file):
                if at is None or at <= step:
                    new.write(record)


def records(file: Path) -> Iterator[tuple[bytes, int | None]]:
    """The complete records of one of TensorBoard's files: (bytes, step of what is logged or None).

    A record is its length (uint64) and that number's CRC, an event, and the event's CRC.
    """
    with file.open("rb") as content:
        while len(header := content.read(12)) == 12:
            length, check = struct.unpack("<QI", header)
            if check != masked_crc32c(header[:8]):
                return
            body = content.read(length + 4)
            if len(body) < length + 4:
                return
            event = Event.FromString(body[:-4])
            yield header + body, event.step if event.HasField("summary") else None
