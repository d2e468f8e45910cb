"""Several processes: data parallel, sharded, and modules that are sent from one to another."""

import time

import pytest
import regimes_processes as work
import torch
from regimes_cases import CASES, assert_same
from torch import multiprocessing


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """All gradients of two processes, made once: to start them costs seconds."""
    path = tmp_path_factory.mktemp("together")
    work.together(work.distribute, path)
    return torch.load(path / "found.pt")


def one_process(name):
    """torch's own layers, in one process, on the joined batch."""
    _, model = work.MODELS[name]()
    halves = [work.loss(model(work.half(work.batch(), rank))) for rank in range(work.WORLD)]
    (sum(halves) / work.WORLD).backward()
    return model


WAYS = ["ddp", "ddp, accumulated", "ddp, static graph", "fully_shard", "fully_shard, each layer"]


def test_gradients_of_two_processes_are_those_of_one(found):
    # One test, so that one worker of pytest-xdist starts the processes once.
    assert set(found) == {
        (name, way) for name in work.MODELS for way in [*WAYS, "step", "step, each layer"]
    }
    for name in work.MODELS:
        model = one_process(name)
        want = [p.grad for p in model.parameters()]
        assert all(g.abs().sum() > 0 for g in want)
        for way in WAYS:
            assert_same(found[name, way], want, 1e-12)
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        for way in ("step", "step, each layer"):
            assert_same(found[name, way], [p.detach() for p in model.parameters()], 1e-12)


def test_a_process_that_fails_does_not_hang_the_other(tmp_path):
    began = time.monotonic()
    with pytest.raises(multiprocessing.ProcessRaisedException, match="rank 1 fails on purpose"):
        work.together(work.one_fails, tmp_path)
    assert time.monotonic() - began < work.WAIT


def test_processes_that_never_end_are_ended(tmp_path):
    with pytest.raises(TimeoutError, match="did not end"):
        work.together(work.never_ends, tmp_path, wait=1)


def test_every_module_can_be_sent_to_another_process():
    """By spawn: pickled here, differentiated there, to the last bit the same."""
    modules = [case.pair()[0] for case in CASES]
    tensors = [case.sample() for case in CASES]
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=work.compute, args=(modules, tensors, answers), daemon=True)
    process.start()
    got = []
    try:
        for _ in modules:
            assert answers._reader.poll(60), "no answer within 60 s"
            got.append([torch.from_numpy(a) for a in answers.get()])
        process.join(30)
        assert process.exitcode == 0
    finally:
        if process.is_alive():
            process.kill()
            process.join()
    for case, answer, given in zip(CASES, got, tensors, strict=True):
        module, _ = case.pair()
        x, *rest = given
        x = x.clone().requires_grad_()
        torch.manual_seed(7)
        out = module(x, *rest)
        grads = torch.autograd.grad(out, [x, *module.parameters()], work.incoming(out))
        assert all(torch.equal(a, b) for a, b in zip(answer, (out, *grads), strict=True)), case.id
