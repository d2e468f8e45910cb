"""How a file gets to the disk: whole or not at all."""

import errno
import io
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TypeVar

Made = TypeVar("Made")


def in_made(folder: Path, make: Callable[[], Made]) -> Made:
    """What `make` makes in the folder, which is made first, with those above it.

    Both again where another process has removed one of them meanwhile, for it was empty.
    """
    for left in reversed(range(20)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return make()
        except FileNotFoundError:
            if not left:
                raise
    raise AssertionError


def place_of(path: Path) -> Path:
    """Where what a person wants in `path` is to lie: a link stays one, and what it leads to is written.

    OSError: no file is there, but what a file must not take the place of.
    """
    _check_place(path, follow_symlinks=True)
    return Path(os.path.realpath(path))


def _check_place(path: Path, follow_symlinks: bool) -> None:
    try:
        mode = os.stat(path, follow_symlinks=follow_symlinks).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise OSError(errno.EINVAL, "is a pipe, a socket or a device, and no file", str(path))


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` in one step when it is complete.

    Killed at any moment, or cut off from power, `path` is what it was or what it was to become.
    What is written lies in the same folder until then, as a file that `remove_parts` knows. It is for
    a run's own files: in a stranger's folder a link at their place leads wherever it likes, and is
    replaced too.
    """
    _check_place(path, follow_symlinks=False)
    # Not after `path`: TensorBoard reads whatever has "tfevents" in its name.
    part = path.parent / f".{os.getpid()}.part"
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # the name that the user knows
        raise
    _sync(path.parent)


@contextmanager
def replacing_text(path: Path) -> Iterator[IO[str]]:
    """As `replacing`, of text in UTF-8; a name that is none is written with escapes."""
    text = io.StringIO(newline="")
    yield text
    with replacing(path) as file:
        file.write(text.getvalue().encode(errors="backslashreplace"))


@contextmanager
def replacing_all(path: Path) -> Iterator[Path]:
    """As `replacing`, for a file that a person names (see `place_of`) and a library that writes to a path,
    and perhaps further files beside it.

    Yields a path of the same name in a folder of its own; what lies there in the end moves out.
    """
    place = place_of(path)
    if not place.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(place.parent))
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{path.name}.") as folder:
        new = Path(folder, path.name)
        new.touch()
        mode = new.stat().st_mode
        yield new
        for file in Path(folder).iterdir():
            file.chmod(mode)  # safetensors makes a file for its owner alone
            with file.open("rb") as content:
                os.fsync(content.fileno())
            os.replace(file, place if file.name == path.name else place.parent / file.name)
    _sync(place.parent)


def _sync(folder: Path) -> None:
    """The new name reaches the disk too; where a folder cannot be opened (Windows) it is left."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_parts(folder: Path) -> None:
    """Removes what a killed process was writing in the folder, or below it."""
    for part in folder.rglob(".*.part"):
        if part.name[1 : -len(".part")].isdigit():
            with suppress(OSError):
                part.unlink()
