"""Activations: of one number (pointwise), with a learned or random slope, gates, and softmax."""

from manualnn.ops.activations import gate, pointwise, slope, softmax
from manualnn.ops.activations.gate import *
from manualnn.ops.activations.pointwise import *
from manualnn.ops.activations.slope import *
from manualnn.ops.activations.softmax import *

__all__ = []
__all__ += gate.__all__
__all__ += pointwise.__all__
__all__ += slope.__all__
__all__ += softmax.__all__
