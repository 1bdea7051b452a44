"""A recorder as a callback of the Hugging Face Trainer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from torch import Tensor

from ..errors import MissingExtra
from ..recording.layer_choice import Layers
from ..recording.recorder import Recorder
from ..storage.schedule import Schedule
from .options import RecorderOptions

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise MissingExtra("transformers", "the callback needs transformers, which is not installed") from error


class RecorderCallback(TrainerCallback):
    """Records maps of a model's layers at scheduled steps of a Trainer, as :class:`fadeviz.Recorder` does.

    Steps are those of ``state.global_step``: optimiser steps, also under gradient accumulation. The untrained model is
    step 0. ``trainer.train(resume_from_checkpoint=...)`` continues the recording from the checkpoint's step and
    replaces later ones. In distributed training only rank 0 records.

    Values that the Trainer logs are added to the run's metrics under their names: ``loss``, ``learning_rate``,
    ``eval_loss`` ..., which ``fadeviz plot --what logged`` draws; ``eval_miou`` and ``eval_boundary_iou`` also without
    ``eval_``, the names that ``--what quality`` draws.

    The Trainer does not notify its callbacks of errors: call :meth:`close` after one to free the folder for others.

    Example::

        recording = RecorderCallback("decode_head.*", "100:3000:100", "outputs/mine",
                                     batch={"pixel_values": images, "labels": masks})
        Trainer(model, arguments, train_dataset=data, callbacks=[recording]).train()
    """

    def __init__(
        self,
        layers: Layers,
        steps: str | Schedule | Iterable[int],
        out: str | Path,
        *,
        batch: Mapping[str, Any] | tuple[Any, Any],
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        resume: bool = False,
        overwrite: bool = False,
        **options: Unpack[RecorderOptions],
    ) -> None:
        """Keep the arguments; the folder is opened when the training starts.

        Args:
            layers: the layers of a :class:`fadeviz.Recorder`, as named in the Trainer's model.
            steps: the schedule of a :class:`fadeviz.Recorder`.
            out: the run's folder.
            batch: a batch of model inputs, ``{"pixel_values": ..., "labels": ...}``, whose labels are the targets; or
                ``(images, targets)``, as for :class:`fadeviz.Recorder`.
            loss_fn: ``loss_fn(output, targets)``; None takes the loss that the model returns if the observed batch has
                labels, and records no gradients otherwise.
            resume: continue the recording in the folder even if the training starts at step 0.
            overwrite: replace an existing run, unless training continues from a checkpoint.
            **options: further arguments of :class:`fadeviz.Recorder`, including ``on_error``: by default, if
                recording fails, training continues with one warning. ``ignore_index`` defaults to that of the
                model's configuration, if any.

        Raises:
            TypeError: if an argument is not one of the recorder's.
        """
        if isinstance(batch, Mapping):
            batch = (batch, batch.get("labels"))
        if loss_fn is None and isinstance(batch[0], Mapping) and "labels" in batch[0]:
            loss_fn = loss_of_output
        self.arguments: dict[str, Any] = {
            "layers": layers, "steps": steps, "out": out, "batch": batch, "loss_fn": loss_fn, "resume": resume,
            "overwrite": overwrite, **options,
        }  # fmt: skip
        inspect.signature(Recorder).bind(None, start=0, **self.arguments)
        self.recorder: Recorder | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Record the untrained model, or continue from the checkpoint's step."""
        # When memory runs out the Trainer starts again with smaller batches; the first attempt is replaced.
        retried = self.recorder is not None and args.auto_find_batch_size
        self.close(RuntimeError("the training ended early"))
        step = state.global_step
        arguments = {**self.arguments, "overwrite": self.arguments["overwrite"] or retried}
        if step > 0:
            arguments |= {"resume": True, "overwrite": False}
        ignore_index = getattr(getattr(model, "config", None), "semantic_loss_ignore_index", None)
        if ignore_index is not None:
            arguments.setdefault("ignore_index", ignore_index)
        self.recorder = Recorder(model, start=step, **arguments)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record if a scheduled step was reached."""
        if self.recorder is not None:
            self.recorder.step(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Add the Trainer's values to the run's metrics."""
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
        """Close the run, so that others can write into its folder. The end of the training does so by itself."""
        if self.recorder is not None:
            self.recorder.close(error)
        self.recorder = None


def loss_of_output(output: Any, targets: Any) -> Tensor:
    """The loss that a model returns when called with labels: ``output.loss``, or the first entry of a tuple."""
    return output["loss"] if isinstance(output, Mapping) else output[0]
