"""What Lightning runs: one step, one validation, and the averaged weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchmetrics import MeanMetric
from torchmetrics.functional import accuracy, mean_absolute_error

from deeplense import rng
from deeplense.data.augment import Augmenter
from deeplense.data.familiarity import Familiarity
from deeplense.data.schema import Batch
from deeplense.data.transforms import Preprocessor
from deeplense.models.heads import Head
from deeplense.recipe import Recipe
from deeplense.training.feed import Feed, Loader
from deeplense.training.optim import make_optimizer
from deeplense.training.schedules import SCHEDULES


class _ByEpoch:
    """A loader that asks for the epoch when its first batch is due, whatever Lightning does ahead."""

    def __init__(self, loader: Loader, module: pl.LightningModule) -> None:
        self.loader, self.module = loader, module

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        self.loader.set_epoch(self.module.current_epoch)
        yield from self.loader


class LensModule(pl.LightningModule):
    """Network, pre-processing and head in training.

    All randomness of a step (augmentation, dropout) derives from (seed, epoch, step, rank), so that a resumed
    training equals an uninterrupted one.

    Attributes:
        evaluated: the network that is validated and bundled: the averaged one where there is one.
        outputs: raw outputs and truths of the last validation, from all ranks.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocess: Preprocessor,
        familiarity: Familiarity,
        head: Head,
        recipe: Recipe,
        feed: Feed,
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.preprocess, self.familiarity, self.head = preprocess, familiarity, head
        self.recipe, self.feed = recipe, feed
        self.augment = Augmenter(recipe.augment)
        self.train_loss = MeanMetric()
        self.average: AveragedModel | None = None
        if recipe.training.ema_decay:
            blend = get_ema_multi_avg_fn(recipe.training.ema_decay)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(network, multi_avg_fn=blend, use_buffers=True)
            self.average.requires_grad_(False)
        if recipe.training.compile:
            network.compile()
        self._parts: list[tuple[Tensor, Batch]] = []
        self.outputs: tuple[Tensor, Batch] | None = None

    @property
    def evaluated(self) -> nn.Module:
        return self.network if self.average is None else self.average.module

    def train_dataloader(self) -> _ByEpoch:
        return _ByEpoch(self.feed.train(self.trainer.global_rank, self.trainer.world_size), self)

    def val_dataloader(self) -> Loader:
        return self.feed.val(self.trainer.global_rank, self.trainer.world_size)

    def inputs(self, batch: Batch) -> Tensor:
        """Preprocessed images, always in float32."""
        with torch.autocast(self.device.type, enabled=False):
            images: Tensor = self.preprocess(batch.image)
            return images.contiguous(memory_format=torch.channels_last)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        key = (self.current_epoch, index, self.global_rank)
        torch.manual_seed(rng.integer(self.recipe.seed, "step", *key))
        images = self.augment(self.inputs(batch), rng.torch_generator(self.recipe.seed, "augment", *key))
        loss = self.head.loss(self.network(images), batch, self.recipe.training.label_smoothing)
        self.train_loss.update(loss.detach())
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        if self.average is not None:
            self.average.update_parameters(self.network)

    def validation_step(self, batch: Batch, _: int) -> None:
        self._parts.append((self.evaluated(self.inputs(batch)).float(), batch._replace(image=batch.image[:0])))

    def on_validation_epoch_end(self) -> None:
        raw = torch.cat([r for r, _ in self._parts])
        batch = Batch(*(torch.cat(column) for column in zip(*(b for _, b in self._parts), strict=True)))
        self._parts.clear()
        if self.trainer.world_size > 1:
            # the loaders give every rank equally many
            gathered: Any = self.all_gather([raw, *batch])
            raw, *columns = (x.flatten(0, 1) for x in gathered)
            batch = Batch(*columns)
        self.outputs = raw, batch
        loss = self.head.loss(raw, batch)
        self.log("val_loss", loss, prog_bar=True)
        self.log("val_metric", self._metric(raw, batch), prog_bar=True)
        schedule = self.lr_schedulers()
        if isinstance(schedule, ReduceLROnPlateau):
            schedule.step(loss.item())

    def _metric(self, raw: Tensor, batch: Batch) -> Tensor:
        """Accuracy, or mean absolute error in the target's unit."""
        if self.recipe.task.kind == "classify":
            return accuracy(raw, batch.label, task="multiclass", num_classes=raw.shape[1])
        return mean_absolute_error(self.head.distribution(raw).mean, batch.target)

    def configure_optimizers(self) -> Any:
        config = self.recipe.training
        optimizer = make_optimizer(self.network, config)
        steps = int(self.trainer.estimated_stepping_batches) // config.epochs
        schedule = SCHEDULES[config.schedule](optimizer, config, steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step", "monitor": "loss"}]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        # plateau advances where the validation loss is known, so that last.ckpt holds its state
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()
