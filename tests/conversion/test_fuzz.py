"""Random programs around converted models; ``python tests/support/fuzz.py`` runs as many as wanted."""

import contextlib
import io

import fuzz
import pytest
import torch
from fuzzing import running
from fuzzing.generate import generate
from fuzzing.minimise import minimise
from fuzzing.printing import printed
from fuzzing.running import FAILURES, OK, ROUNDED, WRONG, admitted, judge

from manualnn import convert
from manualnn.autograd import faces, spare
from manualnn.memory import recorder

PARTS = 10
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("part", range(PARTS))
def test_programs(part, monkeypatch):
    """The same as without convert, whatever is called, changed, written over; both keeps, two dtypes."""
    monkeypatch.setattr(recorder, "LEAST", fuzz.SMALL[part % len(fuzz.SMALL)])
    if part % 2:
        monkeypatch.setattr(faces, "LARGE", 0)
        monkeypatch.setattr(spare, "LARGE", 0)
    for seed in range(part, 300, PARTS):
        program, expected = admitted(generate(seed))
        verdict = judge(program, expected)
        if verdict.kind in FAILURES:
            program = minimise(program, verdict.key())
            pytest.fail(f"{verdict.kind}: {verdict.text}\n\n{printed(program, judge(program))}")


def test_a_seed_is_a_program():
    for seed in range(6):
        assert generate(seed).source() == generate(seed).source()
        for keep in ("less", "all"):
            for dtype in ("float32", "float64"):
                program = generate(seed, dtype, keep)
                assert (program.keep, program.dtype) == (keep, dtype)


def wrong_norms(model, keep):
    for module in convert(model, keep=keep).modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps *= 100
    return model


def raising_norms(model, keep):
    def refuse(*_):
        raise RuntimeError("recomputed in vain")

    for module in convert(model, keep=keep).modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_hook(refuse)
    return model


@pytest.mark.parametrize("fault, kind", [(wrong_norms, WRONG), (raising_norms, "raises")])
def test_a_fault_is_found_and_made_small(fault, kind, monkeypatch):
    monkeypatch.setattr(running, "convert", fault)
    found = [
        (s, v) for s in range(24) for _, v in [fuzz.verdict_of((s, None, None))] if v.kind == kind
    ]
    assert len(found) > 1
    seed, verdict = found[0]
    program = minimise(admitted(generate(seed))[0], verdict.key())
    assert judge(program).kind == kind
    assert len(program.layers) == 1 and "LayerNorm" in program.layers[0].text
    assert program.size() < 18


def test_a_printed_program_runs_alone():
    for seed in range(3):
        program, _ = admitted(generate(seed, keep="less"))
        if judge(program).kind not in (OK, ROUNDED):
            continue
        said = io.StringIO()
        before = torch.get_default_dtype()
        try:
            with contextlib.redirect_stdout(said):
                exec(compile(printed(program), "<printed>", "exec"), {"__name__": "printed"})
        finally:
            torch.set_default_dtype(before)
        assert said.getvalue().startswith("largest differences from torch: [")


def test_the_command_line(capsys):
    assert fuzz.main(["--seeds", "0:4", "--dtype", "float64"]) in (0, 1)
    assert "4 programs" in capsys.readouterr().out


@pytest.fixture(scope="module", autouse=True)
def no_process_group_is_left():
    yield
    if torch.distributed.is_initialized():  # a program's: others' SyncBatchNorm would take it
        torch.distributed.destroy_process_group()
