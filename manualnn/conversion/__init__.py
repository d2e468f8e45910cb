"""Turn a model's layers into ours, in place, and back; and let it keep less for backward."""

from manualnn.conversion.layers import convert, revert

__all__ = ["convert", "revert"]
