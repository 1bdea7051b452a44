"""How the operators of ``torch.ops.fadeviz`` are defined: their schemas, shapes and gradients.

Written with the parts of ``torch.library``, because its ``custom_op`` decorator loads the compiler on the first call,
which takes two seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("fadeviz", "DEF")


def operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Make a function the operator ``fadeviz::name``, on every device; its annotations are the schema."""

    def define(function: Callable[..., Any]) -> Any:
        _LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()))
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        return getattr(torch.ops.fadeviz, name).default

    return define


def shapes_of(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Register what ``fadeviz::name`` returns for tensors without data."""
    return torch.library.register_fake(f"fadeviz::{name}", lib=_LIBRARY)


def gradients_of(name: str, backward: Callable[..., Any], setup: Callable[..., None]) -> None:
    """Register the gradients of ``fadeviz::name``: ``backward(ctx, *grads)`` of what ``setup`` has saved."""
    torch.library.register_autograd(f"fadeviz::{name}", backward, setup_context=setup, lib=_LIBRARY)
