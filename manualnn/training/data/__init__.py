"""Images for the classifier: `ImageData`, a LightningDataModule, and the error it raises."""

from manualnn.training.data.errors import DataError
from manualnn.training.data.module import ImageData

__all__ = ["DataError", "ImageData"]
