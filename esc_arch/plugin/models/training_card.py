"""The card of a checkpoint that training writes: what an option file tells of it."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from esc_arch.errors import UserError
from esc_arch.zoo.card import card_of, describe
from esc_arch.zoo.store import load_state

# What a block `card` of an option file may say, as nothing else tells it.
FIELDS = ("name", "author", "license", "tags", "description", "dataset", "datasetSize")


def training_card(
    opt: Mapping[str, Any], tensors: Mapping[str, Tensor], iteration: int
) -> dict[str, str]:
    """The card of the network that an option file trains.

    Args:
        opt: The options of the run.
        tensors: Those that are used first: the EMA's where there is one.
        iteration: How many iterations they were trained for.
    """
    data = opt.get("datasets", {}).get("train", {})
    told = {
        # A plain string: only such are read back.
        "name": None if "name" not in opt else str(opt["name"]),
        "dataset": data.get("name"),
        "trainingIterations": iteration,
        "trainingBatchSize": _total_batch(opt, data),
        "trainingHRSize": data.get("gt_size"),
        "pretrainedModelG": _began_with(opt.get("path", {})),
    }
    # A model of others may mean something else by it.
    said = opt.get("card") if isinstance(opt.get("card"), Mapping) else {}
    told |= {key: said[key] for key in FIELDS if said.get(key) is not None}
    return describe(opt["network_g"], tensors, told)


def _total_batch(opt: Mapping[str, Any], data: Mapping[str, Any]) -> int | None:
    size = data.get("batch_size_per_gpu")
    return None if size is None else size * opt.get("world_size", 1)


def _began_with(paths: Mapping[str, Any]) -> str | None:
    """What weights the training began with, also where it has been resumed since."""
    path = paths.get("pretrain_network_g")
    if path is None:
        return None
    resumed = Path(path).absolute().parent == Path(paths.get("models", "")).absolute()
    # The experiment's own are those of the iteration that it was resumed from.
    return _said_before(str(path)) if resumed else Path(path).name


@functools.cache
def _said_before(path: str) -> str | None:
    try:
        return card_of(load_state(path)).get("pretrainedModelG")
    except UserError:
        return None
