"""Seeds. Every random number in the package descends from here.

A *block* of scenes is the unit of randomness: its generator depends on (seed, stream, block) and on nothing else,
so the same seed gives the same scenes whatever the number of workers, the batch size or the device.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch

from deeplense.errors import UserError

BLOCK = 256  # scenes in a block


def _sequence(seed: int, stream: str, *key: int) -> np.random.SeedSequence:
    if seed < 0:
        raise UserError(f"seed {seed}: it must not be negative")
    return np.random.SeedSequence([seed, zlib.crc32(stream.encode()), *key])


def generator(seed: int, stream: str, *key: int) -> np.random.Generator:
    """An independent NumPy generator for (seed, stream, *key), e.g. `generator(0, "train/scene", block)`."""
    return np.random.Generator(np.random.SFC64(_sequence(seed, stream, *key)))


def torch_generator(seed: int, stream: str, *key: int, device: str | torch.device = "cpu") -> torch.Generator:
    """The same for torch; the draws depend on the kind of device, the seed does not."""
    return torch.Generator(device=device).manual_seed(integer(seed, stream, *key))


def seed_torch(seed: int, stream: str, *key: int, device: torch.device) -> None:
    """The global generator of the CPU and of one device (`torch.manual_seed` visits every kind of device, in 2 ms)."""
    number = integer(seed, stream, *key)
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)


def integer(seed: int, stream: str, *key: int) -> int:
    """A 63-bit integer seed for libraries that want one."""
    return int(_sequence(seed, stream, *key).generate_state(1, np.uint64)[0] >> 1)
