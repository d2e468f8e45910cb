"""The C library's allocator, told to keep what a training step frees for the step that follows.

glibc gives memory back whenever some 60 MB lie free at the end of its heap, and maps a large tensor
anew each time. What it asks for again the system clears first, page by page. A recorded model frees in forward
what its layers would hold until backward, and so goes that way more often than they: it took up to a tenth of a
step's time. PyTorch keeps what it frees on a GPU as well.
"""

import ctypes
import functools
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # the numbers of malloc.h
_NEVER, _ONE_GIB = -1, 1 << 30
# Whoever has said how the allocator is to be knows better.
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")


@functools.cache
def keep_freed_memory() -> bool:
    """Has this process keep what it frees, but for blocks of more than 1 GiB. Whether that could be said.

    Not where the environment says how glibc's allocator is to be, nor with another allocator.
    ``ctypes.CDLL(None).malloc_trim(0)`` gives back what lies free.
    """
    if any(name in os.environ for name in _SETTINGS) or "malloc" in os.environ.get(
        "GLIBC_TUNABLES", ""
    ):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 — of others the numbers may mean something else
        mallopt = library.mallopt
    except (AttributeError, OSError, TypeError):
        return False
    kept = mallopt(_MMAP_THRESHOLD, _ONE_GIB) and mallopt(_TRIM_THRESHOLD, _NEVER)
    return bool(kept)
