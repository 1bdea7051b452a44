"""Golden numbers of the authors' own code: read them, and hold an operator against them in float64."""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from fadeviz.upsamplers import Skip, build_upsampler

GOLDEN = Path(__file__).parent / "golden"
FORMATS = [torch.contiguous_format, torch.channels_last]


def load(name):
    """The hyper-parameters and tensors of a case, widened to float64."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        hyper = json.loads(file.metadata()["hyper"])
    return hyper, {key: value.double() if value.is_floating_point() else value for key, value in tensors.items()}


def official_parameters(tensors):
    return {key[6:]: value for key, value in tensors.items() if key.startswith("param.")}


def close(got, want, tolerance):
    """The largest difference is at most ``tolerance`` of the largest value."""
    assert got.shape == want.shape
    scale = want.abs().max().clamp(min=1e-300)
    assert ((got - want).abs().max() / scale).item() <= tolerance


def check_case(case, operator, names, memory_format=torch.contiguous_format, second=None, **options):
    """Outputs, and gradients of inputs and of every parameter, for both scalar objectives of a case.

    Args:
        case: name of the file.
        operator: name in ``UPSAMPLERS``.
        names: official parameter (or the module above it) -> ours, written down here a second time on purpose: it
            checks what ``load_official_state_dict`` does.
        memory_format: of x and skip.
        second: ``(suffix, function)``; the function takes (operator, x, feature) and gives the second output,
            ``y_<suffix>`` in the file.
        options: of the operator.

    Returns:
        The operator and the tensors, for more checks.
    """
    _, t = load(case)
    x = t["x"].contiguous(memory_format=memory_format).requires_grad_()
    module = build_upsampler(operator, x.shape[1], **options).double().to(memory_format=memory_format).eval()
    module.load_official_state_dict(official_parameters(t))
    feature = t.get("skip", t.get("pre_pool"))
    if "skip" in t:
        feature = feature.contiguous(memory_format=memory_format).requires_grad_()
    y = module(x) if feature is None else module(x, Skip(feature, t.get("indices")))
    close(y, t["y"], 1e-12)
    objectives = [("", (y * t["cotangent"]).sum())]
    if second is not None:
        suffix, function = second
        other = function(module, x, feature)
        close(other, t[f"y_{suffix}"], 1e-12)
        objectives.append((f"_{suffix}", (other * t[f"cotangent_{suffix}"]).sum()))
    parameters = dict(module.named_parameters())
    official = {key: ours(key, names) for key in official_parameters(t)}
    assert set(parameters) <= set(official.values())
    for suffix, objective in objectives:
        wanted = {"x": x, **({"skip": feature} if "skip" in t else {}), **parameters}
        got = dict(
            zip(
                wanted,
                torch.autograd.grad(objective, wanted.values(), retain_graph=True, allow_unused=True),
                strict=True,
            )
        )
        stored = {f"grad{suffix}_x": "x", f"grad{suffix}_skip": "skip"}
        stored |= {f"grad{suffix}.{key}": mine for key, mine in official.items() if mine in parameters}
        for key, name in stored.items():
            if key not in t:  # the authors' graph has no such gradient; ours must have none, or zeros
                assert got.get(name) is None or not got[name].any(), key
                continue
            grad = got[name]
            assert grad is not None, key
            # Large gradients are stored in float32.
            tolerance = 1e-6 if name in parameters and grad.numel() >= 1024 else 1e-9
            close(grad.reshape(t[key].shape), t[key], tolerance)
    return module, t


def ours(official, names):
    for theirs, mine in names.items():
        if official == theirs or official.startswith(theirs + "."):
            return mine + official[len(theirs) :]
    return official
