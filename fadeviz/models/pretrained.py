"""Encoders of the transformers library, and pretrained weights from a folder or from the Hugging Face hub."""

from __future__ import annotations

import logging as python_logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import FadevizError, MissingExtra


def transformers_for(what: str) -> Any:
    """The library, imported when it is first needed; ``what`` needs it.

    Raises:
        MissingExtra: if it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("segformer", f"{what}'s encoder is that of transformers, which is not installed") from error
    return transformers


def read_pretrained(model: str, name: str, what: str) -> Mapping[str, Tensor]:
    """The tensors that a folder or a model of the Hugging Face hub holds, and no others.

    Args:
        model: the class in transformers, such as ``"SegformerModel"``.
        name: a folder that transformers saved, or a name on the hub.
        what: the encoder's name, for messages.

    Raises:
        FadevizError: if there is no such folder or name, no network connection, or the file is damaged.
    """
    if not Path(name).is_dir() and (Path(name).is_absolute() or name.count("/") != 1):
        raise FadevizError(f"no folder {name}. Give one that transformers saved, 'imagenet' or 'none'")
    transformers = transformers_for(what)
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would list what is not needed of the weights, such as the classifier
    hub = python_logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(python_logging.CRITICAL)  # and the hub each of its attempts, where there is no network
    try:
        loaded, info = getattr(transformers, model).from_pretrained(name, output_loading_info=True)
    except Exception as error:  # what is raised without a network, or for a damaged file, has no common type
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise FadevizError(
            f"no {what} weights at {name} ({line}). Give a folder that transformers saved, or a name "
            "on the Hugging Face hub; or train from random weights: weights='none'"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        hub.setLevel(level)
    # Tensors that the file lacks were initialised at random.
    missing = set(info["missing_keys"])
    return {key: value for key, value in loaded.state_dict().items() if key not in missing}
