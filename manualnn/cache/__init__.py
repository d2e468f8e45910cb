"""What is kept between forward and backward, made as small as it can be, and how it is made again."""

from manualnn.cache.masks import pack, unpack

__all__ = ["pack", "unpack"]
