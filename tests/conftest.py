"""What all tests share. One thread a process: the tensors are small, and two only wait for each other."""

import gc
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from versions import versions

torch.set_num_threads(1)
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


def pytest_collection_modifyitems(config, items):
    """Of the rows of a test that is marked one_in(n) each n-th runs; EVERY_ROW in the environment: all."""
    if "EVERY_ROW" in os.environ:
        return
    rows, left_out = Counter(), []
    for item in items:
        if mark := item.get_closest_marker("one_in"):
            test = item.nodeid.partition("[")[0]
            if rows[test] % mark.args[0]:
                left_out.append(item)
            rows[test] += 1
    config.hook.pytest_deselected(items=left_out)
    dropped = set(left_out)
    items[:] = [item for item in items if item not in dropped]


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
