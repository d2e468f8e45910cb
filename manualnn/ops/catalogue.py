"""The ops, by what they are: everything that names all activations asks here."""

from manualnn.ops.activations import gate, pointwise, slope


def elementwise():
    """Every activation of one number without weights, in order of its name."""
    return [getattr(pointwise, name) for name in pointwise.__all__]


def activations():
    """Every activation that is no softmax."""
    return [*elementwise(), *(getattr(m, name) for m in (slope, gate) for name in m.__all__)]
