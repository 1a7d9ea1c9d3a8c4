"""One training of many processes: what torchrun or SLURM say, and batch norms over all processes on the CPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class Processes:
    """Those of one training.

    Attributes:
        world_size: all of them. on_node: those of a machine. nodes: machines.
    """

    world_size: int = 1
    on_node: int = 1
    nodes: int = 1


def launched() -> Processes | None:
    """What a launcher has started; None where there is none, and this process starts what it needs itself."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        world, here = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        return Processes(world, here, world // here)
    # an interactive shell under SLURM is one process, whatever was allocated
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1 and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        world, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_NNODES", 1))
        return Processes(world, world // nodes, nodes)
    return None


def synchronise(network: nn.Module) -> None:
    """Batch norms see the images of all processes, as `torch.nn.SyncBatchNorm` does on GPUs alone."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.forward = _Synchronised(module)  # type: ignore[assignment, method-assign]


class _Synchronised:
    """`forward` of a batch norm."""

    def __init__(self, norm: Any) -> None:
        self.norm, self.alone = norm, type(norm).forward

    def __call__(self, x: Tensor) -> Tensor:
        norm = self.norm
        if not norm.training:
            return self.alone(norm, x)  # type: ignore[no-any-return]
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1, *([1] * (x.ndim - 2))]
        n = torch.tensor(float(x.numel() // x.shape[1]), device=x.device)
        torch.distributed.all_reduce(n)
        mean: Tensor = all_reduce(x.sum(axes)) / n  # type: ignore[no-untyped-call]
        centred = x - mean.view(shape)
        variance: Tensor = all_reduce(centred.square().sum(axes)) / n  # type: ignore[no-untyped-call]
        if norm.track_running_stats:
            norm.num_batches_tracked.add_(1)
            momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            unbiased = variance.detach() * n / (n - 1).clamp_min(1)
            norm.running_mean.lerp_(mean.detach().to(norm.running_mean), momentum)
            norm.running_var.lerp_(unbiased.to(norm.running_var), momentum)
        y = centred * torch.rsqrt(variance + norm.eps).view(shape)
        if norm.affine:
            y = y * norm.weight.view(shape) + norm.bias.view(shape)
        # timm's batch norms end in an activation
        return norm.act(norm.drop(y)) if hasattr(norm, "act") else y


def lost_another(error: RuntimeError) -> bool:
    """Whether a talk between processes broke off; the backends have no common error for it."""
    if not torch.distributed.is_initialized():
        return False
    told = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or any(
        word in told for word in ("gloo", "nccl", "connection")
    )


def bfloat16_is_slow(device: torch.device) -> bool:
    """A CPU that has to imitate it, as far as Linux says."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return device.type == "cpu" and not flags & {"avx512_bf16", "amx_bf16", "bf16"}
