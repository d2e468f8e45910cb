"""Trains a classifier of images; without arguments, the experiment of configs/digits.yaml."""

import os
import signal
import sys


def _stop(number, frame):
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(130)


if __name__ == "__main__":
    # Importing PyTorch takes seconds, in which a person may well press Ctrl-C. There an exception
    # would not do: some of what is imported catches it and stumbles later.
    ctrl_c = signal.getsignal(signal.SIGINT)
    if ctrl_c is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _stop)
    from manualnn.training.cli import main

    signal.signal(signal.SIGINT, ctrl_c)
    sys.exit(main())
