"""Replacing the upsampling of a model that exists: modules, and calls of ``F.interpolate``, become operators."""

from __future__ import annotations

from .installed import UpsamplerChain
from .replace import replace_upsamplers
from .report import LeftUpsampler, ReplacedUpsampler, Replacement

__all__ = ["LeftUpsampler", "ReplacedUpsampler", "Replacement", "UpsamplerChain", "replace_upsamplers"]
