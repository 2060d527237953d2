"""Every optimizer of torch.optim that fits BasicSR's loop can be had by name."""

import pytest
import torch
from basicsr.models.base_model import BaseModel

from esc_arch.errors import UserError
from esc_arch.plugin.models.optimizers import any_torch_optimizer, optimizer_names


@pytest.mark.parametrize("name", optimizer_names())
def test_each_listed_optimizer_lowers_a_loss_by_its_name(name):
    weight = torch.nn.Parameter(torch.full((2, 2), 3.0))
    optimizer = any_torch_optimizer(name, [weight], lr=0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert type(optimizer) is getattr(torch.optim, name)
    assert losses[-1] < losses[0]


def test_options_reach_the_optimizer():
    optimizer = any_torch_optimizer(
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
        any_torch_optimizer(name, [torch.nn.Parameter(torch.ones(1))], 1e-3)


def test_an_unknown_option_is_refused_by_name():
    with pytest.raises(UserError, match="momentun"):
        any_torch_optimizer("SGD", [torch.nn.Parameter(torch.ones(1))], 1e-3, momentun=0.9)
