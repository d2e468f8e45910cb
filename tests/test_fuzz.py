"""Three hundred random programs around converted models; ``python tests/fuzz.py`` runs as many as wanted."""

import gc

import pytest
from fuzzing.generate import generate
from fuzzing.minimise import minimise
from fuzzing.printing import printed
from fuzzing.running import FAILURES, admitted, judge

PARTS = 10


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(PARTS))
def test_programs(part):
    """The same as without convert, whatever is called, changed, written over; both keeps, two dtypes."""
    gc.collect()
    for seed in range(part, 300, PARTS):
        program, expected = admitted(generate(seed))
        verdict = judge(program, expected)
        if verdict.kind in FAILURES:
            program = minimise(program, verdict.key())
            pytest.fail(f"{verdict.kind}: {verdict.text}\n\n{printed(program, judge(program))}")
