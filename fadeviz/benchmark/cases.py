"""The calls that a benchmark measures: reassembly in every form, the operators, training, and a run to draw."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models import build_network
from ..models.recipes import sgd
from ..ops import torch_ops
from ..ops.backends import native_library
from ..ops.reassemble import blend, kernel_softmax, reassemble
from ..storage.info import LayerInfo, ObservationInfo, RunInfo, StoredConfig
from ..storage.snapshots import Snapshot, SnapshotStore
from ..storage.stored_run import StoredRun
from ..training.loop import PRECISIONS, Precision, StepResult, fit
from ..upsamplers import CARAFE, FADE, Skip, Upsampler, build_upsampler, find_upsampler, parse_upsampler
from .plan import Shape, StepCase
from .timing import Call, rotating

KERNEL_SIZE, SCALE = 5, 2

LAYOUTS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}


def plain_reassemble(x: Tensor, kernels: Tensor, kernel_size: int = KERNEL_SIZE, scale_factor: int = SCALE) -> Tensor:
    """Reassembly in torch's own operators: unfold, repeat every window for its children, einsum.

    Equal to :func:`~fadeviz.ops.reassemble` for odd ``kernel_size``; holds K*K high-resolution copies of x.
    """
    b, c, h, w = x.shape
    windows = F.unfold(x, kernel_size, padding=kernel_size // 2).view(b, c, kernel_size**2, h, w)
    windows = windows.repeat_interleave(scale_factor, 3).repeat_interleave(scale_factor, 4)
    return torch.einsum("bckhw,bkhw->bchw", windows, kernels)


def plain_carafe(operator: CARAFE, x: Tensor) -> Tensor:
    """CARAFE as a sequence of torch operators, with :func:`plain_reassemble`; for one group."""
    logits = F.pixel_shuffle(operator.content_encoder(operator.compressor(x)), operator.scale_factor)
    return plain_reassemble(x, logits.softmax(dim=1), operator.kernel_size, operator.scale_factor)


def plain_fade(operator: FADE, x: Tensor, feature: Tensor) -> Tensor:
    """FADE as a sequence of torch operators, with :func:`plain_reassemble`."""
    kernels = operator.semi_shift(feature, x).softmax(dim=1)
    reassembled = plain_reassemble(x, kernels, operator.kernel_size, operator.scale_factor)
    if operator.gate is None:
        return reassembled
    gate = F.interpolate(operator.gate.conv(x).sigmoid(), scale_factor=operator.scale_factor, mode="nearest")
    return gate * feature + (1 - gate) * reassembled


PLAIN = {"carafe": "carafe", "fade": "fade:form=h2l"}
"""Operators that are also measured in their authors' formulation, and the options that select it."""


PEERS = frozenset({"plain", "compiled", "mmcv"})
"""Forms that are not fadeviz's own: measured on contiguous maps, for which they are written; they may fail."""


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Allow TensorFloat-32 at "tf32" only; convolutions are deterministic, as in training."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic  # the first is on by default
    cudnn.allow_tf32 = matmul.allow_tf32 = precision == "tf32"
    cudnn.deterministic = True
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic = before


def dtype_of(precision: str) -> torch.dtype:
    """The type of maps at a precision of the plan."""
    return PRECISIONS.get(precision, torch.float32)


def copying(size: int, device: torch.device) -> Call:
    """A copy that moves ``size`` bytes, counting reads and writes."""
    source = torch.ones(max(1, size // 8), device=device)
    return partial(torch.empty_like(source).copy_, source)


def multiplying(side: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Call:
    """A product of two ``side`` x ``side`` matrices: ``side**3`` multiply-adds."""
    a, b, out = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(3))
    return partial(torch.mm, a, b, out=out)


def adding_one(times: int, device: torch.device) -> Call:
    """A sequence of ``times`` small kernels."""
    value = torch.zeros(1, device=device)

    def call() -> None:
        for _ in range(times):
            value.add_(1)

    return call


def reassembly_forms(device: torch.device) -> list[str]:
    """The forms of reassembly on this device: the plain form, every backend, and mmcv's operator if it is installed."""
    forms = ["plain", "tiles"]
    if device.type == "cpu" and native_library.library() is not None:
        forms.append("native")
    if device.type == "cuda":
        from ..ops.backends import cuda

        forms += ["triton"] * cuda.available(device) + ["mmcv"] * (importlib.util.find_spec("mmcv") is not None)
    return forms


def fits(form: str, precision: str) -> bool:
    """Whether a form supports a precision: mmcv's operator supports float32 and float16 only."""
    return form != "mmcv" or precision != "bf16"


def reassembly_function(form: str) -> Callable[[Tensor, Tensor], Tensor]:
    """A form of reassembly, called with x and kernels; ``compiled`` is torch.compile of the plain one."""
    if form == "plain":
        return plain_reassemble
    if form == "compiled":
        compiled: Callable[[Tensor, Tensor], Tensor] = torch.compile(plain_reassemble, dynamic=False)
        return compiled
    if form == "mmcv":
        return _mmcv
    return partial(reassemble, kernel_size=KERNEL_SIZE, scale_factor=SCALE, backend=form)


def _mmcv(x: Tensor, kernels: Tensor) -> Tensor:
    ops: Any = importlib.import_module("mmcv.ops")
    out: Tensor = ops.carafe(x, kernels, KERNEL_SIZE, 1, SCALE)
    return out


def fused_function(form: str) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The end of FADE, called with x, logits, skip and gate: softmax, reassembly and the gate's blend.

    A single kernel in the form ``triton``; torch's own operators around a reassembly in the others.
    """
    if form == "triton":
        return _fused
    if form == "plain":
        return plain_fused
    if form == "compiled":
        compiled: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = torch.compile(plain_fused, dynamic=False)
        return compiled
    return partial(_in_three, form)


def _fused(x: Tensor, logits: Tensor, skip: Tensor, gate: Tensor) -> Tensor:
    out: Tensor = torch_ops.fused(x, logits, skip, gate, KERNEL_SIZE, SCALE)[0]
    return out


def plain_fused(x: Tensor, logits: Tensor, skip: Tensor, gate: Tensor) -> Tensor:
    """Softmax, :func:`plain_reassemble` and the gate's blend as a sequence of operators."""
    return gate * skip + (1 - gate) * plain_reassemble(x, logits.softmax(1))


def _in_three(backend: str, x: Tensor, logits: Tensor, skip: Tensor, gate: Tensor) -> Tensor:
    if backend == "mmcv":
        return torch.lerp(_mmcv(x, logits.softmax(1)), skip, gate)
    kernels = kernel_softmax(logits, None, KERNEL_SIZE, 1, backend)
    return blend(reassemble(x, kernels, KERNEL_SIZE, SCALE, backend=backend), skip, gate)


def reassembly_inputs(
    shape: Shape, layout: str, device: torch.device, precision: str = "fp32", fused: bool = False
) -> tuple[Tensor, ...]:
    """x, kernels and the output's gradient; for the fused form x, logits, skip, gate and the output's gradient."""
    b, c, n = shape
    low, high = (b, c, n, n), (SCALE * n, SCALE * n)
    shapes = [low, (b, KERNEL_SIZE**2, *high)]
    if fused:
        shapes += [(b, c, *high), (b, 1, *high)]
    operands = [_randn(size, layout, device, precision).requires_grad_() for size in shapes]
    return *operands, _randn((b, c, *high), layout, device, precision)


def operator_inputs(
    shape: Shape, layout: str, device: torch.device, precision: str = "fp32"
) -> tuple[Tensor, Tensor, Tensor]:
    """x, the encoder's feature and the output's gradient."""
    b, c, n = shape
    x = _randn((b, c, n, n), layout, device, precision).requires_grad_()
    feature = _randn((b, c, SCALE * n, SCALE * n), layout, device, precision)
    return x, feature.requires_grad_(), torch.randn_like(feature)


def _randn(shape: tuple[int, ...], layout: str, device: torch.device, precision: str) -> Tensor:
    values = torch.randn(shape, device=device, dtype=dtype_of(precision))
    return values.contiguous(memory_format=LAYOUTS[layout])


def forward(function: Callable[..., Tensor], *inputs: Tensor) -> Call:
    """The output alone; the last input is the output's gradient and is not used."""

    @torch.no_grad()
    def call() -> object:
        return function(*inputs[:-1])

    return call


def both(function: Callable[..., Tensor], *inputs: Tensor, parameters: Sequence[Tensor] = ()) -> Call:
    """The output and all gradients; the last input is the output's gradient."""
    *operands, gradient = inputs

    def call() -> object:
        y = function(*operands)
        return torch.autograd.grad(y, [*operands, *parameters], gradient.to(y.dtype), allow_unused=True)

    return call


def plain_layout(plain: bool) -> str:
    """The layout that an operator's plain form, or the operator itself, is measured in."""
    return "contiguous" if plain else "channels-last"


def operator_calls(
    text: str, plain: bool, inputs: tuple[Tensor, Tensor, Tensor], *others: tuple[Tensor, Tensor, Tensor]
) -> tuple[Call, Call]:
    """Forward, and forward and backward, of the operator ``text`` with weights of its own, or of its plain form.

    Weights are float32 in the maps' layout, under autocast where the maps are of half precision. With ``others`` the
    calls take the maps in turns.
    """
    x = inputs[0]
    name, options = parse_upsampler(PLAIN[text] if plain else text)
    operator = build_upsampler(name, x.shape[1], **options).to(x.device)
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    operator = operator.to(memory_format=layout)  # type: ignore[call-overload]
    calls = []
    for maps in (inputs, *others):
        indices = None
        if find_upsampler(name).needs == "indices":  # other operators would not pool the encoder's map
            with torch.no_grad():
                _, indices = operator.pool(maps[1])
        function = partial(_upsample, operator, plain, indices)
        calls.append((forward(function, *maps), both(function, *maps, parameters=list(operator.parameters()))))
    one_way, both_ways = zip(*calls, strict=True)
    return rotating(one_way), rotating(both_ways)


def _upsample(operator: Upsampler, plain: bool, indices: Tensor | None, x: Tensor, feature: Tensor) -> Tensor:
    with torch.autocast(x.device.type, x.dtype, enabled=x.dtype in (torch.bfloat16, torch.float16)):
        if plain and isinstance(operator, CARAFE):
            return plain_carafe(operator, x)
        if plain and isinstance(operator, FADE):
            return plain_fade(operator, x, feature)
        out: Tensor = operator(x, Skip(feature, indices))
    return out


def start_training(upsampler: str, case: StepCase, device: torch.device) -> tuple[nn.Module, Iterator[StepResult]]:
    """A network and its endless training on one batch; every ``next`` is a step."""
    model, optimizer = _model(upsampler, case, device)
    data = repeat(random_batch(case, device))
    precision: Precision = "bf16" if case.precision == "bf16" else "fp32"
    return model, fit(model, data, F.cross_entropy, optimizer, lambda step: 1e-4, precision=precision)


def resident_step(upsampler: str, case: StepCase, device: torch.device) -> Call:
    """A training step whose batch is on the device and whose loss is not read: the host never waits for the device."""
    model, optimizer = _model(upsampler, case, device)
    images, masks = random_batch(case, device)
    images = images.contiguous(memory_format=torch.channels_last)
    dtype = dtype_of(case.precision)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    model.train()

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = model(images)
        loss = F.cross_entropy(output.float(), masks)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def _model(upsampler: str, case: StepCase, device: torch.device) -> tuple[nn.Module, torch.optim.Optimizer]:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model: nn.Module = build_network("segnet", upsampler, width=case.width).to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, sgd(model, 1e-4, 0.0, 0.9)


def random_batch(case: StepCase, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random images and masks; their content does not affect the cost."""
    images = torch.randn(case.batch, 3, case.size, case.size, device=device)
    return images, torch.randint(2, (case.batch, case.size, case.size), device=device)


def synthetic_run(path: Path, name: str, frames: int) -> StoredRun:
    """A run on disk whose maps show a blob that emerges from noise."""
    layer, side = "decoder.3.upsample", 112
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    blob = np.exp(-20 * (x**2 + y**2))
    store = SnapshotStore(path, name)
    for step in range(frames):
        value = blob * step / frames + rng.normal(size=(side, side)) * 0.2
        store.write(step, [Snapshot(step, layer, 0, "feature", value[None].astype(np.float32))])
    image = np.repeat(np.repeat(255 * blob, 2, 0), 2, 1).astype(np.uint8)
    store.write_observation(image[None, ..., None].repeat(3, 3), (image[None] > 128).astype(np.uint8))
    store.write_info(
        RunInfo(
            status="finished",
            upsampler=name,
            network="segnet",
            config=StoredConfig({"seed": 0}),
            layers={layer: LayerInfo(size=(side, side))},
            observation=ObservationInfo(names=("synthetic",)),
        )
    )
    return StoredRun(path)
