"""Trains a classifier of images; without arguments, the experiment of configs/digits.yaml."""

import sys

from manualnn.training.cli import main

if __name__ == "__main__":
    sys.exit(main())
