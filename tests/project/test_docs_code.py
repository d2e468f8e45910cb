"""What the documentation and the files of the root show is true: their code runs, their commands exist."""

import doctest
import re
from pathlib import Path

import pytest
import torch

from manualnn.__main__ import main as tools

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
)
FLAGS = doctest.ELLIPSIS
CHOSEN = ("--optimizer", "--lr_scheduler")


def blocks(page, *languages):
    """(language, code, line) of the fenced blocks of a page, in order."""
    text = (ROOT / page).read_text()
    for found in re.finditer(r"(?ms)^```(\w+)\n(.*?)^```$", text):
        if found[1] in languages:
            yield found[1], found[2], text[: found.start()].count("\n") + 1


CODE = [page for page in PAGES if any(blocks(page, "python", "pycon"))]


def test_pages_with_code_are_found():
    assert {"README.md", "docs/index.md", "docs/own-layers.md", "docs/equations.md"} <= set(CODE)


@pytest.mark.parametrize("page", CODE)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    """All blocks of a page in one namespace, one after the other, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    scope = {"__name__": "page"}
    for language, code, line in blocks(page, "python", "pycon"):
        if language == "python":
            exec(compile(code, f"{page}, block at line {line}", "exec"), scope)
            continue
        assert code.endswith("\n\n"), f"{page}:{line}: an empty line ends the last output"
        test = doctest.DocTestParser().get_doctest(code, scope, page, page, line)
        test.globs, report = scope, []
        result = doctest.DocTestRunner(verbose=False, optionflags=FLAGS).run(
            test, out=report.append, clear_globs=False
        )
        assert result.attempted and not result.failed, "".join(report)


def commands():
    for page in PAGES:
        for _, code, line in blocks(page, "sh"):
            for command in re.sub(r"\\\n\s*", "", code).splitlines():
                command = command.partition(" #")[0].strip()
                if command:
                    yield pytest.param(command, id=f"{page}:{line}: {command}")


@pytest.fixture(scope="module")
def options():
    """What --help says of the options of train.py's subcommands, those that the pages use."""
    import contextlib
    import io

    from manualnn.training.cli import main

    said = io.StringIO()
    used = {
        found[1] for c in commands() if (found := re.match(r"python train.py (\w+)", c.values[0]))
    }
    for subcommand in sorted(used):
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            main([subcommand, "--help"])
    return set(re.findall(r"--[\w.]+", said.getvalue()))


@pytest.mark.parametrize("command", list(commands()))
def test_a_command_exists(command, options, capsys):
    for path in re.findall(
        r"(?<![\w/])(?:configs|benchmarks|examples|docs)/[\w/{},]+\.\w+", command
    ):
        for name in _alternatives(path):
            assert (ROOT / name).exists() or "--plot" in command, name
    if made := re.match(r"make (\w+)", command):
        assert f"\n{made[1]}:" in (ROOT / "Makefile").read_text()
    if command.startswith("python train.py"):
        for option in re.findall(r"--[\w.]+", command):
            # The options of a class that is chosen stand in the help of that class.
            assert option in options or option.partition(".")[0] in CHOSEN, option
    if tool := re.match(r"python -m manualnn (\w+)", command):
        with pytest.raises(SystemExit) as stop:
            tools([tool[1], "--help"])
        assert stop.value.code == 0
        known = re.findall(r"--[\w.-]+", capsys.readouterr().out)
        assert set(re.findall(r"(?<= )--[\w.-]+", command)) <= set(known)


def _alternatives(path):
    """a/{b,c}.py -> a/b.py, a/c.py"""
    found = re.search(r"\{([^}]*)\}", path)
    return [path.replace(found[0], name) for name in found[1].split(",")] if found else [path]
