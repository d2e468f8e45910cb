"""From C to a shared object: compiled at first use, kept in the user's cache folder.

A file is named by all that it depends on: the text, the compiler, its flags, the processor. It ends in a digest
of itself, so that a damaged one is seen, and made again. It is written under another name and renamed, so that
two processes at once do not see half of it. A folder that is not the user's own alone is not used, because what
lies in it is executed. Where nothing can be built the answer is None, and ATen serves.
"""

import atexit
import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from manualnn.kernels import library

FLAGS = ["-std=gnu11", "-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic"]
FLAGS += ["-march=native", "-fPIC", "-shared", "-w"]
# No contraction: a product is rounded before it is added. The other two change no value.
FLAGS += ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
SECONDS = 60  # after which a compiler that does not answer is given up
DIGEST = hashlib.sha256().digest_size
_said: list[str] = []


def built(text: str, names: Sequence[str] = ()) -> Any:
    """The loaded shared object of some C, which has functions of these names; or None."""
    try:
        compiler = _compiler()
        if compiler is None:
            return None
        flags = [*FLAGS, *(["-fopenmp"] if library.has_threads() else [])]
        flags += ["-mprefer-vector-width=512"] if library.width(torch.float32) == 16 else []
        depends = [text, _version(compiler), " ".join(flags), _processor()]
        name = hashlib.sha256("\0".join(depends).encode()).hexdigest()[:32]
        folder = _folder()
        path = folder / f"{name}.so"
        if not _whole(path):
            _compile(compiler, flags, text, path)
        loaded = ctypes.CDLL(str(path))
        missing = [name for name in names if not hasattr(loaded, name)]
        if not missing:
            return loaded
        _say(f"the C compiler leaves out {missing[0]}, and PyTorch's own passes serve")
    except subprocess.SubprocessError as error:
        _say(f"the C compiler fails, and PyTorch's own passes serve: {_first_line(error)}")
    except OSError as error:  # a full disk, above all
        _say(f"a kernel cannot be kept or loaded, and PyTorch's own passes serve: {error}")
    return None


def built_from(source: Path, names: Sequence[str]) -> Any:
    """The loaded shared object of a file of C, as ``built``."""
    try:
        text = source.read_text(encoding="utf-8")
    except OSError as error:  # an installation that left it out
        _say(f"a kernel cannot be read, and PyTorch's own passes serve: {error}")
        return None
    return built(text, names)


def _compile(compiler, flags, text, path):
    with tempfile.TemporaryDirectory(prefix="manualnn-") as work:
        source, made = Path(work, "kernel.c"), Path(work, "kernel.so")
        source.write_text(text, encoding="utf-8")
        command = [compiler, *flags, str(source), "-o", str(made), "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=SECONDS, cwd=work)
        content = made.read_bytes()
    handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content + hashlib.sha256(content).digest())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise


def _whole(path):
    """Whether the file is there as it was written."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-DIGEST]).digest() == content[-DIGEST:]


# --- the folder -----------------------------------------------------------------------------------


def _folder():
    """The user's cache folder; where it cannot be used, one of this process."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if os.path.isabs(home) else Path(os.path.expanduser("~"), ".cache")
    folder = base / "manualnn" / "kernels"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_own(folder):
            handle, probe = tempfile.mkstemp(dir=folder, suffix=".probe")
            os.close(handle)
            os.unlink(probe)
            return folder
    except OSError:
        pass
    return _temporary(os.getpid())


def _is_own(folder):
    """Whether nobody else may write into the folder, or put another one in its place."""
    for place in (folder, folder.parent):
        found = os.lstat(place)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return False
        if found.st_mode & 0o022:
            return False
    return not os.lstat(folder).st_mode & 0o077


@functools.cache
def _temporary(process):
    folder = tempfile.mkdtemp(prefix="manualnn-kernels-")
    atexit.register(_remove, folder, process)
    return Path(folder)


def _remove(folder, process):
    if os.getpid() == process:  # a fork's end is not the end of it
        shutil.rmtree(folder, ignore_errors=True)


# --- the compiler ---------------------------------------------------------------------------------


def _compiler():
    for name in (os.environ.get("CC", ""), "gcc", "cc"):
        path = shutil.which(name) if name else None
        if path is not None:
            return path
    return None


@functools.cache
def _version(compiler):
    found = subprocess.run(
        [compiler, "--version"], check=True, capture_output=True, timeout=SECONDS
    )
    return found.stdout.decode(errors="replace")


@functools.cache
def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    wanted = ("flags", "Features", "model name")
    return "\n".join(
        {line.partition(":")[0]: line for line in lines if line.startswith(wanted)}.values()
    )


def _first_line(error):
    output = getattr(error, "stderr", None) or b""
    lines = [line for line in output.decode(errors="replace").splitlines() if "rror" in line]
    return (lines or [str(error)])[0]


def _say(text):
    """At most one warning in a process."""
    if not _said:
        _said.append(text)
        warnings.warn(f"manualnn: {text}", RuntimeWarning, stacklevel=2)
