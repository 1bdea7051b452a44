"""The recorder as a callback of the Hugging Face Trainer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..errors import MissingExtra
from ..recording.recorder import Recorder
from ..storage.schedule import Schedule

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise MissingExtra("transformers", "the callback needs transformers, which is not installed") from error


class RecorderCallback(TrainerCallback):
    """Records maps of a model's layers at scheduled steps of a Trainer, as :class:`fadeviz.Recorder` does.

    Steps are those of ``state.global_step``: optimiser steps, also under gradient accumulation. The untrained model is
    step 0. ``trainer.train(resume_from_checkpoint=...)`` goes on in the folder from the checkpoint's step, and records
    the later ones anew. In a training of several processes the first records, and only it writes.

    What the Trainer logs goes into the run's metrics, under its names: ``loss``, ``learning_rate``, ``eval_loss`` ...;
    ``eval_miou`` and ``eval_boundary_iou`` also without ``eval_``, as ``fadeviz plot`` knows them.

    The Trainer does not tell its callbacks of an error: after one, :meth:`close` frees the folder for others.

    Example::

        recording = RecorderCallback("decode_head.*", "100:3000:100", "outputs/mine",
                                     observe={"pixel_values": images, "labels": masks})
        Trainer(model, arguments, train_dataset=data, callbacks=[recording]).train()
    """

    def __init__(
        self,
        layers: str | nn.Module | Sequence[str | nn.Module],
        steps: str | Schedule | Iterable[int],
        out: str | Path,
        *,
        observe: Mapping[str, Any] | tuple[Any, Any],
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        resume: bool = False,
        overwrite: bool = False,
        **options: Any,
    ) -> None:
        """Keep the arguments; the folder is opened when the training starts.

        Args:
            layers: as for :class:`fadeviz.Recorder`, in the model that the Trainer was given.
            steps: as for :class:`fadeviz.Recorder`.
            out: the run's folder.
            observe: a batch as the model takes it, ``{"pixel_values": ..., "labels": ...}``; its labels are the
                targets. Or ``(images, targets)``, as for :class:`fadeviz.Recorder`.
            loss_fn: ``loss_fn(output, targets)``; None takes the loss that the model returns where the observed batch
                has labels, and records no gradients where it has none.
            resume: go on in the folder also where the training begins anew, at step 0.
            overwrite: replace a run that is there; not where the training goes on from a checkpoint.
            **options: further arguments of :class:`fadeviz.Recorder`, including ``on_error``: by default, if
                recording fails, the training continues with one warning. ``ignore_index`` defaults to that of the
                model's configuration, if any.

        Raises:
            TypeError: an argument that the recorder does not know.
        """
        if isinstance(observe, Mapping):
            observe = (observe, observe.get("labels"))
        if loss_fn is None and isinstance(observe[0], Mapping) and "labels" in observe[0]:
            loss_fn = loss_of_output
        self.arguments: dict[str, Any] = {
            "layers": layers, "steps": steps, "out": out, "observe": observe, "loss_fn": loss_fn, "resume": resume,
            "overwrite": overwrite, **options,
        }  # fmt: skip
        inspect.signature(Recorder).bind(None, start=0, **self.arguments)
        self.recorder: Recorder | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Record the untrained model, or go on where a checkpoint left off."""
        # The Trainer tries again with smaller batches when memory runs out: what it began with is no run of its own.
        again = self.recorder is not None and args.auto_find_batch_size
        self.close(RuntimeError("the training ended before its time"))
        step = state.global_step
        arguments = {**self.arguments, "overwrite": self.arguments["overwrite"] or again}
        if step > 0:
            arguments |= {"resume": True, "overwrite": False}
        void = getattr(getattr(model, "config", None), "semantic_loss_ignore_index", None)
        if void is not None:
            arguments.setdefault("ignore_index", void)
        self.recorder = Recorder(model, start=step, **arguments)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record, if the optimiser's steps reached a scheduled one."""
        if self.recorder is not None:
            self.recorder.step(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Log what the Trainer logs."""
        values = {
            name: value
            for name, value in (logs or {}).items()
            if isinstance(value, int | float | np.number) and name not in ("self", "step")
        }
        values |= {name: values[f"eval_{name}"] for name in ("miou", "boundary_iou") if f"eval_{name}" in values}
        if self.recorder is not None and values:
            self.recorder.log(state.global_step, **values)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the run."""
        self.close()

    def close(self, error: BaseException | None = None) -> None:
        """Let others write into the folder; the end of the training does it."""
        if self.recorder is not None:
            self.recorder.close(error)
        self.recorder = None


def loss_of_output(output: Any, targets: Any) -> Tensor:
    """The loss that a model returns when it is given labels: ``output.loss``, or a tuple's first."""
    return output["loss"] if isinstance(output, Mapping) else output[0]
