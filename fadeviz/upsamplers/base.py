"""The contract of every upsampling operator: ``upsample(x, skip)`` raises the resolution of a decoder feature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..errors import FadevizError


class Skip(NamedTuple):
    """The maps that an encoder stage passes to its decoder stage.

    Attributes:
        feature: ``(B, C_skip, s*h, s*w)``, the encoder feature at the output's resolution.
        indices: what ``Upsampler.pool`` returned for the way up: max-pooling indices, or an index map; None for most
            operators.
    """

    feature: Tensor
    indices: Tensor | None = None


class Upsampler(nn.Module):
    """An operator that a decoder stage calls as ``x = self.upsample(x, skip)``: ``(B, C, h, w) -> (B, C, s*h, s*w)``.

    Operators that do not read the encoder are called with or without ``skip``, whose size they check. The parts that
    can be recorded are submodules, so that a probe can name them: ``gate`` (values in [0, 1]) and ``kernels`` (a
    :class:`~fadeviz.ops.reassemble.KernelSoftmax`).
    """

    scale_factor: int = 2

    official_names: ClassVar[Mapping[str, str]] = {}
    """Names in the authors' state dict, and the names here. A module's name stands for everything below it, the longest
    match wins, and names that are not listed are the same in both."""

    official_constants: ClassVar[frozenset[str]] = frozenset()
    """Buffers in the authors' state dict that follow from the options and are not stored here."""

    def forward(self, x: Tensor, skip: Skip | None = None) -> Tensor:
        """Upsample ``x`` by ``scale_factor``.

        Raises:
            FadevizError: if the maps do not match, or ``skip`` is missing for an operator that reads it.
        """
        raise FadevizError(f"{type(self).__name__} has no forward; an upsampler defines forward(x, skip)")

    def channels_advice(self, channels: int) -> str:
        """Advice for an error message about an encoder feature with another number of ``channels``."""
        return f"Build it with skip_channels={channels}"

    def pool(self, feature: Tensor) -> tuple[Tensor, Tensor | None]:
        """The operator's encoder half: ``(B, C, H, W)`` -> pooled by ``scale_factor``, and indices for the way up."""
        return F.max_pool2d(feature, self.scale_factor), None

    def multiply_adds(self, height: int, width: int) -> int:
        """Multiply-adds for one map of ``height`` x ``width`` low-resolution pixels.

        Biases and activations are not counted. The papers' tables give this number as FLOPs.
        """
        raise FadevizError(
            f"{type(self).__name__} has no multiply_adds; an upsampler defines multiply_adds(height, width)"
        )

    def load_official_state_dict(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        """Load weights that were saved by the authors' own implementation.

        Args:
            state: their state dict.
            prefix: the operator's name in it, e.g. ``"decode_head.upsample1."``; other keys are ignored.

        Raises:
            FadevizError: if a weight is missing, unexpected, or of another shape; nothing is loaded then.
        """
        own = self.state_dict()
        loaded: dict[str, Tensor] = {}
        for key, value in state.items():
            if not key.startswith(prefix) or key.removeprefix(prefix) in self.official_constants:
                continue
            mine = self._from_official(key.removeprefix(prefix))
            if mine not in own:
                raise FadevizError(
                    f"{type(self).__name__}: the state dict has {key!r}, which this operator does not have. Build it "
                    "with the options of the weights, or give prefix=, the operator's name in the dict"
                )
            if value.shape != own[mine].shape:
                raise FadevizError(
                    f"{type(self).__name__}: {key} is {tuple(value.shape)}, this operator needs "
                    f"{tuple(own[mine].shape)}. Build it with the channels and options the weights were trained with"
                )
            loaded[mine] = value
        missing = sorted(key for key in set(own) - set(loaded) if not key.endswith("num_batches_tracked"))
        if missing:
            raise FadevizError(
                f"{type(self).__name__}: the state dict has nothing for {missing[0]!r} ({len(missing)} of {len(own)} "
                "missing). Give prefix=, the operator's name in the dict"
            )
        self.load_state_dict({**own, **loaded})

    def _from_official(self, name: str) -> str:
        parts = name.split(".")
        for count in range(len(parts), 0, -1):
            mine = self.official_names.get(".".join(parts[:count]))
            if mine is not None:
                return ".".join([mine, *parts[count:]])
        return name


def check_input(operator: Upsampler, x: Tensor | fx.Proxy, skip: Skip | None, channels: int | None = None) -> None:
    """Raise unless x is a batch of maps and skip, if given, has the output's size.

    Args:
        operator: the calling operator.
        x: its input.
        skip: its second input; optional for operators that do not read it, but it must be of this stage.
        channels: required channels of x; None for any.

    Raises:
        FadevizError: if the sizes do not match; with the sizes that are needed.
    """
    if isinstance(x, fx.Proxy):
        return  # torch.fx traces with proxies, which have no sizes
    name, s = type(operator).__name__, operator.scale_factor
    if x.ndim != 4:
        raise FadevizError(
            f"{name}: x is {tuple(x.shape)}; a batch of maps (B, C, h, w) is needed. For a single map pass x[None]"
        )
    if channels is not None and x.shape[1] != channels:
        raise FadevizError(
            f"{name}: x has {x.shape[1]} channels, but in_channels is {channels}. Build it with "
            f"in_channels={x.shape[1]}"
        )
    if skip is None:
        return
    feature = feature_of(operator, skip)
    if feature.ndim != 4:
        raise FadevizError(
            f"{name}: skip.feature is {tuple(feature.shape)}; a batch of maps (B, C, s*h, s*w) is needed"
        )
    (h, w), (gh, gw) = x.shape[-2:], feature.shape[-2:]
    if (gh, gw) != (s * h, s * w):
        raise FadevizError(
            f"{name}: skip.feature is {gh}x{gw}, but x is {h}x{w} and scale_factor is {s}, so {s * h}x{s * w} is "
            "needed. Pad the input so that every stage divides evenly"
        )
    # Not len(), which turns the batch size into an int that torch.export then fixes.
    if feature.shape[0] != x.shape[0]:
        raise FadevizError(
            f"{name}: skip.feature has batch size {feature.shape[0]}, but x has {x.shape[0]}. Give both the same batch"
        )


def feature_of(operator: Upsampler, skip: Skip | None) -> Tensor:
    """The encoder feature in ``skip``.

    Raises:
        FadevizError: if there is none.
    """
    feature = getattr(skip, "feature", None)
    if feature is None:
        name, got = type(operator).__name__, "missing" if skip is None else f"a {type(skip).__name__}"
        raise FadevizError(
            f"{name}: skip is {got}; call it as operator(x, Skip(feature)), where feature is the encoder's map at "
            f"{operator.scale_factor} times x's size"
        )
    out: Tensor = feature
    return out


def read_guide(
    operator: Upsampler, x: Tensor, skip: Skip | None, in_channels: int | None, skip_channels: int | None
) -> Tensor:
    """The encoder feature in ``skip``, of the output's size.

    Args:
        operator: the calling operator.
        x: its input.
        skip: its second input.
        in_channels: required channels of x; None for any.
        skip_channels: required channels of the feature; None for any.

    Raises:
        FadevizError: if the sizes or channels do not match; with those that are needed.
    """
    feature = feature_of(operator, skip)
    check_input(operator, x, skip, in_channels)
    if skip_channels is not None and feature.shape[1] != skip_channels:
        raise FadevizError(
            f"{type(operator).__name__}: skip.feature has {feature.shape[1]} channels, but {skip_channels} are needed. "
            f"{operator.channels_advice(feature.shape[1])}, or project the feature with a 1x1 convolution"
        )
    return feature
