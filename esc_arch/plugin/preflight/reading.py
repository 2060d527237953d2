"""Option files and --force_yml, read as BasicSR reads them but without running code in them."""

import ast
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from esc_arch.plugin.preflight.files import exists, is_file
from esc_arch.plugin.preflight.report import Path
from esc_arch.plugin.preflight.table import rule_of
from esc_arch.plugin.preflight.wording import meant_key, one_line, show, unshared

MAX_FILE_BYTES = 1_000_000
MAX_NODES = 20_000
_LONGEST_NUMBER = 100
MAX_CHARACTERS = 2_000_000
"""Of all values, with those that aliases repeat as often as they do."""


class OptionLoader(yaml.SafeLoader):
    """Safe, unlike BasicSR's own loader, which runs code that a file names.

    What is used twice (`optim_d: *optim_g`) is there twice: BasicSR takes `type` out of sections as
    it builds what they describe.

    Attributes:
        repeated: Keys that are there twice with different values, of which YAML takes the last:
            line, key, and line of the first.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.repeated: list[tuple[int, Any, int]] = []

    def get_single_data(self) -> Any:
        """The file's one document."""
        return unshared(super().get_single_data())

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A value; one that does not fit its tag (`!!bool maybe`) is an error of YAML's kind."""
        try:
            return super().construct_object(node, deep)
        except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
            what = show(node.value) if isinstance(node, yaml.ScalarNode) else "this"
            problem = f"{what} is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


def _mapping(loader: OptionLoader, node: yaml.MappingNode) -> OrderedDict[Any, Any]:
    own = list(node.value)
    loader.flatten_mapping(node)
    mapping: OrderedDict[Any, Any] = OrderedDict()
    lines: dict[Any, int] = {}
    for pair in node.value:
        key, line = loader.construct_object(pair[0], deep=True), pair[0].start_mark.line + 1
        if isinstance(key, dict | list | set):
            raise yaml.YAMLError(f"line {line}: a key must be a name, not {show(key)}")
        value = loader.construct_object(pair[1], deep=True)
        # What a merge key brings in may be set otherwise.
        if any(pair is each for each in own):
            first = lines.setdefault(key, line)
            if mapping.get(key, value) != value and first != line:
                loader.repeated.append((line, key, first))
        mapping[key] = value
    return mapping


def _number(loader: OptionLoader, node: yaml.ScalarNode) -> int | float | str:
    # To YAML 1.1 this is a number to base 60.
    if ":" in node.value:
        return node.value
    if len(node.value) > _LONGEST_NUMBER:
        where = f"line {node.start_mark.line + 1}"
        raise yaml.YAMLError(f"{where}: a number of {len(node.value)} characters")
    whole = node.tag.endswith("int")
    return loader.construct_yaml_int(node) if whole else loader.construct_yaml_float(node)


OptionLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
for _tag in ("int", "float"):
    OptionLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", _number)
# No option is a date; a name may look like one.
OptionLoader.add_constructor("tag:yaml.org,2002:timestamp", yaml.SafeLoader.construct_yaml_str)


def take_as_meant(options: dict[str, Any]) -> None:
    """Take 2.0 for 2, and the text None and weights without a letter for nothing, where it fits."""
    for path, value in list(walk(options)):
        if isinstance(value, float) and value.is_integer():
            if getattr(rule_of(path), "is_whole", False):
                _set(options, path, int(value))
        if value == "None" or (value == "" and path[0] == "path"):
            rule = rule_of(path)
            if rule is not None and rule(None) is None:
                _set(options, path, None)


def _set(options: dict[str, Any], path: Path, value: Any) -> None:
    for key in path[:-1]:
        options = options[key]
    options[path[-1]] = value


def settle(options: dict[str, Any]) -> None:
    """Fill in what is clear: as `take_as_meant`, and `~` is the home folder, no suffix none."""
    take_as_meant(options)
    if options.get("dist_params") is None:
        options.pop("dist_params", None)
    for data in options.get("datasets", {}).values():
        # BasicSR expands the roots only.
        for key in ("meta_info", "meta_info_file"):
            if isinstance(data.get(key), str):
                data[key] = os.path.expanduser(data[key])
    if isinstance(options.get("val"), dict):
        options["val"].setdefault("suffix", None)


def walk(section: dict[Any, Any], above: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every option below a section, with its path; keys that are no text come as they are."""
    for key, value in section.items():
        yield (*above, key), value
        if isinstance(value, dict):
            yield from walk(value, (*above, key))


def read_option_file(path: str, errors: list[str]) -> dict[str, Any] | None:
    """Read an option file safely; what is wrong goes to `errors`, and None comes back."""
    if not is_file(path):
        problem = "is not a file" if exists(path) else "no such option file"
        if path.startswith("options/") and not exists("options"):
            problem += "; the package's own are in its clone, to be started there"
        errors.append(f"-opt {path}: {problem}")
        return None
    is_other = path.lower().endswith((".toml", ".json"))
    hint = "; option files are YAML, of BasicSR's form" if is_other else ""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ValueError(f"larger than {MAX_FILE_BYTES} bytes, so not an option file")
        loader = OptionLoader(content.decode("utf-8-sig"))
        try:
            node = loader.get_single_node()
            if node is not None:
                _check_size(node)
            options = None if node is None else unshared(loader.construct_document(node))
        finally:
            loader.dispose()
            errors += [
                f"-opt {path}: line {line}: the key {show(key)} is there twice, with another value "
                f"in line {first}"
                for line, key, first in sorted(loader.repeated, key=lambda each: each[0])
            ]
    except RecursionError:
        errors.append(f"-opt {path}: nested too deeply, so not an option file")
        return None
    except UnicodeDecodeError:
        errors.append(f"-opt {path}: not a text file in UTF-8")
        return None
    except (OSError, yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        errors.append(f"-opt {path}: {_yaml_problem(error)}{hint}")
        return None
    if not isinstance(options, dict):
        problem = f"must be a mapping of options, name: ..., not {show(options)}{hint}"
        errors.append(f"-opt {path}: {problem}")
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
    sizes: dict[int, tuple[int, int]] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> tuple[int, int]:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in open_nodes:
            raise ValueError("an alias (*name) contains itself")
        open_nodes.add(id(node))
        nodes, characters = 1, 0
        if isinstance(node, yaml.ScalarNode):
            characters = len(node.value)
        for part in _parts(node):
            inner = size(part)
            nodes, characters = nodes + inner[0], characters + inner[1]
        if nodes > MAX_NODES:
            raise ValueError(f"more than {MAX_NODES} values, so not an option file")
        if characters > MAX_CHARACTERS:
            raise ValueError(f"more than {MAX_CHARACTERS} letters, so not an option file")
        open_nodes.discard(id(node))
        sizes[id(node)] = nodes, characters
        return nodes, characters

    size(root)


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


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
                sections = [
                    n for n, v in section.items() if isinstance(v, dict) and isinstance(n, str)
                ]
                place = ":".join(names[: depth + 1])
                hint = meant_key(key, sections, 0.6)
                errors.append(f"{where}: there is no section {place}{hint}")
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
    from basicsr.utils.options import _postprocess_yml_value

    return _postprocess_yml_value(text)
