"""Operators against golden numbers of their authors' own code, in float64: outputs and every gradient."""

import json

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from fadeviz.upsamplers import Skip, build_upsampler, reassemble

# Official parameter name -> ours.
FADE_NAMES = {
    "gate_generator.conv": "gate.conv",
    "ker_generator.compressor_en": "semi_shift.compressor_encoder",
    "ker_generator.compressor_de": "semi_shift.compressor_decoder",
    "ker_generator.content_encoder": "semi_shift.content_encoder",
}
CASES = {
    "carafe_k5_c8": ("carafe", {"channel_compressor": "compressor"}),
    "deconv_k3_c8": ("deconv", {"weight": "conv.weight", "bias": "conv.bias"}),
    "fade_k5_c8": ("fade", FADE_NAMES),
    "pixel_shuffle_c8": ("pixel_shuffle", {"upsample_conv": "conv"}),
    "max_unpool_c8": ("max_unpool", {}),
}


def load(shared, name):
    path = shared / "oracles" / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"needs {path}")
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        hyper = json.loads(file.metadata()["hyper"])
    return hyper, {key: value.double() if value.is_floating_point() else value for key, value in tensors.items()}


def ours(official, names):
    for theirs, mine in names.items():
        if official == theirs or official.startswith(theirs + "."):
            return mine + official[len(theirs) :]
    return official


def close(got, want, tolerance):
    scale = want.abs().max().clamp(min=1e-300)
    assert ((got - want).abs().max() / scale).item() <= tolerance


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_outputs_and_gradients(shared, name, memory_format):
    operator_name, names = CASES[name]
    _, t = load(shared, name)
    x = t["x"].contiguous(memory_format=memory_format).requires_grad_()
    operator = build_upsampler(operator_name, x.shape[1]).double().to(memory_format=memory_format)
    params = {ours(key[6:], names): value for key, value in t.items() if key.startswith("param.")}
    operator.load_state_dict(params)
    feature = t.get("skip", t.get("pre_pool", torch.zeros(1)))
    if "skip" in t:
        feature = feature.contiguous(memory_format=memory_format).requires_grad_()
    y = operator(x, Skip(feature, t.get("indices")))
    close(y, t["y"], 1e-12)
    (y * t["cotangent"]).sum().backward()
    close(x.grad, t["grad_x"], 1e-11)
    if "skip" in t:
        close(feature.grad, t["grad_skip"], 1e-11)
    checked = 0
    for key, parameter in operator.named_parameters():
        official = next(k[6:] for k in t if k.startswith("param.") and ours(k[6:], names) == key)
        # Large gradients are stored in float32.
        close(parameter.grad, t[f"grad.{official}"], 1e-6 if parameter.numel() >= 1024 else 1e-9)
        checked += 1
    assert checked == len(params)


def test_reassemble(shared):
    hyper, t = load(shared, "carafe_op_k5_g1_s2")
    x, kernels = t["x"].requires_grad_(), t["kernels_in"].requires_grad_()
    y = reassemble(x, kernels, hyper["kernel_size"], hyper["scale"], hyper["group"])
    close(y, t["y"], 1e-13)
    grads = torch.autograd.grad((y * t["cotangent"]).sum(), (x, kernels))
    close(grads[0], t["grad_x"], 1e-12)
    close(grads[1], t["grad_kernels_in"], 1e-12)


def test_max_unpool_pools_to_the_same_indices(shared):
    _, t = load(shared, "max_unpool_c8")
    pooled, indices = build_upsampler("max_unpool", 8).pool(t["pre_pool"])
    assert torch.equal(indices, t["indices"])
    close(pooled[:1], t["pooled"], 1e-6)


@pytest.mark.parametrize("form", ["l2h", "h2l"])
def test_what_fade_shows_inside(shared, form):
    _, t = load(shared, "fade_k5_c8")
    operator = build_upsampler("fade", 8, form=form).double()
    operator.load_state_dict({ours(k[6:], FADE_NAMES): v for k, v in t.items() if k.startswith("param.")})
    kernels = operator.kernels(operator.semi_shift(t["skip"], t["x"]))
    gate = operator.gate(t["x"])
    close(kernels[:1], t["kernels"], 1e-6)
    close(gate[:1], F.interpolate(t["gate"], size=gate.shape[-2:], mode="nearest"), 1e-6)
    close(reassemble(t["x"], kernels, 5, 2)[:1], t["reassembled"], 1e-6)
    close(operator(t["x"], Skip(t["skip"])), t["y"], 1e-12)
