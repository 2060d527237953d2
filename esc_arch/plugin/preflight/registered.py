"""What registered models, data sets, networks and the rest know of options."""

import fnmatch
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import basicsr.test
import basicsr.train
import basicsr.utils.options
from basicsr.utils.registry import DATASET_REGISTRY, MODEL_REGISTRY, Registry

from esc_arch.plugin.preflight.rules import must_be_bool
from esc_arch.plugin.preflight.source import Path, Read, child_keys, class_reads, function_reads


def registered(registry: Registry, name: str) -> Any:
    """BasicSR's lookup, without its print for names that carry the suffix."""
    found = registry._obj_map.get(name)
    return found if found is not None else registry._obj_map.get(f"{name}_basicsr")


def registered_names(registry: Registry) -> list[str]:
    """Names as an option file writes them, without the suffix."""
    return [name.removesuffix("_basicsr") for name in registry.keys()]


@functools.cache
def reads_of_function(function: Callable[..., Any]) -> tuple[Read, ...]:
    """`function_reads`, once a function."""
    return tuple(function_reads(function))


@functools.cache
def all_reads(cls: type, methods: tuple[str, ...] | None = None) -> tuple[Read, ...]:
    """`class_reads`, once a class."""
    return tuple(class_reads(cls, methods=methods))


def pipeline_reads() -> tuple[Read, ...]:
    """What BasicSR's own training and testing read."""
    return (
        reads_of_function(basicsr.utils.options.parse_options)
        + reads_of_function(basicsr.train.train_pipeline)
        + reads_of_function(basicsr.test.test_pipeline)
    )


def parameters_of(function: Any, skip: int = 0) -> tuple[dict[str, inspect.Parameter], bool] | None:
    """Keywords of a callable, and whether it takes any others; None where Python cannot tell."""
    try:
        parameters = list(inspect.signature(function).parameters.values())[skip:]
    except (TypeError, ValueError):
        return None
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)


def wrong_type(value: Any, parameter: inspect.Parameter) -> str | None:
    """What a keyword must be, judged by its default or else its annotation."""
    default, kind = parameter.default, parameter.annotation
    if default is not parameter.empty:
        if default is None:
            return None
        kind = type(default)
    if kind in (bool, "bool"):
        return must_be_bool(value) if value not in (0, 1) else None
    if kind in (int, float, "int", "float"):
        # An int default often stands for any number (weight_decay=0), and ~ for "none of it".
        return None if isinstance(value, int | float) or value is None else "must be a number"
    if kind in (str, "str"):
        return None if isinstance(value, str) or value is None else "must be text"
    if kind in (list, tuple):
        right = isinstance(value, list | tuple | int | float) or value is None
        return None if right else "must be a list"
    return None


def is_known(key: str, known: Iterable[str]) -> bool:
    """Whether a key is among known ones, in which `*` stands for anything."""
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in known)


def read_by_other_datasets(key: str) -> bool:
    """Whether any registered data set reads a key."""
    return any(
        is_known(key, child_keys(all_reads(dataset), ()))
        for dataset in DATASET_REGISTRY._obj_map.values()
        if inspect.isclass(dataset)
    )


def read_by_other_models(section: Path, key: str) -> bool:
    """Whether any registered model reads a key of a section."""
    return any(
        is_known(key, child_keys(all_reads(model), section))
        for model in MODEL_REGISTRY._obj_map.values()
        if inspect.isclass(model)
    )
