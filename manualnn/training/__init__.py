"""Training a classifier of images: the model, the data, what is recorded, the command line."""

from manualnn.training.classifier import ImageClassifier
from manualnn.training.data import DataError, ImageData
from manualnn.training.errors import TrainingError
from manualnn.training.use import Trained

__all__ = ["DataError", "ImageClassifier", "ImageData", "Trained", "TrainingError"]
