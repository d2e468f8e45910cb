"""manualnn.ledger: its sums are what is really retained, its floor is a minimum, it changes nothing."""

import copy
import itertools
import json
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import manualnn
from manualnn.tools.ledgers.floor import Cut
from manualnn.tools.ledgers.live import measure, retained
from manualnn.tools.ledgers.report import bytes_of

MODELS = {
    "resnet18": {},
    "resnet50": {},
    "vgg16_bn": {},
    "densenet121": {},
    "mobilenet_v3_large": {},
    "efficientnet_b0": {},
    "vit_b_16": {"image_size": 64},
    "swin_t": {},
    "convnext_tiny": {},
}


def of_torchvision(name):
    """The model in training mode, without the seconds that its initial weights would take, and with two
    blocks in place of many of a kind."""
    from torchvision import models

    with torch.device("meta"):
        model = models.get_model(name, weights=None, **MODELS[name])
        if name == "vgg16_bn":  # its classifier alone takes half a gigabyte
            model.classifier[0], model.classifier[3] = nn.Linear(25088, 64), nn.Linear(64, 4096)
    if name == "vit_b_16":
        model.encoder.layers = model.encoder.layers[:2]
    elif name in ("swin_t", "convnext_tiny"):  # the third stage, of 6 and of 9
        model.features[5] = model.features[5][:2]
    model = model.to_empty(device="cpu")
    for t in (*model.parameters(), *model.buffers()):
        t.data.fill_(0.01 if t.is_floating_point() else 0)
    return model


def network():
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
    layers += [nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.GELU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 5 * 5, 4))


IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


# bfloat16 is slow on most CPUs: there one model of each kind, and benchmarks/memory.py measures all.
IN_BFLOAT16 = ["resnet18", "vit_b_16"]


@pytest.mark.parametrize(
    "name, autocast",
    [(name, None) for name in MODELS] + [(name, torch.bfloat16) for name in IN_BFLOAT16],
)
@pytest.mark.one_in(3)
def test_the_totals_are_what_is_retained(name, autocast):
    # Two per cent are asked for; it knows every byte.
    model, x = of_torchvision(name), torch.randn(2, 3, 64, 64)
    ledger = manualnn.ledger(model, x, autocast=autocast)
    assert ledger.torch_total == retained(copy.deepcopy(model), x, autocast=autocast)
    assert ledger.total == retained(manualnn.convert(model), x, autocast=autocast)
    assert 0 < ledger.floor <= ledger.total < ledger.torch_total


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory_allocated needs a GPU")
@pytest.mark.parametrize("name", MODELS)
def test_the_totals_are_what_the_gpu_holds(name):
    model, x = of_torchvision(name).cuda(), torch.randn(8, 3, 64, 64, device="cuda")
    ledger = manualnn.ledger(model, x, autocast=torch.bfloat16)
    for total, twin in ((ledger.torch_total, model), (ledger.total, manualnn.convert(model))):
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", torch.bfloat16):
            loss = twin(x).float().sum()
        assert total == pytest.approx(torch.cuda.memory_allocated() - before, rel=0.02)
        del loss


def test_by_hand():
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3))
    ledger = manualnn.ledger(model, torch.randn(5, 4))
    z = 5 * 6 * 4
    theirs = [(e.layer, e.shape, e.dtype, e.bytes, e.why) for e in ledger.torch.entries]
    assert theirs == [
        ("0", (5, 4), "float32", 0, "input of the matrix product: the model's input"),
        ("1", (5, 6), "float32", z, "input of the activation"),
        ("2", (5, 6), "float32", z, "input of the matrix product"),
    ]
    ours = [(e.layer, e.shape, e.bytes, e.why) for e in ledger.ours.entries]
    assert ours == [
        ("0", (5, 4), 0, "input of the matrix product: the model's input"),
        ("1", (5, 6), z, "input of the activation"),
        ("2", (5, 6), 0, "recomputed from 0's output"),
    ]
    assert (ledger.total, ledger.torch_total, ledger.floor, ledger.ratio) == (
        z,
        2 * z,
        z,
        1 / 2,
    )


def test_masks_positions_statistics_and_weights_are_named():
    whys = {e.why for e in manualnn.ledger(network(), IMAGES).ours.entries if e.bytes}
    assert {"statistics of the norm", "positions, a byte a window"} <= whys
    theirs = manualnn.ledger(network(), IMAGES, autocast="bf16").torch.entries
    assert {"weight in bfloat16", "positions, 8 bytes a window"} <= {e.why for e in theirs}
    dropout = nn.Sequential(nn.Linear(4, 64), nn.Dropout(), nn.Linear(64, 1))
    ledger = manualnn.ledger(dropout, torch.randn(128, 4))
    assert ("mask, a bit an element", 128 * 64 // 8) in {
        (e.why, e.bytes) for e in ledger.ours.entries
    }
    assert ("mask in float32", 128 * 64 * 4) in {(e.why, e.bytes) for e in ledger.torch.entries}


class Twice(nn.Module):
    """Two layers read one tensor."""

    def __init__(self):
        super().__init__()
        self.before, self.a, self.b = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        x = self.before(x)
        return self.a(x), {"b": self.b(x), "number": 3}


def test_shared_memory_is_counted_once():
    entries = manualnn.ledger(Twice(), torch.randn(3, 4)).torch.entries
    assert [(e.layer, e.bytes, e.why) for e in entries if e.layer in "ab"] == [
        ("a", 3 * 4 * 4, "input of the matrix product"),
        ("b", 0, "input of the matrix product: counted at a"),
    ]


def test_a_model_is_taken_as_it_is():
    plain = manualnn.ledger(network(), IMAGES)
    less = manualnn.ledger(manualnn.convert(network()), IMAGES)
    everything = manualnn.ledger(manualnn.convert(network(), keep="all"), IMAGES)
    assert plain.total == less.total < everything.total < everything.torch_total
    assert plain.torch_total == less.torch_total == everything.torch_total
    assert plain.floor == less.floor == everything.floor
    twin = manualnn.convert(network(), keep="all")
    assert everything.total == retained(twin, IMAGES)


def test_a_model_of_which_a_part_is_converted():
    model = nn.Sequential(manualnn.convert(network()), nn.GELU(), nn.Linear(4, 2))
    ledger = manualnn.ledger(model, IMAGES)
    assert ledger.total == retained(copy.deepcopy(model), IMAGES)
    assert {e.layer.partition(".")[0] for e in ledger.ours.entries} == {"0", "1", "2"}


def test_a_tensor_that_autograd_does_not_see_is_seen_in_what_is_retained():
    class Leaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.hidden = x * 2
            return x.clone()

        @staticmethod
        def backward(ctx, d):
            return d

    class Layer(nn.Linear):
        def forward(self, x):
            return Leaks.apply(super().forward(x))

    run = manualnn.ledger(Layer(4, 8), torch.randn(2, 4)).torch
    assert (run.total, run.retained) == (0, 2 * 8 * 4)


def test_nothing_is_changed():
    model = nn.Sequential(nn.ReLU(inplace=True), network(), nn.Dropout())
    model(IMAGES.clone()).sum().backward()
    before = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()]
    x, state, types = IMAGES.clone(), torch.get_rng_state(), [type(m) for m in model.modules()]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ledger = manualnn.ledger(model, x)
    assert (
        ledger.torch_total == manualnn.ledger(model, x).torch_total
    )  # the caller's region is not ours
    assert torch.equal(x, IMAGES) and torch.equal(state, torch.get_rng_state())
    assert types == [type(m) for m in model.modules()]
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[0][name]), name
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before[1], strict=True))


def test_evaluation_and_frozen_layers_keep_less():
    model = network()
    training = manualnn.ledger(model, IMAGES)
    model[:4].requires_grad_(False)
    frozen = manualnn.ledger(model, IMAGES)
    assert frozen.total < training.total and frozen.total == retained(
        manualnn.convert(model), IMAGES
    )
    nothing = manualnn.ledger(network().requires_grad_(False), IMAGES, memory="1 GiB")
    assert nothing.total == nothing.torch_total == nothing.floor == 0 and nothing.ratio == 1
    assert "nothing needs a gradient" in str(nothing)


def test_what_cannot_be_measured():
    for wrong in (nn.Linear, torch.relu, "resnet50"):
        with pytest.raises(TypeError, match=r"ledger\(\) takes a torch.nn.Module"):
            manualnn.ledger(wrong, IMAGES)
    with pytest.raises(ValueError, match="autocast must be a dtype or one of bf16"):
        manualnn.ledger(network(), IMAGES, autocast="int8")
    hooks = nn.modules.module
    before = len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks)
    with pytest.raises(RuntimeError) as theirs:
        network()(IMAGES[:, :2])
    with pytest.raises(RuntimeError) as ours:
        manualnn.ledger(network(), IMAGES[:, :2])
    assert str(theirs.value) in str(ours.value)
    assert before == (len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks))
    assert manualnn.ledger(network(), IMAGES).total  # no hook of the one that failed is left


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24 GiB", 24 << 30),
        ("500MB", 500e6),
        ("1.5k", 1536),
        ("7", 7),
        (1e9, 10**9),
        ("80G", 80 << 30),
    ],
)
def test_sizes_of_memory(text, size):
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "24 gigabytes", "-1", 0, None, True, "1e3"])
def test_no_sizes_of_memory(text):
    with pytest.raises(ValueError, match="memory"):
        bytes_of(text)


def test_the_largest_batch_fits_and_little_more_does_not():
    memory = 64 << 20
    # Of few examples, what backward takes block by block counts as if it grew with the batch.
    ledger = manualnn.ledger(network(), torch.randn(1024, 3, 16, 16), memory=memory)
    for run, twin in ((ledger.ours, manualnn.convert(network())), (ledger.torch, network())):
        batch = ledger.largest_batch(run=run)
        fixed = ledger.parameters + ledger.gradients

        def needed(n, twin=twin, fixed=fixed):
            twin.zero_grad()
            images = torch.zeros(n, 3, 16, 16)
            return fixed + images.nbytes + measure(twin, images).peak

        assert needed(batch) <= memory < needed(int(batch * 1.1))
    assert ledger.largest_batch("100 B") == 0
    assert ledger.largest_batch(optimizer=2) <= ledger.largest_batch()
    with pytest.raises(ValueError, match="needs the memory to fill"):
        manualnn.ledger(network(), IMAGES).largest_batch()


# --- The floor --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_the_cut_is_the_cheapest(seed):
    draw = random.Random(seed)
    n = 7
    costs = [draw.randrange(1, 20) for _ in range(n)]
    edges = [(v, w) for v in range(n) for w in range(v + 1, n) if draw.random() < 0.4]
    starts, ends = draw.sample(range(n), 2), draw.sample(range(n), 3)
    graph = Cut()
    for v, size in enumerate(costs):
        graph.cost(v, size)
    for v, w in edges:
        graph.edge(v, w)
    for v in starts:
        graph.start(v)
    for v in ends:
        graph.end(v)

    def separates(kept):
        reached = {v for v in starts if v not in kept}
        for v, w in sorted(edges):
            if v in reached and w not in kept:
                reached.add(w)
        return not reached & set(ends)

    sets = (kept for k in range(n + 1) for kept in itertools.combinations(range(n), k))
    assert graph.least() == min(sum(costs[v] for v in kept) for kept in sets if separates(kept))


class Chain(nn.Module):
    """A product, what is given, a product."""

    def __init__(self, between, n=64):
        super().__init__()
        self.between = between
        self.a, self.b = nn.Linear(4, n), nn.Linear(n, 2)

    def forward(self, x):
        return self.b(self.between(self.a(x)))


Z = 8 * 64 * 4  # the bytes of the first product's output


@pytest.mark.parametrize(
    ("between", "size"),
    [
        (nn.Identity(), Z),
        (F.gelu, Z),
        (F.relu, Z),
        (lambda z: F.dropout(F.gelu(F.layer_norm(z, (64,)))), Z + 8 * 64 // 8),
        (lambda z: F.gelu(z + torch.tanh(z) * 2) - z, Z),
        (lambda z: F.gelu(z).half().float(), Z),
        (lambda z: F.relu(z).half().float(), Z // 2 + 8 * 64 // 8),  # the half, and the signs
        (lambda z: F.relu(z).mean(1, keepdim=True).expand(8, 64), 8 * 4 + 8 * 64 // 8),
    ],
)
def test_the_floor_is_one_tensor_a_product(between, size):
    ledger = manualnn.ledger(Chain(between), torch.randn(8, 4))
    assert ledger.floor == size


def test_the_floor_of_what_is_pooled_is_the_pooled_and_where_it_was():
    first, second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3)
    model = nn.Sequential(first, nn.MaxPool2d(2), second)
    windows = 4 * 8 * 7 * 7
    assert manualnn.ledger(model, IMAGES).floor == windows * (4 + 1)


# --- What it says -----------------------------------------------------------------------------


def test_a_long_model_stays_readable():
    ledger = manualnn.ledger(
        of_torchvision("densenet121"), torch.randn(2, 3, 64, 64), memory="8GiB"
    )
    lines = str(ledger).splitlines()
    assert lines[0].startswith("DenseNet, batch 2: ") and len(lines) < 50
    assert max(map(len, lines)) < 180
    assert any(line.split()[:1] == ["features.denseblock2"] for line in lines)
    assert ledger.largest_batch() > 1.5 * ledger.largest_batch(run=ledger.torch)
    assert sum(ours for ours, _, _ in ledger.by_layer(2).values()) == ledger.total
    assert sum(theirs for _, theirs, _ in ledger.by_layer().values()) == ledger.torch_total
    assert sum(ledger.by_kind().values()) == ledger.total
    table = ledger.table()
    assert "features.denseblock2.denselayer3.norm1" in table and "recomputed from" in table


def test_json():
    ledger = manualnn.ledger(network(), IMAGES, memory="1GiB", name="mine")
    content = json.loads(ledger.to_json())
    assert (
        content["target"] == "mine" and content["batch"] == 4 and content["floor"] == ledger.floor
    )
    for name, total in (("ours", ledger.total), ("torch", ledger.torch_total)):
        assert content[name]["total"] == sum(e["bytes"] for e in content[name]["entries"]) == total
    assert content["largest_batch"]["ours"] == ledger.largest_batch()


def test_the_picture(tmp_path):
    ledger = manualnn.ledger(network(), IMAGES, autocast=torch.bfloat16)
    for ending, start in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        ledger.plot(tmp_path / f"saved{ending}")
        assert (tmp_path / f"saved{ending}").read_bytes().startswith(start)
    manualnn.ledger(network().requires_grad_(False), IMAGES).plot(tmp_path / "nothing.png")


def test_the_floor_is_never_above_what_suffices():
    """torch's graph asks for the input of a frozen norm, which nobody reads."""

    class Tuned(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8).eval())
            self.body.requires_grad_(False)

        def forward(self, x):
            return self.body(x * self.scale)

    ledger = manualnn.ledger(Tuned(), torch.randn(4, 3, 32, 32))
    assert ledger.floor == ledger.total < ledger.torch_total


def test_the_name_that_what_is_retained_had_before():
    run = manualnn.ledger(nn.Linear(3, 2), torch.ones(4, 3)).ours
    with pytest.warns(DeprecationWarning, match="Run.held is called retained now"):
        assert run.held == run.retained
