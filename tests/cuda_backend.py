"""Copies of the CUDA backend's modules: with one kind of kernels, and interpreted by Triton where there is no GPU."""

import importlib
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

PACKAGE = "fadeviz.ops.backends"
MODULES = ("launch", "direct_kernels", "direct", "banded_kernels", "banded", "cuda")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def copy():
    """The modules once more, as the environment is now; the package's own stay as they are."""
    package, names = importlib.import_module(PACKAGE), [f"{PACKAGE}.{module}" for module in MODULES]
    before = {name: sys.modules.pop(name, None) for name in names}
    attributes = {module: vars(package).pop(module, None) for module in MODULES}
    try:
        return SimpleNamespace(**{module: importlib.import_module(f"{PACKAGE}.{module}") for module in MODULES})
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module
        for name, module in attributes.items():
            delattr(package, name)
            if module is not None:
                setattr(package, name, module)


def load(kind):
    """A copy, interpreted where there is no GPU, in which the kernels of one kind, "direct" or "banded", compute."""
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            patch.setenv("TRITON_INTERPRET", "1")  # read when triton is imported, and when a kernel is defined
            import triton

            if isinstance(triton.language.sum, triton.JITFunction):
                pytest.skip("triton was imported before TRITON_INTERPRET was set", allow_module_level=True)
        modules = copy()
    modules.cuda.choose = modules.cuda.choose_forward = lambda *tensors: getattr(modules, kind)
    return modules


@contextmanager
def interpreting():
    """The environment that the interpreter needs while it runs, and what makes it faster."""
    if DEVICE == "cuda":
        yield
        return
    from triton.runtime.interpreter import InterpretedFunction

    original = InterpretedFunction.__call__

    def call(self, *args, **kwargs):
        # For each call of a helper the interpreter replaces all of triton.language again, which takes most of the time.
        if self.fn.__module__.startswith(PACKAGE):
            return self.rewrite()(*args, **kwargs)
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr(InterpretedFunction, "__call__", call)
        yield
