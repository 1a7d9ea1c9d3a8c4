from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from deeplense.data.store import Dataset
from deeplense.models.network import Network
from deeplense.recipe import Training
from deeplense.training.averaging import LastSteps, averaged, estimate_statistics
from deeplense.training.fit import train


def test_statistics_are_those_of_the_images_and_nothing_else_moves() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    network.eval()
    before = {k: v.clone() for k, v in network.state_dict().items() if "running" not in k and "tracked" not in k}
    images = 3 + 2 * torch.randn(64, 1, 8, 8)
    estimate_statistics(network, torch.split(images, 16))
    with torch.no_grad():
        seen = network[0](images)
    assert torch.allclose(network[1].running_mean, seen.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(network[1].running_var, seen.var((0, 2, 3)), rtol=0.02)
    assert all(torch.equal(network.state_dict()[k], v) for k, v in before.items())
    assert network[1].momentum == 0.1
    assert not any(m.training for m in network.modules())


def test_the_average_starts_as_the_network_itself_and_slows_down() -> None:
    network = Network(nn.Linear(1, 1), {})
    average = averaged(network, Training(ema_decay=0.99))
    assert average is not None
    with torch.no_grad():
        for step in range(1, 400):
            network.trunk.weight.fill_(float(step))
            average.update(network, step)
            lag = step - average.module.trunk.weight.item()
            assert lag <= (0 if step <= 1 else step / 2)
    assert average.get_decay(10) < 0.9 < average.get_decay(200) <= average.get_decay(10**6) == 0.99


def test_the_mean_of_the_last_steps_is_their_mean() -> None:
    network = Network(nn.Linear(1, 1), {})
    average = averaged(network, Training(swa=0.25, ema_decay=0.9))
    assert isinstance(average, LastSteps)
    average.begin(40)
    with torch.no_grad():
        for step in range(1, 41):
            network.trunk.weight.fill_(float(step))
            average.update(network, step)
            if step <= 30:
                assert average.module.trunk.weight.item() == step
    assert average.module.trunk.weight.item() == pytest.approx(35.5)


@pytest.mark.parametrize("decay", [0.9, 0.99])
def test_the_average_is_as_good_as_the_network_in_every_epoch(tiny_dataset: Path, tmp_path: Path, decay: float) -> None:
    """Few steps: with a plain average the first epochs would be those of the random start."""
    model = {"kwargs": {"widths": [8, 16], "depths": [1, 1]}}
    losses: dict[float, list[float]] = {}
    for chosen in (0.0, decay):
        losses[chosen] = []
        train(
            {"model": model, "training": {"epochs": 5, "batch_size": 8, "lr": 0.01, "ema_decay": chosen}},
            tiny_dataset,
            tmp_path / f"{chosen}",
            on_epoch=lambda _, row, chosen=chosen: losses[chosen].append(row["val_loss"]),  # type: ignore[misc]
            device="cpu",
        )
    n = len(Dataset(tiny_dataset).split("val"))
    noise = 2 / n**0.5  # of a mean of n losses of order one
    assert all(a < b + noise for a, b in zip(losses[decay], losses[0.0], strict=True))
    assert losses[decay][-1] < 0.7  # guessing has 1.1
