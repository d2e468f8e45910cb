"""Right, with random numbers: a seed of its own, generators in every place, numpy's, dropped layers."""

import random

import numpy
import torch
from catalogue import Entry, enter, given, normal, normals
from torch import nn
from torch.autograd import Function

ENTRIES: list[Entry] = []
right = enter(ENTRIES)


@right("dropout_with_a_seed_of_its_own", "the same mask at every call", normals((6, 5)))
class SeededDropout(Function):
    @staticmethod
    def mask(x):
        generator = torch.Generator().manual_seed(11)
        return 2 * (torch.rand(x.shape, generator=generator) < 0.5).to(x.dtype)

    @staticmethod
    def forward(ctx, x):
        return x * SeededDropout.mask(x)

    @staticmethod
    def backward(ctx, dz):
        return dz * SeededDropout.mask(dz)


@right("a_mask_that_numpy_draws", "another generator", normals((4, 6)))
class NumpyMask(Function):
    @staticmethod
    def forward(ctx, x):
        mask = torch.from_numpy(numpy.random.rand(*x.shape) > 0.5)
        ctx.save_for_backward(mask)
        return x * mask * 2

    @staticmethod
    def backward(ctx, dz):
        return dz * ctx.saved_tensors[0] * 2


BITS = numpy.random.default_rng(3)


@right("a_mask_of_numpys_generator", "random numbers of its own", normals((3, 4)))
def masked_by_numpy(x):
    return x * torch.from_numpy(BITS.random(x.shape) > 0.5)


@right(
    "a_mask_of_a_generator_that_is_given",
    "a generator among the arguments",
    given(normal(4, 3), 0.5, torch.Generator()),
)
class GivenMask(Function):
    @staticmethod
    def forward(ctx, x, p, generator):
        mask = (torch.rand(x.shape, generator=generator) > p).to(x.dtype)
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx, dz):
        return dz * ctx.saved_tensors[0], None, None


@right("dropout_in_training", "random mask", normals((6, 5)), module=True)
def dropout():
    return nn.Dropout(0.5)


@right(
    "a_mask_of_a_generator_of_its_own", "random numbers of its own", normals((3, 4)), module=True
)
class OwnMask(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator()

    def forward(self, x):
        return x * (torch.rand(x.shape, generator=self.generator) > 0.5)


@right(
    "layers_dropped_by_numpy", "the global generator of numpy decides", normals((4, 3)), module=True
)
class LayerDrop(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.layers = nn.ModuleList([nn.Linear(3, 3) for _ in range(3)])

    def forward(self, x):
        for layer in self.layers:
            if not self.training or numpy.random.random() > 0.3:
                x = x + layer(x)
        return x


@right(
    "a_generator_in_the_options",
    "random numbers of a generator in a dict",
    given(normal(3, 4), {"generator": torch.Generator(), "p": 0.5}),
    module=True,
)
class WithOptions(nn.Module):
    def forward(self, x, options):
        drawn = torch.rand(x.shape, generator=options["generator"])
        return x * (drawn > options["p"])


class OfMethod(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.scale, self.draw = nn.Parameter(torch.ones(3)), draw

    def forward(self, x):
        return x * self.scale if self.draw() > 0.5 else x.square()


@right(
    "a_generators_method_in_an_attribute",
    "random numbers of a method of its own",
    normals((4, 3)),
    module=True,
)
def of_method():
    return OfMethod(random.Random(3).random)
