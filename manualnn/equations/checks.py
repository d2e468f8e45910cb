"""What fits into the equations of ``manualnn.equations``: a message names the matrix and its shape."""

from collections.abc import Sequence

import torch
from torch import Tensor


def check_tensor(name: str, x: object) -> None:
    if not isinstance(x, Tensor):
        numpy = type(x).__module__ == "numpy"
        made = "torch.from_numpy" if numpy else "torch.tensor"
        raise TypeError(
            f"{name} is a {type(x).__qualname__}, should be a torch.Tensor: {made}({name}) makes one"
        )


def check_shape(name: str, x: Tensor, shape: tuple[int, ...], reason: str) -> None:
    check_tensor(name, x)
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, should have {shape}: {reason}")


def check_dtype(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    check_tensor(name, x)
    check_tensor(other_name, other)
    if x.dtype != other.dtype:
        raise TypeError(f"{name} is {x.dtype}, {other_name} is {other.dtype}: they should agree")


def check_like(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    check_tensor(other_name, other)
    check_shape(name, x, tuple(other.shape), f"the shape of {other_name}")
    check_dtype(name, x, other_name, other)


def check_examples(name: str, x: Tensor) -> None:
    check_tensor(name, x)
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}, should have (n, m): "
            "a row for each neuron, a column for each of at least one example"
        )
    if not x.is_floating_point():
        raise TypeError(f"{name} is {x.dtype}, should be a floating-point tensor")


def check_one_example(name: str, x: Tensor) -> None:
    check_tensor(name, x)
    n = x.shape[0] if x.ndim else 1
    check_shape(name, x, (n, 1), "one example is one column")
    check_examples(name, x)


def check_layer(W: Tensor, b: Tensor, prev_name: str, prev: Tensor, layer: str = "") -> None:
    """prev has a row for each neuron of the previous layer: it is A[l-1], or W[l-1]."""
    check_tensor(f"W{layer}", W)
    check_tensor(f"b{layer}", b)
    n, n_prev = W.shape[0] if W.ndim else 1, prev.shape[0]
    columns = (
        f"the columns of W{layer} are the neurons of the previous layer, "
        f"and {prev_name} has shape {tuple(prev.shape)}"
    )
    check_shape(f"W{layer}", W, (n, n_prev), columns)
    rows = f"a row for each row of W{layer}, which has shape {tuple(W.shape)}"
    check_shape(f"b{layer}", b, (n, 1), rows)
    check_dtype(f"W{layer}", W, prev_name, prev)
    check_dtype(f"b{layer}", b, f"W{layer}", W)


def check_network(
    X: Tensor, parameters: Sequence[tuple[Tensor, Tensor]], activations: Sequence[object]
) -> None:
    L = len(parameters)
    if L == 0:
        raise ValueError("parameters should hold W and b of at least one layer, not none")
    if len(activations) != L:
        raise ValueError(f"activations should hold {L}, one for each layer, not {len(activations)}")
    prev_name, prev = "X", X
    for layer, (W, b) in enumerate(parameters, start=1):
        check_layer(W, b, prev_name, prev, f"[{layer}]")
        prev_name, prev = f"W[{layer}]", W


def check_step(
    parameters: Sequence[tuple[Tensor, Tensor]],
    gradients: Sequence[tuple[Tensor, Tensor]],
    velocity: Sequence[tuple[Tensor, Tensor]],
) -> None:
    L = len(parameters)
    for name, layers, d in ("gradients", gradients, "d"), ("velocity", velocity, "v"):
        if len(layers) != L:
            raise ValueError(
                f"{name} should hold {L} layers, as parameters does, not {len(layers)}"
            )
        for layer, ((W, b), (dW, db)) in enumerate(zip(parameters, layers, strict=True), start=1):
            check_like(f"{d}W[{layer}]", dW, f"W[{layer}]", W)
            check_like(f"{d}b[{layer}]", db, f"b[{layer}]", b)


def check_not_negative(name: str, x: float) -> None:
    if not x >= 0:  # so that NaN is refused too
        raise ValueError(f"{name} should be 0 or more, not {x}")


def check_probabilities(A: Tensor, Y: Tensor) -> None:
    for name, x in ("A", A), ("Y", Y):
        if not torch.all((x >= 0) & (x <= 1)):
            raise ValueError(f"{name} should lie between 0 and 1 for the binary cross-entropy")


def check_distributions(Y: Tensor) -> None:
    rounding = torch.finfo(Y.dtype).eps ** 0.5
    if not torch.all(Y >= 0) or not torch.all((Y.sum(dim=0) - 1).abs() < rounding):
        raise ValueError("every column of Y should be one-hot or probabilities that sum to 1")
