"""Numbers below a byte: compute with 4 bits, send a real number in one."""

from lowbit._core import DecodeError, Error, __version__, get_num_threads, set_num_threads
from lowbit._keys import Key, random_bits

__all__ = [
    "DecodeError",
    "Error",
    "Key",
    "__version__",
    "get_num_threads",
    "random_bits",
    "set_num_threads",
]
