"""The folder of a run: who is writing to it, and what a run that was killed has left there."""

import csv
import os
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from manualnn.tools.files import in_made, replacing, replacing_text
from manualnn.training.errors import TrainingError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

EVENTS = "events.out.tfevents.*"
TABLE = "metrics.csv"  # of a CSVLogger


# Who is writing.

_held: set[int] = set()


def _let_go() -> None:
    while _held:
        os.close(_held.pop())


# A worker of the data would hold the folder for seconds after the run itself was killed.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Makes the folder, and keeps other processes from going on with the run meanwhile.

    The operating system lets go of it however the process ends. Where folders cannot be locked
    (Windows, some network file systems) nothing is kept from anyone.

    Raises:
        TrainingError: another process holds it.
    """
    handle = in_made(run, lambda: _lock(run))
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
    for pause in (0.02, 0.05, 0.1, None):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if pause is not None:  # another process may only have looked, with is_locked
                time.sleep(pause)
                continue
            os.close(handle)
            raise TrainingError(f"the run {run} is still going on, in another process") from None
        except OSError:
            break
        _held.add(handle)
        return handle
    os.close(handle)
    return None


def is_locked(run: Path) -> bool:
    """Whether a process is at work on the run."""
    try:
        with locked(run):
            return False
    except TrainingError:
        return True


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Waits until no other process is in here with the same folder, which it makes."""
    while True:
        try:
            handle = in_made(folder, lambda: os.open(folder, os.O_RDONLY))
        except PermissionError:  # Windows opens no folder
            yield
            return
        try:
            if fcntl is not None:
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(handle, fcntl.LOCK_EX)
            if os.path.exists(folder) and os.path.samestat(os.stat(folder), os.fstat(handle)):
                yield
                return
        finally:
            os.close(handle)


@contextmanager
def new_run(parent: Path, *beside: Path) -> Iterator[int]:
    """Makes the folder `version_N` of a run, N above all others', and holds it; N.

    Of runs that are started at once each gets a folder of its own.

    Args:
        beside: Other folders in which the run will have one of that number.
    """
    with ExitStack() as stack:
        with alone(parent):
            folder = next_version(parent, *beside)
            stack.enter_context(locked(folder))
        yield number_of(folder)


def next_version(parent: Path, *beside: Path) -> Path:
    """The folder of a run that begins; of runs that begin at once only for one that is `alone`."""
    remove_stillborn(parent)
    runs = [run for place in (parent, *beside) for run in place.glob("version_*")]
    return parent / f"version_{1 + max(map(number_of, runs), default=-1)}"


def number_of(run: Path) -> int:
    """12 of version_12, trial_0012 and best_12; -1 of a name without a number."""
    number = run.name.rpartition("_")[2]
    return int(number) if number.isascii() and number.isdigit() and len(number) < 19 else -1


# What is left.

# The first line of a run's configuration; a time would be as right as the machine's clock.
_ORDER = "# run "


def in_order(text: str, logs: Path) -> str:
    """The configuration `text` of a run that begins now: after all others in `logs`."""
    last = max((_begun(config) for config in logs.glob("**/config.yaml")), default=0)
    return f"{_ORDER}{last + 1}, in the order in which training began\n{text}"


def order(run: Path) -> tuple:
    """Sorts runs by when their training last began.

    By what is written in their configurations; those in which nothing is written, such as an older
    version's, come first, by their numbers.
    """
    return _begun(run / "config.yaml"), number_of(run), str(run)


def _begun(config: Path) -> int:
    if not config.is_file():  # a pipe would be waited for
        return 0
    with suppress(OSError, ValueError), config.open(encoding="utf-8") as file:
        line = file.readline(80)
        if line.startswith(_ORDER):
            return min(int(line.removeprefix(_ORDER).partition(",")[0]), 10**9)
    return 0


def stopped_early(folder: Path, since: Path | None = None) -> Path | None:
    """The newest run in `folder`, or below it, of those that have begun and left no checkpoint.

    Args:
        folder: Of one run or of many.
        since: It is newer than this run.
    """
    begun = [
        config.parent
        for config in folder.glob("**/config.yaml")
        if not any(config.parent.glob("checkpoints/*.ckpt"))
    ]
    newest = max(begun, key=order, default=None)
    if newest is None or since is not None and order(newest) < order(since):
        return None
    return newest


def remove_stillborn(folder: Path) -> None:
    """Removes the folders of runs in `folder` that were killed before their first step.

    They have no configuration yet. A test of a checkpoint from elsewhere has none either, but it has
    logged its result, at the checkpoint's step.
    """
    for run in folder.glob("version_*"):
        known = [x for pattern in (EVENTS, "hparams.yaml", ".*.part") for x in run.glob(pattern)]
        if sorted(known) != sorted(run.glob("*")) or is_locked(run):
            continue
        if any(step for file in run.glob(EVENTS) for _, step, _ in records(file)):
            continue
        with suppress(OSError):
            for file in known:
                file.unlink(missing_ok=True)
            run.rmdir()


def remove_unused(folder: Path) -> None:
    """Removes the folder of a run that failed before its training began, with empty ones above."""
    if (folder / "config.yaml").exists():
        return
    for pattern in (EVENTS, "hparams.yaml"):
        for file in folder.glob(pattern):
            file.unlink(missing_ok=True)
    # No other process is between making the folder of runs and making its own in it.
    with suppress(OSError), alone(folder.parent):
        for place in (folder, folder.parent, folder.parent.parent):
            place.rmdir()


def curve_sizes(run: Path) -> dict[str, int]:
    """How many bytes there are in each of TensorBoard's files in `run`, and rows in a CSVLogger's table."""
    sizes = {str(file.relative_to(run)): file.stat().st_size for file in run.rglob(EVENTS)}
    if (table := run / TABLE).is_file():
        sizes[TABLE] = len(_rows(table)[1])
    return sizes


def cut_curves(run: Path, step: int, sizes: dict[str, int] | None, tests: bool) -> None:
    """Takes out of the loggers' files in `run` what was logged after the checkpoint of `step`.

    The run that goes on from there logs it again; without this each point would be there twice, and
    the curves would step back. A record that is not complete goes too.

    Args:
        sizes: What `curve_sizes` was when the checkpoint was written; None of an older version's.
        tests: Take out the results of tests too, for there will be new ones.
    """
    for file in run.rglob(EVENTS):
        size = 0 if sizes is None else sizes.get(str(file.relative_to(run)), 0)
        kept, end = [], 0
        for record, at, tags in records(file):
            end += len(record)
            test = any(tag.startswith("test/") for tag in tags)
            if (
                at is None
                or not (test and tests)
                and (end <= size or at <= step and (test or sizes is None))
            ):
                kept.append(record)
        if sum(map(len, kept)) != file.stat().st_size:
            with replacing(file) as new:
                new.writelines(kept)
    if (run / TABLE).is_file():
        _cut_rows(run / TABLE, step, None if sizes is None else sizes.get(TABLE, 0), tests)


def _cut_rows(table: Path, step: int, count: int | None, tests: bool) -> None:
    header, rows = _rows(table)
    at = header.index("step") if "step" in header else None
    tested = [i for i, name in enumerate(header) if "test/" in name]
    kept = []
    for number, row in enumerate(rows):
        test = any(row[i] for i in tested)
        early = at is None or float(row[at]) <= step
        before = early if count is None else number < count or test and early
        if before and not (test and tests):
            kept.append(row)
    with replacing_text(table) as file:
        csv.writer(file).writerows([header, *kept])


def _rows(table: Path) -> tuple[list[str], list[list[str]]]:
    """(names of the columns, the complete rows)."""
    with table.open(newline="", encoding="utf-8") as file:
        header, *rows = [*csv.reader(file)] or [[]]
    return header, [row for row in rows if len(row) == len(header)]


def records(file: Path) -> Iterator[tuple[bytes, int | None, list[str]]]:
    """The complete records of one of TensorBoard's files: (bytes, step of what is logged or None, its tags).

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
            step = event.step if event.HasField("summary") else None
            yield header + body, step, [value.tag for value in event.summary.value]
