"""How a checkpoint gets to the disk, and what keeps a file from being written."""

import errno
import io
import os
import pickle
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from manualnn._torch import tree_map_only
from manualnn.tools.files import replacing
from manualnn.training.errors import TrainingError

# Of a disk that is full or broken, whatever file it was that could not be written.
FULL_OR_BROKEN = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "ESTALE")
    if hasattr(errno, name)
}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are whole on the disk, and that hold tensors and plain values alone.

    The new one is written beside the old one and takes its place when it is complete. The first of
    a run is read back, so that one that could never be loaded is known at once. Loading refuses
    code, which a pickle may run, and a file that is not what was written.
    """

    def __init__(self):
        super().__init__()
        self._read_back = False

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)  # such as s3://
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            _write(checkpoint, file)
            if not self._read_back:
                file.flush()
                _check_plain(Path(file.name), "the optimiser, the scheduler or a callback")
                self._read_back = True

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        plain = weights_only is not False
        if "://" in str(path):
            return super().load_checkpoint(path, map_location=map_location, weights_only=plain)
        verify(Path(path))
        return torch.load(path, map_location=map_location, weights_only=plain)


def verify(path: Path) -> None:
    """Reads every record against the CRC-32 that was written with it; torch.load looks at none.

    Raises:
        TrainingError: the file is not the archive that torch.save wrote.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            # torch.save packs nothing: a small file that becomes a large one is another's.
            packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
            whole = not packed and sum(x.file_size for x in records) <= path.stat().st_size
            damaged = archive.testzip() if whole else "what torch.save does not write"
    except FileNotFoundError:
        raise
    # Of a damaged header zipfile may think anything: a password, a later version, a date.
    except (
        *(zipfile.BadZipFile, zlib.error, EOFError, OSError),
        *(RuntimeError, ValueError, OverflowError, struct.error),
    ) as error:
        raise TrainingError(f"{path} cannot be read as a checkpoint") from error
    if damaged is not None:
        raise TrainingError(f"{path} cannot be read as a checkpoint: it is damaged, in {damaged}")


def _write(checkpoint: dict[str, Any], file: IO[bytes]) -> None:
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:
        # When a write fails, torch.save still ends its archive, and stumbles over what is missing.
        raise cause_of(error, (OSError, KeyboardInterrupt)) or error from None
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TrainingError(
            f"the run's checkpoints would hold what cannot be saved: {error}"
        ) from error


def check_savable(state_of: Callable[[], Any], holder: Any) -> None:
    """TrainingError: what the holder puts into a checkpoint cannot be written, or be read again.

    Its tensors are left out: they can be, and may be large.
    """
    kind, file = type(holder).__name__, io.BytesIO()
    try:
        state = tree_map_only(torch.Tensor, lambda _: torch.empty(0), state_of())
        torch.save(state, file)
        file.seek(0)
    except Exception as error:  # whatever its class, or the pickle, raises
        if getattr(error, "obj", None) is holder:
            return  # an attribute of its own that a step will set
        if interrupt := cause_of(error, KeyboardInterrupt):
            raise interrupt from None  # it comes out of torch.save as an error of its archive
        raise TrainingError(
            f"the state of {kind} cannot be saved, and the run's checkpoints hold it: "
            f"{type(error).__name__}: {error}"
        ) from error
    _check_plain(file, kind)


def _check_plain(file: Path | IO[bytes], holder: str) -> None:
    names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    if names:
        raise TrainingError(
            f"the run's checkpoints would hold {', '.join(sorted(names))}, and none could be loaded "
            f"again: only tensors and plain values are. It is in the state of {holder}"
        )


def cause_of(error: BaseException | None, kinds: type | tuple[type, ...]) -> BaseException | None:
    """The first exception of these kinds that led to `error`, itself included."""
    seen = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, kinds):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def disk_fault(error: BaseException, folder: Path | None) -> str:
    """In a few words, that a file of the run could not be written; "" if that is not the matter.

    Args:
        error: What ended the run.
        folder: The run's; any error on a file in it counts, elsewhere a full or broken disk alone.
    """
    fault = cause_of(error, OSError)
    if fault is None:
        return ""
    name = os.fsdecode(fault.filename) if isinstance(fault.filename, (str, bytes)) else ""
    inside = folder is not None and name and folder.resolve() in Path(name).resolve().parents
    if not inside and fault.errno not in FULL_OR_BROKEN:
        return ""
    what = name if inside else f"the run's folder {folder}" if folder else name or "a file"
    return f"{what} could not be written: {fault.strerror}"


@contextmanager
def writers_report_once() -> Iterator[None]:
    """TensorBoard's writer thread hands its error to whoever writes next; it prints none itself."""
    before = threading.excepthook

    def hook(args) -> None:
        if not isinstance(args.exc_value, OSError):
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
