"""Which keys are read: those that stand as a string in the source of what reads the options.

No interpreter: a model, data set or metric of others knows a key if any string of its module, of
its bases' modules, or of modules beside them that they import from, is that key. BasicSR and this
package look options up in what is called like their section (`train_opt["optim_g"]`): of these a
key is known only in the section where they look it up. What BasicSR's loop reads is listed in
`table`. Nothing is built to see what it reads: models load weights, download and fill memory as
they are built, and read most of their options only as they train.
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

from esc_arch.plugin.preflight.report import Path

OURS = ("basicsr", "esc_arch")
# Whatever a file says of these, BasicSR sets them.
_SET_BY_BASICSR = {"dist", "rank", "world_size", "is_train", "phase"}
_FOREIGN = ("torch", "torchvision", "numpy", "builtins", "abc", "typing")


def is_known(key: str, known: frozenset[str]) -> bool:
    """Whether a key is among known ones, in which `*` stands for anything."""
    if key in known:
        return True
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in known if "*" in pattern)


@functools.cache
def keys_read(thing: Any, section: Path) -> frozenset[str]:
    """Every key that a class may read of a section that it gets, as its modules' source has them.

    Args:
        thing: A model or data set.
        section: The section, from the root of the options.
    """
    return keys_of_ours(thing, section) | keys_of_plugins(thing)


@functools.cache
def keys_of_ours(thing: Any, section: Path) -> frozenset[str]:
    """Those of `keys_read` that BasicSR's or this package's code reads."""
    # Data sets get their own section as all the options that there are.
    is_whole = not section or (section[0] == "datasets" and len(section) == 2)
    place = "" if is_whole else section[-1]
    ours = (m for m in _modules_of(thing) if m.__name__.partition(".")[0] in OURS)
    read = {key for module in ours for where, key in _looked_up(module) if where == place}
    return frozenset(read - _SET_BY_BASICSR)


@functools.cache
def keys_of_plugins(thing: Any) -> frozenset[str]:
    """Every key that a class may read by code that is neither BasicSR's nor this package's."""
    theirs = (m for m in _modules_of(thing) if m.__name__.partition(".")[0] not in OURS)
    return frozenset().union(*map(_strings, theirs))


@functools.cache
def words_of(thing: Any) -> frozenset[str]:
    """Every string in the source of a class or function, its bases and what they import from."""
    return frozenset().union(*map(_strings, _modules_of(thing)))


def _is_written(cls: type) -> bool:
    """Whether a class stands in the module that it names, as one put together by code does not."""
    module = sys.modules.get(cls.__module__)
    return "<locals>" in cls.__qualname__ or hasattr(module, cls.__qualname__.split(".")[0])


def _modules_of(thing: Any) -> list[ModuleType]:
    """The modules of a class or function, of bases, and those that they take things from."""
    if inspect.isclass(thing):
        open_names = [c.__module__ for c in inspect.getmro(thing) if _is_written(c)]
    else:
        open_names = [getattr(thing, "__module__", None) or "builtins"]
    modules: dict[str, ModuleType] = {}
    while open_names:
        name = open_names.pop()
        module = sys.modules.get(name)
        if name in modules or module is None or name.partition(".")[0] in _FOREIGN:
            continue
        modules[name] = module
        package = name.rpartition(".")[0]
        for value in vars(module).values():
            other = value.__name__ if isinstance(value, ModuleType) else None
            other = other or getattr(value, "__module__", None)
            if package and isinstance(other, str) and other.rpartition(".")[0] == package:
                open_names.append(other)
    return list(modules.values())


@functools.cache
def _tree(module: ModuleType) -> ast.AST:
    try:
        return ast.parse(inspect.getsource(module))
    except (OSError, TypeError, SyntaxError, ValueError):
        return ast.Module([], [])


@functools.cache
def _looked_up(module: ModuleType) -> set[tuple[str | None, str]]:
    """Each text that something is looked up by, and in which section: `` for the whole."""
    lookups = (_lookup(node) for node in ast.walk(_tree(module)))
    return {(_section(place), key) for place, key in filter(None, lookups)}


def _lookup(node: ast.AST) -> tuple[ast.AST, str] | None:
    """What something is looked up in, and by which text."""
    match node:
        case ast.Subscript(value=place, slice=ast.Constant(value=str(key))):
            return place, key
        case ast.Call(func=ast.Attribute(value=place, attr="get" | "pop" | "setdefault")):
            key = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
            return (place, key) if isinstance(key, str) else None
        case ast.Compare(left=ast.Constant(value=str(key)), comparators=[place]):
            return place, key
    return None


def _section(place: ast.AST) -> str | None:
    """The section that code means by `opt`, `self.opt`, `train_opt`, `opt["train"]`; or None."""
    match place:
        case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="self"), attr=name):
            return name.removesuffix("opt").removesuffix("_")
        case ast.BoolOp(values=[first, *_]):
            return _section(first)
    above = _lookup(place)
    return above[1] if above is not None and _section(above[0]) == "" else None


@functools.cache
def _strings(module: ModuleType) -> set[str]:
    """Strings of a module; with `*` for the parts of composed ones that are not told."""
    found, composed = set(), set()
    for node in ast.walk(_tree(module)):
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
