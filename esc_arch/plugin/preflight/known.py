"""Which keys are read: those that stand as a string in the source of what reads the options.

No interpreter: a model, data set or metric knows a key if any string of its module, of its bases'
modules, or of modules beside them that they import from, is that key. What BasicSR's loop reads is
listed in `table`. Nothing is built to see what it reads: models load weights, download and fill
memory as they are built, and read most of their options only as they train.
"""

import ast
import fnmatch
import functools
import inspect
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

OURS = ("basicsr", "esc_arch")
_FOREIGN = ("torch", "torchvision", "numpy", "builtins", "abc", "typing")


def is_known(key: str, known: frozenset[str]) -> bool:
    """Whether a key is among known ones, in which `*` stands for anything."""
    if key in known:
        return True
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in known if "*" in pattern)


@functools.cache
def words_of(thing: Any) -> frozenset[str]:
    """Every key that a class or function may read, as its modules' source has them."""
    if inspect.isclass(thing):
        names = {c.__module__ for c in inspect.getmro(thing) if _is_written(c)}
    else:
        names = {getattr(thing, "__module__", None) or "builtins"}
    found: set[str] = set()
    for name in names:
        found |= _words_of_module(name)
    return frozenset(found)


def _is_written(cls: type) -> bool:
    """Whether a class stands in the module that it names, as one put together by code does not."""
    module = sys.modules.get(cls.__module__)
    return "<locals>" in cls.__qualname__ or hasattr(module, cls.__qualname__.split(".")[0])


@functools.cache
def _words_of_module(name: str) -> frozenset[str]:
    """Strings of a module, and of those in its package that it takes functions or classes from."""
    found: set[str] = set()
    open_names, seen = [name], set()
    while open_names:
        name = open_names.pop()
        module = sys.modules.get(name)
        if name in seen or module is None or name.partition(".")[0] in _FOREIGN:
            continue
        seen.add(name)
        found |= _strings(module)
        package = name.rpartition(".")[0]
        for value in vars(module).values():
            other = value.__name__ if isinstance(value, ModuleType) else None
            other = other or getattr(value, "__module__", None)
            if package and isinstance(other, str) and other.rpartition(".")[0] == package:
                open_names.append(other)
    return frozenset(found)


def _strings(module: ModuleType) -> set[str]:
    """Strings of a module; with `*` for the parts of composed ones that are not told."""
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError, SyntaxError, ValueError):
        return set()
    found, composed = set(), set()
    for node in ast.walk(tree):
        match node:
            case ast.JoinedStr(values=parts):
                told = (p.value if isinstance(p, ast.Constant) else "*" for p in parts)
                composed.add("".join(told))
            case ast.BinOp(left=ast.Constant(value=str(text)), op=ast.Add()):
                composed.add(f"{text}*")
            case ast.BinOp(right=ast.Constant(value=str(text)), op=ast.Add()):
                composed.add(f"*{text}")
            case ast.Call(func=ast.Attribute(attr="startswith"), args=[ast.Constant(str(text))]):
                composed.add(f"{text}*")
            case ast.Call(func=ast.Attribute(attr="endswith"), args=[ast.Constant(str(text))]):
                composed.add(f"*{text}")
            case ast.Constant(value=str(text)) if len(text) < 80:
                found.add(text.replace("*", ""))
                composed.add(re.sub(r"\{\w*\}|%s", "*", text))
    if module.__name__.partition(".")[0] in OURS:
        # Of these it is known that no key is composed.
        return found
    return found | {key for key in composed if re.fullmatch(r"[\w*]*\w{4}[\w*]*", key)}


def parameters_of(
    function: Callable[..., Any], skip: int = 0
) -> tuple[dict[str, inspect.Parameter], bool] | None:
    """Keywords of a callable, and whether it takes any others; None where Python cannot tell."""
    try:
        parameters = list(inspect.signature(function).parameters.values())[skip:]
    except (TypeError, ValueError):
        return None
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)
