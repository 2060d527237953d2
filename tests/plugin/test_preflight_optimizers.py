"""Option files that name optimizers of the package pytorch_optimizer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from preflight_checks import WriteOptions, find, only_error

SOAP = {"type": "pytorch_optimizer.SOAP", "lr": 1e-3, "betas": [0.9, 0.99]}


@pytest.fixture
def write(write_train_options: WriteOptions) -> Any:
    pytest.importorskip("pytorch_optimizer")

    def write(options: dict[str, Any]) -> Path:
        return write_train_options({"train:optim_g": options})

    return write


def test_one_of_them_passes_with_its_options(write: Any) -> None:
    report = find(write({**SOAP, "precondition_frequency": 10}))
    assert (report.errors, report.warnings) == ([], [])


def test_adan_has_three_betas(write: Any) -> None:
    adan = {"type": "pytorch_optimizer.Adan", "lr": 1e-3, "betas": [0.98, 0.92, 0.99]}
    assert find(write(adan)).errors == []
    assert "must be a list of 3 numbers" in only_error(write({**adan, "betas": [0.9, 0.9]}))


def test_an_option_that_it_swallows_is_said(write: Any) -> None:
    (warning,) = find(write({**SOAP, "precondition_freq": 10})).warnings
    assert warning.startswith("train:optim_g:precondition_freq: SOAP ignores this key")


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"type": "pytorch_optimizer.Saop"}, "no optimizer 'Saop' in pytorch_optimizer; there are"),
        ({"type": "pytorch_optimizer."}, "no optimizer '' in pytorch_optimizer; there are"),
        ({"type": "lion"}, "no optimizer 'lion' in torch.optim; there are "),
        ({"type": "lion"}, "; or pytorch_optimizer.Lion"),
        ({"shampoo_beta": -1}, "train:optim_g: pytorch_optimizer.SOAP does not take these values"),
        ({"betas": [0.9, 0.9, 0.9]}, "train:optim_g:betas: must be a list of 2 numbers, not"),
        ({"type": "pytorch_optimizer.AdaHessian"}, "BasicSR's loop cannot use it: "),
        ({"type": "pytorch_optimizer.SAM"}, "missing; SAM needs it"),
        ({"type": "pytorch_optimizer.ScheduleFreeAdamW"}, "other weights for validation"),
        ({"type": "os.path"}, "no optimizer 'os.path' in torch.optim"),
    ],
)
def test_what_basicsr_cannot_use_is_refused_in_one_line(
    options: dict[str, Any], expected: str, write: Any
) -> None:
    assert expected in only_error(write({"type": SOAP["type"], "lr": 1e-3, **options}))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
def test_one_for_matrices_alone_is_refused(write_train_options: WriteOptions) -> None:
    path = write_train_options({"train:optim_g": {"type": "Muon", "lr": 1e-3}})
    assert "train:optim_g: Muon does not take these values" in only_error(path)
