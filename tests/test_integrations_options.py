"""The callbacks' options are those of the recorder."""

import inspect
import typing

from fadeviz import Recorder
from fadeviz.integrations.options import RecorderOptions
from fadeviz.recording import recorder

OF_THE_CALLBACKS = {
    "self", "model", "layers", "steps", "out", "batch", "loss_fn", "start", "scaler", "resume", "overwrite",
}  # fmt: skip
"""What the callbacks name themselves, and what they take from the trainer."""


def test_they_agree_in_names_and_types():
    wanted = {
        name: hint
        for name, hint in typing.get_type_hints(Recorder.__init__, vars(recorder)).items()
        if name not in {*OF_THE_CALLBACKS, "return"}
    }
    assert typing.get_type_hints(RecorderOptions) == wanted
    assert wanted.keys() <= inspect.signature(Recorder).parameters.keys()
