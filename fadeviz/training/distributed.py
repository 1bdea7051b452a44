"""Data-parallel training by several processes, as torchrun starts them: each trains on a share of every batch."""

from __future__ import annotations

import copy
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from ..errors import FadevizError

T = TypeVar("T")

_RELEASE_SECONDS = 0.2


@dataclass(frozen=True)
class Processes:
    """The processes of a training, seen from one of them. Rank 0 observes and writes.

    Attributes:
        rank: the rank of this process.
        world_size: the number of processes.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def all_gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order. All ranks must call it."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value)
        return values

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place and without a gradient. All ranks must call it."""
        if self.world_size > 1:
            distributed.all_reduce(values)
        return values

    def all_reduce_max(self, number: int) -> int:
        """The largest of the ranks' numbers. All ranks must call it."""
        if self.world_size == 1:
            return number
        largest = torch.tensor(number)  # on the CPU, by gloo: no GPU is waited for
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        return int(largest.item())

    @contextmanager
    def all_or_raise(self) -> Iterator[None]:
        """A block that succeeds on all ranks or on none: an error on one raises on the others too.

        Raises:
            OtherRankFailed: if another rank failed.
        """
        error: BaseException | None = None
        try:
            yield
        except BaseException as caught:
            error = caught
        failed = self.all_gather(error is not None)
        if error is not None and (self.is_rank_zero or not failed[0]):
            raise error
        if any(failed):  # if all fail alike, rank 0 reports it
            raise OtherRankFailed("another process of this training failed: see its message") from error

    @contextmanager
    def lost_rank_errors(self) -> Iterator[None]:
        """A block with collective operations; a clear error is raised if another rank exits meanwhile.

        Raises:
            OtherRankFailed: if another rank exited; its own message, or torchrun's, gives the reason.
        """
        try:
            yield
        except RuntimeError as error:
            # NCCL's errors have their own class; gloo's can only be recognised by their text.
            if self.world_size > 1 and (isinstance(error, distributed.DistError) or "gloo" in str(error)):
                raise OtherRankFailed(
                    "another process of this training has exited: see its message. Continue with resume=True"
                ) from error
            raise

    @contextmanager
    def rank_zero_first(self) -> Iterator[None]:
        """A block that rank 0 completes before the others enter it: they find what it downloaded."""
        if not self.is_rank_zero:
            self.all_gather(None)
        try:
            yield
        finally:
            if self.is_rank_zero:
                self.all_gather(None)


ALONE = Processes()


class OtherRankFailed(FadevizError):
    """Another process of the training failed, so that this one cannot continue."""


def local_rank() -> int:
    """The rank among the processes on this machine, from torchrun's environment: the index of its GPU."""
    return _environment("LOCAL_RANK", 0)


def local_world_size() -> int:
    """The number of ranks on this machine, from torchrun's environment."""
    return max(1, _environment("LOCAL_WORLD_SIZE", 1))


def launched_rank() -> int:
    """The rank of this process, from torchrun's environment; 0 without torchrun."""
    return _environment("RANK", 0)


@contextmanager
def process_group(device: torch.device) -> Iterator[Processes]:
    """Connect the processes that torchrun started (gloo for the CPU, NCCL for GPUs) until the end of the block.

    Without torchrun, or with a single process, it yields ``ALONE``.

    Raises:
        FadevizError: if the processes cannot connect.
        OtherRankFailed: if one of them exits early.
    """
    world_size = _environment("WORLD_SIZE", 1)
    if world_size == 1:
        yield ALONE
        return
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        raise FadevizError(
            f"{world_size} processes could not connect ({_first_line(error)}). Start them with torchrun"
        ) from error
    processes = Processes(distributed.get_rank(), distributed.get_world_size())
    try:
        with processes.lost_rank_errors(), warnings.catch_warnings():
            # The strides of 1x1 kernels are ambiguous, which costs nothing.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            yield processes
    finally:
        distributed.destroy_process_group()
        # A thread of gloo may still be releasing the last result, for which it needs the interpreter: if that exits
        # meanwhile, the process aborts (3 of 24 small programs did, none with this pause).
        time.sleep(_RELEASE_SECONDS)


def _environment(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if text and not text.isdecimal():
        raise FadevizError(f"the environment variable {name} is {text!r}; torchrun sets it to a number. Unset it")
    return int(text) if text else default


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_share(count: int | None, batch_size: int, processes: Processes) -> None:
    """Check that every batch has at least one image per rank.

    Raises:
        FadevizError: if a batch has fewer images than there are ranks.
    """
    last = batch_size if count is None else count % batch_size or batch_size
    if min(batch_size, last) < processes.world_size:
        batch = f"a batch of {batch_size}" if last == batch_size else f"an epoch's last batch, of {last}"
        raise FadevizError(
            f"{batch}: too few images for {processes.world_size} processes. "
            "Use another batch_size=..., or fewer processes"
        )


def wrap_ddp(model: nn.Module, processes: Processes) -> nn.Module:
    """The module to train: its gradients are averaged over all ranks, and its BatchNorm is synchronised.

    It shares parameters and buffers with ``model``, which stays a plain module to observe, evaluate and save.
    """
    if processes.world_size == 1:
        return model
    kept = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    twin = copy.deepcopy(model, kept)
    on_gpu = next(model.parameters()).is_cuda
    twin = nn.SyncBatchNorm.convert_sync_batchnorm(twin) if on_gpu else _with_shared_statistics(twin)
    return nn.parallel.DistributedDataParallel(twin)


def _with_shared_statistics(module: nn.Module) -> nn.Module:
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = SharedBatchNorm2d
    return module


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Synchronised BatchNorm for CPUs, which ``nn.SyncBatchNorm`` does not support.

    The variance is that of the differences from the common mean, summed in a second exchange: the difference of two
    large sums would lose digits.

    Shape: ``(B, C, H, W)`` -> the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; in training with the statistics of all ranks, which also update the running statistics."""
        if not self.training:
            return super().forward(x)
        full = x.to(torch.promote_types(x.dtype, torch.float32))  # half precision would lose the sums
        pixels = full.new_tensor([x.numel() / x.shape[1]])
        sums = _Sum.apply(torch.cat([full.sum((0, 2, 3)), pixels]))
        count = sums[-1].item()
        mean = sums[:-1] / count
        centred = full - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * (count / (count - 1)), share)
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            centred = centred * (scale * self.weight)[:, None, None] + self.bias[:, None, None]
        else:
            centred = centred * scale[:, None, None]
        return centred.to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over all ranks. Every rank uses it, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total
