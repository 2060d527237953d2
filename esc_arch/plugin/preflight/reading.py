"""Option files and --force_yml, read as BasicSR reads them but without running code in them."""

import ast
import re
from collections.abc import Iterable, Mapping
from typing import Any

import basicsr.utils.options
import yaml

from esc_arch.plugin.preflight.files import exists, is_file
from esc_arch.plugin.preflight.wording import did_you_mean, one_line, show

MAX_FILE_BYTES = 1_000_000
MAX_NODES = 20_000


class _Loader(yaml.SafeLoader):
    """Safe, and each key once. BasicSR's own loader runs code that a file contains."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        where = f"line {key_node.start_mark.line + 1}"
        if isinstance(key, dict | list | set):
            raise yaml.YAMLError(f"{where}: a key must be a name, not {show(key)}")
        if key in mapping:
            raise yaml.YAMLError(f"{where}: the key {show(key)} is there twice")
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_option_file(path: str, errors: list[str]) -> dict[str, Any] | None:
    """Read an option file safely; what is wrong goes to `errors`, and None comes back."""
    if not is_file(path):
        problem = "is not a file" if exists(path) else "no such option file"
        errors.append(f"-opt {path}: {problem}")
        return None
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ValueError(f"larger than {MAX_FILE_BYTES} bytes, so not an option file")
        loader = _Loader(content.decode("utf-8-sig"))
        try:
            node = loader.get_single_node()
            if node is not None:
                _check_size(node)
            options = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        errors.append(f"-opt {path}: nested too deeply, so not an option file")
        return None
    except UnicodeDecodeError:
        errors.append(f"-opt {path}: not a text file in UTF-8")
        return None
    except (OSError, yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        errors.append(f"-opt {path}: {_yaml_problem(error)}")
        return None
    if not isinstance(options, dict):
        errors.append(f"-opt {path}: must be a mapping of options, name: ..., not {show(options)}")
        return None
    return options


def _yaml_problem(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        if "python/" in error.problem:
            return f"{where}Python objects (!!python/...) are not read from option files"
        return f"{where}not YAML: {one_line(error.problem)}"
    return one_line(getattr(error, "strerror", None) or error)


def _check_size(root: yaml.Node) -> None:
    """Refuse aliases that contain themselves, or multiply into more than a machine can hold."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in open_nodes:
            raise ValueError("an alias (*name) contains itself")
        open_nodes.add(id(node))
        total = 1
        if isinstance(node, yaml.MappingNode):
            total += sum(size(part) for pair in node.value for part in pair)
        elif isinstance(node, yaml.SequenceNode):
            total += sum(size(part) for part in node.value)
        if total > MAX_NODES:
            raise ValueError(f"more than {MAX_NODES} values, so not an option file")
        open_nodes.discard(id(node))
        sizes[id(node)] = total
        return total

    size(root)


def keep_datasets(options: dict[str, Any], names: Iterable[str], errors: list[str]) -> None:
    """Leave only the data sets named; a name that none has goes to `errors`."""
    sections = options.get("datasets")
    if not isinstance(sections, dict):
        return
    chosen, unknown = choose_datasets(sections, names)
    called = [
        value["name"] if isinstance(value, dict) and "name" in value else key
        for key, value in sections.items()
    ]
    for name in unknown:
        errors.append(
            f"--datasets {one_line(name)}: not in the option file, which has "
            f"{one_line(', '.join(map(str, called)))}"
        )
    # Without any that is meant, what is wrong with the others still helps.
    if chosen:
        options["datasets"] = {key: sections[key] for key in chosen}


def choose_datasets(
    sections: Mapping[str, Any], names: Iterable[str]
) -> tuple[list[str], list[str]]:
    """Find data sets by name.

    Args:
        sections: What an option file has under `datasets`.
        names: The `name` of data sets (Set5) or of their sections (test_1), in any letter case.

    Returns:
        Their sections in the file's order, and the names of which there is none.
    """
    called: dict[str, set[str]] = {}
    for key, value in sections.items():
        own = value.get("name") if isinstance(value, dict) else None
        for name in (key, own):
            if isinstance(name, str):
                called.setdefault(name.lower(), set()).add(key)
    names = list(names)
    found = set().union(*(called.get(name.lower(), set()) for name in names))
    unknown = [name for name in names if name.lower() not in called]
    return [key for key in sections if key in found], unknown


def apply_force_yml(options: dict[str, Any], entries: Iterable[str], errors: list[str]) -> None:
    """Set what --force_yml says, as BasicSR does; what is wrong goes to `errors`."""
    for entry in entries:
        where = f"--force_yml {one_line(entry)}"
        keys, equals, text = entry.partition("=")
        names = keys.strip().split(":")
        if not equals or "=" in text or not all(re.fullmatch(r"[\w.+-]+", key) for key in names):
            errors.append(f"{where}: must be KEY:KEY=VALUE with one '='")
            continue
        section: Any = options
        for depth, key in enumerate(names[:-1]):
            inner = section.get(key)
            if not isinstance(inner, dict):
                sections = [name for name, value in section.items() if isinstance(value, dict)]
                place = ":".join(names[: depth + 1])
                errors.append(f"{where}: there is no section {place}{did_you_mean(key, sections)}")
                break
            section = inner
        else:
            try:
                section[names[-1]] = _force_yml_value(text.strip())
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                errors.append(
                    f"{where}: {show(text.strip())} is not a value; text in lists needs quotes"
                )


def _force_yml_value(text: str) -> Any:
    # BasicSR evaluates lists as Python code.
    if text.startswith("["):
        return ast.literal_eval(text)
    return basicsr.utils.options._postprocess_yml_value(text)
