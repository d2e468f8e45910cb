"""What the tests of `python -m manualnn` share."""

import pytest

from manualnn.__main__ import main


def runner(tool):
    """run(capsys, *arguments) is the tool's (exit status, output, errors)."""

    def run(capsys, *arguments):
        status = main([tool, *arguments])
        return status, *capsys.readouterr()

    return run


def module_of_ones_own(name, source):
    """A fixture: a folder in which a person has written this module, and in which the tool is run."""

    @pytest.fixture
    def theirs(tmp_path, monkeypatch):
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(tmp_path))
        return tmp_path

    return theirs
