"""The least that a Python Function can cost: nothing but the two kernels, over torch.nn.

python benchmarks/floor.py [--save]

A bare ``autograd.Function`` in the older style, called past what torch.func needs, with no options, no
case to decide, no second derivative, no forward mode, no autocast: on 8×8, and the whole 784-512-256-10
network written out as one. What ours cost above it is what the regimes cost; what it costs above 1 is
PyTorch's price of a Python Function.
"""

import argparse

import torch
from network import SIZES, network
from timing import machine, ratio, save

aten = torch.ops.aten
KERNELS = {
    "ReLU": (torch.relu, lambda da, a: aten.threshold_backward.default(da, a, 0), True),
    "Tanh": (torch.tanh, aten.tanh_backward.default, True),
    "SiLU": (torch.nn.functional.silu, aten.silu_backward.default, False),
    "ELU": (
        torch.nn.functional.elu,
        lambda da, a: aten.elu_backward.default(da, 1.0, 1, 1, True, a),
        True,
    ),
    "LeakyReLU": (
        torch.nn.functional.leaky_relu,
        lambda da, z: aten.leaky_relu_backward.default(da, z, 0.01, False),
        False,
    ),
    "Hardtanh": (
        torch.nn.functional.hardtanh,
        lambda da, z: aten.hardtanh_backward.default(da, z, -1.0, 1.0),
        False,
    ),
}


def bare(forward, backward):
    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function = type("Bare", (torch.autograd.Function,), methods)
    return super(torch.autograd.Function, function).apply


def activation(kernel, slope, keeps_output):
    def forward(ctx, z):
        a = kernel(z)
        ctx.save_for_backward(a if keeps_output else z)
        return a

    def backward(ctx, da):
        return slope(da, *ctx.saved_tensors)

    return bare(forward, backward)


def whole_network():
    linear, relu, mm = torch.nn.functional.linear, torch.relu, torch.mm

    def forward(ctx, x, W1, b1, W2, b2, W3, b3):
        a1 = relu(linear(x, W1, b1))
        a2 = relu(linear(a1, W2, b2))
        ctx.save_for_backward(x, W2, W3, a1, a2)
        return linear(a2, W3, b3)

    def product(dz, a):
        return dz.t() * a if len(dz) == 1 else mm(dz.t(), a)

    def backward(ctx, dz):
        x, W2, W3, a1, a2 = ctx.saved_tensors
        da, dW3, db3 = mm(dz, W3), product(dz, a2), dz.sum(0)
        dz = aten.threshold_backward.default(da, a2, 0)
        da, dW2, db2 = mm(dz, W2), product(dz, a1), dz.sum(0)
        dz = aten.threshold_backward.default(da, a1, 0)
        return None, product(dz, x), dz.sum(0), dW2, db2, dW3, db3

    return bare(forward, backward)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/floor.json")
    arguments = parser.parse_args()
    print(*(f"{k}: {v}" for k, v in machine().items()), sep="\n")
    rows = []

    def note(name, ours, theirs, **options):
        median, *_ = ratio(ours, theirs, **options)
        print(f"{name:40}{median:6.2f}", flush=True)
        rows.append({"what": name, "ratio": round(median, 3)})

    x, d = torch.randn(8, 8, requires_grad=True), torch.ones(8, 8)
    for name, (kernel, slope, keeps_output) in KERNELS.items():
        ours, theirs = activation(kernel, slope, keeps_output), getattr(torch.nn, name)()
        note(f"{name}, 8×8", lambda f=ours: f(x).backward(d), lambda f=theirs: f(x).backward(d))
    theirs, one_node, loss = network(torch.nn), whole_network(), torch.nn.CrossEntropyLoss()
    parameters = list(theirs.parameters())
    for batch in (1, 128):
        x, y = torch.randn(batch, SIZES[0]), torch.randint(0, 10, (batch,))

        def step(model, x=x, y=y):
            for p in parameters:
                p.grad = None
            loss(model(x), y).backward()

        note(
            f"network, batch {batch}, torch's own loss",
            lambda step=step: step(lambda images: one_node(images, *parameters)),
            lambda step=step: step(theirs),
            seconds=6,
            rounds=41,
        )
    if arguments.save:
        save("floor", rows)


if __name__ == "__main__":
    main()
