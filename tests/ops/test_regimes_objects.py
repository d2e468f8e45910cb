"""Modules as objects: copies, files, repr, signatures; as torch's twins."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from regimes_cases import CASES, WRITING, assert_same, blocks, each, each_case, network, step

from manualnn import nn

EVERY = CASES + WRITING
MIRRORED = sorted({c.name for c in CASES if c.twin is None})


def saved(module):
    """Through torch.save of the whole module."""
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def stated(module):
    """A new module with the state that torch.save wrote and the safe reader read."""
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(module)
    for p in other.parameters():
        p.data.zero_()
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    return other


WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "pickle 2": lambda m: pickle.loads(pickle.dumps(m, protocol=2)),
    "save": saved,
    "state_dict": stated,
}


@each(EVERY)
def test_a_copy_computes_the_same(case):
    for way in WAYS:
        copy_agrees(case, way)


def copy_agrees(case, way):
    mine, other = case.pair()
    before = step(mine, case.sample())
    twin = WAYS[way](mine)
    assert type(twin) is type(mine) and twin is not mine
    assert repr(twin) == repr(mine) and twin.training is mine.training
    assert_same(step(twin, case.sample()), before, 0.0)
    assert_same(before, step(other, case.sample()), case.close)
    for a, b in zip(twin.parameters(), mine.parameters(), strict=True):
        assert (a is b) is (way == "copy")
        assert a.requires_grad is b.requires_grad


@pytest.mark.parametrize("way", WAYS)
def test_copies_of_a_converted_model(way):
    mine, other = blocks(p=0.4)
    mine[0].weight.requires_grad_(False)
    x = torch.randn(4, 6, dtype=torch.float64)
    twin = WAYS[way](mine)
    assert [type(m) for m in twin] == [type(m) for m in mine]
    assert not twin[0].weight.requires_grad
    for model in (twin, other):
        model[0].weight.requires_grad_()
    assert_same(step(twin, [x]), step(other, [x]))


def test_copies_keep_weights_tied():
    model = nn.Sequential(nn.Linear(6, 6), nn.PReLU(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    for way in ("deepcopy", "pickle", "save"):
        twin = WAYS[way](model)
        assert twin[2].weight is twin[0].weight and twin[0].weight is not model[0].weight


@each_case
def test_state_is_exchanged_with_torchs_twin(case):
    mine, other = case.pair()
    assert list(mine.state_dict()) == list(other.state_dict())
    assert mine.state_dict().keys() == dict(other.state_dict()).keys()
    for p in other.parameters():
        p.data.mul_(1.5)
    mine.load_state_dict(other.state_dict(), strict=True)
    assert_same(step(mine, case.sample()), step(other, case.sample()), case.close)


def test_the_safe_reader_reads_our_state_without_knowing_us():
    file = io.BytesIO()
    torch.save({c.id: c.pair()[0].state_dict() for c in CASES}, file)
    assert b"manualnn" not in file.getvalue()
    file.seek(0)
    assert set(torch.load(file, weights_only=True)) == {c.id for c in CASES}


@each([c for c in CASES if c.name != "MLP"])
def test_the_safe_reader_refuses_a_whole_module_as_torchs(case):
    for module in case.pair():
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            torch.load(file, weights_only=True)


# --- what one sees -----------------------------------------------------------------------------


@each(EVERY)
def test_repr(case):
    mine, other = case.pair()
    want = repr(other).replace("Sequential", "MLP", 1) if case.name == "MLP" else repr(other)
    assert repr(mine) == want
    assert mine.extra_repr() == other.extra_repr()


@pytest.mark.parametrize("name", MIRRORED)
def test_signature_and_constants(name):
    mine, other = getattr(nn, name), getattr(torch.nn, name)
    assert issubclass(mine, other) and mine.__name__ == other.__name__
    assert mine.__qualname__ == name and mine.__module__.startswith("manualnn.nn")
    assert inspect.signature(mine) == inspect.signature(other)
    ours, theirs = (inspect.signature(c.forward).parameters for c in (mine, other))
    assert list(ours) == list(theirs)
    assert [p.default for p in ours.values()] == [p.default for p in theirs.values()]
    assert getattr(mine, "__constants__", None) == getattr(other, "__constants__", None)


def outcome_of(make):
    try:
        return make(), None
    except Exception as error:
        return None, error


BAD = [
    ("Dropout", (-0.1,)),
    ("Dropout", (1.1,)),
    ("Dropout1d", (2,)),
    ("Dropout2d", (-1,)),
    ("AlphaDropout", (1.5,)),
    ("Hardtanh", (1.0, -1.0)),
    ("Linear", (-1, 2)),
    ("Linear", ("a", 2)),
    ("Linear", ()),
    ("PReLU", (-1,)),
    ("ReLU", (False, 1)),
    ("HuberLoss", ("mean", 0.0)),
    ("SmoothL1Loss", (None, None, "mean", -1.0)),
]


@pytest.mark.parametrize("name, args", BAD, ids=str)
def test_bad_arguments_are_refused_alike(name, args):
    """At the latest by forward."""

    def run(library):
        module = getattr(library, name)(*args)
        x = torch.ones(2, 3)
        return module(x, x) if name.endswith("Loss") else module(x)

    (_, mine), (_, other) = (outcome_of(lambda lib=lib: run(lib)) for lib in (nn, torch.nn))
    assert other is not None and type(mine) is type(other) and str(mine) == str(other)


@each([c for c in CASES if c.name in ("Linear", "PReLU", "MLP")])
def test_device_and_dtype_of_the_constructor(case):
    args, kwargs = case.arguments()
    make = getattr(nn, case.name)
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.complex64):
        assert {p.dtype for p in make(*args, **kwargs, dtype=dtype).parameters()} == {dtype}
    made = make(*args, **kwargs, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in made.parameters()} == {("meta", torch.float64)}
    torch.set_default_dtype(torch.float64)
    try:
        assert {p.dtype for p in make(*args, **kwargs).parameters()} == {torch.float64}
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name, args", [("Linear", (6, 5)), ("PReLU", (4,))], ids=str)
def test_the_same_first_parameters_from_the_same_seed(name, args):
    made = []
    for library in (nn, torch.nn):
        torch.manual_seed(4)
        made.append(list(getattr(library, name)(*args).parameters()))
    assert_same(*made, 0.0)


def test_an_mlp_draws_its_first_parameters_as_the_sequential_does():
    case = network([6, 5, 4, 3], "ReLU", dropout=0.4)
    torch.manual_seed(4)
    mine = list(nn.MLP(*case.args, **case.kwargs).parameters())
    torch.manual_seed(4)
    assert_same(mine, list(case.twin().parameters()), 0.0)


@each(EVERY)
def test_moved_to_another_dtype_and_back(case):
    mine, other = case.pair()
    for module in (mine, other):
        module.half().double()
    assert_same(step(mine, case.sample()), step(other, case.sample()), case.close)
    assert {p.dtype for p in mine.parameters()} <= {torch.float64}


@each_case
def test_train_and_eval_and_requires_grad(case):
    mine, other = case.pair()
    assert mine.eval().training is False and mine.train().training is True
    for module in (mine, other):
        module.eval().requires_grad_(False)
    tensors = case.sample()
    out, want = mine(*tensors), other(*tensors)
    assert out.requires_grad is want.requires_grad is False
    assert_same([out], [want], case.close)
