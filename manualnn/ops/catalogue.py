"""The ops, by what they are: everything that names all of them asks here."""

from manualnn.autograd.function import Function
from manualnn.ops import (
    attention,
    convolutions,
    dropouts,
    embeddings,
    fully_connected,
    losses,
    norms,
    pooling,
    stochastic_depth,
)
from manualnn.ops.activations import gate, pointwise, slope, softmax

FAMILIES = {
    "linear": (fully_connected,),
    "activations": (pointwise, slope, gate, softmax),
    "losses": (losses.pointwise, losses.classes),
    "dropout": (dropouts, stochastic_depth),
    "convolution": (convolutions,),
    "pooling": (pooling.largest, pooling.average),
    "embedding": (embeddings,),
    "attention": (attention,),
    "normalisation": (norms.batch, norms.sample),
}


def elementwise():
    """Every activation of one number without weights, in order of its name."""
    return [getattr(pointwise, name) for name in pointwise.__all__]


def activations():
    """Every activation that is no softmax and stands for one of torch's."""
    all_of_them = [*elementwise(), *(getattr(m, name) for m in (slope, gate) for name in m.__all__)]
    return [op for op in all_of_them if op.twin is not None]


def families():
    """Family -> its ops that stand for something of torch's, in the order in which they are written."""
    return {
        family: [
            op
            for module in modules
            for op in vars(module).values()
            if isinstance(op, type)
            and issubclass(op, Function)
            and op.__module__ == module.__name__
            if "twin" in vars(op)
        ]
        for family, modules in FAMILIES.items()
    }
