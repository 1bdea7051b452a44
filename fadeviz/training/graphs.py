"""CUDA graphs: a computation on a GPU that is recorded once, and then launched as a whole."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import FadevizError

Gradients = Callable[[Tensor, Tensor], Tensor]
"""``(inputs, targets) -> loss``: runs the forward and the backward pass."""

_WARM_UP = 3
"""Runs before the recording, in which libraries choose algorithms and kernels are compiled."""


def record_graph(function: Callable[[], None]) -> Callable[[], None]:
    """Record the kernels that ``function`` launches, without running them; the result launches them."""
    graph = torch.cuda.CUDAGraph()
    # Other threads, which pin batches or write a checkpoint, may continue meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        function()
    return graph.replay


class ReplayedGradients:
    """Computes the gradients of batches of one shape with a CUDA graph, which the first batch records.

    With small batches, launching the kernels of a training step takes the CPU longer than running them takes the GPU. A
    replay launches the same kernels on the same memory at once, with the same results.

    The function must not wait for the GPU, and its launches must not depend on tensors' values.
    """

    def __init__(
        self, model: nn.Module, function: Gradients, *, record: Callable[..., Callable[[], None]] = record_graph
    ) -> None:
        """Nothing is recorded before the first call.

        Args:
            model: the model, on its GPU.
            function: the function to record; it sets the parameters' gradients, which are None before.
            record: records a function without arguments.
        """
        self.model, self.function, self.record = model, function, record
        self._replay: Callable[[], None] | None = None

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Compute the gradients of a batch; returns its loss. The next call overwrites both."""
        if self._replay is None:
            self._images, self._targets = images.clone(), targets.clone()
            self._record()
            assert self._replay is not None
        else:
            self._images.copy_(images, non_blocking=True)
            self._targets.copy_(targets, non_blocking=True)
        self._replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return self._loss

    def _record(self) -> None:
        device = self._images.device
        parameters = list(self.model.parameters())
        # Buffers, such as BatchNorm's statistics, and the random state must be updated only once for this batch.
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            if device.type == "cuda":
                stream = torch.cuda.Stream(device)
                stream.wait_stream(torch.cuda.current_stream(device))
                with torch.cuda.stream(stream):
                    self._warm_up(parameters)
                torch.cuda.current_stream(device).wait_stream(stream)
            else:
                self._warm_up(parameters)
        for buffer, value in buffers:
            buffer.copy_(value)
        try:
            self._replay = self.record(self._run)
        except RuntimeError as error:
            reason = " ".join(str(error).strip().split("\n")[0].split())
            raise FadevizError(f"compile=graph does not work with this model: {reason}. Use compile=off") from error
        self._gradients = [(p, p.grad) for p in parameters if p.grad is not None]

    def _warm_up(self, parameters: list[nn.Parameter]) -> None:
        for _ in range(_WARM_UP):
            self._run()
            for parameter in parameters:
                parameter.grad = None

    def _run(self) -> None:
        self._loss = self.function(self._images, self._targets).detach()


__all__ = ["Gradients", "ReplayedGradients", "record_graph"]
