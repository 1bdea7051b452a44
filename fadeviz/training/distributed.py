"""One training by several processes, as torchrun starts them: each takes a share of every batch, the first writes."""

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
    """Which process of a training this is: ``rank`` of ``world_size``. Rank 0 observes and writes."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def all_gather(self, value: T) -> list[T]:
        """What every process has, in their order. All must call it."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value)
        return values

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum over all processes, without a gradient. All must call it."""
        if self.world_size > 1:
            distributed.all_reduce(values)
        return values

    def all_reduce_max(self, number: int) -> int:
        """The largest of the ranks' numbers. All ranks must call it."""
        if self.world_size == 1:
            return number
        told = torch.tensor(number)  # on the CPU, by gloo: no GPU is waited for
        distributed.all_reduce(told, distributed.ReduceOp.MAX)
        return int(told.item())

    @contextmanager
    def all_or_raise(self) -> Iterator[None]:
        """A block that succeeds in all processes or in none: an error in one ends the others too.

        Raises:
            FadevizError: another process failed; its own message says why.
        """
        error: BaseException | None = None
        try:
            yield
        except BaseException as caught:
            error = caught
        failed = self.all_gather(error is not None)
        if error is not None and (self.is_rank_zero or not failed[0]):
            raise error
        if any(failed):  # where all fail alike, one says so
            raise OtherRankFailed("another process of this training failed: its message says why") from error

    @contextmanager
    def peers_watched(self) -> Iterator[None]:
        """A block in which the processes wait for each other, and one may go away.

        Raises:
            OtherRankFailed: it did; its own message, or torchrun's, says why.
        """
        try:
            yield
        except RuntimeError as error:
            # NCCL has errors of its own class; gloo's are told by their text alone.
            if self.world_size > 1 and (isinstance(error, distributed.DistError) or "gloo" in str(error)):
                raise OtherRankFailed(
                    "another process of this training went away: its message says why. Go on with --resume"
                ) from error
            raise

    @contextmanager
    def rank_zero_first(self) -> Iterator[None]:
        """A block that the first process passes before the others enter it: what it downloads, they find."""
        if not self.is_rank_zero:
            self.all_gather(None)
        try:
            yield
        finally:
            if self.is_rank_zero:
                self.all_gather(None)


ALONE = Processes()


class OtherRankFailed(FadevizError):
    """This process is well, but cannot go on alone."""


def local_rank() -> int:
    """Which of the processes on this machine this is, by torchrun's environment: the number of its GPU."""
    return _environment("LOCAL_RANK", 0)


def local_world_size() -> int:
    """The number of ranks on this machine, from torchrun's environment."""
    return max(1, _environment("LOCAL_WORLD_SIZE", 1))


def launched_rank() -> int:
    """This process's number among those that torchrun started; 0 without torchrun."""
    return _environment("RANK", 0)


@contextmanager
def process_group(device: torch.device) -> Iterator[Processes]:
    """The processes that torchrun started, connected (gloo for the CPU, NCCL for GPUs) until the end of the block.

    Without torchrun, or in a process group that exists already with one process, it is this process alone.

    Raises:
        FadevizError: the processes do not find each other, or one of them went away (``OtherRankFailed``).
    """
    count = _environment("WORLD_SIZE", 1)
    if count == 1:
        yield ALONE
        return
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        raise FadevizError(
            f"{count} processes did not find each other ({_first_line(error)}). Start them by torchrun"
        ) from error
    processes = Processes(distributed.get_rank(), distributed.get_world_size())
    try:
        with processes.peers_watched(), warnings.catch_warnings():
            # 1x1 kernels have two names for one memory layout, which costs nothing.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            yield processes
    finally:
        distributed.destroy_process_group()
        # One of gloo's threads may still be releasing the last result, for which it needs the interpreter: if that ends
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
    """Raise unless every batch has an image for every process.

    Raises:
        FadevizError: fewer images in a batch than processes.
    """
    last = batch_size if count is None else count % batch_size or batch_size
    if min(batch_size, last) < processes.world_size:
        what = f"a batch of {batch_size}" if last == batch_size else f"an epoch's last batch, of {last}"
        raise FadevizError(
            f"{what}: too few images for {processes.world_size} processes. Use another --batch-size, or fewer processes"
        )


def wrap_ddp(model: nn.Module, processes: Processes) -> nn.Module:
    """The module to train: its gradients are means over all processes, its BatchNorm sees all of their images.

    It shares parameters and buffers with ``model``, which stays a plain module: to observe, to test and to save.
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
    """BatchNorm whose statistics are of the images of all processes, on a CPU, where torch's own has none.

    The variance is of differences from the common mean, summed in a second exchange: the difference of two large sums
    would lose digits.

    Shape: ``(B, C, H, W)`` -> the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; in training by the statistics of all processes, which also go into the running ones."""
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
    """The sum over all processes. What each of them does with it counts, so that the gradient is a sum as well."""

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
