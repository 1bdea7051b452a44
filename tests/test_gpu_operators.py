"""On a CUDA device: operators against float64 on the CPU, training steps that wait for nothing, observations.

Run with ``pytest -m gpu tests/test_gpu_operators.py``; needs no network and no data. ``FADEVIZ_TEST_DEVICE=cpu`` makes
the same comparisons without a GPU, with the operators of the CPU.
"""

import contextlib
import copy
import os
import warnings

import pytest
import torch

from fadeviz.upsamplers import UPSAMPLERS, Skip, build_upsampler, parse_upsampler

DEVICE = os.environ.get("FADEVIZ_TEST_DEVICE", "cuda")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # those of other releases of torch are no failures of ours
]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
OPTIONS = [
    "max_unpool:ceil_mode=true",
    "carafe:groups=4",
    "carafe:kernel_size=3,encoder_kernel_size=1",
    "indexnet:nonlinear=true",
    "indexnet:kind=o2o,context=true",
    "indexnet:kind=m2o,nonlinear=true",
    "a2u:down_head=true",
    "a2u:shared=false",
    "fade:gate=off",
    "fade:gate=add",
    "fade:form=h2l",
    "fade:bias_on=decoder,kernel_size=7",
    "dysample:style=pl",
    "dysample:dyscope=true",
    "sapa_i:norm=layer",
    "sapa_b:norm=group",
    "sapa_b:norm=none",
    "freqfusion:resample=true",
    "freqfusion:comp_feat_upsample=false",
    "lda_aqu:heads=2",
    "lda_aqu:relative_position_bias=false",
]
"""What the defaults do not reach."""

SAMPLERS = ("dysample", "lda_aqu", "freqfusion:resample=true")


def tolerance(upsampler, precision, what):
    """The largest root mean square difference, as a share of what :func:`scale` gives.

    Half precision is off by more for biases, whose gradients are sums that nearly cancel, for A2U, whose two filters
    are multiplied before they are normalised, and for operators that sample: a position that is rounded may lie on the
    other side of a pixel, where the gradient is another.
    """
    usual, biases, samplers = {"fp32": (1e-4, 1e-4, 0.01), "bf16": (0.06, 0.4, 0.6), "fp16": (0.01, 0.1, 0.1)}[
        precision
    ]
    if what.startswith("the gradient of") and upsampler.startswith(SAMPLERS):
        return samplers
    if upsampler.startswith("a2u"):
        usual *= 2
    return biases if what.endswith("bias") else usual


@pytest.fixture(autouse=True)
def _full_precision():
    """Not TF32, which rounds the inputs of every convolution to 10 bits."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def size(values):
    """Root mean square."""
    return values.detach().double().cpu().square().mean().sqrt().item()


def scale(wanted, key):
    """What a difference is a share of: the size of the values, or of the gradient of the same layer's weight.

    The gradient of a bias is the sum of what comes to the layer, which may cancel to little or nothing; that of the
    weight is a sum of the same terms, but each times an activation.
    """
    return max(size(wanted[key]), size(wanted.get(f"{key.removesuffix('bias')}weight", wanted[key])), 1e-30)


def difference(got, wanted):
    """Root mean square difference."""
    assert got.shape == wanted.shape
    return size(got.detach().double().cpu() - wanted.detach().double().cpu())


def outputs_and_gradients(operator, x, feature, cotangents, autocast):
    """The pooled feature, the upsampled map, and the gradients of x, feature and every parameter, by name."""
    device = x.device.type
    x, feature = x.detach().requires_grad_(), feature.detach().requires_grad_()
    with torch.autocast(device, autocast, enabled=autocast is not None):
        pooled, indices = operator.pool(feature)
        y = operator(x, Skip(feature, indices))
    found = {"pooled": pooled, "y": y}
    inputs = {"x": x, "skip": feature, **dict(operator.named_parameters())}
    grads = torch.autograd.grad(
        [pooled, y],
        list(inputs.values()),
        [c.to(device, o.dtype) for c, o in zip(cotangents, (pooled, y), strict=True)],
        allow_unused=True,
    )
    return found | {f"the gradient of {name}": g for name, g in zip(inputs, grads, strict=True) if g is not None}


def check_operator(upsampler, precision, memory_format):
    """What the operator gives on the device, beside what it gives in float64 on the CPU for the same values."""
    name, options = parse_upsampler(upsampler)
    torch.manual_seed(0)
    operator = build_upsampler(name, 32, **options)
    with torch.no_grad():  # away from the initial weights, where kernels are flat and samples lie on kinks
        for parameter in operator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    dtype = DTYPES[precision]
    x, feature = torch.randn(2, 32, 9, 14).to(dtype), torch.randn(2, 32, 18, 28).to(dtype)
    cotangents = torch.randn(2, 32, 9, 14).to(dtype), torch.randn(2, 32, 18, 28).to(dtype)
    exact = copy.deepcopy(operator).double()
    wanted = outputs_and_gradients(exact, x.double(), feature.double(), cotangents, None)
    operator = operator.to(DEVICE, memory_format=memory_format)
    x, feature = (t.to(DEVICE, memory_format=memory_format) for t in (x, feature))
    got = outputs_and_gradients(operator, x, feature, cotangents, None if precision == "fp32" else dtype)
    assert got.keys() == wanted.keys()
    assert got["y"].dtype == got["pooled"].dtype == dtype
    differences = {key: difference(got[key], wanted[key]) / scale(wanted, key) for key in wanted}
    wrong = {key: d for key, d in differences.items() if not d <= tolerance(upsampler, precision, key)}
    assert not wrong


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("upsampler", UPSAMPLERS)
def test_an_operator_agrees_with_float64(upsampler, precision, memory_format):
    check_operator(upsampler, precision, FORMATS[memory_format])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("upsampler", OPTIONS)
def test_its_options_agree_with_float64(upsampler, precision):
    check_operator(upsampler, precision, torch.channels_last)


NETWORKS = {
    "segnet": UPSAMPLERS,
    "unet": ("fade", "carafe", "max_unpool"),
    "segformer": ("fade", "carafe", "bilinear"),
    "matting": ("fade", "a2u", "max_unpool"),
}
PAIRS = [(network, upsampler) for network, upsamplers in NETWORKS.items() for upsampler in upsamplers]


def training(network, upsampler, precision, steps):
    """A network and batches on the device, the task, and what else :func:`fadeviz.training.loop.fit` takes."""
    if network in ("segformer", "matting"):
        pytest.importorskip("transformers")
    from fadeviz.models import NETWORKS as TABLE
    from fadeviz.models import build_network
    from fadeviz.training.tasks import TASKS

    torch.manual_seed(0)
    recipe, task = TABLE[network].recipe, TASKS[TABLE[network].task]
    model = build_network(network, upsampler, width=0.25).to(DEVICE, memory_format=torch.channels_last)
    images = torch.randn(2, 4 if network == "matting" else 3, 64, 64)
    targets = torch.rand(2, 11, 64, 64) if network == "matting" else torch.randint(0, 2, (2, 64, 64))
    optimizer = recipe.optimizer(model, recipe.lr, recipe.weight_decay, 0.9)
    scaler = torch.amp.GradScaler(DEVICE) if precision == "fp16" else None
    rest = {"lr_at": recipe.lr_at(recipe.lr, 10, recipe.lr_drops), "precision": precision, "scaler": scaler}
    data = [(images.to(DEVICE), targets.to(DEVICE))] * steps
    return model, data, task, {"optimizer": optimizer, "loss_weight": task.loss_weight, **rest}


@contextlib.contextmanager
def sync_debug(mode):
    """Within it, torch raises an error, or warns, where the host waits for the device."""
    if DEVICE != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("network", "upsampler"), PAIRS)
def test_a_network_never_waits(network, upsampler):
    """Forward, loss, backward and the optimiser's step make the host wait for nothing."""
    model, [(images, targets), *_], task, rest = training(network, upsampler, "bf16", 1)
    for step in range(2):
        with sync_debug("error" if step else "default"), torch.autocast(DEVICE, torch.bfloat16):
            output = model(images)
        with sync_debug("error" if step else "default"):
            loss = task.loss(output.float(), targets)
            rest["optimizer"].zero_grad(set_to_none=True)
            loss.backward()
            rest["optimizer"].step()
        assert loss.isfinite().item()


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("network", NETWORKS)
def test_training_waits_for_the_loss_alone(network, precision):
    """And for that by an event, which is no wait for the device."""
    from fadeviz.training.loop import fit

    model, data, task, rest = training(network, "fade", precision, 5)
    waits, losses = [], []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with sync_debug("warn"):
            for result in fit(model, data, task.loss, **rest):
                waits.append(sum("called a synchronizing" in str(w.message) for w in caught))
                losses.append(result.loss)
                caught.clear()
    assert all(torch.tensor(losses).isfinite())
    assert waits[1:] == [0] * 4, waits


OBSERVED = [p for p in PAIRS if p[0] != "segnet" or p[1] in ("fade", "max_unpool", "carafe", "sapa_g")]


@pytest.mark.parametrize(
    ("network", "upsampler", "mode"),
    [(*pair, "eval") for pair in OBSERVED] + [(network, "fade", "batch") for network in NETWORKS],
)
def test_an_observation_is_that_of_the_cpu(network, upsampler, mode):
    pytest.importorskip("PIL")
    from fadeviz.recording.probe import Probe

    model, [(images, targets), *_], task, _ = training(network, upsampler, "fp32", 1)
    probe = Probe(model, model.layers, "all")
    probe.observe(images, targets, task.loss, step=0, mode=mode)
    with warnings.catch_warnings(record=True) as caught, sync_debug("warn"):
        warnings.simplefilter("always")
        got = probe.observe(images, targets, task.loss, step=1, mode=mode)
    assert not [str(w.message) for w in caught if "called a synchronizing" in str(w.message)]
    model = model.cpu()
    wanted = Probe(model, model.layers, "all").observe(images.cpu(), targets.cpu(), task.loss, step=1, mode=mode)
    assert [s.key for s in got] == [s.key for s in wanted]
    for ours, theirs in zip(got, wanted, strict=True):
        # Rounding decides between maxima that are nearly equal, and so which pixel a gradient goes to.
        limit = 0.02 if upsampler == "max_unpool" or ours.kind == "gradient" else 1e-3
        assert difference(torch.from_numpy(ours.value), torch.from_numpy(theirs.value)) <= limit, ours.key
