"""Machine code for one pattern: vector kernels generated as LLVM IR, and called by compiled kernels through a table.

numba takes seconds to compile a kernel. So what depends on the pattern, a few small functions on vectors of a fixed
length, is generated as LLVM IR, compiled in a fraction of a second and kept on disk; kernels that serve all patterns
call it by address. Each such function has a twin in Python, which says what it does, and which runs when numba compiles
nothing.

The table of a pattern is an int64 array: the address of each function at its place in FUNCTIONS, then N, M, and the
number and the size in bytes of the type of the weights (`weights`).
"""

# mypy: ignore-errors

from __future__ import annotations

import inspect
from contextlib import contextmanager

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.extending import lower_builtin, type_callable

from ...._signals import signals_later
from .code_store import load_code, save_code

__all__ = [
    "BYTES", "FUNCTIONS", "INDEX", "WEIGHT_BYTES", "WEIGHT_TYPE", "M", "N", "compile_table", "function", "native",
    "prefetch", "splat",
]  # fmt: skip

FUNCTIONS = (
    "half_sweep", "mark_lanes", "relax_lanes", "store_masks",
    "score_shift", "load_lane", "load_perturbed_lane", "load_duals", "load_exact_lane", "store_mask", "confirm_block",
    "solve_tile", "load_exact_lanes", "quantise_lanes", "perturb_lanes", "load_magnitudes",
)  # fmt: skip
N, M, WEIGHT_TYPE, WEIGHT_BYTES = range(len(FUNCTIONS), len(FUNCTIONS) + 4)

INDEX = ir.IntType(64)
BYTES = ir.IntType(8).as_pointer()
RESULTS = {types.int64: INDEX, types.none: ir.VoidType()}


def native(result):
    """Let kernels call the machine code of this name from the table they pass first; Python calls the twin itself.

    Arrays are passed as pointers to their first entry, everything else as int64.
    """

    def decorate(twin):
        position = FUNCTIONS.index(twin.__name__)

        @type_callable(twin)
        def _(context):
            def typer(*arguments):
                return result

            typer.__signature__ = inspect.signature(twin)
            return typer

        @lower_builtin(twin, types.VarArg(types.Any))
        def _(context, builder, signature, values):
            passed = []
            for kind, value in zip(signature.args, values, strict=True):
                if isinstance(kind, types.Array):
                    passed.append(builder.bitcast(context.make_array(kind)(context, builder, value).data, BYTES))
                else:
                    passed.append(context.cast(builder, value, kind, types.int64))
            table = builder.bitcast(passed[0], INDEX.as_pointer())
            address = builder.load(builder.gep(table, [INDEX(position)]))
            shape = ir.FunctionType(RESULTS[result], [value.type for value in passed[1:]])
            answer = builder.call(builder.inttoptr(address, shape.as_pointer()), passed[1:])
            return context.get_dummy_value() if result == types.none else answer

        return twin

    return decorate


@contextmanager
def function(module, twin, result):
    """Define the function that `twin` stands for in a module; yields a builder and its arguments, without the table.

    Arguments whose twin's annotation is np.ndarray are pointers, all others int64.
    """
    parameters = list(inspect.signature(twin).parameters.values())[1:]
    kinds = [BYTES if parameter.annotation == "np.ndarray" else INDEX for parameter in parameters]
    defined = ir.Function(module, ir.FunctionType(RESULTS[result], kinds), f"{module.name}.{twin.__name__}")
    defined.attributes.add("nounwind")
    defined.attributes.alignstack = 64  # vectors that are spilled across two cache lines take twice as long
    yield ir.IRBuilder(defined.append_basic_block()), *defined.args


def prefetch(builder, start, place):
    """Ask for memory that will be read soon; it need not exist."""
    integer = ir.IntType(32)
    kinds = ir.FunctionType(ir.VoidType(), [BYTES, integer, integer, integer])
    fetch = cgutils.get_or_insert_function(builder.module, kinds, "llvm.prefetch.p0i8")
    builder.call(fetch, [builder.bitcast(builder.gep(start, [place]), BYTES), integer(0), integer(2), integer(1)])


def splat(builder, value, length):
    """Return a vector with a value in every place."""
    undefined = ir.Constant(ir.VectorType(value.type, length), ir.Undefined)
    single = builder.insert_element(undefined, value, ir.IntType(32)(0))
    return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(ir.IntType(32), length), [0] * length))


@global_compiler_lock
def compile_table(n, m, weight_type, definitions):
    """Compile the functions of a pattern.

    Parameters
    ----------
    n, m : int
    weight_type : WeightType
    definitions : list of callable
        Each adds a function to a module: definition(module, n, m, weight_type).

    Returns
    -------
    ndarray of int64, shape (len(FUNCTIONS) + 4,)
        Functions that were not defined are 0.
    """
    table = np.zeros(len(FUNCTIONS) + 4, np.int64)
    table[[N, M, WEIGHT_TYPE, WEIGHT_BYTES]] = n, m, weight_type.number, weight_type.size
    if not config.DISABLE_JIT:
        name = f"transmask-{n}-{m}-{weight_type.name}"  # symbols of different patterns must differ
        codegen = cpu_target.target_context.codegen()
        stored = load_code(name, codegen.magic_tuple())
        if stored is None:
            library = codegen.create_library(name)
            library.enable_object_caching()
            module = library.create_ir_module(name)
            for define in definitions:
                define(module, n, m, weight_type)
            library.add_ir_module(module)
            with signals_later():  # LLVM hands the code to a callback, which drops what a signal raises, and the code
                library.finalize()
            save_code(name, codegen.magic_tuple(), library.serialize_using_object_code())
        else:
            library = codegen.unserialize_library(stored)
        table[: len(FUNCTIONS)] = [library.get_pointer_to_function(f"{name}.{twin}") for twin in FUNCTIONS]
        _LIBRARIES.append(library)
    return table


_LIBRARIES = []  # the code lives as long as these
