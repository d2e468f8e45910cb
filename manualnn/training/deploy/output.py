"""What a command may write over: nothing that it reads, and nothing of another kind than it writes."""

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

from manualnn.tools.files import place_of
from manualnn.training.data.folder import endings
from manualnn.training.errors import TrainingError
from manualnn.training.text.names import shown

_OTHERS = (".ckpt", ".pt", ".pth", ".pt2", ".onnx", ".safetensors", ".yaml", ".py", ".db")
_BEGINNINGS = {"table": b"image ", "csv": b"image,", "json": b"[", "onnx": b"\x08", "pt2": b"PK"}


def check_output(path: str | Path, form: str, read: Iterable[str | Path]) -> None:
    """TrainingError: what is there is no file, or no earlier output of this form; or the name is of another.

    Args:
        form: table, csv, json, onnx, pt2 or safetensors.
        read: Files that the command reads.
    """
    path = Path(path)
    try:
        place_of(path)
    except OSError as error:
        raise TrainingError(f"--output {shown(path)} {error.strerror}") from error
    refused = f"--output {shown(path)} would be written over"
    if path.exists():
        if any(os.path.exists(other) and os.path.samefile(path, other) for other in read):
            raise TrainingError(f"{refused}, and the command reads it: name another file")
        if path.is_file() and path.stat().st_size and not _is_of(path, form):
            raise TrainingError(f"{refused}, and what is there is no {form}: name another file")
    ending = path.suffix.lower()
    others = {*endings(), *_OTHERS, ".csv", ".json"} - {f".{form}"}
    if ending in others:
        raise TrainingError(f"--output {shown(path)}: what is written is {form}, no {ending} file")


def _is_of(path: Path, form: str) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    if form == "safetensors":  # the length of its header, and that
        return start[8:] == b"{"
    if form == "pt2" and zipfile.is_zipfile(path):  # as a checkpoint is
        with zipfile.ZipFile(path) as archive:
            return not any(name.endswith("/data.pkl") for name in archive.namelist())
    return start.startswith(_BEGINNINGS[form])
