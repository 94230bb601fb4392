"""Decides from a job's code whether the rows of a loop determine the code that follows the loop.

A plan does not run the body of a loop. The code behind it can be planned only if the body has set nothing that it uses.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from types import CodeType


def find_dependence(code: CodeType, line: int) -> str | None:
    """Return why the rows of a loop decide what follows it; None if they do not.

    Args:
        code: The code of the function that holds the loop.
        line: The line at which the loop begins.
    """
    try:
        lines, first = inspect.getsourcelines(code)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, SyntaxError):
        return "the source of the job cannot be read"
    at = line - first + 1 if first else line
    loops = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncFor) and node.lineno <= at <= (node.iter.end_lineno or node.lineno)
    ]
    if not loops:
        return "its rows are collected"
    loop = loops[-1]
    if any(isinstance(node, ast.Return) for node in _walk_own(loop.body)):
        return "the body of this loop can return"
    changed = _changed_names(loop) & {*code.co_varnames, *code.co_cellvars, *code.co_freevars}
    changed -= {name.id for name in ast.walk(loop.target) if isinstance(name, ast.Name)} | {*code.co_varnames[:1]}
    used = changed & set(_names_used_behind(tree, loop))
    return f"the body of this loop sets {', '.join(sorted(used))}, which the code behind it uses" if used else None


def _walk_own(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Yield the nodes of a body, without those of functions that it defines."""
    for node in body:
        yield node
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield from _walk_own([child])  # type: ignore[list-item]


def _changed_names(loop: ast.AsyncFor) -> set[str]:
    """Return the names that a body sets, and those of objects that it may change."""
    found: set[str] = set()
    for node in (inner for statement in loop.body for inner in ast.walk(statement)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
            found.add(node.id)
        elif isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            found |= _root(node)
        elif isinstance(node, ast.Call):
            found |= _root(node.func) if isinstance(node.func, ast.Attribute) else set()
            arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
            found |= {argument.id for argument in arguments if isinstance(argument, ast.Name)}
    return found


def _root(node: ast.expr) -> set[str]:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return {node.id} if isinstance(node, ast.Name) else set()


def _names_used_behind(tree: ast.AST, loop: ast.AsyncFor) -> Iterator[str]:
    """Yield the names that are read behind a loop, or before it in a loop around it."""
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.For | ast.AsyncFor | ast.While)
        and node is not loop
        and node.lineno < loop.lineno
        and (node.end_lineno or 0) >= (loop.end_lineno or 0)
    ]
    first = min((node.lineno for node in around), default=(loop.end_lineno or loop.lineno) + 1)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            is_inside = loop.lineno <= node.lineno <= (loop.end_lineno or loop.lineno)
            if node.lineno >= first and not is_inside:
                yield node.id
