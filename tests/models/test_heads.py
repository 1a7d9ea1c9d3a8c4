"""The contract of every head, and what each must get right."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from deeplense import recipe
from deeplense.answers import ANSWERS, Prediction, output_name
from deeplense.data.schema import Batch, Parameter
from deeplense.errors import UserError
from deeplense.models.heads import HEADS, Head, HeadSpec, Target, build_head, head_specs, task_heads
from deeplense.models.heads.base import Truths
from deeplense.models.heads.categorical import CategoricalHead
from deeplense.models.heads.normal import NormalHead
from deeplense.models.network import Network

BOUNDED = Target("log10_m", "log10(eV)", -23.0, 1.0, -24.0, -22.0)
ALSO = Target("f_sub", "", 0.05, 0.03, 0.0, 0.1)
UNBOUNDED = Target("mass", "Msun", 5.0, 2.0)
WIDTH = 7  # features


def _make(name: str, targets: list[Target] | None = None) -> Head:
    targets = targets or ([UNBOUNDED] if name in ("normal", "student_t", "mixture") else [BOUNDED, ALSO])
    return HEADS[name](WIDTH, name, Truths(["a", "b", "c"], targets, list(range(len(targets)))))


def _batch(n: int) -> Batch:
    draw = torch.Generator().manual_seed(1)
    params = torch.rand(n, 2, generator=draw) * torch.tensor([2.0, 0.1]) + torch.tensor([-24.0, 0.0])
    return Batch(torch.zeros(n, 1, 1, 1), torch.arange(n) % 3, params, torch.arange(n))


@pytest.mark.parametrize("name", HEADS)
def test_contract(name: str) -> None:
    head, batch = _make(name), _batch(12)
    raw = head(torch.randn(12, WIDTH))
    assert raw.shape == (12, head.n_out)
    loss, count = head.loss(raw, batch)
    truth, known = head.truth(batch)
    answers = list(head.about())
    assert loss.shape == count.shape == (head.n_truths,)
    assert known.shape == truth.shape == (12, len(answers))
    p: Any = head.distribution(raw)
    expected = -p.log_prob(truth[:, 0] if name == "categorical" else truth)
    assert torch.allclose(loss, expected.reshape(12, -1).mean(0).to(loss), atol=1e-5)
    loss.sum().backward()
    assert all(w.grad is not None for w in head.parameters())
    assert head.metric(raw, batch).isfinite()
    # what it says, it says in every form alike
    about, outputs = head.about(), head.outputs(raw.detach())
    assert list(about) == list(outputs)
    named = {output_name(about, a, k): v.detach().numpy() for a, each in outputs.items() for k, v in each.items()}
    prediction = Prediction.of(about, named)
    for k, (answer, said) in enumerate(prediction.items()):
        assert type(said) is ANSWERS[about[answer]["answer"]]
        log_p, pit = head.judge(answer, raw, truth[:, k])
        assert log_p.shape == (12,)
        if head.n_truths == len(answers):  # a joint distribution has other marginals
            assert torch.allclose(log_p, -expected.reshape(12, -1)[:, k].to(log_p), atol=1e-5)
        assert len(pit) in (0, 12)


@pytest.mark.parametrize("name", HEADS)
def test_what_is_not_known_is_left_out(name: str) -> None:
    head, batch = _make(name), _batch(12)
    raw = torch.randn(12, head.n_out, requires_grad=True)
    params, label = batch.params.clone(), batch.label.clone()
    params[:5, 0], label[:5] = math.nan, -1
    loss, count = head.loss(raw, batch._replace(params=params, label=label))
    known = Batch(*(column[5:] for column in batch))
    assert torch.allclose(loss[0], head.loss(raw[5:], known)[0][0], atol=1e-6)
    assert count[0] == 7
    assert head.metric(raw, batch._replace(params=params, label=label)).isfinite()
    nothing = batch._replace(params=params * math.nan, label=label * 0 - 1)
    loss, count = head.loss(raw, nothing)
    assert loss.tolist() == count.tolist() == [0.0] * head.n_truths
    loss.sum().backward()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
def test_extreme_outputs_give_finite_losses_and_gradients(name: str, size: float) -> None:
    head, batch = _make(name), _batch(4)
    for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        raw = torch.zeros(4, head.n_out)
        raw[:, 0::2], raw[:, 1::2] = signs[0] * size, signs[1] * size
        raw.requires_grad_()
        loss, _ = head.loss(raw, batch)
        loss.sum().backward()
        assert loss.isfinite().all()
        assert raw.grad is not None
        assert raw.grad.isfinite().all()


@pytest.mark.parametrize("name", ["normal", "truncated_normal", "student_t"])
def test_temperature_widens(name: str) -> None:
    head = _make(name)
    raw = torch.zeros(1, head.n_out)
    raw[:, 1] = -2.0
    before: Any = head.distribution(raw)
    head.temperature.fill_(2.0)
    after: Any = head.distribution(raw)
    assert after.stddev[0, 0] > 1.5 * before.stddev[0, 0]


def test_regression_is_in_the_targets_unit() -> None:
    p: Any = _make("normal").distribution(torch.tensor([[0.5, 0.5413]]))
    assert p.mean.item() == pytest.approx(6.0, abs=1e-4)
    assert p.stddev.item() == pytest.approx(2.0, abs=0.01)


def test_label_smoothing_raises_the_loss_of_certainty() -> None:
    head, batch = _make("categorical"), _batch(9)
    raw = 20.0 * torch.nn.functional.one_hot(batch.label, 3)
    assert head.loss(raw, batch)[0].item() < 1e-6
    assert head.loss(raw, batch, label_smoothing=0.1)[0].item() > 1


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_are_those_of_torch(smoothing: float) -> None:
    head, batch = _make("categorical"), _batch(10)
    assert isinstance(head, CategoricalHead)
    head.class_weight = torch.tensor([0.2, 1.0, 3.0])
    raw = torch.randn(10, 3)
    expected = torch.nn.functional.cross_entropy(raw, batch.label, head.class_weight, label_smoothing=smoothing)
    assert torch.allclose(head.loss(raw, batch, smoothing)[0], expected)


def test_temperature_is_recovered_from_overconfident_logits() -> None:
    head = _make("categorical")
    true_logits = torch.randn(20000, 3, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    label = torch.distributions.Categorical(logits=true_logits).sample()
    head.calibrate(3.0 * true_logits, Batch(torch.zeros(0), label, torch.empty(20000, 0), label))
    assert head.temperature.item() == pytest.approx(3.0, rel=0.05)


def test_temperature_makes_intervals_cover_each_target_on_its_own() -> None:
    head = _make("normal", [UNBOUNDED, UNBOUNDED])
    draw = torch.Generator().manual_seed(0)
    raw = torch.stack([torch.randn(4000, generator=draw), torch.full((4000,), -1.0)], 1).repeat(1, 2)
    claimed: Any = head.distribution(raw)
    wrong = torch.tensor([2.5, 0.4])
    truth = claimed.mean + wrong * claimed.stddev * torch.randn(4000, 2, generator=draw)
    head.calibrate(raw, Batch(torch.zeros(0), torch.zeros(4000, dtype=torch.long), truth, torch.arange(4000)))
    assert head.temperature.tolist() == pytest.approx(wrong.tolist(), rel=0.05)
    outputs = head.outputs(raw)["mass"]
    inside = (truth[:, 1] > outputs["q05"]) & (truth[:, 1] < outputs["q95"])
    assert inside.float().mean().item() == pytest.approx(0.9, abs=0.02)


def test_the_short_form_and_what_it_is_short_for() -> None:
    assert task_heads(recipe.Task()) == {"class": {"kind": "classify"}}
    both = task_heads(recipe.Task("regress", "log10_m, f_sub"))
    assert both == {"value": {"kind": "regress", "targets": ["log10_m", "f_sub"]}}
    known = {t.name: t for t in (BOUNDED, ALSO, UNBOUNDED)}
    (one,) = head_specs(recipe.Task("regress", "log10_m,f_sub"), known)
    assert (one.kind, one.targets) == ("truncated_normal", [BOUNDED, ALSO])
    (two,) = head_specs(recipe.Task("regress", "log10_m,mass"), known)
    assert two.kind == "normal"
    heads: dict[str, Any] = {
        "class": {"kind": "classify", "weight": 2},
        "m": {"kind": "normal", "targets": ["log10_m"], "weight": 0.5},
    }
    specs = head_specs(recipe.Task(heads=heads), known)
    assert [(s.name, s.kind, s.weight) for s in specs] == [("class", "categorical", 2.0), ("m", "normal", 0.5)]
    assert [HeadSpec.of(s.tree()) for s in specs] == specs


@pytest.mark.parametrize(
    ("heads", "says"),
    [
        ({"a b": {"kind": "classify"}}, "plain word"),
        ({"a": "classify"}, r"task\.heads\.a is 'classify'"),
        ({"a": {"kind": "clasify"}}, "did you mean 'classify'"),
        ({"a": {"kind": "regress", "target": ["x"]}}, "did you mean 'targets'"),
        ({"a": {"kind": "regress", "targets": "x"}}, "a list"),
        ({"a": {"kind": "classify", "weight": 0}}, "positive"),
        ({"a": {"kind": "classify", "weight": True}}, "positive"),
        ({"a": {"kind": "classify", "weight": math.nan}}, "positive"),
    ],
)
def test_heads_that_make_no_sense_are_refused(heads: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        task_heads(recipe.Task(heads=heads))


def test_heads_without_their_truths_are_refused() -> None:
    with pytest.raises(UserError, match="no targets"):
        build_head(HeadSpec("v", "normal"), WIDTH, ["a"], [])
    with pytest.raises(UserError, match="uniform priors"):
        build_head(HeadSpec("v", "truncated_normal", [UNBOUNDED]), WIDTH, ["a"], [Parameter("mass")])
    with pytest.raises(UserError, match="no head 'flaw'"):
        build_head(HeadSpec("v", "flaw"), WIDTH, ["a"], [])
    twice = recipe.Task(heads={k: {"kind": "regress", "targets": ["mass"]} for k in "ab"})
    with pytest.raises(UserError, match="'mass' is answered twice"):
        head_specs(twice, {"mass": UNBOUNDED})


def test_losses_of_several_heads_are_weighted_and_added() -> None:
    classes, value = _make("categorical"), _make("truncated_normal")
    network = Network(torch.nn.Flatten(), {"class": classes, "value": value}, {"class": 2.0, "value": 0.5})
    batch = _batch(6)
    raw = network(torch.randn(6, WIDTH, 1, 1))
    total = network.total(network.losses(raw, batch))
    apart = 2.0 * classes.loss(raw["class"], batch)[0].sum() + 0.5 * value.loss(raw["value"], batch)[0].sum()
    assert torch.allclose(total, apart)


def test_locations_reach_no_further_than_said() -> None:
    head = _make("normal")
    assert isinstance(head, NormalHead)
    p: Any = head.distribution(torch.tensor([[1e9, 0.0]]))
    assert p.mean.item() == pytest.approx(5.0 + 2.0 * head.reach)
