"""How loops over pixels, regions and boxes are compiled."""

from collections.abc import Callable
from typing import TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compile at the first call, without the interpreter's lock; the result is kept on disk where that is possible.

    There is no fast mathematics: results are those of numpy's operations, bit by bit.
    """
    settings = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **settings)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return njit(**settings)(function)  # type: ignore[no-any-return]
