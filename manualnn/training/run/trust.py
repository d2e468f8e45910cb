"""What a folder may decide that no one has named: SECURITY.md says it at length.

A `config.yaml` that lies beside a checkpoint is read because it lies there. It may choose among the
classes of PyTorch, torchvision, Lightning and manualnn, and among those in the command itself; naming
any other would run its code, and whoever wants that names the file: `--config`. One that this user's own
command has written, and that lies where it was written, may name what that command named: it bears a seal.
"""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_parsing_settings
from jsonargparse._common import parsing_settings

from manualnn.training.errors import TrainingError
from manualnn.training.text.messages import quote
from manualnn.training.text.yaml_text import LARGEST

# Where the classes lie that a configuration chooses from; not the whole packages, in which there are
# functions that load or run what they are given.
KNOWN = (
    "torch.nn", "torch._C._nn", "torch.optim", "torchvision.models", "torchvision.ops", "manualnn.nn",
    "manualnn.training.networks", "manualnn.training.run.callbacks", "manualnn.training.monitors",
    "lightning.pytorch.cli.ReduceLROnPlateau",
    *(f"lightning.{package}.{kind}" for package in ("pytorch", "fabric") for kind in (
        "accelerators", "callbacks", "loggers", "plugins", "profilers", "strategies")),
)  # fmt: skip
# Options whose value is a class, or holds some.
CLASS_OPTIONS = (
    "model", "model.network", "optimizer", "lr_scheduler", "trainer", *(f"trainer.{name}" for name in (
        "accelerator", "callbacks", "logger", "plugins", "profiler", "strategy")),
)  # fmt: skip
SEAL = "# sealed by the command that wrote it here: "


def read_configuration(path: Path) -> dict[str, Any]:
    """The content of a run's config.yaml, as plain values.

    Raises:
        TrainingError: it is not a run's.
    """
    try:
        if not path.is_file():  # a pipe would be waited for, a device has no end
            raise ValueError("it is no file")
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise ValueError("it is too large")
        content = get_loader("yaml")(text.decode())
        _check_names(content)
        if not isinstance(content, dict):
            raise ValueError("it holds no options")
        for part in ("model", "data", "trainer"):
            if not isinstance(content[part], dict):
                raise ValueError(f"its part {part} holds no options")
    except (
        *(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError),
        yaml.YAMLError,
    ) as error:
        raise TrainingError(
            f"{path} is not the configuration of a run: {_reason(error)}"
        ) from error
    return content


def _check_names(value: Any) -> None:
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("an option has a name that is no text")
        value = [*value.values()]
    for inner in value if isinstance(value, list) else ():
        _check_names(inner)


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"it has no part {error.args[0]}"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return " ".join(str(error).split())


def sealed(text: str, path: Path) -> str:
    """The text with a last line that only this user's commands can write, for the file at `path`.

    Without one where no secret can be kept in the home folder.
    """
    seal = _seal(text, path)
    return text if seal is None else f"{text}{SEAL}{seal}\n"


def has_own_seal(path: Path) -> bool:
    """Whether a command of this user's has written the file as it is, at this place."""
    try:
        text, _, seal = path.read_bytes()[: 2 * LARGEST].decode().rpartition(SEAL)
    except (OSError, ValueError):
        return False
    wanted = _seal(text, path)
    return wanted is not None and hmac.compare_digest(wanted.encode(), seal.rstrip("\n").encode())


def _seal(text: str, path: Path) -> str | None:
    key = _key()
    if key is None:
        return None
    content = f"{os.path.realpath(path)}\0{text}".encode(errors="surrogateescape")
    return hmac.new(key, content, hashlib.sha256).hexdigest()


def _key() -> bytes | None:
    """The secret of this user, made when it is first asked for; one that others could know is none."""
    # A home folder that is not known, a system that knows no owners.
    with suppress(OSError, RuntimeError, AttributeError):
        state = Path(os.environ.get("XDG_STATE_HOME", ""))
        if not state.is_absolute():
            state = Path.home() / ".local/state"
        path = state / "manualnn" / "seal.key"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            part = path.with_name(f"{path.name}.{os.getpid()}")
            part.touch(mode=0o600)
            part.write_bytes(secrets.token_bytes(32))
            with suppress(FileExistsError):
                os.link(part, path)  # the first of several commands makes it, and makes it whole
            part.unlink()
        if not (_is_private(path, 0o077) and _is_private(path.parent, 0o022)):
            return None
        key = path.read_bytes()
        return key if len(key) == 32 else None
    return None


def _is_private(path: Path, others: int) -> bool:
    """Whether it is this user's, and no one else has these rights to it."""
    found = path.stat()
    return found.st_uid == os.getuid() and not found.st_mode & others


@contextmanager
def only_known_classes(config: Path | None, command: Sequence[str] = ()) -> Iterator[None]:
    """Within, a value names a class of KNOWN or of the command, or is refused; any class where `config` is
    None, or has the seal of this user.

    Raises:
        TrainingError: `config`, in which all other values are, names another one.
    """
    if config is None or has_own_seal(config):
        yield
        return
    named = _named_in(command)
    allowed = [word for word in (*KNOWN, *named) if word.partition(".")[0] != "jsonargparse"]
    before = dict(parsing_settings)
    # jsonargparse looks at each name that it imports, and at where what it names is defined.
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=allowed)
    try:
        yield
    except Exception as error:
        if denied := _denied(error):
            raise TrainingError(
                f"{config} names {denied}, which is not of PyTorch, torchvision, Lightning or manualnn: "
                f"to use it would run its code. If you trust it, name the file: --config {quote(config)}"
            ) from error
        raise
    finally:
        parsing_settings.update(before)


def _named_in(command: Sequence[str]) -> list[str]:
    """The names in values that stand for a class. Not those in paths, which someone else may have chosen."""
    words, option = set(), ""
    for arg in command:
        value = arg
        if arg.startswith("-"):
            option, _, value = arg.partition("=")
        name = option.lstrip("-").rstrip("+")
        if name in CLASS_OPTIONS or name.endswith(".class_path"):
            words.update(re.findall(r"[A-Za-z_]\w*(?:\.\w+)+", value))
    return [word for word in words if all(part.isidentifier() for part in word.split("."))]


def _denied(error: BaseException | None) -> str:
    """The name that was refused, of an error that comes of it; else ""."""
    seen = set()
    while error is not None and id(error) not in seen:  # an error may be its own cause
        seen.add(id(error))
        if named := re.search(r"Importing '([^']+)' is not allowed", str(error)):
            return named[1]
        error = error.__cause__ or error.__context__
    return ""
