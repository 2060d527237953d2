"""Which keys of an option file some Python code reads, found in its source.

BasicSR and its plugins take options as nested dictionaries and read them by key, so there is no
list of the keys that a model or a data set knows, except its source. This module follows the
dictionary through a function or class: `opt["a"]`, `opt.get("a")`, `"a" in opt`, through local
names, attributes of `self`, loops over `.items()`, and into the functions and methods it is handed
to. What it cannot follow it leaves out.
"""

import ast
import functools
import inspect
import operator
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

Path = tuple[str, ...]
"""Keys from the root of the options downwards; `*` stands for any key, also within a key."""

UNKNOWN = object()
"""A value that cannot be told without running the code."""

# (options, the key that `*` stands for) -> value, or UNKNOWN.
Value = Callable[[Any, str], Any]

# At the end of a path: the key that `*` stands for, not the value under it.
_KEY_ITSELF = "\0key"

_LOOP_WRAPPERS = {"enumerate", "sorted", "list", "reversed", "tuple"}
_COPIES = {"deepcopy", "copy", "dict"}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}


@dataclass(frozen=True)
class Read:
    """One place where a key is read.

    Args:
        path: The key, from the root of the options.
        required: Whether reading fails when the key is missing.
        guards: Conditions, each with the outcome under which the key is read.
    """

    path: Path
    required: bool
    guards: tuple[tuple[Value, bool], ...] = ()

    def happens(self, options: Any, star: str = "*") -> bool:
        """Whether these options surely lead to this place.

        Args:
            options: The options that the path starts from.
            star: The key that `*` stands for.
        """
        for condition, outcome in self.guards:
            value = condition(options, star)
            if value is UNKNOWN or bool(value) is not outcome:
                return False
        return True


@dataclass
class _Scope:
    """What names mean inside one function call."""

    module: dict[str, Any]
    attributes: dict[str, set[Path]] = field(default_factory=dict)
    names: dict[str, set[Path]] = field(default_factory=dict)
    cls: type | None = None
    owner: type | None = None


def function_reads(function: Callable[..., Any], name: str = "opt") -> list[Read]:
    """Find the keys that a function reads, and all that it calls.

    Args:
        function: A Python function.
        name: Its parameter or local variable that holds the options.
    """
    reader = _Reader()
    reader.follow_function(function, [], {name: {()}})
    return reader.reads


def class_reads(cls: type, root: Path = (), methods: Iterable[str] | None = None) -> list[Read]:
    """Find the keys that a class reads whose constructor takes options first.

    Args:
        cls: The class.
        root: Where in the options the constructor's argument is.
        methods: Follow only the constructor and these methods, and what they call. None takes every
            method of the class and of its bases, called or not.
    """
    reader = _Reader()
    attributes: dict[str, set[Path]] = {}
    scope = _Scope({}, attributes, cls=cls)
    reader.follow_method(cls, "__init__", [{root}], {}, scope)
    if methods is None:
        # Twice, because a method may read an attribute that a later one sets.
        for _ in range(2):
            reader.seen.clear()
            for owner in inspect.getmro(cls):
                for function in vars(owner).values():
                    function = inspect.unwrap(getattr(function, "__func__", function))
                    if isinstance(function, FunctionType) and function.__name__ != "__init__":
                        scope = _Scope(function.__globals__, attributes, cls=cls, owner=owner)
                        reader.enter(function, ["self"], {}, scope)
    else:
        for name in methods:
            reader.follow_method(cls, name, [], {}, scope)
    return reader.reads


def child_keys(reads: Iterable[Read], section: Path) -> set[str]:
    """Keys that are read in one section; `*` within a key stands for anything.

    Args:
        reads: What was read.
        section: Where the section is.
    """
    keys = set()
    for read in reads:
        if len(read.path) > len(section) and _covers(read.path[: len(section)], section):
            keys.add(read.path[len(section)])
    return keys - {"*"}


def _covers(pattern: Path, path: Path) -> bool:
    return all(ours in ("*", theirs) for ours, theirs in zip(pattern, path, strict=True))


def lookup(options: Any, path: Path, star: str = "*") -> Any:
    """Value at a path, or UNKNOWN where there is none.

    Args:
        options: Nested dictionaries.
        path: Keys from the root downwards.
        star: The key that `*` stands for.
    """
    for key in path:
        if key == _KEY_ITSELF:
            return star
        key = star if key == "*" else key
        if not isinstance(options, dict) or key not in options:
            return UNKNOWN
        options = options[key]
    return options


@functools.cache
def _definition(function: FunctionType) -> ast.FunctionDef | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    statement = tree.body[0] if tree.body else None
    return statement if isinstance(statement, ast.FunctionDef) else None


class _Reader(ast.NodeVisitor):
    """Walks function bodies in order, with the conditions that hold at each place."""

    def __init__(self) -> None:
        self.reads: list[Read] = []
        self.seen: set[Any] = set()
        self.guards: tuple[tuple[Value, bool], ...] = ()
        self.scope = _Scope({})

    # -- into functions, methods and constructors

    def follow_function(
        self,
        function: Any,
        arguments: list[Any],
        keywords: dict[str, set[Path]],
    ) -> None:
        """Read a function, or the constructor of a class, with what it is handed."""
        if inspect.isclass(function):
            new_object = _Scope({}, {}, cls=function)
            self.follow_method(function, "__init__", arguments, keywords, new_object)
            return
        function = inspect.unwrap(function) if callable(function) else function
        if isinstance(function, FunctionType):
            self.enter(function, arguments, keywords, _Scope(function.__globals__))

    def follow_method(
        self,
        cls: type,
        name: str,
        arguments: list[Any],
        keywords: dict[str, set[Path]],
        caller: _Scope,
        after: type | None = None,
    ) -> None:
        """Read the method that the class, or its next base after `after`, runs."""
        owners = inspect.getmro(cls)
        if after is not None and after in owners:
            owners = owners[owners.index(after) + 1 :]
        for owner in owners:
            if name in vars(owner):
                method = vars(owner)[name]
                receiver = [] if isinstance(method, staticmethod) else ["self"]
                method = getattr(method, "fget", None) or getattr(method, "__func__", method)
                function = inspect.unwrap(method) if callable(method) else method
                if isinstance(function, FunctionType):
                    scope = _Scope(function.__globals__, caller.attributes, cls=cls, owner=owner)
                    self.enter(function, [*receiver, *arguments], keywords, scope)
                return

    def enter(
        self,
        function: FunctionType,
        arguments: list[Any],
        keywords: dict[str, set[Path]],
        scope: _Scope,
    ) -> None:
        """Read the body of a function once for each way of being handed options."""
        definition = _definition(function)
        if definition is None:
            return
        parameters = [a.arg for a in definition.args.posonlyargs + definition.args.args]
        for name, paths in [*zip(parameters, arguments, strict=False), *keywords.items()]:
            if paths != "self" and paths:
                scope.names[name] = set(paths)
        names = frozenset((name, frozenset(paths)) for name, paths in scope.names.items())
        # Conditions need no part in the key: the first, outermost way in is the least guarded.
        key = (function.__code__, names, scope.cls, scope.owner, len(self.guards))
        if key in self.seen or len(self.guards) > 40:
            return
        self.seen.add(key)
        outer = self.scope, self.guards
        self.scope = scope
        self.block(definition.body)
        self.scope, self.guards = outer

    # -- expressions

    def paths(self, node: ast.AST | None) -> set[Path]:
        """Sections or values of the options that an expression stands for."""
        if isinstance(node, ast.Name):
            return self.scope.names.get(node.id, set())
        if isinstance(node, ast.Attribute) and _is_self(node.value):
            return self.scope.attributes.get(node.attr, set())
        if isinstance(node, ast.Subscript):
            key = _key_pattern(node.slice)
            return {(*path, key) for path in self.paths(node.value)} if key else set()
        if isinstance(node, ast.Call):
            name = _called_name(node)
            if isinstance(node.func, ast.Attribute) and node.args:
                key = _key_pattern(node.args[0])
                if name in ("get", "pop", "setdefault") and key:
                    return {(*path, key) for path in self.paths(node.func.value)}
            if isinstance(node.func, ast.Attribute) and name == "copy":
                return self.paths(node.func.value)
            if name in _COPIES and node.args:
                return self.paths(node.args[0])
        if isinstance(node, ast.IfExp):
            return self.paths(node.body) | self.paths(node.orelse)
        if isinstance(node, ast.BoolOp):
            return set().union(*(self.paths(value) for value in node.values))
        if isinstance(node, ast.NamedExpr):
            return self.paths(node.value)
        return set()

    def condition(self, node: ast.AST) -> Value:
        """Compile a condition so that it can be tried on options later."""
        if isinstance(node, ast.Constant):
            return lambda options, star: node.value
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            if all(isinstance(item, ast.Constant) for item in node.elts):
                items = [item.value for item in node.elts]
                return lambda options, star: items
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self.condition(node.operand)

            def negated(options: Any, star: str) -> Any:
                value = inner(options, star)
                return UNKNOWN if value is UNKNOWN else not value

            return negated
        if isinstance(node, ast.BoolOp):
            parts = [self.condition(value) for value in node.values]
            deciding = isinstance(node.op, ast.Or)

            def combined(options: Any, star: str) -> Any:
                values = [part(options, star) for part in parts]
                if any(value is not UNKNOWN and bool(value) is deciding for value in values):
                    return deciding
                return UNKNOWN if UNKNOWN in values else not deciding

            return combined
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            left, right = self.condition(node.left), self.condition(node.comparators[0])
            compare = _COMPARISONS[type(node.ops[0])]

            def compared(options: Any, star: str) -> Any:
                values = left(options, star), right(options, star)
                if UNKNOWN in values:
                    return UNKNOWN
                try:
                    return compare(*values)
                except TypeError:
                    return UNKNOWN

            return compared
        part = _part_of_split(node)
        if part is not None:
            text, separator, index = self.condition(part[0]), part[1], part[2]

            def split(options: Any, star: str) -> Any:
                value = text(options, star)
                parts = value.split(separator) if isinstance(value, str) else []
                return parts[index] if -len(parts) <= index < len(parts) else UNKNOWN

            return split
        paths = self.paths(node)
        if len(paths) == 1:
            (path,) = paths
            default = _default(node)

            def looked_up(options: Any, star: str) -> Any:
                value = lookup(options, path, star)
                return default if value is UNKNOWN else value

            return looked_up
        return _unknown

    # -- statements

    def block(self, statements: list[ast.stmt]) -> None:
        """Read statements; after `if ...: return` the rest is guarded."""
        outer = self.guards
        for statement in statements:
            self.visit(statement)
            # A `raise`, too, ends the block, but where it does there is an error anyway.
            if isinstance(statement, ast.If) and isinstance(statement.body[-1], ast.Return):
                self.guards += ((self.condition(statement.test), False),)
        self.guards = outer

    def guarded(self, condition: Value, outcome: bool, nodes: list[Any]) -> None:
        """Read nodes that run only if a condition has this outcome."""
        outer = self.guards
        self.guards += ((condition, outcome),)
        if nodes and isinstance(nodes[0], ast.stmt):
            self.block(nodes)
        else:
            for node in nodes:
                self.visit(node)
        self.guards = outer

    def visit_If(self, node: ast.If | ast.IfExp) -> None:
        self.visit(node.test)
        condition = self.condition(node.test)
        branches = [node.body, node.orelse]
        for outcome, branch in zip((True, False), branches, strict=True):
            self.guarded(condition, outcome, branch if isinstance(branch, list) else [branch])

    visit_IfExp = visit_If

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        outer = self.guards
        for value in node.values:
            self.visit(value)
            self.guards += ((self.condition(value), isinstance(node.op, ast.And)),)
        self.guards = outer

    def visit_Try(self, node: ast.Try) -> None:
        for body in (node.body, *(handler.body for handler in node.handlers), node.orelse):
            self.guarded(_unknown, True, body)
        self.block(node.finalbody)

    def visit_While(self, node: ast.While) -> None:
        self.visit(node.test)
        self.block(node.body + node.orelse)

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            self.visit(item.context_expr)
        self.block(node.body)

    def visit_For(self, node: ast.For) -> None:
        self.visit(node.iter)
        self.bind_loop(node.target, node.iter)
        self.block(node.body + node.orelse)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self.bind_loop(node.target, node.iter)
        self.generic_visit(node)

    def _visit_comprehension_expression(self, node: Any) -> None:
        for generator in node.generators:
            self.visit(generator)
        for name in ("elt", "key", "value"):
            if hasattr(node, name):
                self.visit(getattr(node, name))

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = (
        _visit_comprehension_expression
    )

    def bind_loop(self, target: ast.expr, source: ast.expr) -> None:
        """Bind a loop's names to the keys and values of the section it goes over."""
        while isinstance(source, ast.Call) and _called_name(source) in _LOOP_WRAPPERS:
            if not source.args:
                return
            if _called_name(source) == "enumerate" and isinstance(target, ast.Tuple):
                target = target.elts[-1]
            source = source.args[0]
        if not isinstance(source, ast.Call) or not isinstance(source.func, ast.Attribute):
            return
        elements = {(*path, "*") for path in self.paths(source.func.value)}
        if source.func.attr == "values":
            self.bind(target, elements)
        elif source.func.attr == "items" and isinstance(target, ast.Tuple):
            self.bind(target.elts[-1], elements)
            self.bind(target.elts[0], {(*path, _KEY_ITSELF) for path in elements})

    def bind(self, target: ast.expr, paths: set[Path]) -> None:
        """Let a name or an attribute of self stand for paths as well."""
        if not paths:
            return
        if isinstance(target, ast.Name):
            self.scope.names.setdefault(target.id, set()).update(paths)
        elif isinstance(target, ast.Attribute) and _is_self(target.value):
            self.scope.attributes.setdefault(target.attr, set()).update(paths)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self.visit(target)
            if (
                isinstance(target, ast.Tuple)
                and isinstance(node.value, ast.Tuple)
                and len(target.elts) == len(node.value.elts)
            ):
                for part, value in zip(target.elts, node.value.elts, strict=True):
                    self.bind(part, self.paths(value))
            else:
                self.bind(target, self.paths(node.value))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
            self.bind(node.target, self.paths(node.value))

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        self.bind(node.target, self.paths(node.value))

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.generic_visit(node)
        key = _key_pattern(node.slice)
        if key:
            for path in self.paths(node.value):
                self.record((*path, key), isinstance(node.ctx, ast.Load))

    def visit_Compare(self, node: ast.Compare) -> None:
        self.generic_visit(node)
        for op, right in zip(node.ops, node.comparators, strict=True):
            key = _key_pattern(node.left)
            if isinstance(op, ast.In | ast.NotIn) and key:
                for path in self.paths(right):
                    self.record((*path, key), False)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        name = _called_name(node)
        if isinstance(node.func, ast.Attribute) and node.args:
            key = _key_pattern(node.args[0])
            if name in ("get", "pop", "setdefault") and key:
                for path in self.paths(node.func.value):
                    self.record((*path, key), name == "pop" and len(node.args) == 1)
        if any(isinstance(argument, ast.Starred) for argument in node.args):
            return
        arguments = [self.paths(argument) for argument in node.args]
        keywords = {word.arg: self.paths(word.value) for word in node.keywords if word.arg}
        handed = any(arguments) or any(keywords.values())
        if isinstance(node.func, ast.Attribute) and self.scope.cls is not None:
            value = node.func.value
            if _is_self(value):
                self.follow_method(self.scope.cls, name, arguments, keywords, self.scope)
                return
            if isinstance(value, ast.Call) and _called_name(value) == "super":
                self.follow_method(
                    self.scope.cls, name, arguments, keywords, self.scope, self.scope.owner
                )
                return
        if handed:
            function = self.called_object(node.func)
            if function is not None:
                self.follow_function(function, arguments, keywords)

    def called_object(self, node: ast.expr) -> Any:
        """What a call in this function's module calls, if that can be told."""
        if isinstance(node, ast.Name):
            return self.scope.module.get(node.id)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            holder = self.scope.module.get(node.value.id)
            return getattr(holder, node.attr, None) if inspect.ismodule(holder) else None
        return None

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        # A function inside a function may never be called: its keys are known, not required.
        self.guarded(_unknown, True, node.body)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.guarded(_unknown, True, [node.body])

    def record(self, path: Path, required: bool) -> None:
        """Note that a key is read here."""
        if len(path) <= 8 and _KEY_ITSELF not in path:
            self.reads.append(Read(path, required, self.guards))


def _unknown(options: Any, star: str) -> Any:
    return UNKNOWN


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _called_name(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _key_pattern(node: ast.AST) -> str | None:
    """A constant key, or an f-string with `*` for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values
        )
    return None


def _part_of_split(node: ast.AST) -> tuple[ast.AST, str, int] | None:
    """Text, separator and index of `text.split(separator)[index]`."""
    if not isinstance(node, ast.Subscript) or not isinstance(node.value, ast.Call):
        return None
    call, index = node.value, node.slice
    if _called_name(call) != "split" or not isinstance(call.func, ast.Attribute):
        return None
    separator = _key_pattern(call.args[0]) if len(call.args) == 1 else None
    if separator and isinstance(index, ast.Constant) and isinstance(index.value, int):
        return call.func.value, separator, index.value
    return None


def _default(node: ast.AST) -> Any:
    """What an expression gives where its key is missing."""
    if isinstance(node, ast.Call) and _called_name(node) == "get":
        if len(node.args) == 1:
            return None
        if isinstance(node.args[1], ast.Constant):
            return node.args[1].value
    return UNKNOWN
