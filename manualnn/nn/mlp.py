"""The L-layer network, a Sequential that runs as one autograd node."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any, TypeAlias

import torch
from torch import Tensor

from manualnn._torch import has_global_hook
from manualnn.autograd.activation import Activation
from manualnn.autograd.autocast import autocast
from manualnn.autograd.moment import eager
from manualnn.nn import activations as g
from manualnn.nn.dropouts import Dropout
from manualnn.nn.fully_connected import Linear
from manualnn.ops.activations import ReLU
from manualnn.ops.catalogue import elementwise
from manualnn.ops.network import Between, Network

# Its name, an Activation, a module class, or a module.
Activating: TypeAlias = str | type[Activation] | type[torch.nn.Module] | torch.nn.Module

# The Functions that a hidden layer's activation module may stand for, each with what makes its options.
_POINTWISE: dict[type, list] = {}
for _op in (op for op in elementwise() if op.twin is not None):
    _names = _op.twin.attributes or tuple(p.name for p in _op.options())
    _POINTWISE.setdefault(getattr(g, _op.twin.module), []).append((_op, _names))


def _function_of(module: Any) -> tuple[Any, ...] | None:
    """The Function and the options of an activation module; None where the single node knows none."""
    for op, names in _POINTWISE.get(type(module), ()):
        if all(getattr(module, name) == value for name, value in op.twin.where.items()):
            return op, tuple(getattr(module, name) for name in names)
    return _own(module)


class MLP(torch.nn.Sequential):
    """a[l] = g(W[l] a[l−1] + b[l]) for l < L, dropped out with probability p; z[L] = W[L] a[L−1] + b[L].

    A Sequential of Linear, activation and (if dropout > 0) Dropout for each hidden layer, and a last
    Linear: its layers can be looked at, replaced and hooked one by one. While they are as they were
    built, forward and backward run as one autograd node (``manualnn.ops.network``); otherwise, and
    under torch.func and torch.compile, layer by layer, to the same numbers.

    Args:
        sizes: [n[0], n[1], …, n[L]], the units of the input, the hidden layers and the output.
        activation: g, by name ("relu", "LeakyReLU"), as a ``manualnn.Activation``, as a module class,
            or as an instance, of which each layer gets a copy.
        dropout: probability with which a hidden unit is switched off while training.
        bias, device, dtype: as in torch.nn.Linear.

    Raises:
        ValueError: fewer than two sizes, one that is negative, an unknown activation, or a probability
            outside [0, 1].

    >>> model = MLP([784, 32, 10], activation="tanh")
    >>> scores = model(torch.zeros(8, 784))
    >>> scores.shape, scores.grad_fn.name()
    (torch.Size([8, 10]), 'NetworkBackward')
    """

    def __init__(
        self,
        sizes: Iterable[int],
        activation: Activating = "relu",
        dropout: float = 0.0,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = list(sizes)
        if len(sizes) < 2 or any(n < 0 for n in sizes):
            raise ValueError(
                f"sizes must be [n[0], …, n[L]], two or more counts of units, but got {sizes}"
            )
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {dropout}")
        if len(sizes) == 2:  # a wrong one is refused, though no layer has it
            _new_activation(activation, device, dtype)
        layers: list[torch.nn.Module] = []
        for n_prev, n in zip(sizes[:-2], sizes[1:-1], strict=True):
            layers.append(Linear(n_prev, n, bias=bias, device=device, dtype=dtype))
            layers.append(_new_activation(activation, device, dtype))
            if dropout:
                layers.append(Dropout(dropout))
        layers.append(Linear(sizes[-2], sizes[-1], bias=bias, device=device, dtype=dtype))
        super().__init__(*layers)

    def forward(self, input: Tensor) -> Tensor:
        plan = self._plan(input) if eager() else None
        if plan is None:
            return super().forward(input)
        op, options, p, params = plan
        input, *params = autocast("linear", input, *params)
        return Network.apply(input, Between(op, options, p), *params)[0]

    def _plan(self, input: Tensor) -> tuple[Any, ...] | None:
        """What the single node needs: (g, its options, dropout probability, parameters).

        None where the layers are no longer plain ones: one was replaced, hooked or parametrized; and
        where layer by layer saves less, because something is frozen.
        """
        hidden: list[Any]
        last: Any
        known: Any
        *hidden, last = self._modules.values() if self._modules else (None,)
        every = 3 if len(hidden) > 2 and type(hidden[2]) is Dropout else 2
        if len(hidden) % every or has_global_hook() or not _plain(last, Linear):
            return None
        known, p = (ReLU, ()), None
        for i in range(1, len(hidden), every):
            activation = hidden[i]
            found = _function_of(activation)
            if found is None or not _plain(activation, type(activation)):
                return None
            if i == 1:
                known = found
            elif found != known:
                return None
        drop: Any
        for drop in hidden[2::3] if every == 3 else ():
            if not _plain(drop, Dropout) or p not in (None, drop.p if drop.training else 0.0):
                return None
            if not 0 <= drop.p <= 1:
                return None  # the layer says what is wrong with it
            p = drop.p if drop.training else 0.0
        params = []
        for linear in (*hidden[::every], last):
            if not _plain(linear, Linear):
                return None
            W, b = linear._parameters.get("weight"), linear._parameters.get("bias")
            if W is None or (b is not None and b.requires_grad != W.requires_grad):
                return None
            params += (W, b)
        if any(isinstance(option, torch.Tensor) for option in known[1]):
            return None  # it might change, or be learned
        if p == 1 or input.is_complex() or (input.requires_grad and not params[0].requires_grad):
            return None
        return *known, p or 0.0, params


def _own(module: Any) -> tuple[Any, ...] | None:
    """A person's own activation as the single node takes it; None where something is learned."""
    activation = getattr(type(module), "activation", None)
    if not (isinstance(activation, type) and issubclass(activation, Activation)):
        return None
    if activation.learned or type(module) is not activation.Module:
        return None
    return activation, tuple(getattr(module, p.name) for p in activation.options())


def _plain(module: Any, cls: type[torch.nn.Module]) -> bool:
    """Of that exact class, and with nothing attached that running it alone would set off."""
    return type(module) is cls and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def _new_activation(
    activation: Activating, device: torch.device | str | int | None, dtype: torch.dtype | None
) -> torch.nn.Module:
    if isinstance(activation, torch.nn.Module):
        return _ours(deepcopy(activation))
    if isinstance(activation, str):
        activation = _by_name(activation)
    if isinstance(activation, type) and issubclass(activation, Activation):
        activation = activation.Module
    if not (isinstance(activation, type) and issubclass(activation, torch.nn.Module)):
        raise ValueError(
            f"activation must be a name, a module class or a module, but got {activation!r}"
        )
    if issubclass(activation, torch.nn.PReLU):
        return _ours(activation(device=device, dtype=dtype))
    return _ours(activation())


def _by_name(name: str) -> type[torch.nn.Module]:
    known = {c: getattr(g, c) for c in g.__all__}
    spelled = {c.lower(): cls for c, cls in known.items()}
    key = name.lower().replace("_", "")
    if key not in spelled:
        raise ValueError(f"unknown activation {name!r}; known are {', '.join(sorted(known))}")
    return spelled[key]


def _ours(module: Any) -> torch.nn.Module:
    """torch.nn's activation as ours of the same name; a person's own module stays what it is."""
    twin = getattr(g, type(module).__name__, None)
    if twin is not None and type(module) is getattr(torch.nn, type(module).__name__, None):
        module.__class__ = twin
    return module
