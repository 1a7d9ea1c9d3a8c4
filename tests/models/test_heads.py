"""The contract of every head, and what each must get right."""

from __future__ import annotations

import math

import pytest
import torch

from deeplense import recipe
from deeplense.data.schema import Batch
from deeplense.models.heads import HEADS, CategoricalHead, Head, Target, fit_temperature, head_for

BOUNDED = Target("log10_m", "log10(eV)", -23.0, 1.0, -24.0, -22.0)
UNBOUNDED = Target("mass", "Msun", 5.0, 2.0)


def _make(name: str) -> Head:
    arguments = {"categorical": 3, "normal": UNBOUNDED, "truncated_normal": BOUNDED}
    head: Head = HEADS[name](arguments[name])
    return head


def _batch(n: int) -> Batch:
    draw = torch.Generator().manual_seed(1)
    target = -24 + 2 * torch.rand(n, generator=draw)
    return Batch(torch.zeros(n, 1, 1, 1), torch.arange(n) % 3, target, torch.arange(n))


@pytest.mark.parametrize("name", HEADS)
def test_contract(name: str) -> None:
    head, batch = _make(name), _batch(12)
    raw = torch.randn(12, head.n_out, requires_grad=True)
    p = head.distribution(raw)
    assert p.batch_shape == (12,)
    loss = head.loss(raw, batch)
    truth = batch.label if name == "categorical" else batch.target
    assert torch.allclose(loss, -p.log_prob(truth).mean(), atol=1e-5)
    loss.backward()
    assert raw.grad is not None
    assert "temperature" in head.state_dict()


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
def test_extreme_outputs_give_finite_losses_and_gradients(name: str, size: float) -> None:
    head, batch = _make(name), _batch(4)
    for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        raw = torch.zeros(4, head.n_out)
        raw[:, 0], raw[:, 1] = signs[0] * size, signs[1] * size
        raw.requires_grad_()
        loss = head.loss(raw, batch)
        loss.backward()
        assert loss.isfinite()
        assert raw.grad is not None
        assert raw.grad.isfinite().all()


@pytest.mark.parametrize("name", ["normal", "truncated_normal"])
def test_temperature_widens(name: str) -> None:
    head = _make(name)
    raw = torch.tensor([[0.0, -2.0]])
    before = head.distribution(raw).stddev
    head.temperature.fill_(2.0)
    assert head.distribution(raw).stddev > 1.5 * before


def test_regression_is_in_the_targets_unit() -> None:
    p = _make("normal").distribution(torch.tensor([[0.5, 0.5413]]))
    assert p.mean.item() == pytest.approx(6.0, abs=1e-4)
    assert p.stddev.item() == pytest.approx(2.0, abs=0.01)


def test_label_smoothing_raises_the_loss_of_certainty() -> None:
    head, batch = CategoricalHead(3), _batch(9)
    raw = 20.0 * torch.nn.functional.one_hot(batch.label, 3)
    assert head.loss(raw, batch).item() < 1e-6
    assert head.loss(raw, batch, label_smoothing=0.1).item() > 1


def test_head_for_chooses() -> None:
    regress = recipe.Task("regress", "x")
    assert type(head_for(recipe.Task(), ["a", "b"], None)) is HEADS["categorical"]
    assert type(head_for(regress, [], BOUNDED)) is HEADS["truncated_normal"]
    assert type(head_for(regress, [], UNBOUNDED)) is HEADS["normal"]


def test_temperature_is_recovered_from_overconfident_logits() -> None:
    head = CategoricalHead(3)
    true_logits = torch.randn(20000, 3, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    label = torch.distributions.Categorical(logits=true_logits).sample()
    batch = Batch(torch.zeros(0), label, torch.full((20000,), math.nan), label)
    assert fit_temperature(head, 3.0 * true_logits, batch) == pytest.approx(3.0, rel=0.05)
    assert head.temperature.item() == pytest.approx(3.0, rel=0.05)


def test_temperature_makes_intervals_cover() -> None:
    head = _make("normal")
    draw = torch.Generator().manual_seed(0)
    raw = torch.stack([torch.randn(4000, generator=draw), torch.full((4000,), -1.0)], 1)
    claimed = head.distribution(raw)
    truth = claimed.mean + 2.5 * claimed.stddev * torch.randn(4000, generator=draw)
    batch = Batch(torch.zeros(0), torch.zeros(4000, dtype=torch.long), truth, torch.arange(4000))
    fit_temperature(head, raw, batch)
    p = head.distribution(raw)
    inside = (truth > p.icdf(torch.tensor(0.05))) & (truth < p.icdf(torch.tensor(0.95)))
    assert inside.float().mean().item() == pytest.approx(0.9, abs=0.02)
