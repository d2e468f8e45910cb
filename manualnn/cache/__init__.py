"""What is kept between forward and backward, made as small as it can be, and how it is made again."""

from manualnn.cache.masks import pack, unpack
from manualnn.cache.origins import Origins, active, may_watch, running

__all__ = ["Origins", "active", "may_watch", "pack", "running", "unpack"]
