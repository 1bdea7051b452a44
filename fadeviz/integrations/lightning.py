"""A recorder as a callback of Lightning's Trainer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor

from ..errors import MissingExtra
from ..recording.layer_choice import Layers
from ..recording.recorder import Recorder
from ..storage.schedule import Schedule
from .options import RecorderOptions

try:
    from lightning.pytorch.callbacks import Callback
except ImportError:
    try:
        from pytorch_lightning.callbacks import Callback
    except ImportError as error:
        raise MissingExtra("lightning", "the callback needs Lightning, which is not installed") from error


class RecorderCallback(Callback):
    """Records maps of a LightningModule's layers at scheduled steps, as :class:`fadeviz.Recorder` does.

    Steps are those of ``trainer.global_step``: optimiser steps, also under gradient accumulation. With several
    optimisers Lightning counts the steps of each; a scheduled step that falls inside a batch is recorded at the end of
    the batch, under the number reached there. The untrained model is step 0; sanity checks and ``fast_dev_run`` record
    nothing. ``trainer.fit(ckpt_path=...)`` continues the recording from the checkpoint's step and replaces later ones.
    Under DDP only rank 0 records.

    Values that the module logs are added to the run's metrics under their names: training values every
    ``trainer.log_every_n_steps`` steps and at scheduled steps, validation and epoch values at the end of each.
    ``fadeviz plot --what logged`` draws them, ``--what quality`` those named ``miou`` and ``boundary_iou``. Under
    ``precision="16-mixed"`` the metrics include the gradient scale, as ``grad_scale``.

    Example::

        recording = RecorderCallback("model.decoder.*", "100:3000:100", "outputs/mine",
                                     batch=(images, targets), loss_fn=torch.nn.functional.cross_entropy)
        Trainer(callbacks=[recording]).fit(module, loader)
    """

    def __init__(
        self,
        layers: Layers,
        steps: str | Schedule | Iterable[int],
        out: str | Path,
        *,
        batch: tuple[Any, Any],
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        resume: bool = False,
        overwrite: bool = False,
        **options: Unpack[RecorderOptions],
    ) -> None:
        """Keep the arguments; the folder is opened when the training starts.

        Args:
            layers: names of the LightningModule's submodules, e.g. ``model.decoder.*``, or modules.
            steps: the schedule of a :class:`fadeviz.Recorder`.
            out: the run's folder.
            batch: ``(images, targets)``; the LightningModule's ``forward`` is called with the images.
            loss_fn: ``loss_fn(output, targets)`` for the output of ``forward``; None records no gradients.
            resume: continue the recording in the folder even if the training starts at step 0.
            overwrite: replace an existing run, unless training continues from a checkpoint.
            **options: further arguments of :class:`fadeviz.Recorder`, including ``on_error``: by default, if
                recording fails, training continues with one warning.

        Raises:
            TypeError: if an argument is not one of the recorder's.
        """
        self.arguments: dict[str, Any] = {
            "layers": layers, "steps": steps, "out": out, "batch": batch, "loss_fn": loss_fn, "resume": resume,
            "overwrite": overwrite, **options,
        }  # fmt: skip
        inspect.signature(Recorder).bind(None, start=0, scaler=None, **self.arguments)
        self.recorder: Recorder | None = None
        self._logged: dict[str, Any] = {}
        self._step = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Record the untrained model, or continue from the checkpoint's step."""
        if trainer.fast_dev_run:
            return
        self._step = step = trainer.global_step
        arguments = self.arguments if step == 0 else {**self.arguments, "resume": True, "overwrite": False}
        # trainer.model is the module as wrapped by the strategy, whose wrapper shows whether it is sharded.
        self.recorder = Recorder(trainer.model, start=step, scaler=_scaler(trainer), **arguments)
        self._logged = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Record if a scheduled step was reached."""
        step = trainer.global_step
        if self.recorder is None or step == self._step:  # gradients are still being accumulated
            return
        self._step = step
        self.recorder.step(step)
        every = trainer.log_every_n_steps
        # Reading metrics may synchronise the processes, so all of them must take the same decision.
        if step in self.recorder.schedule or (every and step % every == 0):
            self._log(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the validation's values."""
        self._log(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the epoch's values."""
        self._log(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the run."""
        self._log(trainer)
        self.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the run, and store in it how the training ended."""
        self.close(exception)

    def close(self, error: BaseException | None = None) -> None:
        """Close the run, so that others can write into its folder. The end of the training does so by itself."""
        if self.recorder is not None:
            self.recorder.close(error)
        self.recorder, self._logged = None, {}

    def _log(self, trainer: Any) -> None:
        if self.recorder is None:
            return
        # Lightning keeps values until they are logged again: a tensor at the same address is not new.
        new = {
            name: value
            for name, value in trainer.callback_metrics.items()
            if name not in ("self", "step") and not _is_same(value, self._logged.get(name))
        }
        self._logged |= new
        values = {
            name: value
            for name, value in new.items()
            if isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)
        }
        if values:
            self.recorder.log(trainer.global_step, **values)


def _scaler(trainer: Any) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)


def _is_same(value: Any, before: Any) -> bool:
    return isinstance(value, Tensor) and isinstance(before, Tensor) and value.data_ptr() == before.data_ptr()
