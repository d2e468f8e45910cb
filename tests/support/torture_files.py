"""A fuzzer of the files that the trainer reads: checkpoints, configurations, pictures, studies, comparisons.

    python tests/support/torture_files.py 500            # of each kind
    python tests/support/torture_files.py 1 --kind state --seed 1234     # one again

Each input is a valid file with a few changes, by its seed, and goes through the command line in this
process. It must end in status 2 and one line; or in status 0, where the change harms nothing. Anything
else is printed with its seed: a traceback, another status, an exit, more than SECONDS.
"""

import argparse
import contextlib
import copy
import io
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))

from manualnn.training.cli import command as cli

SECONDS = 120  # a hang
MEMORY = (
    24 << 30
)  # bytes; what is larger is refused by the system, not fetched from its other users
SMALL = (
    "--model.hidden_units [8] --data.batch_size 512 --trainer.accelerator cpu --trainer.max_epochs 1 "
    "--trainer.enable_progress_bar false --monitor.every off"
).split()
RUN = Path("logs/Digits/version_0")
LAST, CONFIG = RUN / "checkpoints/last.ckpt", RUN / "config.yaml"
STUDY, COMPARISON = Path("logs/small-sweep"), Path("logs/small-compare/version_0")
GOING_ON = ["fit", "--ckpt_path", str(LAST), "--trainer.max_epochs", "2"]
PREDICT = ["predict", "--ckpt_path", str(LAST), "--image", "picture.png"]
PICTURES = Path("pictures")
FORMATS = ("png", "jpg", "gif", "webp", "bmp", "tiff", "ppm")
FOLDER = ["--data.dataset", "ImageFolder", "--data.root", str(PICTURES), "--data.image_size", "8"]
SWEEP = ["sweep", "--config", "sweep.yaml"]
VARY = ["--vary", "model.activation", "[relu, tanh]", "--seeds", "1"]
COMPARE = ["compare", *SMALL, "--experiment", "small", *VARY]
JUNK = (
    None, True, -1, 0, 7, 2**31, -(2**63), 10**30, 0.5, float("nan"), float("inf"), "", "junk", "-1",
    "\ud800", "\x00", "a\nb", "../../etc/passwd", "os.system", "torch.nn.Nothing", "9" * 5000, [], {}, [[]],
    {"class_path": "os.system", "init_args": {"command": "touch code_ran"}}, {"class_path": 3},
)  # fmt: skip


def prepare(folder: Path) -> None:
    """A valid file of each kind, in the folder."""
    from PIL import Image

    os.chdir(folder)
    Image.new("L", (8, 8)).save("picture.png")
    for number, name in enumerate(FORMATS * 4):
        of = PICTURES / ("cat" if number % 2 else "dog")
        of.mkdir(parents=True, exist_ok=True)
        noise = random.Random(number).randbytes(3 * 12 * 10)
        exif = Image.Exif()
        exif[0x0112] = 6  # the orientation
        Image.frombytes("RGB", (12, 10), noise).save(of / f"{number}.{name}", exif=exif)
    search = {"optimizer.lr": {"low": 0.01, "high": 1.0, "log": True}, "model.activation": ["relu"]}
    base = {"experiment": "small", "search": search, "sweep": {"n_trials": 2}}
    Path("sweep.yaml").write_text(yaml.safe_dump(base))
    for args in (["fit", *SMALL], [*SWEEP, *SMALL], COMPARE):
        status, _, err = run(args)
        assert status == 0, err


def run(args: list[str]) -> tuple[object, str, str]:
    """(exit status or what came in its place, what was printed, the errors)."""
    out, err = io.StringIO(), io.StringIO()

    def late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                status = cli.main(args)
    except BaseException:
        status = "traceback"
        err.write(traceback.format_exc())
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return status, out.getvalue(), err.getvalue()


# Changes.


def damaged(raw: bytes, draw: random.Random) -> bytes:
    """The bytes after one to four accidents."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        at, size = draw.randrange(len(raw) or 1), draw.choice((1, 4, 64, 512))
        kind = draw.choice(("bit", "cut", "out", "zero", "noise", "twice", "in", "empty"))
        if kind == "bit" and raw:
            raw = raw[:at] + bytes([raw[at] ^ (1 << draw.randrange(8))]) + raw[at + 1 :]
        elif kind == "cut":
            raw = raw[:at]
        elif kind == "out":
            raw = raw[:at] + raw[at + size :]
        elif kind == "zero":
            raw = raw[:at] + bytes(size) + raw[at + size :]
        elif kind == "noise":
            raw = raw[:at] + draw.randbytes(size) + raw[at + size :]
        elif kind == "twice":
            raw = raw[:at] + raw[at : at + size] * 2 + raw[at + size :]
        elif kind == "in":
            raw = raw[:at] + draw.randbytes(size) + raw[at:]
        elif draw.random() < 0.1:
            raw = b""
    return raw


def malformed(content, draw: random.Random):
    """The content with one to three values that are gone, moved, or of another kind."""
    content = copy.deepcopy(content)
    for _ in range(draw.choice((1, 1, 1, 3))):
        places = [(content, key) for key in keys(content)]
        for holder, key in places:
            places += [(holder[key], inner) for inner in keys(holder[key])]
        if not places:
            break
        holder, key = draw.choice(places)
        kind = draw.choice(("gone", "junk", "junk", "like", "moved"))
        if kind == "gone":
            del holder[key]
        elif kind == "junk":
            holder[key] = copy.deepcopy(draw.choice(JUNK))
        elif kind == "like":
            holder[key] = like(holder[key], draw)
        else:
            other, name = draw.choice(places)
            with contextlib.suppress(LookupError, TypeError):
                holder[key] = copy.deepcopy(other[name])
    return content


def keys(value) -> list:
    return (
        list(value)
        if isinstance(value, dict)
        else [*range(len(value))]
        if type(value) is list
        else []
    )


def like(value, draw: random.Random):
    """Nearly the same: another number, another shape or dtype, a word with a letter less."""
    if isinstance(value, torch.Tensor):
        value = draw.choice(
            (value[:1] if value.dim() else value[None], value.to(torch.int8), value.double())
        )
        return value.clone()
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, (int, float)):
        return draw.choice((-value, value + 1, value * 1000, float(value), str(value)))
    if isinstance(value, str):
        return value[:-1]
    return [value] if isinstance(value, dict) else dict.fromkeys(map(str, value))


# Kinds: each writes a changed file, and gives the command that reads it.


def archive(draw: random.Random) -> list[str]:
    LAST.write_bytes(damaged(LAST.read_bytes(), draw))
    return draw.choice((PREDICT, PREDICT, PREDICT, GOING_ON))


def state(draw: random.Random) -> list[str]:
    content = malformed(torch.load(LAST, weights_only=True), draw)
    torch.save(content, LAST)
    return draw.choice((GOING_ON, GOING_ON, PREDICT, ["test", "--ckpt_path", str(LAST)]))


def configuration(draw: random.Random) -> list[str]:
    text = CONFIG.read_bytes()
    if draw.random() < 0.5:
        content = malformed(yaml.safe_load(text), draw)
        CONFIG.write_text(yaml.safe_dump(content, allow_unicode=False))
    else:
        CONFIG.write_bytes(damaged(text, draw))
    return draw.choice((GOING_ON, ["test", "--ckpt_path", "last", "--experiment", "Digits"]))


def picture(draw: random.Random) -> list[str]:
    file = draw.choice(sorted(PICTURES.rglob("*.*")))
    file.write_bytes(damaged(file.read_bytes(), draw))
    if draw.random() < 0.5:
        return [*PREDICT[:-1], str(file)]
    kept = draw.choice(([], ["--data.memory_gib", "0", "--data.num_workers", "0"]))
    small = [*SMALL, "--data.batch_size", "4", "--data.exif", draw.choice(("true", "false"))]
    return ["fit", *small, *FOLDER, *kept]


def study(draw: random.Random) -> list[str]:
    _change(STUDY / "study.db", draw)
    return [*SWEEP, *SMALL]


def comparison(draw: random.Random) -> list[str]:
    _change(COMPARISON / "study.db", draw)
    return COMPARE


def _change(file: Path, draw: random.Random) -> None:
    if draw.random() < 0.5:
        file.write_bytes(damaged(file.read_bytes(), draw))
    else:
        rewrite(file, draw)


def rewrite(file: Path, draw: random.Random) -> None:
    """Another value in a field of a table, or a row or a table less."""
    import sqlite3

    with contextlib.closing(sqlite3.connect(file)) as base:
        base.execute("PRAGMA foreign_keys = OFF")
        tables = [
            name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type='table'")
        ]
        table = draw.choice([t for t in tables if list(base.execute(f"SELECT 1 FROM {t}"))])
        column = draw.choice([row[1] for row in base.execute(f"PRAGMA table_info({table})")])
        row = draw.choice([i for (i,) in base.execute(f"SELECT rowid FROM {table}")])
        value = draw.choice(
            (None, "", "junk", "{}", "[]", "null", -1, 2**40, 1e300, "NaN", b"\xff")
        )
        kind = draw.choice(("value", "value", "value", "row", "table"))
        with contextlib.suppress(sqlite3.Error):
            if kind == "value":
                base.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (value, row))
            elif kind == "row":
                base.execute(f"DELETE FROM {table} WHERE rowid = ?", (row,))
            else:
                base.execute(f"DROP TABLE {table}")
        base.commit()


KINDS = {f.__name__: f for f in (archive, state, configuration, picture, study, comparison)}


def torture(folder: Path, kind: str, seeds, say=print) -> tuple[Counter, list[str]]:
    """(how the inputs of these seeds ended, what was wrong); `folder` is one that was prepared."""
    ends, wrong = Counter(), []
    for seed in seeds:
        place = Path(tempfile.mkdtemp(prefix="torture-"))
        try:
            shutil.copytree(folder, place, dirs_exist_ok=True)
            os.chdir(place)
            draw = random.Random(f"{kind} {seed}")
            args = KINDS[kind](draw)
            started = time.monotonic()
            status, out, err = run(args)
            took = time.monotonic() - started
            lines = [line for line in err.splitlines() if line.startswith("train.py: ")]
            right = status == 0 or (status == 2 and len(lines) == 1 and "Traceback" not in err)
            right = right and not [*Path().rglob("code_ran")]
            ends[str(status)] += 1
            if not right:
                wrong.append(f"{kind} {seed}: {args[0]} {status} after {took:.0f} s: {err[-1500:]}")
                say(wrong[-1])
        finally:
            os.chdir(folder)
            shutil.rmtree(place, ignore_errors=True)
    return ends, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int, nargs="?", default=500)
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--seed", type=int, default=0, help="the first")
    given = parser.parse_args()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for kind in given.kind or KINDS:
            seeds = range(given.seed, given.seed + given.count)
            ends, wrong = torture(Path(folder), kind, seeds)
            failed += len(wrong)
            said = ", ".join(f"{n} of status {status}" for status, n in sorted(ends.items()))
            print(f"{kind}: {given.count} inputs: {said}; wrong: {len(wrong)}", flush=True)
        os.chdir("/")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
