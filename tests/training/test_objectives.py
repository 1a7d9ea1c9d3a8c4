"""The room for objectives that want more than labelled images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deeplense import config
from deeplense.bundle import load
from deeplense.data.schema import Batch
from deeplense.errors import UserError
from deeplense.models.network import Network
from deeplense.recipe import Recipe, Training
from deeplense.training import fit
from deeplense.training.objectives import OBJECTIVES, Supervised
from deeplense.training.sources import Cycled

SEEN: list[tuple[int, int]] = []


class Both(Supervised):
    """Supervised, and a weight of its own that follows the mean of unlabelled images."""

    sources = ("labelled", "unlabelled")

    def __init__(self, config_: Training, network: Network) -> None:
        super().__init__(config_, network)
        self.own = nn.Parameter(torch.tensor(5.0))

    def forward(self, network: Network, batches: Mapping[str, Batch]) -> Tensor:
        SEEN.append(tuple(len(b.id) for b in batches.values()))  # type: ignore[arg-type]
        return super().forward(network, batches) + (self.own - batches["unlabelled"].image.mean()).square()


def _recipe(**sources: str) -> Recipe:
    made = config.load_recipe({"training": {"epochs": 2, "batch_size": 16, "lr": 0.05, "ema_decay": 0.5}})
    made.model.kwargs = {"widths": [8, 16], "depths": [1, 1]}
    made.training.sources = sources
    return made


def test_an_objective_draws_from_its_sources_and_trains_what_it_owns(
    tiny_dataset: Path, tmp_path: Path, make_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OBJECTIVES, "supervised", Both)
    more = make_dataset(tmp_path / "more", n_train=40, n_val=0, n_test=0)
    SEEN.clear()
    path = fit.train(_recipe(unlabelled=str(more)), tiny_dataset, tmp_path / "run", device="cpu")
    assert SEEN == [(16, 16)] * 8  # 64 labelled images decide what an epoch is
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    assert state["objective.own"] < 4.9
    assert not any("own" in name for name in load(path, "cpu").network.state_dict())
    with pytest.raises(UserError, match=r"training\.sources\.unlabelled is missing"):
        fit.train(_recipe(), tiny_dataset, tmp_path / "other", device="cpu")
    with pytest.raises(UserError, match=r"no dataset here"):
        fit.train(_recipe(unlabelled=str(tmp_path)), tiny_dataset, tmp_path / "other", device="cpu")


def test_a_source_is_repeated_or_cut_and_never_in_the_same_order() -> None:
    class Three:
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __len__(self) -> int:
            return 3

        def __iter__(self):  # type: ignore[no-untyped-def]
            return iter([(self.epoch, k) for k in range(3)])

    for n in (2, 3, 7):
        orders = []
        for epoch in range(3):
            loader = Cycled(Three(), n)  # type: ignore[arg-type]
            loader.set_epoch(epoch)
            found = list(loader)
            assert len(found) == len(loader) == n
            orders += sorted({order for order, _ in found})  # type: ignore[misc]
        assert len(set(orders)) == len(orders)
