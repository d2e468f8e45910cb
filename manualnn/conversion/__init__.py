"""Turn a model's layers into ours, in place, and back; and let the model save less for backward."""

from manualnn.conversion.layers import convert, revert

__all__ = ["convert", "revert"]
