"""The equations that are shown are the op's: a docstring's formulas compute what its code computes."""

import math
import re

import pytest
import torch
from explain_helpers import nothing_old_to_collect  # noqa: F401
from snake import Snake

import manualnn
from manualnn import nn, ops
from manualnn.ops import activations
from manualnn.tools.explanations.formulas import formula, g_of, lines

POINTWISE = [
    name
    for name in activations.__all__
    if issubclass(getattr(activations, name), manualnn.Activation)
]
# Of each option, by the letter of the docstring; chosen so that no two formulas agree.
OPTIONS = {
    "Hardtanh": {"lo": -0.75, "hi": 1.25},
    "ReLU6": {"lo": 0.0, "hi": 6.0},
    "LeakyReLU": {"s": 0.3},
    "ELU": {"α": 0.7},
    "CELU": {"α": 0.7},
    "Hardshrink": {"λ": 0.4},
    "Softshrink": {"λ": 0.4},
    "Softplus": {"β": 1.5, "threshold": 20.0},
    "Threshold": {"θ": 0.2, "v": -0.5},
}


def rows(sizes, m=7, seed=0):
    return torch.randn(m, sizes[0], generator=torch.Generator().manual_seed(seed))


def values_of(text, names):
    """What a formula of a docstring says, computed: of a = b = c the values of b and c.

    text: such as "z (1 + t) / 2,  t = tanh(u),  u = √(2/π) z"; names: what it may use.
    """
    first, *definitions = re.split(r"; |, and |: ", text)[0].split(",  ")
    for definition in reversed(definitions):
        name, argument, body = re.match(r"(\w+′?)(\(z\))? = (.*)", definition).groups()
        body = re.sub(r" the normal distribution| its density", "", body)
        if argument:
            names[name] = lambda z, body=body: value_of(body, names | {"z": z})
        else:
            names[name.replace("′", "_prime")] = value_of(body, names)
    head, condition, other = first.partition(" else ")
    if (
        condition and " = " in other
    ):  # 1 if z > 0 else exp(z) = a + 1: the second says the else's part
        other, same = other.split(" = ")
        assert value_of(other, names) == pytest.approx(value_of(same, names)) or names["z"] > 0
        return [value_of(f"{head} else {other}", names)]
    return [value_of(part, names) for part in first.split(" = ")]


def value_of(text, names):
    """The number that a formula is; what stands side by side in it is multiplied."""
    if " if " in text and ", else " in text:  # 0 if z ≤ −3, 1 if z ≥ 3, else z/3 + 1/2
        text = text.replace(", else ", " else ").replace(", ", " else ")
    text = text.replace("−", "-").replace("≤", "<=").replace("≥", ">=").replace("′", "_prime")
    text = text.replace("tanh² z", "tanh(z)²")
    text = re.sub(r"\b(tanh|exp|log) (\w(\(z\))?)", r"\1(\2)", text)
    text = re.sub(r"\|(\w)\|", r"abs(\1)", text).replace("²", "**2").replace("³", "**3")
    text = re.sub(r"√(\d)", r"sqrt(\1)", text).replace("√", "sqrt").replace("2π", "2 * π")
    beside = r"(?<=[\w)])(?<!\bif)(?<!\belse)(?<!\band) (?=[\w(])(?!if |else |and )"
    return eval(re.sub(beside, "*", text), {"__builtins__": {}}, names)


@pytest.mark.parametrize("name", POINTWISE)
def test_the_formulas_of_a_docstring_are_those_of_the_code(name):
    """The equations that are shown are words in the op; here they are computed."""
    cls, options = getattr(activations, name), OPTIONS.get(name, {})
    functions = {f: getattr(math, f) for f in ("exp", "tanh", "log", "sqrt", "erf", "expm1")}
    functions |= {"min": min, "max": max, "abs": abs, "π": math.pi}
    functions |= {"σ": lambda z: 1 / (1 + math.exp(-z))}
    if name == "SELU":
        functions |= {"α": 1.6732632423543772, "λ": 1.0507009873554805}
    shown = g_of(cls, tuple(options.values()), torch.float64)
    for z in (-4.5, -1.3, -0.41, -0.1, 0.15, 0.3, 0.9, 2.2, 5.9, 7.5):
        t = torch.tensor(z, dtype=torch.float64, requires_grad=True)
        a = cls.g(t, *options.values())
        (slope,) = torch.autograd.grad(a, t)
        known = functions | options | {"z": z, "a": a.item()}
        for value in values_of(shown.a, known):
            assert value == pytest.approx(a.item(), abs=1e-12), (z, shown.a)
        for value in values_of(shown.slope, known):
            assert value == pytest.approx(slope.item(), abs=1e-12), (z, shown.slope)


def test_the_code_that_is_shown_is_the_code():
    g = g_of(activations.SiLU, (), torch.float32)
    assert g.code == "z * sigmoid(z)" and g.slope_code == "s * (1 + z * (1 - s)), s = sigmoid(z)"
    assert not g.from_output and g_of(activations.Tanh, (), torch.float32).from_output
    assert lines(lambda z: z + 1) == "z + 1" and lines(torch.relu) is None
    # ELU caches z, as torch does; its g′ of a serves in place alone.
    elu = g_of(activations.ELU, (1.0,), torch.float32)
    assert (
        not elu.from_output and elu.slope_code == "where(z <= 0, alpha * exp(z.clamp(max=0)), 1.0)"
    )


def test_options_and_ones_own_activation_are_shown():
    explained = manualnn.explain(nn.MLP([4, 3, 2], Snake), rows([4]))
    text = str(explained)
    assert "a = z + torch.sin(alpha * z) ** 2 / alpha" in text
    assert "dalpha = 1/m Σ dA[1] ∗ ∂a/∂alpha" in text
    assert explained.numbers()
    assert "with s = 0.2" in str(manualnn.explain(nn.MLP([4, 3, 2], nn.LeakyReLU(0.2)), rows([4])))


def test_every_op_states_its_equations():
    """What is said of a model that is no MLP is its ops' docstrings: each must have the parts."""
    stated = [ops.fully_connected.Linear, ops.convolutions.Convolution, ops.products.Matmul]
    stated += [ops.norms.BatchNorm, ops.norms.LayerNorm, ops.norms.GroupNorm, ops.norms.RMSNorm]
    stated += [ops.pooling.MaxPool, ops.pooling.AvgPool, ops.attention.Attention]
    stated += [ops.embeddings.Embedding, ops.dropouts.Dropout, ops.stochastic_depth.StochasticDepth]
    for cls in stated:
        read = formula(cls)
        assert read.forward and read.backward and read.shapes and read.caches, cls.__name__
        assert not any(line.startswith("d") for line in read.forward), cls.__name__
        assert all(re.match(r"(transposed: )?d\w", line) for line in read.backward), cls.__name__
