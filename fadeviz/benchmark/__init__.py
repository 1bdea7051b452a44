"""The benchmark: what operators, a training step, recording and drawing cost on this machine, beside its own bounds.

``bench`` runs it, ``plan`` lists the shapes, ``parts`` measures them, ``tables`` prints the results.
"""

from .bench import PARTS, measure, run_bench
from .machine import environment
from .parts import Result
from .plan import FULL, FULL_CUDA, PRECISIONS, QUICK, QUICK_CUDA, Plan
from .tables import describe

__all__ = [
    "FULL",
    "FULL_CUDA",
    "PARTS",
    "PRECISIONS",
    "QUICK",
    "QUICK_CUDA",
    "Plan",
    "Result",
    "describe",
    "environment",
    "measure",
    "run_bench",
]
