"""What Lightning runs: one step, one validation, and the averaged weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric

from deeplense import rng
from deeplense.data.augment import Augmenter
from deeplense.data.disturb import DISTURBANCES, disturbed
from deeplense.data.schema import Batch
from deeplense.data.transforms import Preprocessor
from deeplense.errors import UserError
from deeplense.models.network import Network
from deeplense.models.pixel_statistics import PixelStatistics
from deeplense.recipe import Recipe
from deeplense.training.averaging import LastSteps, averaged, estimate_statistics
from deeplense.training.feed import Feed, Loader
from deeplense.training.objectives import OBJECTIVES
from deeplense.training.optim import make_optimizer
from deeplense.training.schedules import SCHEDULES
from deeplense.training.start import MAY_CHANGE, rescheduled

HELD_OUT = 2048  # images that the detector of strange ones is fitted on


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
    """Network, pre-processing and objective in training.

    All randomness of a step (augmentation, dropout) derives from (seed, epoch, step), dropout's from the rank too, so
    that a resumed training equals an uninterrupted one.

    Attributes:
        reference: some preprocessed training images (N, C, H, W), which statistics are estimated on.
        evaluated: the network that is validated and bundled: the averaged one where there is one.
        outputs: raw outputs of each head and truths of the last validation, from all processes.
        held_out: pixel statistics (N, P) and features (N, D) of at most about `HELD_OUT` images of the last validation,
            turned as in training.
    """

    def __init__(
        self,
        network: Network,
        preprocess: Preprocessor,
        statistics: PixelStatistics,
        recipe: Recipe,
        feed: Feed,
        reference: Tensor,
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.preprocess, self.statistics = preprocess, statistics
        self.objective = OBJECTIVES[recipe.training.objective](recipe.training, network)
        self.recipe, self.feed = recipe, feed
        self.augment = Augmenter(recipe.augment, feed.manifest.parameters, feed.targets, preprocess.view)
        self.train_loss = MeanMetric()
        self.average = averaged(network, recipe.training)
        self.reference = reference
        if recipe.training.compile:
            network.trunk.compile()
        self._averaged = 0  # the last step that the average knows
        self._changed = False  # by a resumed run, of its schedule
        self._parts: list[tuple[dict[str, Tensor], Batch]] = []
        self._features: list[Tensor] = []
        self._measured: list[Tensor] = []  # once
        self.outputs: tuple[dict[str, Tensor], Batch] | None = None
        self.held_out: tuple[Tensor, Tensor] | None = None

    @property
    def evaluated(self) -> Network:
        network = self.network if self.average is None else self.average.module
        assert isinstance(network, Network)
        return network

    def train_dataloader(self) -> CombinedLoader:
        loaders = self.feed.train(self.trainer.global_rank, self.trainer.world_size)
        return CombinedLoader({name: _ByEpoch(loader, self) for name, loader in loaders.items()}, "min_size")

    def val_dataloader(self) -> Loader:
        return self.feed.val(self.trainer.global_rank, self.trainer.world_size)

    def inputs(self, batch: Batch) -> Tensor:
        """Preprocessed images, always in float32."""
        with torch.autocast(self.device.type, enabled=False):
            images: Tensor = self.preprocess(batch.image)
            return images.contiguous(memory_format=torch.channels_last)

    def training_step(self, batches: dict[str, Batch], index: int) -> Tensor:
        key = (self.current_epoch, index)
        rng.seed_torch(self.recipe.seed, "step", *key, self.global_rank, device=self.device)
        ready = {name: self._augmented(batch, name, *key) for name, batch in batches.items()}
        loss: Tensor = self.objective(self.network, ready)
        self._check(loss, index)
        self.train_loss.update(loss.detach())
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def _check(self, loss: Tensor, index: int) -> None:
        """A loss that is no number ends the training. To ask a GPU takes its time, so that it is asked now and then."""
        last = index + 1 == self.trainer.num_training_batches
        if (loss.device.type == "cpu" or index % 20 == 0 or last) and not bool(torch.isfinite(loss)):
            config = self.recipe.training
            raise UserError(
                f"epoch {self.current_epoch + 1}, step {index + 1} (seed {self.recipe.seed}): the loss is not finite; "
                f"lower training.lr (it is {config.lr:g}) or set training.clip_norm; what earlier epochs wrote is kept"
            )

    def _augmented(self, batch: Batch, source: str, *key: int) -> Batch:
        stream = "augment" if source == self.objective.sources[0] else f"augment/{source}"
        generator = rng.torch_generator(self.recipe.seed, stream, *key, 0)
        if any(getattr(self.recipe.augment, name) for name in DISTURBANCES):
            apart = rng.torch_generator(self.recipe.seed, f"disturb/{source}", *key, self.global_rank)
            batch = batch._replace(image=disturbed(batch.image, self.recipe.augment, apart))
        batch = batch._replace(image=self.inputs(batch))
        whole, world_size = self.recipe.training.batch_size, self.trainer.world_size
        return self.augment(batch, generator, self.global_rank, world_size, whole, self.current_epoch)

    def on_train_epoch_start(self) -> None:
        if self.recipe.training.freeze == "trunk":
            self.network.trunk.eval()

    def on_train_batch_end(self, *_: Any) -> None:
        if self.average is not None and self.global_step > self._averaged:
            self._averaged = self.global_step
            self.average.update(self.network, self.global_step)

    def on_validation_start(self) -> None:
        if self.average is not None:
            parts = torch.split(self.reference, self.recipe.training.batch_size)
            whole = (p.to(self.device).contiguous(memory_format=torch.channels_last) for p in parts)
            estimate_statistics(self.evaluated, whole)

    def validation_step(self, batch: Batch, index: int) -> None:
        images = self.inputs(batch)
        raw = {name: out.float() for name, out in self.evaluated(images).items()}
        self._parts.append((raw, batch._replace(image=batch.image[:0])))
        self._hold_out(batch._replace(image=images), index)

    def _hold_out(self, batch: Batch, index: int) -> None:
        """Of the same images in every validation, turned as in training: a network takes lenses either way up."""
        # as many of each batch, because a split may be sorted
        kept = -(-HELD_OUT // (int(sum(self.trainer.num_val_batches)) * self.trainer.world_size))
        generator = rng.torch_generator(self.recipe.seed, "held out", index)
        some = Batch(*(column[:kept] for column in batch))
        images = self.augment(some, generator, self.global_rank, self.trainer.world_size).image
        self._features.append(self.evaluated.features(images).float())
        if index == len(self._measured):
            with torch.autocast(self.device.type, enabled=False):
                self._measured.append(self.statistics(images))

    def on_validation_epoch_end(self) -> None:
        network = self.evaluated
        raw = {name: torch.cat([r[name] for r, _ in self._parts]) for name in network.heads}
        batch = Batch(*(torch.cat(column) for column in zip(*(b for _, b in self._parts), strict=True)))
        self._parts.clear()
        self.held_out = torch.cat(self._measured), torch.cat(self._features)
        self._features.clear()
        if self.trainer.world_size > 1:
            raw, batch = self._from_all(raw, batch)
            measured, features = self._gathered([*self.held_out])
            self.held_out = measured, features
        self.outputs = raw, batch
        losses = network.losses(raw, batch)
        loss = network.total(losses)
        self.log("val_loss", loss, prog_bar=True)
        metrics = {name: head.metric(raw[name], batch) for name, head in network.each().items()}
        self.log("val_metric", next(iter(metrics.values())), prog_bar=True)
        if len(metrics) > 1:
            for name, head in network.each().items():
                self.log(f"val_loss_{name}", losses[name][0].sum())
                self.log(f"val_{head.metric_name}_{name}", metrics[name])
        schedule = self.lr_schedulers()
        if isinstance(schedule, ReduceLROnPlateau):
            schedule.step(loss.item())

    def _from_all(self, raw: dict[str, Tensor], batch: Batch) -> tuple[dict[str, Tensor], Batch]:
        """The outputs of all processes, in the order of the images; shares differ by one image at most."""
        found = self._gathered([*raw.values(), batch.label, batch.params, batch.id])
        order = torch.argsort(found[-1])
        *outputs, label, params, id = (column[order] for column in found)
        return dict(zip(raw, outputs, strict=True)), Batch(batch.image, label, params, id)

    def _gathered(self, columns: list[Tensor]) -> list[Tensor]:
        """The rows of all processes, one process after the other."""
        rows = torch.tensor(len(columns[0]), device=self.device)
        most = int(self.trainer.strategy.reduce(rows, reduce_op="max"))
        padded = [torch.cat([c, c.new_zeros(most - len(c), *c.shape[1:])]) for c in columns]
        there = torch.arange(most, device=self.device) < rows
        gathered: Any = self.all_gather([*padded, there])
        *found, there = (x.flatten(0, 1) for x in gathered)
        return [column[there] for column in found]

    def configure_optimizers(self) -> Any:
        config = self.recipe.training
        optimizer = make_optimizer(self.network, self.objective, config)
        steps = int(self.trainer.estimated_stepping_batches) // config.epochs
        schedule = SCHEDULES[config.schedule](optimizer, config, steps)
        # a plateau is told of in `on_validation_epoch_end`
        interval = "epoch" if isinstance(schedule, ReduceLROnPlateau) else "step"
        return [optimizer], [{"scheduler": schedule, "interval": interval, "monitor": "val_loss"}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["schedule"] = self._schedule()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._changed = checkpoint.get("schedule", self._schedule()) != self._schedule()
        if self._changed:
            checkpoint["lr_schedulers"] = []

    def on_train_start(self) -> None:
        self._averaged = self.global_step
        if isinstance(self.average, LastSteps):
            self.average.begin(int(self.trainer.estimated_stepping_batches))
        if self._changed:
            (made,) = self.trainer.lr_scheduler_configs
            steps = int(self.trainer.estimated_stepping_batches) // self.recipe.training.epochs
            made.scheduler = rescheduled(self.trainer.optimizers[0], self.recipe.training, steps, self.global_step)

    def _schedule(self) -> dict[str, Any]:
        return {name: getattr(self.recipe.training, name) for name in MAY_CHANGE if name != "patience"}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        # plateau advances where the validation loss is known, so that last.ckpt holds its state
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()
