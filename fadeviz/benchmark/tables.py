"""The tables of a benchmark as text."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

from .parts import Result, Row
from .plan import REFERENCES

CAPTIONS = {
    "machine": "Rates by the fastest call.",
    "reassembly": (
        "x plain: speed-up over the plain form (unfold, repeat, einsum), which has contiguous maps. of bound: "
        "fraction of the machine's limit: the fastest copy of as many bytes, or the fastest matrix product for as "
        "many multiply-adds (fma; none beyond the border), in the same turns; the slower of the two binds. extra: "
        "peak memory of forward+backward beyond the inputs, to half a MiB; held: inputs and extra over what inputs, "
        "output, kernels and their gradients need."
    ),
    "operators": (
        "x plain: speed-up over the operator's plain form, forward/forward+backward. extra: peak memory of "
        "forward+backward beyond parameters, inputs and the output's gradient."
    ),
    "step": "Forward, loss, backward and the optimiser's step.",
    "recording": "A snapshot: one observation of feature, gradient and the operator's own kinds, written to disk.",
    "rendering": "Including reading the runs from disk.",
}
"""Explanations of the columns, by part."""

CAPTIONS_CUDA = CAPTIONS | {
    "machine": (
        "Rates by the fastest call. The last row: how often torch can hand a kernel to the device, by the host's time."
    ),
    "reassembly": (
        "us: the device's time, by its events, while more calls wait in its queue; host us: the host's time to queue "
        "the call, which is what a call takes if it is longer. floor us: the least time for the bytes that must be "
        "read and written, at the rate of a large copy, or for the multiply-adds, at that of a float32 matrix product "
        "(fma), whichever is longer; x floor: time over that. extra: memory that torch allocates beyond the inputs; "
        "held: inputs and extra over what inputs, output, kernels and their gradients need."
    ),
    "operators": (
        "us: the device's time, by its events; host us: the host's time to queue forward+backward. Half precision: "
        "under autocast, with float32 weights. x plain: speed-up over the operator's plain form, "
        "forward/forward+backward. extra: peak memory of forward+backward beyond parameters, inputs and the output's "
        "gradient, by torch's counters."
    ),
    "step": (
        "Forward, loss, backward and the optimiser's step; the device is synchronised after blocks of steps. "
        "launches: kernels, copies and fills per step; busy: the fraction of the time in which these run; extra: "
        "memory that torch allocates beyond weights and momentum."
    ),
}
"""Explanations of the columns for a CUDA device."""


def describe(result: Result) -> str:
    """A result as an aligned table."""
    lines = [result.title, *_aligned([_CELLS[result.part](row) for row in result.rows])]
    for note in result.notes:
        lines += textwrap.wrap(note, 118, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines)


def _aligned(rows: Sequence[Mapping[str, str]]) -> list[str]:
    if not rows:
        return []
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = [names, *([row.get(name, "") for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for line in table:
        # Words are aligned to the left, numbers to the right.
        cells = [
            cell.ljust(width) if name in _WORDS else cell.rjust(width)
            for name, cell, width in zip(names, line, widths, strict=True)
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


_WORDS = {"what", "is", "pass", "form", "layout", "operator"}


def _time_cells(name: str, seconds: Mapping[str, float]) -> dict[str, str]:
    factor, unit = (1e6, "us") if _by_events(seconds) else (1e3, "ms")
    spread = f"{_digits(factor * seconds['low'])}..{_digits(factor * seconds['high'])}"
    return {f"{name}{unit}": _digits(factor * seconds["median"]), f"{name}quartiles": spread}


def _by_events(seconds: Mapping[str, float | None]) -> bool:
    """Whether a CUDA device's own clock measured these seconds, which are short."""
    return seconds["host"] is not None


def _digits(value: float | None, unit: str = "") -> str:
    if value is None:
        return "-"
    places = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:,.{places}f}{unit}"


def _mebibytes(value: int | None) -> str:
    return "-" if value is None else _digits(value / 2**20)


def _machine_cells(row: Row) -> dict[str, str]:
    return {"what": row["what"], "rate": _digits(row["rate"], f" {row['unit']}"), **_time_cells("", row["seconds"])}


def _reassembly_cells(row: Row) -> dict[str, str]:
    return {
        "pass": row["pass"],
        "form": row["form"],
        "layout": row["layout"],
        **_time_cells("", row["seconds"]),
        **_rate_cells(row),
        "extra MiB": _mebibytes(row["extra_bytes"]) if "extra_bytes" in row else "",
        "held": _digits(row["memory_ratio"], "x") if "memory_ratio" in row else "",
    }


def _rate_cells(row: Row) -> dict[str, str]:
    if _by_events(row["seconds"]):
        return {
            "host us": _digits(1e6 * row["seconds"]["host"]),
            "x plain": _digits(row["times_plain"]),
            "floor us": f"{_digits(1e6 * row['bound_seconds'])} {row['binds']:4}",
            "x floor": _digits(1 / row["share_of_bound"]),
        }
    return {
        "x plain": _digits(row["times_plain"]) if "times_plain" in row else "",
        "GFLOP/s": _digits(row["gflops"]) if "gflops" in row else "",
        "GB/s": _digits(row["gbytes"]) if "gbytes" in row else "",
        "of bound": f"{row['share_of_bound']:.1%} {row['binds']:4}" if "binds" in row else "",
    }


def _operator_cells(row: Row) -> dict[str, str]:
    return {
        "operator": row["operator"],
        "layout": row["layout"],
        **_forward_cells(row["forward"]),
        **_time_cells("fwd+bwd ", row["forward+backward"]),
        **({"host us": _digits(1e6 * row["forward+backward"]["host"])} if _by_events(row["forward"]) else {}),
        "x plain": "/".join(map(_digits, row.get("times_plain", ()))),
        "extra MiB": _mebibytes(row["extra_bytes"]),
    }


def _forward_cells(seconds: Mapping[str, float]) -> dict[str, str]:
    cells = _time_cells("fwd ", seconds)
    if _by_events(seconds):  # they vary little, and the line is long
        del cells["fwd quartiles"]
    return cells


def _step_cells(row: Row) -> dict[str, str]:
    cells = {"operator": row["operator"], **_time_cells("", row["seconds"])}
    cells[f"x {REFERENCES[0]}"] = _digits(row["times_bilinear"])
    if "extra_bytes" in row:
        cells["x nearest"] = _digits(row.get("times_nearest"))
        cells["steps/s"] = _digits(1 / row["seconds"]["median"])
        cells["launches"] = str(row.get("launches", "-"))
        busy = row.get("device_seconds")
        cells["busy"] = "-" if busy is None else f"{busy / row['seconds']['median']:.0%}"
        cells["extra MiB"] = _mebibytes(row["extra_bytes"])
    return cells


def _recording_cells(row: Row) -> dict[str, str]:
    return {
        "operator": row["operator"],
        **_time_cells("step ", row["step"]),
        **_time_cells("snapshot ", row["snapshot"]),
        "in steps": _digits(row["snapshot_in_steps"]),
        "of training": f"{row['share']:.2%}",
        "MiB": _mebibytes(row["bytes"]),
    }


def _rendering_cells(row: Row) -> dict[str, str]:
    a_frame = _digits(1e3 * row["seconds"]["median"] / row["frames"])
    return {
        "what": row["what"],
        **_time_cells("", row["seconds"]),
        "ms a frame": a_frame,
        "MiB": _mebibytes(row["bytes"]),
    }


_CELLS: dict[str, Callable[[Row], dict[str, str]]] = {
    "environment": lambda row: {"what": row["what"], "is": str(row["is"])},
    "machine": _machine_cells,
    "reassembly": _reassembly_cells,
    "operators": _operator_cells,
    "step": _step_cells,
    "recording": _recording_cells,
    "rendering": _rendering_cells,
}
