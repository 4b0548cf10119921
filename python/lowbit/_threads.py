"""How many threads a call may use."""

from __future__ import annotations

from typing import SupportsIndex

from lowbit import _arguments, _core


def set_num_threads(n: SupportsIndex) -> None:
    """Set how many threads a call may use; results never depend on it.

    Parameters
    ----------
    n : int
        1 to 1024, for all calls of this process from now on, the calling thread counted. At first it is what the
        environment variable ``LOWBIT_NUM_THREADS`` says, else the number of processors this process may use.

    Raises
    ------
    TypeError
        `n` is no int; a bool is not an int here.
    lowbit.Error
        `n` is out of range.

    Examples
    --------
    >>> import lowbit as lb
    >>> before = lb.get_num_threads()
    >>> lb.set_num_threads(2)
    >>> lb.get_num_threads()
    2
    >>> lb.set_num_threads(before)
    """
    _core.set_num_threads(_arguments.within(n, "n", 1, 1024))


def get_num_threads() -> int:
    """Tell how many threads a call may use.

    Returns
    -------
    int
        What `set_num_threads` or the environment variable ``LOWBIT_NUM_THREADS`` said last, else the number of
        processors this process may use.

    Examples
    --------
    >>> import lowbit as lb
    >>> 1 <= lb.get_num_threads() <= 1024
    True
    """
    return _core.get_num_threads()
