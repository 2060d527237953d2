"""What a checkpoint says of itself, as text beside its tensors.

The fields are OpenModelDB's where it has them. A .safetensors file carries them as its metadata, a
.pth under the key `card`, beside `params`.
"""

import datetime
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from esc_arch.errors import UserError, printable

KEY = "card"
# Fields of ours, which OpenModelDB does not have.
OPTIONS, DIGEST = "options", "parametersSHA256"
# Names that files of this package had before.
_EARLIER = {"data": "dataset", "iterations": "trainingIterations"}
_LONGEST = 100_000


def parameters_sha256(tensors: Mapping[str, Tensor]) -> str:
    """A digest of a network's tensors: the same whatever file they are in.

    Of each, in the order of their names: name, dtype and shape as text, then the values' bytes.
    """
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        kind = str(value.dtype).removeprefix("torch.")
        digest.update(f"{name} {kind} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def describe(
    network_g: Mapping[str, Any], tensors: Mapping[str, Tensor], given: Mapping[str, Any]
) -> dict[str, str]:
    """The card of a network: what is given, and what the network itself tells.

    Args:
        network_g: The option block that builds it.
        tensors: Its tensors.
        given: Fields by name; values that are no text are written as JSON, None is left out.
    """
    options = dict(network_g)
    told = {_EARLIER.get(key, key): value for key, value in given.items() if value is not None}
    told |= {
        "architecture": str(options["type"]),
        OPTIONS: json.dumps(options, sort_keys=True),
        "inputChannels": 3,
        "outputChannels": 3,
        DIGEST: parameters_sha256(tensors),
    }
    scale = options.get("upscaling_factor", options.get("scale"))
    told |= {} if scale is None else {"scale": scale}
    told.setdefault("date", datetime.date.today().isoformat())
    # Plain text: a subclass would be pickled by name, and such a file not be read any more.
    return {
        key: "".join(value) if isinstance(value, str) else json.dumps(value, default=str)
        for key, value in told.items()
    }


def card_of(state: Mapping[Any, Any]) -> dict[str, str]:
    """The card in what a .pth file holds; empty where there is none that is plain text."""
    card = state.get(KEY)
    if not isinstance(card, Mapping):
        return {}
    return {
        str(key): value[:_LONGEST]
        for key, value in card.items()
        if isinstance(key, str) and isinstance(value, str)
    }


def digest_fault(card: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str | None:
    """What is wrong where a card tells the digest of other tensors than it lies beside."""
    told = card.get(DIGEST)
    if told is None or told == (found := parameters_sha256(tensors)):
        return None
    return (
        f"its card is of other parameters: {DIGEST} is {found[:12]}..., not "
        f"{printable(told[:12])}... as it says"
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_date(value: Any) -> bool:
    try:
        return bool(re.fullmatch(r"\d{4}-\d\d-\d\d", value)) and bool(
            datetime.date.fromisoformat(value)
        )
    except (TypeError, ValueError):
        return False


def _are_resources(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(one, dict)
            and one.keys() == {"platform", "type", "size", "sha256", "urls"}
            and one["platform"] in ("pytorch", "onnx", "ncnn")
            and _is_text(one["type"])
            and _is_whole(one["size"])
            and bool(re.fullmatch("[0-9a-f]{64}", one["sha256"]))
            and _is_texts(one["urls"])
            for one in value
        )
    )


Check = Callable[[Any], bool]
_NUMBER: tuple[Check, str] = (_is_whole, "a whole number above 0")
_TEXT: tuple[Check, str] = (_is_text, "text")

# The fields of a model's JSON in OpenModelDB. https://github.com/OpenModelDB/open-model-database
REQUIRED: dict[str, tuple[Check, str]] = {
    "name": _TEXT,
    "author": (lambda value: _is_text(value) or (_is_texts(value) and value), "text or texts"),
    "license": _TEXT,
    "tags": (_is_texts, "a list of texts"),
    "description": _TEXT,
    "date": (_is_date, "a date such as 2026-01-31"),
    "architecture": _TEXT,
    "size": (_is_texts, "a list of texts"),
    "scale": _NUMBER,
    "inputChannels": _NUMBER,
    "outputChannels": _NUMBER,
    "resources": (_are_resources, "a list of files"),
    "images": (lambda value: isinstance(value, list), "a list"),
}
OPTIONAL: dict[str, tuple[Check, str]] = {
    "trainingIterations": _NUMBER,
    "trainingEpochs": _NUMBER,
    "trainingBatchSize": _NUMBER,
    "trainingHRSize": _NUMBER,
    "trainingOTF": (lambda value: isinstance(value, bool), "true or false"),
    "dataset": _TEXT,
    "datasetSize": _NUMBER,
    "pretrainedModelG": _TEXT,
    "pretrainedModelD": _TEXT,
}
_GIVEN_AS_TEXT = {"name", "license", "description", "date", "dataset"}
_GIVEN_AS_TEXT |= {"architecture", "pretrainedModelG", "pretrainedModelD"}
FIELDS = {**REQUIRED, **OPTIONAL}


def openmodeldb(
    path: Path,
    network_g: Mapping[str, Any],
    card: Mapping[str, str],
    urls: Sequence[str] = (),
    given: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What OpenModelDB wants to know of a model, from a checkpoint and its card.

    Args:
        path: The file.
        network_g: The option block that builds its network.
        card: What it says of itself.
        urls: Where the file can be downloaded.
        given: Fields that are told now, as text or JSON.

    Raises:
        UserError: A field is missing or is not what it must be; a line each.
    """
    told = {_EARLIER.get(key, key): value for key, value in card.items()} | dict(given or {})
    scale = network_g.get("upscaling_factor", network_g.get("scale"))
    found: dict[str, Any] = {
        "tags": [],
        "size": [f"{network_g['dim']}dim", f"{network_g['n_blocks']}nb"],
        "images": [],
        **{key: _parsed(key, text) for key, text in told.items() if key in FIELDS},
        "architecture": network_g["type"].lower(),
        "scale": scale,
        "inputChannels": 3,
        "outputChannels": 3,
        "resources": [
            {
                "platform": "pytorch",
                "type": path.suffix.lstrip(".").lower(),
                "size": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "urls": list(urls),
            }
        ],
    }
    faults = openmodeldb_faults(found)
    if faults:
        raise UserError(*(f"{path}: {fault}" for fault in faults))
    return {key: found[key] for key in FIELDS if key in found}


def _parsed(key: str, text: str) -> Any:
    if key in _GIVEN_AS_TEXT:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def openmodeldb_faults(model: Mapping[str, Any]) -> list[str]:
    """A line for each field that OpenModelDB would not take."""
    faults = [
        f"{key} is not known; --set {key}=VALUE tells it" for key in REQUIRED if key not in model
    ]
    for key, value in model.items():
        if key not in FIELDS:
            faults.append(f"{printable(key)}: OpenModelDB has no such field")
            continue
        is_right, wanted = FIELDS[key]
        if not is_right(value):
            faults.append(f"{key} is {printable(json.dumps(value))[:60]}; must be {wanted}")
    return faults
