"""Views of arrays that own nothing, for compiled loops.

Compiled code counts the references to an array at every slice and every call, by atomic instructions that can take
longer than the arithmetic on a handful of values. Slices of a borrowed view cost nothing.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core.errors import TypingError
from numba.extending import intrinsic

from cautious_imitation.types import Array


@intrinsic
def _without_owner(typing_context: Any, array: Any) -> Any:
    if not isinstance(array, types.Array):
        raise TypingError(f"array must be an array, got {array}")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        view.meminfo = ir.Constant(view.meminfo.type, None)
        view.parent = ir.Constant(view.parent.type, None)
        return view._getvalue()

    return array(array), generate


@njit(cache=True, nogil=True, forceinline=True)
def borrowed(array: Array) -> Array:
    """The same array without a reference to its memory; whoever calls must keep the array itself alive."""
    return _without_owner(array)  # type: ignore[call-arg]
