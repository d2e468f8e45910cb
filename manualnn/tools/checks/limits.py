"""A limit of time for a call with numbers of our choosing, in which a person's loop may not end.

A table of what comes next has a cycle where two of its numbers are made the same.
"""

import ctypes
import threading
from contextlib import contextmanager

SECONDS = 20.0


class TookTooLong(Exception):
    """Raised in the thread that is at work."""


@contextmanager
def limited():
    """Raises TookTooLong inside, as soon as Python code runs there, if it takes longer than SECONDS."""
    thread, over = threading.get_ident(), threading.Event()

    def stop():
        if not over.wait(SECONDS):
            with lock:
                if not over.is_set():
                    _raise_in(thread, TookTooLong)

    lock = threading.Lock()
    watch = threading.Thread(target=stop, daemon=True)
    watch.start()
    try:
        yield
    finally:
        with lock:  # from here on nothing is raised
            over.set()


def _raise_in(thread, exception):
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(exception))
