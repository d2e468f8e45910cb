"""Training a classifier of images: the model, the data, what is recorded, the command line."""

from manualnn.training.data import DataError, ImageData
from manualnn.training.deploy import Trained
from manualnn.training.errors import TrainingError
from manualnn.training.model.classifier import ImageClassifier

__all__ = ["DataError", "ImageClassifier", "ImageData", "Trained", "TrainingError"]
