"""manualnn.check over two catalogues: every wrong function is found and named, no right one is accused."""

import re

import pytest
from catalogue import Entry
from right_functions import RIGHT
from wrong_functions import WRONG

import manualnn
from manualnn.tools.checks.report import FAILED

# What needs seconds and finds none of these: compiling, and the figures of cost.
SKIP = ("compile", "bytes saved for backward", "time, forward and backward")


def named(entries):
    return pytest.mark.parametrize("entry", entries, ids=lambda entry: entry.name)


def report_on(entry: Entry):
    positional, keywords = entry.inputs()
    return manualnn.check(entry.target, *positional, kwargs=keywords, skip=SKIP, **entry.options)


@named(WRONG)
@pytest.mark.one_in(3)
def test_a_wrong_function_is_found_and_named_first(entry):
    report = report_on(entry)
    failed = [line for line in report.lines if line.status == FAILED]
    assert not report and failed, f"{entry.kind}: not found\n{report}"
    first = f"{failed[0].name}: {failed[0].detail} {failed[0].where}"
    assert any(re.search(words, first, re.IGNORECASE) for words in entry.words), first
    assert failed[0] == report.failures[0] and failed[0].name in str(report).splitlines()[0]


@named(RIGHT)
@pytest.mark.one_in(3)
def test_a_right_function_is_not_accused(entry):
    report = report_on(entry)
    accused = [line for line in report.lines if line.status == FAILED]
    assert not accused, f"{entry.kind}: accused\n{report}"


def test_the_lists_are_as_long_as_they_say():
    for entries, least in ((WRONG, 148), (RIGHT, 162)):
        assert len({entry.name for entry in entries}) == len(entries) >= least
