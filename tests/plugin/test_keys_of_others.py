"""Option keys of this package's names by which a plugin means something else."""

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs_in_process import WriteOptions, folder, iterations, refused, train  # noqa: F401
from training_runs import load

from esc_arch.plugin.preflight import check_options

# isort: split
# Importable only once esc_arch has mended it.
from basicsr.utils.registry import DATASET_REGISTRY, MODEL_REGISTRY

# Their values are none that this package has under these names.
THEIRS = {
    "train:warmup": True,
    "train:max_bad_steps": "none",
    "train:accumulate_steps": "auto",
    "card": [1, 2],
    "logger:keep_checkpoints": "best",
    "train:teacher_lr": "1e-4",
    "datasets:train:on_bad_sample": "blur",
    "datasets:train:batch_size": [2, 2],
}
PLUGIN = """
import torch
from torch import nn
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.models.sr_model import SRModel

class OtherModel(SRModel):
    def init_training_settings(self):
        train, logger = self.opt["train"], self.opt["logger"]
        self.theirs = [train[key] for key in ("warmup", "max_bad_steps", "accumulate_steps")]
        self.theirs += [self.opt["card"], logger["keep_checkpoints"], float(train["teacher_lr"])]
        super().init_training_settings()
        assert train.pop("charb_opt")["type"] == "Charb"
        self.cri_pix = nn.MSELoss()

    def get_optimizer(self, optim_type, params, lr, **kwargs):
        if optim_type == "Lamb":
            optim_type = "Adam"
        return super().get_optimizer(optim_type, params, lr, **kwargs)

class OtherDataset(PairedImageDataset):
    def __init__(self, opt):
        super().__init__(opt)
        self.theirs = opt["on_bad_sample"], opt["batch_size"]
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A model and a data set of somebody else's are registered."""
    (tmp_path / "plugin_with_other_keys.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("plugin_with_other_keys")
    MODEL_REGISTRY.register(module.OtherModel)
    DATASET_REGISTRY.register(module.OtherDataset)
    yield
    del MODEL_REGISTRY._obj_map["OtherModel"]
    del DATASET_REGISTRY._obj_map["OtherDataset"]


def test_a_plugins_meaning_of_a_key_holds_from_preflight_to_the_end(
    plugin: None, write_train_options: WriteOptions
):
    options = write_train_options(
        {
            **THEIRS,
            "model_type": "OtherModel",
            "datasets:train:type": "OtherDataset",
            "train:optim_g:type": "Lamb",
            "train:charb_opt": {"type": "Charb", "eps": 1e-6},
        }
    )
    report = check_options(options)
    assert (report.errors, report.warnings) == ([], [])
    assert iterations(train(options)) == [1, 2, 3, 4]
    assert "card" in load(Path("experiments/tiny/models/net_g_4.pth"))


def test_without_a_plugin_such_values_are_refused(write_train_options: WriteOptions):
    lines = refused(write_train_options(THEIRS)).splitlines()
    # What nothing reads is warned of.
    assert {line.split(": ")[0] for line in lines} == THEIRS.keys() - {"train:teacher_lr"}
    for key in ("train:max_bad_steps", "train:warmup", "logger:keep_checkpoints"):
        options = write_train_options({key: THEIRS[key]})
        assert refused(options, "--no-preflight").startswith(key.replace(":", ": "))
