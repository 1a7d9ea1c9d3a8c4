from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from deeplense.errors import UserError
from deeplense.models.network import Network
from deeplense.recipe import Training
from deeplense.training.optim import OPTIMIZERS, make_optimizer, parameter_groups
from deeplense.training.schedules import SCHEDULES
from deeplense.training.sharpness import SharpnessAware

STEPS = 10


def _optimizer(network: nn.Module, config: Training) -> Optimizer:
    return OPTIMIZERS[config.optimizer](parameter_groups([(network, 1.0)], config), config)


def _rates(name: str, **kwargs: float) -> list[float]:
    config = Training(epochs=8, cycle_epochs=2, lr=1.0, optimizer="sgd", schedule=name, **kwargs)  # type: ignore[arg-type]
    optimizer = _optimizer(nn.Linear(2, 2), config)
    schedule = SCHEDULES[name](optimizer, config, STEPS)
    rates = []
    for _ in range(config.epochs * STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if not isinstance(schedule, ReduceLROnPlateau):
            schedule.step()
    return rates


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_contract(name: str, warmup: float) -> None:
    rates = _rates(name, warmup=warmup)
    assert all(0 < r <= 1 + 1e-6 for r in rates)
    assert max(rates) == pytest.approx(1.0, rel=0.15)


def test_shapes() -> None:
    constant = _rates("constant", warmup=0.1)
    assert constant[0] == pytest.approx(0.01)
    assert constant[8:] == pytest.approx([1.0] * 72)
    one = _rates("one_cycle", warmup=0.25)
    assert one.index(max(one)) in (18, 19, 20)
    assert one[-1] < 1e-4
    cosine = _rates("cosine_restarts", warmup=0.0)
    assert [cosine[i] for i in (0, 20, 40)] == pytest.approx([1.0] * 3)
    assert cosine[19] < 0.05
    cyclic = _rates("cyclic")
    assert cyclic[10] == pytest.approx(1.0)
    assert cyclic[30] == pytest.approx(0.52, abs=0.01)


def test_warmup_stable_decay_is_its_formula() -> None:
    rates = _rates("warmup_stable_decay", warmup=0.1, decay=0.25)
    assert rates[:8] == pytest.approx([k / 8 for k in range(1, 9)])
    assert rates[8:61] == pytest.approx([1.0] * 53)
    assert rates[65] == pytest.approx(1 - (5 / 20) ** 0.5)
    assert rates[79] < 0.03


@pytest.mark.parametrize("name", ["lamb", "lion", "muon", "adopt", "nadamw"])
def test_optimisers_of_timm_go_downhill(name: str) -> None:
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)), {})
    optimizer = make_optimizer(network, nn.Module(), Training(optimizer=name, lr=0.01))
    x = torch.randn(64, 6)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (network.trunk(x)[:, 0] - x[:, 0]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(("name", "says"), [("adamv", "did you mean adam"), ("fusedlamb", "cannot be made")])
def test_optimisers_that_are_not_there_are_refused_in_one_line(name: str, says: str) -> None:
    network = Network(nn.Linear(2, 2), {})
    with pytest.raises(UserError, match=says) as caught:
        make_optimizer(network, nn.Module(), Training(optimizer=name))
    assert "\n" not in str(caught.value)


def test_sharpness_aware_steps_want_one_batch() -> None:
    with pytest.raises(UserError, match=r"leave training\.accumulate at 1"):
        make_optimizer(Network(nn.Linear(2, 2), {}), nn.Module(), Training(sam=0.05, accumulate=2))


def test_sharpness_aware_steps_take_the_gradient_uphill() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = SharpnessAware(torch.optim.SGD([weight], lr=0.1), radius=0.5)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (weight**4).sum()
        loss.backward()
        return loss

    gradient = 4 * weight.detach() ** 3
    there = weight.detach() + 0.5 * gradient / gradient.norm()
    expected = weight.detach() - 0.1 * 4 * there**3
    assert optimizer.step(closure).item() == pytest.approx(17.0)
    assert torch.allclose(weight.detach(), expected)
    with pytest.raises(ValueError, match="give a closure"):
        optimizer.step()


def test_plateau_lowers_when_nothing_improves() -> None:
    config = Training(lr=1.0)
    optimizer = _optimizer(nn.Linear(2, 2), config)
    schedule = SCHEDULES["plateau"](optimizer, config, STEPS)
    assert isinstance(schedule, ReduceLROnPlateau)
    for _ in range(5):
        schedule.step(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_spares_norms_and_biases(name: str) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    optimizer = _optimizer(network, Training(optimizer=name, weight_decay=0.3, lr=0.1))  # type: ignore[arg-type]
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert {n: decays[id(p)] for n, p in network.named_parameters()} == {
        "0.weight": 0.3, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "3.weight": 0.3, "3.bias": 0.0
    }  # fmt: skip
    # without a gradient's pull, decay alone moves the weights
    before = [p.detach().clone() for p in network.parameters()]
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)]
    assert moved == [True, False, False, False, True, False]


def test_what_a_network_names_does_not_decay() -> None:
    """A position table and a class token of timm, wherever the network lies; the trunk has its own rate."""
    network = nn.ModuleDict({"trunk": timm.create_model("vit_tiny_patch16_224", num_classes=0)})
    head = nn.Linear(192, 3)
    groups = parameter_groups([(network, 0.1), (head, 1.0)], Training(weight_decay=0.3, lr=0.01))
    of = {id(p): g for g in groups for p in g["params"]}
    named = dict(network.named_parameters())
    assert [of[id(named[f"trunk.{n}"])]["weight_decay"] for n in ("pos_embed", "cls_token")] == [0.0, 0.0]
    assert of[id(named["trunk.blocks.0.attn.qkv.weight"])]["weight_decay"] == 0.3
    assert [of[id(p)]["lr"] for p in named.values()] == pytest.approx([0.001] * len(named))
    assert of[id(head.weight)]["lr"] == 0.01
    assert len(of) == len(named) + 2
