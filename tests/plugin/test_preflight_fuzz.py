"""No option file, however damaged, ends preflight in a traceback."""

import copy
import functools
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from option_data import make_data
from preflight_checks import BASICSR_OPTIONS, OPTIONS, check

from esc_arch.plugin.preflight import build

FUZZED = {
    path.stem: yaml.safe_load(path.read_text())
    for path in [
        OPTIONS / "train_ESC_light_x2.yml",
        OPTIONS / "train_ESC_Real_x4_GAN.yml",
        OPTIONS / "test_ESC_FP_x3.yml",
        BASICSR_OPTIONS[0],
    ]
}
for _options in FUZZED.values():
    _options["network_g"].update({"n_blocks": 1} if "n_blocks" in _options["network_g"] else {})
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**9, -(10**9), 10**30, 10**400, 2**31, 2**63, 0, 1, -1, 3]),
    # Some libraries of the oldest set make processors flush subnormal numbers.
    st.floats(allow_subnormal=False),
    st.text(max_size=20),
    st.sampled_from(["", "5e-4", "a" * 5000, "\0", "..", "/", "~", "~nobody/x", "{", "{0.x}"]),
    st.lists(st.one_of(st.integers(), st.text(max_size=3), st.none()), max_size=4),
    st.dictionaries(st.one_of(st.text(max_size=4), st.integers()), st.integers(), max_size=3),
    st.just([[[]]]),
    st.just({"type": {"type": []}}),
)


def places(section: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of all keys of nested dictionaries."""
    found = []
    for key, value in section.items():
        found.append((*above, key))
        if isinstance(value, dict):
            found += places(value, (*above, key))
    return found


@st.composite
def mutated_options(
    draw: st.DrawFn, files: dict[str, dict[str, Any]] = FUZZED
) -> tuple[dict[str, Any], bool]:
    """One of our option files with one to three changes, and whether it is for training."""
    name = draw(st.sampled_from(sorted(files)))
    options = copy.deepcopy(files[name])
    for _ in range(draw(st.integers(1, 3))):
        *parents, key = draw(st.sampled_from(places(options) or [("name",)]))
        section = options
        for parent in parents:
            section = section[parent]
        change = draw(st.sampled_from(["drop", "replace", "misspell", "scale", "rename"]))
        value = section.pop(key, None)
        if change == "replace":
            # A later change may fall within it, and some are the same object each time.
            section[key] = copy.deepcopy(draw(VALUES))
        elif change == "misspell" and isinstance(key, str):  # Not what was renamed before.
            position = draw(st.integers(0, len(key) - 1)) if key else 0
            section[key[:position] + key[position + 1 :]] = value
        elif change == "rename":
            section[draw(st.one_of(st.text(max_size=8), st.integers(), st.none()))] = value
        elif change == "scale" and isinstance(value, int | float) and not isinstance(value, bool):
            section[key] = value * draw(st.sampled_from([-1, 0, 10**6, 10**12, 0.5, 1e300]))
    return options, draw(st.booleans())


FUZZING = settings(
    deadline=None, max_examples=40, suppress_health_check=list(HealthCheck), database=None
)


@FUZZING
@given(mutated_options())
def test_no_mutation_of_an_option_file_ends_in_a_traceback(case: tuple[Any, bool]) -> None:
    options, is_train = case
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(build, "MAX_CALLS", 1_500_000)
        path = Path(folder, "options.yml")
        path.write_text(yaml.safe_dump(options, allow_unicode=True), encoding="utf-8")
        # The data is missing, so there is always something to say.
        assert check(path, is_train=is_train)
        assert os.listdir(folder) == ["options.yml"]


@pytest.fixture(scope="module")
def fuzzed_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The same option files with data and checkpoints that are there."""
    found = {}
    for name, options in FUZZED.items():
        found[name] = copy.deepcopy(options)
        for entry in make_data(options, tmp_path_factory.mktemp(name)):
            keys, _, value = entry.partition("=")
            *parents, key = keys.split(":")
            functools.reduce(dict.__getitem__, parents, found[name])[key] = value
    return found


@FUZZING
@given(data=st.data())
def test_no_mutation_ends_in_a_traceback_where_the_data_is_there(
    data: st.DataObject, fuzzed_data: dict[str, dict[str, Any]]
) -> None:
    options, is_train = data.draw(mutated_options(fuzzed_data))
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(build, "MAX_CALLS", 1_500_000)
        path = Path(folder, "options.yml")
        path.write_text(yaml.safe_dump(options, allow_unicode=True), encoding="utf-8")
        check(path, is_train=is_train)
        assert os.listdir(folder) == ["options.yml"]


@FUZZING
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_no_file_ends_in_a_traceback(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "options.yml")
        path.write_bytes(content)
        assert check(path)


@FUZZING
@given(st.text(max_size=40), st.text(max_size=20))
def test_no_override_ends_in_a_traceback(keys: str, value: str) -> None:
    path = BASICSR_OPTIONS[0]
    check(path, [f"{keys}={value}", keys, f"val:suffix={value}"], is_train=False)
