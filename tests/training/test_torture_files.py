"""A few inputs of each kind of tests/support/torture_files.py; `make torture` takes 500."""

import pytest
import torture_files


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        torture_files.prepare(folder)
    return folder


@pytest.mark.parametrize("kind", torture_files.KINDS)
def test_a_malformed_file_ends_in_one_line(prepared, kind, monkeypatch):
    monkeypatch.chdir(prepared)
    count = 1 if kind in ("study", "comparison") else 3  # which take seconds each
    ends, wrong = torture_files.torture(prepared, kind, range(count), say=lambda line: None)
    assert not wrong
    assert set(ends) <= {"0", "2"} and sum(ends.values()) == count
