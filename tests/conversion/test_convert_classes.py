"""The class of a converted model stands in for the model's own: nothing of what that one does is done twice."""

import abc
import copy
import pickle
import types

import pytest
import torch
from torch import nn

from manualnn import convert, revert

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
REGISTRY = {}


class Registered(nn.Module):
    def __init_subclass__(cls, scale=1.0, *, name, **options):
        super().__init_subclass__(**options)
        assert name not in REGISTRY
        cls.scale, REGISTRY[name] = scale, cls


class WithOptions(Registered, scale=2.0, name="with options"):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x) * self.scale


class OneBase(type):
    def __new__(cls, name, bases, namespace, factor=1.0):
        if len(bases) != 1:
            raise TypeError("one base")
        made = super().__new__(cls, name, bases, namespace)
        made.factor = factor
        return made

    def __init__(cls, name, bases, namespace, factor=1.0):
        super().__init__(name, bases, namespace)


class WithMetaclass(nn.Module, metaclass=OneBase, factor=3.0):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x) * self.factor


class Abstract(abc.ABC, nn.Module):
    @abc.abstractmethod
    def forward(self, x): ...


class Concrete(Abstract):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x).relu()


def built(size):
    return Reduced(size)


class Reduced(nn.Module):
    def __init__(self, size=4):
        super().__init__()
        self.size, self.linear = size, nn.Linear(size, size)
        nn.init.constant_(self.linear.weight, 0.5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x):
        return self.linear(x).relu()

    def __reduce__(self):
        return built, (self.size,)


class ReducedByItsType(Reduced):
    def __reduce__(self):
        return type(self), (self.size,)


class NewTakesArguments(nn.Module):
    def __new__(cls, size):
        return super().__new__(cls)

    def __getnewargs__(self):
        return (self.size,)

    def __init__(self, size):
        super().__init__()
        self.size, self.linear = size, nn.Linear(size, size)

    def forward(self, x):
        return self.linear(x).relu()


def of_four():
    return NewTakesArguments(4)


MAKERS = [WithOptions, WithMetaclass, Concrete, Reduced, ReducedByItsType, of_four]


@pytest.mark.parametrize("make", MAKERS)
def test_it_computes_the_same_and_is_copied(make):
    model = make()
    cls, expected = type(model), model(X)
    model = convert(model)
    for same in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.copy(model)):
        assert isinstance(same, cls) and type(same) is type(model)
        assert torch.equal(same(X), expected)
        same(X).sum().backward()
    assert type(revert(model)) is cls
    assert REGISTRY == {"with options": WithOptions}


class Counting(nn.Module):
    calls, temperature = 0, 1.0

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    @classmethod
    def heated(cls, temperature):
        cls.temperature = temperature

    def forward(self, x):
        type(self).calls += 1
        return self.linear(x) * Counting.calls * self.temperature


def test_what_is_set_on_the_class_is_set_on_the_models_own():
    Counting.calls, Counting.temperature = 0, 1.0
    model = convert(Counting())
    plain = model.linear(X)
    assert torch.equal(model(X), plain) and torch.equal(model(X), plain * 2)
    assert Counting.calls == 2
    model.heated(4.0)
    assert Counting.temperature == 4.0
    Counting.temperature = 0.5
    assert torch.equal(model(X), plain * 3 * 0.5)
    del type(model).calls
    assert not hasattr(Counting, "calls")
    Counting.calls = 0


def test_a_forward_that_was_wrapped_before_revert():
    model = convert(Concrete())
    expected, inner = model(X), model.forward
    model.forward = types.MethodType(lambda self, x: inner(x) * 2, model)
    assert torch.equal(model(X), expected * 2)
    assert torch.equal(revert(model)(X), expected * 2)
