"""A source of batches that takes no time, for another process to import."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from deeplense.data.ahead import Share
from deeplense.data.schema import Batch


class Numbered:
    """Batches that hold (epoch, number of the batch), and a file with the number of those that were begun."""

    batch_size = 128

    def __init__(self, log: Path) -> None:
        self.log = log

    def batches(self, share: Share) -> Iterator[Batch]:
        for k in range(share.start, share.images // self.batch_size):
            with open(self.log, "a") as file:
                file.write(f"{share.epoch} {k}\n")
            image = torch.full((self.batch_size, 1, 2, 2), float(k))
            yield Batch(image, torch.full((self.batch_size,), share.epoch), image[:, 0, 0], torch.arange(128))

    def begun(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    def close(self) -> None:
        pass


class Failing(Numbered):
    """After the first epoch."""

    def __init__(self, log: Path, error: Exception) -> None:
        super().__init__(log)
        self.error = error

    def batches(self, share: Share) -> Iterator[Batch]:
        if share.epoch:
            raise self.error
        return super().batches(share)
