"""Arithmetic on symbolic sizes: `"cdiv(B * T, ROWS)"` on numbers, or on TensorRT's shape terms.

One text serves the launch (numbers), the manifest (as it is) and the plugin (symbolic terms).
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any

from ltx2rt_kernels.errors import KernelError

Value = Any  # an int, or a term with the same operators

_OPERATORS: dict[type[ast.operator], Callable[[Value, Value], Value]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
}

#: what an expression may call, on numbers
INTEGER_FUNCTIONS: dict[str, Callable[[int, int], int]] = {
    "cdiv": lambda a, b: -(-a // b),
    "max": max,
    "min": min,
}


def evaluate(
    text: str,
    sizes: Mapping[str, Value],
    functions: Mapping[str, Callable[[Value, Value], Value]] = INTEGER_FUNCTIONS,
    constant: Callable[[int], Value] = int,
) -> Value:
    """Value of an expression of integers, names, `+ - * //`, `cdiv`, `max` and `min`.

    Args:
        text: the expression.
        sizes: value of every name that it may use.
        functions: `cdiv`, `max` and `min` of two values.
        constant: turns a literal into a value.

    Raises:
        KernelError: on any other syntax, or a name without a value.
    """

    def visit(node: ast.AST) -> Value:
        match node:
            case ast.Constant(value=int(number)):
                return constant(number)
            case ast.Name(id=name):
                if name not in sizes:
                    known = ", ".join(sorted(sizes)) or "none"
                    raise KernelError(f"{text!r} uses {name!r}, which has no value; known: {known}")
                return sizes[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](visit(left), visit(right))
            case ast.Call(func=ast.Name(id=name), args=[a, b], keywords=[]) if name in functions:
                return functions[name](visit(a), visit(b))
        raise KernelError(
            f"{text!r} is not an expression of integers, names, + - * //, cdiv, max and min"
        )

    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError:
        raise KernelError(f"{text!r} is not an expression") from None
    return visit(tree.body)


def solve(shape: tuple[str, ...], actual: tuple[int, ...], sizes: dict[str, int]) -> list[str]:
    """Add the sizes that `actual` gives to the bare names of `shape`; returns what disagrees.

    Entries that are not bare names are compared once all their names are known.
    """
    if len(shape) != len(actual):
        return [f"has {len(actual)} dimensions where [{', '.join(shape)}] has {len(shape)}"]
    problems = []
    for entry, size in zip(shape, actual, strict=True):
        if entry.isidentifier() and entry not in sizes:
            sizes[entry] = size
        elif (expected := evaluate(entry, sizes)) != size:
            problems.append(f"dimension {entry} is {size}, expected {expected}")
    return problems
