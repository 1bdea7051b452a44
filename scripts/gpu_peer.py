"""mmcv's CARAFE operator, built from its own CUDA source: what fadeviz is measured against.

``gpu_data.py`` puts the source there. Only the operator's kernels and launchers are mmcv's (Apache License 2.0); the
includes they want and the binding are written here, and the autograd function does what mmcv's does.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / ".gpu" / "mmcv"

_HELPER = """#pragma once
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/Exceptions.h>
#include <c10/cuda/CUDAGuard.h>
#include "common_cuda_helper.hpp"
using at::Half;
using at::Tensor;
using phalf = at::Half;
#define __PHALF(x) (x)
"""

_BINDING = """#include <torch/extension.h>
using at::Tensor;
void CARAFEForwardCUDAKernelLauncher(const Tensor features, const Tensor masks, Tensor rfeatures, Tensor routput,
                                     Tensor rmasks, Tensor output, const int kernel_size, const int group_size,
                                     const int scale_factor);
void CARAFEBackwardCUDAKernelLauncher(const Tensor top_grad, const Tensor rfeatures, const Tensor masks,
                                      Tensor rtop_grad, Tensor rbottom_grad_hs, Tensor rbottom_grad,
                                      Tensor rmask_grad, Tensor bottom_grad, Tensor mask_grad, const int kernel_size,
                                      const int group_size, const int scale_factor);
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("forward", &CARAFEForwardCUDAKernelLauncher);
  m.def("backward", &CARAFEBackwardCUDAKernelLauncher);
}
"""


def build(source: Path = SOURCE, folder: Path | None = None) -> ModuleType:
    """Compile the operator, once a ``folder``, for the device that is here; needs nvcc and ninja."""
    from torch.utils.cpp_extension import load

    folder = folder or Path(os.environ.get("FADEVIZ_PEER", "/tmp/fadeviz-mmcv"))
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("carafe_cuda.cu", "carafe_cuda_kernel.cuh", "common_cuda_helper.hpp"):
        _write(folder / name, (source / name).read_text())
    _write(folder / "pytorch_cuda_helper.hpp", _HELPER)
    _write(folder / "binding.cpp", _BINDING)
    major, minor = torch.cuda.get_device_capability()
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}")
    return load(
        "fadeviz_mmcv_carafe", [str(folder / "binding.cpp"), str(folder / "carafe_cuda.cu")],
        build_directory=str(folder), extra_include_paths=[str(folder)], extra_cuda_cflags=["-O3"], verbose=True,
    )  # fmt: skip


def _write(path: Path, text: str) -> None:
    """Leave a file alone that holds this already: ninja goes by its time."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


class _Carafe(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, module: ModuleType, x: Tensor, kernels: Tensor, kernel_size: int, scale: int) -> Tensor:
        b, c, h, w = x.shape
        y = x.new_zeros((b, c, h * scale, w * scale))
        turned = x.new_zeros(x.shape)
        module.forward(x, kernels, turned, torch.zeros_like(y), torch.zeros_like(kernels), y, kernel_size, 1, scale)
        ctx.save_for_backward(x, kernels, turned)
        ctx.module, ctx.sizes = module, (kernel_size, 1, scale)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, kernels, turned = ctx.saved_tensors
        grad_x, grad_kernels = torch.zeros_like(x), torch.zeros_like(kernels)
        ctx.module.backward(
            grad.contiguous(), turned, kernels, torch.zeros_like(grad), torch.zeros_like(grad), torch.zeros_like(x),
            torch.zeros_like(kernels), grad_x, grad_kernels, *ctx.sizes,
        )  # fmt: skip
        return None, grad_x, grad_kernels, None, None


def carafe(module: ModuleType, x: Tensor, kernels: Tensor, kernel_size: int, scale: int) -> Tensor:
    """mmcv's ``carafe(x, kernels, kernel_size, 1, scale)``: contiguous maps in float32 or float16."""
    out: Tensor = _Carafe.apply(module, x, kernels, kernel_size, scale)
    return out
