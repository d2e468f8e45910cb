"""What all tests share. One thread a process: the tensors are small, and two only wait for each other."""

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from versions import versions

from manualnn.autograd import faces, spare
from manualnn.memory import recorder

torch.set_num_threads(1)
# What is done with large tensors is done with a test's small ones, in every regime.
recorder.LEAST = faces.LARGE = spare.LARGE = 0
# A shell ignores it for what it runs in the background, and so would each process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The secret of the trainer's seals is not the one of who runs the tests.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp()
# manual_seed keeps the stack of its caller for each kind of device that is not there: a millisecond
# a call, and the search for garbage goes through them all.
for device in (torch.cuda, torch.xpu, torch.mtia):
    if not device.is_available():
        device.manual_seed_all = lambda seed: None
sys.path.append(str(Path(__file__).parents[1] / "examples"))


def pytest_sessionstart(session):
    """The versions first. pytest_report_header would say nothing under -q."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:  # a worker of xdist has none
        reporter.write_line(versions())


def pytest_addoption(parser):
    parser.addoption(
        "--op", metavar="NAME", help="the rows of this op alone, all of them: --op gelu"
    )


def pytest_configure(config):
    """An op that no row has is refused: to run no test would look like success."""
    if name := config.getoption("--op"):
        from ops import OPS

        if name not in (names := {op.name for op in OPS}):
            raise pytest.UsageError(
                f"no row of tests/support/ops.py is of {name!r}: {', '.join(sorted(names))}"
            )


def pytest_collection_modifyitems(config, items):
    """Which rows run: with --op those of the op, all of them, else what `thinned` leaves."""
    op = config.getoption("--op")
    chosen = [item for item in items if _row_of(item) == op] if op else thinned(items)
    kept = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = chosen


def thinned(items):
    """Of the rows of a test that is marked one_in(n) each n-th; with EVERY_ROW in the environment all."""
    if "EVERY_ROW" in os.environ:
        return items[:]
    rows, left = Counter(), []
    for item in items:
        mark, test = item.get_closest_marker("one_in"), item.nodeid.partition("[")[0]
        if not mark or rows[test] % mark.args[0] == 0:
            left.append(item)
        rows[test] += 1
    return left


def _row_of(item):
    """The name of the op whose row an item runs over, if it runs over rows."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return getattr(parameters.get("op"), "name", None)


def pytest_collection_finish(session):
    """What has been imported stays: no search for garbage looks through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def what_earlier_modules_left_stays():
    """A compiler's caches above all: what looks for garbage in a test takes ten times as long with them."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command line in a folder of its own: run("fit", ...) is the exit status."""
    from command_line import train  # the training is not every test's to import

    return lambda *args: train(tmp_path, *args, monkeypatch=monkeypatch)


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with trained classifiers and pictures for them; see `trained_runs`."""
    from trained_runs import trained_in

    folder = tmp_path_factory.mktemp("trained")
    trained_in(folder)
    return folder


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """What fit leaves of a small network's first epoch on Digits: for tests of what comes after."""
    from command_line import SMALL, train

    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        args = ["fit", *SMALL, "--trainer.max_epochs", "1"]
        assert train(folder, *args, monkeypatch=patch) == 0
    return folder / "logs"


@pytest.fixture
def trained(run, small_run, tmp_path):
    """The command line in a folder of its own, in which there is a small run already."""
    shutil.copytree(small_run, tmp_path / "logs")
    return run
