"""What checkpoints say of themselves: written, kept, shown, checked, and told to OpenModelDB."""

import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_network import TINY

from esc_arch.cli.main import main
from esc_arch.plugin.models.training_card import training_card
from esc_arch.zoo.card import REQUIRED, openmodeldb_faults, parameters_sha256
from esc_arch.zoo.identify import build_on_meta
from esc_arch.zoo.loading import read_checkpoint

OPTIONS = {
    "name": "my_esc",
    "network_g": TINY,
    "datasets": {"train": {"name": "DIV2K", "gt_size": 128, "batch_size_per_gpu": 16}},
    "path": {"pretrain_network_g": None},
    "world_size": 4,
    "card": {"license": "CC0-1.0", "author": "A. Uthor", "tags": ["photo"], "datasetSize": 800},
}


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return {
        name: torch.randn(value.shape) * 0.02
        for name, value in build_on_meta(TINY).state_dict().items()
    }


def test_the_digest_is_that_of_names_kinds_and_bytes(params):
    digest = hashlib.sha256()
    for name in sorted(params):
        values = params[name].flatten().tolist()
        digest.update(f"{name} float32 {list(params[name].shape)}\n".encode())
        digest.update(struct.pack(f"<{len(values)}f", *values))
    assert parameters_sha256(params) == digest.hexdigest()
    assert parameters_sha256(dict(reversed(params.items()))) == digest.hexdigest()
    strided = {name: value.mT.contiguous().mT for name, value in params.items() if value.ndim > 1}
    assert parameters_sha256(params | strided) == digest.hexdigest()
    params["last.weight"][0, 0, 0, 0] += 1
    assert parameters_sha256(params) != digest.hexdigest()


def test_a_card_goes_from_training_through_conversions(params, capsys):
    torch.save({"params": params, "card": training_card(OPTIONS, params, 500)}, "net.pth")
    assert main(["convert", "safetensors", "net.pth", "-o", "net.safetensors"]) == 0
    with safe_open("net.safetensors", framework="pt") as file:
        card = file.metadata()
    assert card == read_checkpoint("net.pth").metadata
    assert {key: card[key] for key in ("name", "license", "author", "dataset", "scale")} == {
        "name": "my_esc",
        "license": "CC0-1.0",
        "author": "A. Uthor",
        "dataset": "DIV2K",
        "scale": "2",
    }
    numbers = ("trainingIterations", "trainingBatchSize", "trainingHRSize", "datasetSize")
    assert [int(card[key]) for key in numbers] == [500, 64, 128, 800]
    assert json.loads(card["options"]) == TINY
    assert main(["convert", "flashbias", "--rank", "4", "net.pth", "-o", "fb.pth"]) == 0
    changed = read_checkpoint("fb.pth")
    assert json.loads(changed.metadata["options"])["attn_type"] == "FlashBias"
    assert changed.metadata["parametersSHA256"] == parameters_sha256(changed.best)
    capsys.readouterr()
    assert main(["checkpoints", "info", "net.pth", "fb.pth"]) == 0
    told = capsys.readouterr()
    assert told.out.count("license: CC0-1.0\n") == 2 and told.err == ""


def test_what_training_began_with_is_known_after_it_was_resumed(params, tmp_path):
    models = tmp_path / "experiments/x/models"
    models.mkdir(parents=True)
    paths = {"models": str(models), "pretrain_network_g": "weights/ESC_light_X4.pth"}
    card = training_card({**OPTIONS, "path": paths}, params, 2)
    assert card["pretrainedModelG"] == "ESC_light_X4.pth"
    torch.save({"params": params, "card": card}, models / "net_g_2.pth")
    paths["pretrain_network_g"] = str(models / "net_g_2.pth")
    assert training_card({**OPTIONS, "path": paths}, params, 4) == {
        **card,
        "trainingIterations": "4",
    }


class Name(str):
    """Text as option files have it, which remembers more."""


def test_text_of_any_class_becomes_plain_text(params):
    options = {**OPTIONS, "name": Name("mine"), "card": {"author": Name("A")}}
    torch.save({"params": params, "card": training_card(options, params, 1)}, "net.pth")
    assert read_checkpoint("net.pth").metadata["name"] == "mine"
    assert all(type(value) is str for value in training_card(options, params, 1).values())


def test_a_card_of_other_parameters_is_told(params, capsys):
    card = training_card(OPTIONS, params, 500)
    torch.save({"params": params, "card": card}, "net.pth")
    assert main(["checkpoints", "verify", "net.pth"]) == 0
    assert "parameters are those of its card" in capsys.readouterr().out
    params["last.weight"] = params["last.weight"] + 1
    torch.save({"params": params, "card": card}, "net.pth")
    assert main(["checkpoints", "verify", "net.pth"]) == 1
    assert "net.pth: its card is of other parameters" in capsys.readouterr().err
    assert main(["checkpoints", "info", "net.pth"]) == 0
    assert "its card is of other parameters" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_a_card_cannot_forge_lines(form, params, capsys):
    card = {"license": "MIT\nnetwork: forged\x1b[2J", "evil\nscale": "9"}
    if form == "pth":
        torch.save({"params": params, "card": card}, "net.pth")
    else:
        save_file(params, "net.safetensors", card)
    assert main(["checkpoints", "info", f"net.{form}"]) == 0
    out = capsys.readouterr().out
    assert "license: MIT\\nnetwork: forged\\x1b[2J\n" in out
    assert out.count("\nnetwork: ") == 1 and "\nscale: 9" not in out
    assert main(["checkpoints", "card", f"net.{form}"]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("card", ["text", 7, None, ["a"], {1: 2, "a": 3, "b": ["c"]}, {"d": "e"}])
def test_what_is_no_card_is_passed_over(card, params):
    torch.save({"params": params, "card": card}, "net.pth")
    found = read_checkpoint("net.pth")
    assert found.metadata == ({"d": "e"} if card == {"d": "e"} else {})
    assert found.network_g == TINY


class Code:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("run"),))


def test_a_card_with_code_in_it_is_refused(params, capsys):
    torch.save({"params": params, "card": {"a": Code()}}, "net.pth")
    assert main(["checkpoints", "card", "net.pth"]) == 2
    assert "refused" in capsys.readouterr().err and not Path("run").exists()


def test_openmodeldb_gets_its_fields(params, capsys):
    torch.save({"params": params, "card": training_card(OPTIONS, params, 500)}, "net.pth")
    words = ["checkpoints", "card", "net.pth", "--openmodeldb"]
    assert main(words) == 2
    assert capsys.readouterr().err == (
        "basicsr: error: net.pth: description is not known; --set description=VALUE tells it\n"
    )
    words += ["--url", "https://example.org/net.pth", "--set", "description=For photographs."]
    assert main([*words, "-o", "model.json"]) == 0
    model = json.loads(Path("model.json").read_text())
    content = Path("net.pth").read_bytes()
    assert model.pop("date")[:2] == "20"
    assert model == {
        "name": "my_esc",
        "author": "A. Uthor",
        "license": "CC0-1.0",
        "tags": ["photo"],
        "description": "For photographs.",
        "architecture": "esc",
        "size": ["16dim", "1nb"],
        "scale": 2,
        "inputChannels": 3,
        "outputChannels": 3,
        "resources": [
            {
                "platform": "pytorch",
                "type": "pth",
                "size": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "urls": ["https://example.org/net.pth"],
            }
        ],
        "images": [],
        "trainingIterations": 500,
        "trainingBatchSize": 64,
        "trainingHRSize": 128,
        "dataset": "DIV2K",
        "datasetSize": 800,
    }


@pytest.mark.parametrize(
    "change, told",
    [
        ({"scale": "2"}, 'scale is "2"; must be a whole number above 0'),
        ({"scale": True}, "scale is true; must be a whole number"),
        ({"date": "2026-13-01"}, "must be a date such as 2026-01-31"),
        ({"tags": "photo"}, "must be a list of texts"),
        ({"author": []}, "must be text or texts"),
        ({"resources": []}, "must be a list of files"),
        ({"resources": [{"platform": "pytorch"}]}, "must be a list of files"),
        ({"trainingOTF": 1}, "must be true or false"),
        ({"colour": "red"}, "colour: OpenModelDB has no such field"),
    ],
)
def test_what_openmodeldb_does_not_take_is_named(change, told):
    file = {"platform": "pytorch", "type": "pth", "size": 1, "sha256": 64 * "0", "urls": []}
    right = {
        **dict.fromkeys(REQUIRED, "text"),
        **dict.fromkeys(("scale", "inputChannels", "outputChannels"), 3),
        **{"tags": [], "size": [], "images": [], "resources": [file], "date": "2026-01-31"},
    }
    assert openmodeldb_faults(right) == []
    (fault,) = openmodeldb_faults(right | change)
    assert told in fault


@pytest.mark.parametrize(
    "words, told",
    [
        (["--set", "colour=red"], "--set colour=red: must be FIELD=VALUE, with one of name, "),
        (["--set", "scale"], "--set scale: must be FIELD=VALUE"),
        (["--url", "x"], "--url: belongs to --openmodeldb"),
        (["-o", "net.pth/x.json"], "-o net.pth/x.json: cannot be written"),
    ],
)
def test_wrong_options_are_one_line(words, told, params, capsys):
    torch.save({"params": params}, "net.pth")
    assert main(["checkpoints", "card", "net.pth", *words]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
