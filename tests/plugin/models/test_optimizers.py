"""Every optimizer of torch.optim and pytorch_optimizer that fits BasicSR's loop, by its name."""

import copy
import sys

import pytest
import torch
from basicsr.models.base_model import BaseModel

from esc_arch.errors import UserError
from esc_arch.plugin.models.optimizers import any_optimizer, optimizer_class, optimizer_names
from esc_arch.plugin.models.resuming import fitting_optimizer_state

OF_LIBRARY = ["pytorch_optimizer.SOAP", "pytorch_optimizer.Adan", "pytorch_optimizer.Lion"]


@pytest.fixture
def library():
    return pytest.importorskip("pytorch_optimizer")


@pytest.mark.parametrize("name", [*optimizer_names(), *OF_LIBRARY])
def test_each_listed_optimizer_lowers_a_loss_by_its_name(name):
    if "." in name:
        pytest.importorskip("pytorch_optimizer")
    weight = torch.nn.Parameter(torch.full((2, 2), 3.0))
    optimizer = any_optimizer(name, [weight], lr=0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert type(optimizer).__name__ == name.split(".")[-1]
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert losses[-1] < losses[0]


def test_options_reach_the_optimizer():
    optimizer = any_optimizer(
        "AdamW", [torch.nn.Parameter(torch.ones(1))], 5e-4, betas=[0.9, 0.9], weight_decay=0
    )
    group = optimizer.param_groups[0]
    assert (group["lr"], tuple(group["betas"]), group["weight_decay"]) == (5e-4, (0.9, 0.9), 0)


def test_models_of_basicsr_itself_get_it_too():
    model = BaseModel({"num_gpu": 0, "is_train": True})
    optimizer = model.get_optimizer("AdamW", [torch.nn.Parameter(torch.ones(1))], 1e-3)
    assert type(optimizer) is torch.optim.AdamW


@pytest.mark.parametrize("name", ["adamw", "LBFGS", "Optimizer", "", "__name__"])
def test_an_unknown_name_is_refused_with_what_there_is(name):
    with pytest.raises(UserError, match="optim_g"):
        any_optimizer(name, [torch.nn.Parameter(torch.ones(1))], 1e-3)


def test_an_unknown_option_is_refused_by_name():
    with pytest.raises(UserError, match="momentun"):
        any_optimizer("SGD", [torch.nn.Parameter(torch.ones(1))], 1e-3, momentun=0.9)


def test_a_name_that_torch_has_not_is_told_where_it_is(library):
    with pytest.raises(UserError, match=r"no optimizer 'lion' in torch.optim.*optimizer.Lion$"):
        optimizer_class("lion")


def test_a_misspelled_one_of_the_library_is_told_which_there_are(library):
    with pytest.raises(UserError, match="no optimizer 'SAOP' in pytorch_optimizer; there are SOAP"):
        optimizer_class("pytorch_optimizer.SAOP")


def test_one_that_must_be_told_of_validation_is_refused(library):
    with pytest.raises(UserError, match="other weights for validation"):
        optimizer_class("pytorch_optimizer.ScheduleFreeAdamW")


def test_without_the_library_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(UserError, match="pip install pytorch_optimizer"):
        optimizer_class("pytorch_optimizer.SOAP")
    with pytest.raises(UserError, match="no optimizer 'Lion' in torch.optim; ") as caught:
        optimizer_class("Lion")
    assert "pytorch_optimizer" not in str(caught.value)


@pytest.mark.parametrize("name", ["AdamW", *OF_LIBRARY])
def test_a_resumed_state_goes_on_as_if_never_stopped(name):
    if "." in name:
        pytest.importorskip("pytorch_optimizer")
    torch.manual_seed(0)
    weights = [torch.rand(8, 4, 3, 3), torch.rand(8)]
    gradients = [[torch.randn(w.shape) for w in weights] for _ in range(8)]
    whole, optimizer = _steps(name, weights, gradients[:4])
    saved = copy.deepcopy(optimizer.state_dict())
    again, resumed = _steps(name, whole, [])
    resumed.load_state_dict(fitting_optimizer_state(saved, resumed, 1))
    for part in gradients[4:]:
        for parameters, each in ((whole, optimizer), (again, resumed)):
            _step(parameters, each, part)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    assert not torch.equal(whole[0], weights[0])


def _steps(name, weights, gradients):
    parameters = [torch.nn.Parameter(w.detach().clone()) for w in weights]
    optimizer = any_optimizer(name, parameters, 1e-2)
    for part in gradients:
        _step(parameters, optimizer, part)
    return parameters, optimizer


def _step(parameters, optimizer, gradients):
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    optimizer.step()


@pytest.mark.parametrize(
    "change",
    [
        lambda state, group: state["GG"].pop(),
        lambda state, group: state["Q"].__setitem__(0, torch.eye(3)),
        lambda state, group: state["GG"][0].fill_(torch.nan),
        lambda state, group: group.update(step="4"),
    ],
    ids=["missing", "of another shape", "not finite", "no number"],
)
def test_a_damaged_state_of_the_library_is_refused(change, library):
    weights = [torch.rand(8, 4)]
    parameters, optimizer = _steps("pytorch_optimizer.SOAP", weights, [[torch.randn(8, 4)]] * 4)
    saved = copy.deepcopy(optimizer.state_dict())
    change(saved["state"][0], saved["param_groups"][0])
    _, resumed = _steps("pytorch_optimizer.SOAP", parameters, [])
    with pytest.raises(UserError, match="the training state's optimizer 1"):
        fitting_optimizer_state(saved, resumed, 1)
