from __future__ import annotations

import pytest
import torch
from torch import nn

from deeplense.data.schema import Batch
from deeplense.models.heads import HEADS
from deeplense.models.heads.base import Truths
from deeplense.models.network import Network
from deeplense.recipe import Training
from deeplense.training.mixing import mixed
from deeplense.training.objectives import LABELLED, Supervised


def _batch(n: int = 16) -> Batch:
    k = torch.arange(n)
    return Batch(k[:, None, None, None].expand(-1, 1, 8, 8).float(), k % 3, k[:, None].float(), k)


def test_sums_are_of_both_images_by_their_shares() -> None:
    torch.manual_seed(0)
    m = mixed(_batch(), 1.0, 0.0)
    assert sorted(m.second.id.tolist()) == list(range(16))
    expected = m.share * m.first.params[:, 0] + (1 - m.share) * m.second.params[:, 0]
    assert torch.allclose(m.images[:, 0, 3, 5], expected)


def test_rectangles_are_counted_by_the_pixel() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        m = mixed(_batch(), 0.0, 1.0)
        foreign = m.images[:, 0] == m.second.params[:, :1, None]
        other = m.first.id != m.second.id
        assert foreign[other].float().mean().item() == pytest.approx(1 - m.share, abs=1e-6)


def test_both_come_up_where_both_are_wanted() -> None:
    torch.manual_seed(0)
    sums = [bool(mixed(_batch(), 1.0, 1.0).images[:, 0].flatten(1).std(1).max() < 1e-5) for _ in range(40)]
    assert 8 < sum(sums) < 32


def test_the_loss_is_of_both_truths() -> None:
    torch.manual_seed(0)
    head = HEADS["categorical"](64, "class", Truths(["a", "b", "c"], [], []))
    network = Network(nn.Flatten(), {"class": head})
    batch = _batch()
    torch.manual_seed(1)
    loss = Supervised(Training(mixup=1.0), network)(network, {LABELLED: batch})
    torch.manual_seed(1)
    m = mixed(batch, 1.0, 0.0)
    soft = m.share * nn.functional.one_hot(m.first.label, 3) + (1 - m.share) * nn.functional.one_hot(m.second.label, 3)
    assert loss.item() == pytest.approx(nn.functional.cross_entropy(head(m.images.flatten(1)), soft).item(), rel=1e-5)
