"""Checkpoint files: whole or not there, checked to the last byte, and never run."""

import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from esc_arch.errors import UserError
from esc_arch.zoo.params import select_params
from esc_arch.zoo.store import load_state, newest_whole_state, save_state

STATE = {"params": {"weight": torch.arange(300.0), "bias": torch.ones(2)}, "iter": 7}


class Hostile:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch {self.witness}",)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        load_state(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


def test_a_state_comes_back_as_it_was_saved(tmp_path: Path):
    save_state(STATE, tmp_path / "a.pth")
    state = load_state(tmp_path / "a.pth")
    assert state["iter"] == 7
    assert torch.equal(state["params"]["weight"], STATE["params"]["weight"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_files_of_other_origin_are_read_too(tmp_path: Path):
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert load_state(tmp_path / "old.pth")["iter"] == 7
    save_file(STATE["params"], tmp_path / "a.safetensors")
    assert load_state(tmp_path / "a.safetensors").keys() == {"weight", "bias"}


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_in_it_is_refused_by_the_name_of_the_code(tmp_path: Path, zipped: bool):
    witness = tmp_path / "it-ran"
    state = {**STATE, "extra": Hostile(witness)}
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert "posix.system" in refusal(tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Hostile(witness)))
    refusal(tmp_path / "b.pth")
    assert not witness.exists()


def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path):
    assert "no such file" in refusal(tmp_path / "absent.pth")
    assert "is a folder" in refusal(tmp_path)
    for name, content in {
        "empty.pth": b"",
        "page.pth": b"<html>404 not found</html>",
        "short.safetensors": b"\x00" * 7,
    }.items():
        (tmp_path / name).write_bytes(content)
        assert "not a checkpoint" in refusal(tmp_path / name)
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    assert "holds a Tensor" in refusal(tmp_path / "tensor.pth")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_truncated_or_changed_file_passes_for_whole(data, tmp_path: Path):
    path = tmp_path / "a.pth"
    save_state(STATE, path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        state = load_state(path)
    except UserError as error:
        assert "\n" not in str(error)
        return
    # Padding between a zip's members, and fields of it that nobody reads, may change.
    assert torch.equal(state["params"]["weight"], STATE["params"]["weight"])
    assert torch.equal(state["params"]["bias"], STATE["params"]["bias"])


def test_params_are_picked_by_key_without_the_prefix_of_dataparallel():
    weight = torch.ones(1)
    state = {"params": {"module.a": weight}, "params_ema": {"a": 2 * weight}}
    assert select_params(state, "f", "params_ema")["a"] == 2
    assert select_params(state, "f", "params")["a"] == 1
    assert select_params({"params": {"a": weight}}, "f", "params_ema")["a"] == 1
    assert select_params({"a": weight}, "f", "params")["a"] == 1
    # A name that nobody knows counts where it is the only one.
    assert select_params({"others": {"a": weight}}, "f", "params")["a"] == 1
    unknown = {"others": {"a": weight}, "more": {"a": weight}}
    for state in (unknown, {"params": {}}, {}, {"params": 3}):
        with pytest.raises(UserError, match="^f: has no tensors under 'params'"):
            select_params(state, "f", "params")


def test_the_newest_state_is_the_newest_that_is_whole_with_its_weights(tmp_path: Path):
    states, models = tmp_path / "states", tmp_path / "models"
    states.mkdir()
    models.mkdir()
    for iteration in (2, 10, 30, 200):
        save_state(STATE, states / f"{iteration}.state")
        save_state(STATE, models / f"net_g_{iteration}.pth")
    assert newest_whole_state(states, models, ["net_g"]) == (states / "200.state", [])

    (models / "net_g_200.pth").unlink()
    content = (states / "30.state").read_bytes()
    (states / "30.state").write_bytes(content[: len(content) // 2])
    state, skipped = newest_whole_state(states, models, ["net_g"])
    assert state == states / "10.state"
    assert re.match(r"not resumed from iteration 200: .*net_g_200.pth: no such file", skipped[0])
    assert re.match(r"not resumed from iteration 30: .*30.state: not a checkpoint", skipped[1])

    shutil.rmtree(models)
    assert newest_whole_state(states, models, ["net_g"])[0] is None
