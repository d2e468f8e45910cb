"""The files that a command names, looked at before they are read.

A device has no end, and a pipe may have no writer.
"""

import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from manualnn.training.errors import TrainingError
from manualnn.training.text.names import shown
from manualnn.training.text.yaml_text import LARGEST

_CONFIG = ("--config", "-c")
_OPENED = ("/dev/fd/", "/proc/self/fd/", "/dev/stdin")  # by the shell, as in --config <(...)


@contextmanager
def readable(args: Sequence[str]) -> Iterator[list[str]]:
    """The arguments; a configuration that comes through a pipe of the shell's is a file within.

    Raises:
        TrainingError: a value is a pipe or a device, a configuration too large; one line.
    """
    with tempfile.TemporaryDirectory() as folder:
        made, before = [], ""
        for arg in args:
            name, equals, value = arg.partition("=")
            if name in _CONFIG and equals:
                arg = f"{name}={_checked(value, name, Path(folder))}"
            elif before in _CONFIG:
                arg = _checked(arg, before, Path(folder))
            elif kind := _special(value if equals else arg):
                raise TrainingError(f"{shown(arg)} is {kind}, and no file")
            made.append(arg)
            before = arg
        yield made


def _checked(path: str, option: str, folder: Path) -> str:
    kind = _special(path)
    if kind == "a pipe" and path.startswith(_OPENED):
        with open(path, "rb") as pipe:
            content = pipe.read(LARGEST + 1)
        if len(content) <= LARGEST:
            with tempfile.NamedTemporaryFile(dir=folder, suffix=".yaml", delete=False) as file:
                file.write(content)
            return file.name
    elif kind:
        raise TrainingError(f"{option} {shown(path)} is {kind}, and no file")
    elif not os.path.isfile(path) or os.path.getsize(path) <= LARGEST:
        return path
    raise TrainingError(f"{option} {shown(path)} is too large: {LARGEST} bytes at most")


def _special(path: str) -> str:
    try:
        mode = os.stat(os.path.expanduser(path)).st_mode
    except (OSError, ValueError):  # no path, but a value
        return ""
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        return "a pipe"
    return "a device" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else ""
