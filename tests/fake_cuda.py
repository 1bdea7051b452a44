"""Run fadeviz on the device "cuda" of a CPU build of torch, by fake tensors, and write down what a GPU would wait for.

``python fake_cuda.py < cases.json > results.json``; a process of its own, because it changes torch globally. Fake
tensors have a device, a type and a shape but no values: what needs a value (``.item()``, ``nonzero``) is answered with
a dummy and noted, and so is every copy between the host and the device, each with the function that caused it.

A CPU build needs persuading. A small library, built here against torch's headers and loaded before torch asks for its
CUDA hooks the first time, registers a device guard (without it copies say that torch is not linked with CUDA) and the
hooks (without them autograd finds no accelerator). Modules are built inside ``torch.device("cuda")``, because
``Module.to`` cannot swap fake parameters.
"""

import contextlib
import ctypes
import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path

SOURCE = r"""
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace {
using namespace c10;
struct Guard final : impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  static Stream stream() { return Stream(Stream::DEFAULT, Device(DeviceType::CUDA, 0)); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  Device getDevice() const override { return Device(DeviceType::CUDA, 0); }
  Device exchangeDevice(Device) const override { return Device(DeviceType::CUDA, 0); }
  Stream getStream(Device) const noexcept override { return stream(); }
  Stream getDefaultStream(Device) const override { return stream(); }
  Stream getStreamFromGlobalPool(Device, bool) const override { return stream(); }
  Stream exchangeStream(Stream) const noexcept override { return stream(); }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void record(void** event, const Stream&, const DeviceIndex, const EventFlag) const override { *event = (void*)1; }
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
};
struct Hooks : at::CUDAHooksInterface {
  Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex current_device() const override { return 0; }
  int getNumGPUs() const override { return 1; }
};
Guard guard;
}
namespace at { using FakeHooks = Hooks; C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", FakeHooks) }
extern "C" void register_guard() { impl::registerDeviceGuard(DeviceType::CUDA, &guard); }
"""


def load_library():
    """Build and load the library that registers guard and hooks; torch is found without importing it."""
    torch = Path(importlib.util.find_spec("torch").origin).parent
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "fake.cpp"), Path(folder, "fake.so")
        source.write_text(SOURCE)
        lib = torch / "lib"
        options = ["-std=c++20", "-O0", "-w", "-shared", "-fPIC", f"-I{torch / 'include'}"]
        libraries = [f"-L{lib}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{lib}"]
        subprocess.run(["g++", *options, source, "-o", library, *libraries], check=True)
        ctypes.CDLL(str(library)).register_guard()


if __name__ == "__main__":
    load_library()
    os.environ["FADEVIZ_BACKEND"] = "triton"  # the operators of a GPU, whose shapes are known also without Triton

# After the library is loaded
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.cuda.amp.common  # noqa: E402
from torch.optim.optimizer import _foreach_supported_types  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_flatten  # noqa: E402

aten = torch.ops.aten

READS = {
    aten._local_scalar_dense.default: "item",
    aten.nonzero.default: "nonzero",
    aten.bincount.default: "bincount",
    aten.equal.default: "equal",
    aten.masked_select.default: "masked_select",
    aten._unique2.default: "unique",
    aten.repeat_interleave.Tensor: "repeat_interleave",
}
"""What makes the host wait for the device, because sizes or control flow depend on values."""

FREE = ("detach", "empty", "_unsafe_view", "lift_fresh", "alias", "_local_scalar_dense", "is_pinned", "record_stream")
"""Beginnings of the names of operators that launch nothing; neither do views."""


def caller():
    """The innermost function of fadeviz that is running, ``module.function``; or of torch's optimiser, and the like."""
    other, frame = "", sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("fadeviz."):
            return f"{module.removeprefix('fadeviz.')}.{frame.f_code.co_qualname}"
        if not other and module.startswith(("torch.optim", "torch.amp", "torch.nn", "transformers")):
            other = f"{module}.{frame.f_code.co_qualname}"
        frame = frame.f_back
    return other or "autograd"


class Watch(TorchDispatchMode):
    """Counts launches, and notes what the host waits for: ``waits[what, function, "before" or "after" backward]``."""

    def __init__(self):
        super().__init__()
        self.clear()

    def clear(self):
        """Begin a new step."""
        self.launches, self.waits, self.phase = Counter(), Counter(), "before"

    def note(self, what):
        self.waits[what, caller(), self.phase] += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        first = args[0] if args else None
        on_device = isinstance(first, torch.Tensor) and first.is_cuda
        if func in READS and on_device:
            self.note(READS[func])
        if func is aten._local_scalar_dense.default:
            return False if first.dtype == torch.bool else 0.0 if first.is_floating_point() else 1
        if func is aten.nonzero.default:
            return first.new_empty((first.numel(), first.ndim), dtype=torch.long)
        if func is aten.bincount.default:
            return first.new_empty((max(1, kwargs.get("minlength", 0)),), dtype=torch.long)
        if func is aten.equal.default:
            return True
        if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default) and on_device:
            masks = [i for i in args[1] if isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8)]
            if masks:
                self.note("boolean index")
                return first.reshape(-1) if func is aten.index.Tensor else first
        if func is aten._pin_memory.default:
            out = first.clone()
            out.pinned = True
            return out
        if func is aten.is_pinned.default:
            return getattr(first, "pinned", False)
        if func.__name__.startswith("_fused_"):  # an optimiser's step in place, whose shapes torch does not tell
            self.launches[func.name()] += 1
            return None
        out = func(*args, **kwargs)
        if func is aten._to_copy.default and out.device.type != first.device.type:
            self._copied(out, first, kwargs.get("non_blocking", False))
        elif func is aten.copy_.default and first.device.type != args[1].device.type:
            self._copied(first, args[1], kwargs.get("non_blocking", len(args) > 2 and args[2]))
        elif func.namespace in ("aten", "fadeviz") and not (func.is_view or func.__name__.startswith(FREE)):
            tensors = [t for t in tree_flatten((args, kwargs, out))[0] if isinstance(t, torch.Tensor)]
            if any(t.is_cuda for t in tensors):
                self.launches[func.name()] += 1
        return out

    def _copied(self, to, source, non_blocking):
        # On its way to the host, torch puts a non-blocking copy into pinned memory; what goes to the device must be.
        pinned = non_blocking and (to.device.type == "cpu" or getattr(source, "pinned", False))
        where = "to host" if to.device.type == "cpu" else "to device"
        self.note(f"copy {where}" if pinned else f"blocking copy {where}")


def persuade():
    """Change what refuses to work without CUDA."""
    from torch._subclasses.fake_tensor import FakeTensor

    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.amp.grad_scaler.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    torch.cuda.synchronize = lambda *_: Watch.current.note("synchronize")
    torch.Event = Event
    torch.random.fork_rng = lambda *_, **__: contextlib.nullcontext()
    _foreach_supported_types.append(FakeTensor)  # as parameters on a GPU
    FakeTensor.numpy = _to_numpy
    backward = torch.autograd.backward

    def noted(*args, **kwargs):
        out = backward(*args, **kwargs)
        Watch.current.phase = "after"
        return out

    torch.autograd.backward = noted
    warnings.simplefilter("ignore")
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)


class Event(torch.Event):
    """An event that is noted where the host waits for it."""

    def synchronize(self):
        Watch.current.note("event")
        super().synchronize()


def _to_numpy(tensor):
    import numpy as np

    assert tensor.device.type == "cpu", tensor.device
    return np.zeros(tuple(tensor.shape), np.float32)


def waits_of(watch):
    """What the host waited for, as JSON can hold it."""
    return sorted([*key, count] for key, count in watch.waits.items())


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def run_operator(watch, upsampler, precision, channels_last):
    """Pool, upsample and differentiate; inputs are in half precision under autocast, as a convolution gives them.

    Returns:
        Shape, type and device of what comes out; whether gradients have the type and device of what they belong to;
        launches and waits.
    """
    from fadeviz.upsamplers import Skip, build_upsampler, parse_upsampler

    name, options = parse_upsampler(upsampler)
    dtype = DTYPES[precision]
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    with torch.device("cuda"):
        operator = build_upsampler(name, 32, **options)
        x, feature = torch.randn(2, 32, 9, 14, dtype=dtype), torch.randn(2, 32, 18, 28, dtype=dtype)
    x, feature = (t.to(memory_format=memory_format).requires_grad_() for t in (x, feature))
    watch.clear()
    with torch.autocast("cuda", dtype, enabled=precision != "fp32"):
        pooled, indices = operator.pool(feature)
        y = operator(x, Skip(feature, indices))
    inputs = [x, feature, *operator.parameters()]
    grads = torch.autograd.grad([y, pooled], inputs, [y.detach(), pooled.detach()], allow_unused=True)
    pairs = [(g, i) for g, i in zip(grads, inputs, strict=True) if g is not None]
    return {
        "shape": list(y.shape),
        "dtype": [name_of(t.dtype) for t in (y, pooled)],
        "device": [t.device.type for t in (y, pooled)],
        "gradients": all((g.dtype, g.device) == (i.dtype, i.device) for g, i in pairs),
        "launches": sum(watch.launches.values()),
        "waits": waits_of(watch),
    }


def name_of(dtype):
    """``bf16`` and so on."""
    return next(name for name, own in DTYPES.items() if own == dtype)


def run_network(watch, network, upsampler, precision, steps=2, observe=()):
    """Training steps and, in each mode of ``observe``, two observations; the last of each is what is noted.

    Launches are those before the optimiser's, whose number does not depend on the operator.
    """
    from fadeviz.models import NETWORKS, build_network
    from fadeviz.recording.probe import Probe
    from fadeviz.training.loop import fit
    from fadeviz.training.tasks import TASKS

    recipe, task = NETWORKS[network].recipe, TASKS[NETWORKS[network].task]
    with torch.device("cuda"):
        model = build_network(network, upsampler, width=0.25)
    images = torch.rand(2, 4 if network == "matting" else 3, 96, 96)
    targets = torch.rand(2, 11, 96, 96) if network == "matting" else torch.zeros(2, 96, 96, dtype=torch.long)
    optimizer = recipe.optimizer(model, recipe.lr, recipe.weight_decay, 0.9)
    scaler = torch.amp.GradScaler("cuda") if precision == "fp16" else None
    lr_at = recipe.lr_at(recipe.lr, 10, recipe.lr_drops)
    data = [(images.pin_memory(), targets.pin_memory())] * steps
    found = {"observations": {}}
    optimizer.register_step_pre_hook(lambda *_: found.update(launches=sum(watch.launches.values())))
    watch.clear()
    for _ in fit(
        model, data, task.loss, optimizer, lr_at, precision=precision, scaler=scaler, loss_weight=task.loss_weight
    ):
        found["waits"] = waits_of(watch)
        watch.clear()
    images, targets = (torch.cat([part, part]).to("cuda") for part in (images, targets))
    objects = np.zeros((4, 96, 96), bool)
    objects[:, 24:72, 24:72] = True
    for mode in observe:
        probe = Probe(model, model.layers, "all", objects=objects)
        for step in range(2):
            watch.clear()
            maps = probe.observe(images, targets, task.loss, step=step, mode=mode)
        found["observations"][mode] = {"maps": len(maps), "waits": waits_of(watch)}
    return found


def run_waits(watch):
    """What must be seen, once each."""
    x, host = torch.ones(3, device="cuda"), torch.ones(3)
    watch.clear()
    bool(x.sum() > 0)
    x.nonzero()
    x[x > 0]
    x.new_tensor((1.0, 2.0))
    x.cpu()
    x.to("cpu", non_blocking=True)
    x.copy_(host, non_blocking=True)
    x.copy_(host.pin_memory(), non_blocking=True)
    torch.cuda.synchronize()
    return {"waits": waits_of(watch), "launches": sum(watch.launches.values())}


def main():
    from torch._subclasses.fake_tensor import FakeTensorMode

    sys.path.insert(0, str(Path(__file__).parents[1]))
    persuade()
    results = []
    for case in json.load(sys.stdin):
        Watch.current = watch = Watch()
        run = {"operator": run_operator, "network": run_network, "waits": run_waits}[case.pop("run")]
        try:
            with FakeTensorMode(), watch:
                results.append(run(watch, **case))
        except Exception as error:
            traceback.print_exc()
            first = (str(error).splitlines() or [""])[0]
            results.append({"error": f"{type(error).__name__}: {first:.300}"})
    json.dump(results, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # autograd's thread for the device that is not there may outlive the interpreter, which aborts then


if __name__ == "__main__":
    main()
