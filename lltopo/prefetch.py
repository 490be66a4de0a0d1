"""Ask the processor for a cache line before it is needed, which numba itself cannot."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic

_LLVM_INT = ir.IntType(32)
_READ, _KEEP_CLOSE, _DATA = (_LLVM_INT(choice) for choice in (0, 3, 1))


def _prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Have the line with `array[index]` brought into the cache; does nothing else.

    An index out of range is no error: the processor ignores addresses that it cannot read.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte = ir.IntType(8).as_pointer()
        address = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        shape = ir.FunctionType(ir.VoidType(), [byte, *[_LLVM_INT] * 3])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], shape)
        builder.call(function, [address, _READ, _KEEP_CLOSE, _DATA])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


def _nothing(array: Any, index: int) -> None:
    """In place of `_prefetch` where nothing is compiled."""


prefetch: Any = _nothing if vars(config)["DISABLE_JIT"] else intrinsic(_prefetch)
