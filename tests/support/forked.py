"""train.py's command line in processes of their own, forked from one that has imported everything.

An import takes seconds, a small run half a second. The process that forks has one thread, because it
starts none: this file runs as a script there, and reads one job a line from its standard input.
"""

import atexit
import functools
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "train.py"


@dataclass
class Run:
    """A run in `folder` as process `pid`; its output is in files beside what it makes there."""

    pid: int
    folder: Path
    number: int
    server: "Server"

    def wait(self, seconds: float = 60) -> int:
        """The exit status, -9 for SIGKILL; fails if the process is still there after `seconds`."""
        code = self.server._ask(wait=self.pid, seconds=seconds)
        if code is None:
            os.kill(self.pid, signal.SIGKILL)
        assert code is not None, f"still running after {seconds} s: {self.err}"
        return code

    @property
    def out(self) -> str:
        return (self.folder / f"out.{self.number}").read_text()

    @property
    def err(self) -> str:
        return (self.folder / f"err.{self.number}").read_text()

    @property
    def message(self) -> str:
        """The one line that the command line ends with."""
        assert "Traceback" not in self.err, self.err
        lines = [line for line in self.err.splitlines() if line.startswith("train.py: ")]
        assert len(lines) == 1, self.err
        return lines[0]


class Server:
    def __init__(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._count = 0
        atexit.register(self._end)

    def start(self, folder: Path, args: list, plant: list | None = None, env: dict | None = None):
        """Starts a run; `plant` names a function of this file, with arguments, called before it."""
        folder.mkdir(exist_ok=True)
        self._count += 1
        args = [str(arg) for arg in args]
        job = {"args": args, "plant": plant, "env": env or {}, "number": self._count}
        pid = self._ask(start=str(folder), **job)
        return Run(pid, folder, self._count, self)

    def run(self, folder: Path, *args, plant: list | None = None) -> tuple[int, Run]:
        """Runs to the end: (exit status, the run)."""
        run = self.start(folder, [*args], plant)
        return run.wait(), run

    def _end(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)

    def _ask(self, **job):
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@functools.cache
def server() -> Server:
    """One for all tests of this process."""
    return Server()


# What happens in the process that forks.


def serve() -> None:
    running: set[int] = set()
    for line in sys.stdin:
        job = json.loads(line)
        if "start" in job:
            answer = _started(job)
            running.add(answer)
        elif (answer := _ended(job)) is not None:
            running.remove(job["wait"])
        print(json.dumps(answer), flush=True)
    for pid in running:  # a test that failed leaves its run, which would train for hours
        os.kill(pid, signal.SIGKILL)


def _ended(job: dict) -> int | None:
    end = time.monotonic() + job["seconds"]
    while time.monotonic() < end:
        pid, status = os.waitpid(job["wait"], os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def _started(job: dict) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.chdir(job["start"])
        for name, number in (("out", 1), ("err", 2)):
            file = os.open(f"{name}.{job['number']}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(job["env"])
        if job["plant"]:
            name, *arguments = job["plant"]
            globals()[name](*arguments)
        sys.argv[:] = [str(SCRIPT), *job["args"]]  # what Lightning starts other processes with
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as ended:
        status = ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ascii_alone() -> None:
    """What is printed to knows no letter but ASCII's, as with PYTHONIOENCODING=ascii."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="ascii", errors="strict")


def into_pipe(name: str, unbuffered: bool) -> None:
    """What is printed goes into this pipe, once somebody reads it: as with PYTHONUNBUFFERED, or without it."""
    os.dup2(os.open(name, os.O_WRONLY), 1)
    raw = io.FileIO(1, "w", closefd=False)
    sys.stdout = io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw), write_through=unbuffered
    )


def at_step(name: str, number: int, sent: str) -> None:
    """A signal in the number-th training_step or validation_step."""
    step, count = getattr(ImageClassifier, name), itertools.count(1)

    @functools.wraps(step)  # Lightning looks at its arguments
    def signalled(*args):
        if next(count) == number:
            os.kill(os.getpid(), getattr(signal, sent))
        return step(*args)

    setattr(ImageClassifier, name, signalled)


def twice_in_a_step(number: int, sent: str) -> None:
    """The same signal twice before the number-th step has ended."""
    at_step("training_step", number, sent)
    at_step("training_step", number, sent)


def both_at_step(*step) -> None:
    """at_step in each of two processes, as a cluster sends it."""
    forking_launcher()
    at_step(*step)


def hangs_at_step(
    number: int,
    rank: str = "1",
    at_work: bool = False,
    hook: str = "training_step",
    stopped: float = 4.0,
) -> None:
    """One of two processes never leaves the number-th call of a hook; `at_work`: it is not idle."""
    forking_launcher(None, stopped)
    step, count = getattr(ImageClassifier, hook), itertools.count(1)

    @functools.wraps(step)
    def endless(*args):
        while os.environ.get("LOCAL_RANK", "0") == rank and next(count) >= number:
            time.sleep(0.0 if at_work else 0.1)
        return step(*args)

    setattr(ImageClassifier, hook, endless)


def slow_steps(hook: str, how: str, *seconds: float) -> None:
    """Two processes that may stand still for half a second; the calls of a hook work for so long.

    how: "itself", or in children of a child ("below"), or in short ones, one after another ("many").
    """
    forking_launcher(None, 0.5)
    step, durations = (
        getattr(ImageClassifier, hook),
        itertools.chain(seconds, itertools.repeat(0.0)),
    )

    @functools.wraps(step)
    def slow(*args):
        end = time.monotonic() + next(durations)
        while (left := end - time.monotonic()) > 0:
            if how == "below":
                loop = f"timeout {left} sh -c 'while :; do :; done' | cat"
                subprocess.run(["sh", "-c", loop])
            if how == "many":
                subprocess.run(["timeout", "0.3", "sh", "-c", "while :; do :; done"])
        return step(*args)

    setattr(ImageClassifier, hook, slow)


def in_save(number: int) -> None:
    """In the middle of the number-th checkpoint's bytes."""
    save, count = torch.save, itertools.count(1)

    def half(content, file):
        if isinstance(file, io.BytesIO) or next(count) < number:
            return save(content, file)
        whole = io.BytesIO()
        save(content, whole)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        _kill()

    torch.save = half


def ctrl_c_in_write(number: int) -> None:
    """In torch.save's third write of the number-th checkpoint, which then ends its archive anyhow."""
    save, count = torch.save, itertools.count(1)

    def interrupted(content, file):
        if isinstance(file, io.BytesIO):  # a trial, not a checkpoint
            return save(content, file)
        writes = itertools.count(1 if next(count) == number else 4)

        def write(data):
            if next(writes) == 3:
                signal.raise_signal(signal.SIGINT)
            return file.write(data)

        return save(content, types.SimpleNamespace(write=write, flush=file.flush))

    torch.save = interrupted


def at_replace(number: int, name: str, after: bool) -> None:
    """Before or after a file whose name begins like this is put in its place for the number-th time."""
    replace, count = os.replace, itertools.count(1)

    def stop(source, target):
        hit = Path(target).name.startswith(name) and next(count) == number
        if hit and not after:
            _kill()
        replace(source, target)
        if hit:
            _kill()

    os.replace = stop


def small_files(size: int) -> None:
    """No file may become larger: a write fails as on a full disk, with another error number."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def full_disk(name: str, number: int) -> None:
    """The number-th file with a name like this finds room for half of what is written, later ones too.

    TensorBoard opens its file for each record.
    """
    real, count = builtins.open, itertools.count(1)

    class Full(io.FileIO):
        def write(self, data):
            super().write(bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opened(file, mode="r", *args, **kwargs):
        ours = not isinstance(file, int) and name in os.fsdecode(file) and mode in ("wb", "ab")
        if ours and next(count) >= number:
            return io.BufferedWriter(Full(file, mode[0]))
        return real(file, mode, *args, **kwargs)

    builtins.open = io.open = opened
    if hasattr(pathlib, "_NormalAccessor"):  # Python 3.10 keeps the function that it found
        pathlib._NormalAccessor.open = staticmethod(opened)


def folder_goes(name: str, number: int) -> None:
    """The folder is away at the number-th checkpoint, and a file stands in its place."""
    save, count = torch.save, itertools.count(1)

    def gone(content, file):
        if not isinstance(file, io.BytesIO) and next(count) == number:
            Path(name).rename("away")
            Path(name).write_text("")
        return save(content, file)

    torch.save = gone


def forking_launcher(status: int | None = None, stopped: float | None = None) -> None:
    """Lightning starts the other processes by forking; with a `status`, they end with it at once.

    stopped: The seconds that they wait for one that stands still, or hangs.
    """
    if stopped is not None:
        processes.STOPPED = heartbeat.Heartbeat.seconds = stopped
        processes.GRACE, heartbeat.IDLE = 1.0, 1.0

    class Forked:
        def __init__(self, command, env, cwd):
            self.returncode = None
            arguments = sys.argv[1:]
            self.pid = os.fork()
            if self.pid:
                Path(f"pid.{env['LOCAL_RANK']}").write_text(str(self.pid))
                return
            if status is not None:
                os._exit(status)
            os.environ.update(env)
            rank_zero_only.rank = int(env["LOCAL_RANK"])
            code = 1
            try:
                code = cli.main(arguments)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

        def poll(self):
            if self.returncode is None:
                pid, code = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(code) if pid else None
            return self.returncode

        def send_signal(self, number):
            if self.poll() is None:
                os.kill(self.pid, number)

        def kill(self):
            self.send_signal(signal.SIGKILL)

    subprocess_script.subprocess = types.SimpleNamespace(Popen=Forked)


if __name__ == "__main__":
    import builtins
    import errno
    import io
    import itertools
    import pathlib
    import resource
    import runpy
    import signal
    import tempfile
    import traceback
    import types

    import torch
    from lightning.pytorch.strategies.launchers import subprocess_script
    from lightning.pytorch.utilities import rank_zero_only

    from manualnn.training.cli import command as cli
    from manualnn.training.model.classifier import ImageClassifier
    from manualnn.training.run import heartbeat, processes

    torch.set_num_threads(1)
    home, answers = os.getcwd(), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        # What is made at the first run is made once, too.
        first = "fit --model.hidden_units [4] --trainer.accelerator cpu --trainer.max_epochs 1"
        assert cli.main(f"{first} --trainer.enable_progress_bar false".split()) == 0
        os.chdir(home)
    os.dup2(answers, 1)
    serve()
