"""The table of all results."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from .setting import DTYPES, Row, first_line


def table(results: dict[str, Row], titles: Mapping[str, str], limit: int = 7800) -> str:
    """A few lines per stage, under its title; all numbers are in the JSON file."""
    lines = []
    for name, one in results.items():
        failed = sum(not row.get("ok", True) for row in one["rows"])
        state = f"{one['status']}, {one['seconds']:.0f} s" + (f", {failed} FAILED" if failed else "")
        lines.append(f"== {name}, {titles[name]}: {state}")
        try:
            lines += _TABLES[name](one["rows"], results)
        except Exception as error:
            lines.append(f"   (no table: {first_line(error)})")
    text = "\n".join(line[:220] for line in lines)
    return text if len(text) <= limit else text[: limit - 40] + "\n... (all of it in gpu_check.json)"


def _of(rows: Sequence[Row], what: str) -> list[Row]:
    return [row for row in rows if row.get("what") == what]


def _machine_lines(rows: Sequence[Row], results: dict[str, Row]) -> list[str]:
    lines = []
    for row in rows:
        told = {key: value for key, value in row.items() if key != "what"}
        if row["what"] == "copy":
            lines.append(f"   copy {row['rate'] / 1e12:.2f} TB/s (read and written)")
        elif row["what"] == "launch":
            lines.append(f"   a launch {row['seconds'] * 1e6:.1f} us")
        elif row["what"] != "matmul":
            lines.append(f"   {row['what']}: " + ", ".join(f"{key} {value}" for key, value in told.items()))
    rates = ", ".join(f"{row['precision']} {row['rate'] / 1e12:.0f}" for row in _of(rows, "matmul"))
    return [*lines, f"   matrix products, TFLOP/s: {rates}"]


def _tests_lines(rows: Sequence[Row], results: dict[str, Row]) -> list[str]:
    lines = [f"   {row}" for row in _of(rows, "tests")]
    said = {row["test"]: row["message"] for row in _of(rows, "message")}
    bad = {row.get("test", row["what"]): row for row in rows if not row.get("ok", True) and row["what"] != "tests"}
    for name, row in list(bad.items())[:20]:
        lines.append(f"   {name}: {said.get(name, row.get('message', ''))[:110]!r}")
    return lines + ([f"   ... and {len(bad) - 20} more"] if len(bad) > 20 else [])


def _operators_lines(rows: Sequence[Row], results: dict[str, Row]) -> list[str]:
    lines = []
    for precision in DTYPES:
        mine = [row for row in rows if row.get("precision") == precision and "error" not in row]
        if mine:
            worst = {
                key: max(mine, key=lambda row, key=key: row.get(key, 0)) for key in ("out", "x", "skip", "parameters")
            }
            told = ", ".join(f"{key} {row.get(key, 0):.1e} ({row['operator']})" for key, row in worst.items())
            lines.append(f"   {precision}: {len(mine)} cases; worst {told}")
    bad = [row for row in rows if not row.get("ok", True)]
    for row in bad[:14]:
        errors = {key: f"{row[key]:.1e}" for key in ("out", "x", "skip", "parameters") if key in row}
        place = f"{row['operator']} {tuple(row['shape'])} {row.get('precision', '')} {row.get('layout', '')}"
        lines.append(f"   BAD {place}{' poisoned' * bool(row.get('poisoned'))}: {row.get('error', errors)}")
    return lines + ([f"   ... and {len(bad) - 14} more"] if len(bad) > 14 else [])


def _training_lines(rows: Sequence[Row], results: dict[str, Row]) -> list[str]:
    lines = []
    for row in _of(rows, "synchronisations"):
        if "error" not in row:
            places = ", ".join(f"{place} x{count}" for place, count in list(row["lines"].items())[:6])
            lines.append(f"   {row['network']}: {row['a step']:.1f} synchronisations a step: {places}")
    for exact in (False, True):
        mine = [row for row in _of(rows, "bits") if row.get("deterministic") == exact]
        differ = [row["operator"] for row in mine if not row["twice"]]
        resumed = [row["operator"] for row in mine if not row["resumed"]]
        how = "deterministic" if exact else "as usual"
        same = f"{len(mine) - len(differ)} of {len(mine)} operators train to the same bits twice"
        lines.append(f"   {how}: {same}, not {','.join(differ) or '-'}; resumed, not {','.join(resumed) or '-'}")
    lines.append(
        f"   observing: {sum(row.get('ok', False) for row in _of(rows, 'observing'))} of {len(_of(rows, 'observing'))}"
    )
    return lines + [f"   BAD {row['what']} {row.get('of', '')}: {row['error']}" for row in rows if "error" in row][:8]


def _kernels_lines(rows: Sequence[Row], results: dict[str, Row]) -> list[str]:
    rate = next((row["rate"] for row in _of(results.get("machine", {}).get("rows", []), "copy")), math.nan)
    lines = [
        "   form      shape           precision layout          fwd us  both us (in a graph)  floor us  times  MB peak"
    ]
    for row in rows:
        place = f"   {row['form']:9} {'x'.join(map(str, row['shape'])):15} {row['precision']:9} {row['layout']:13}"
        if "error" in row:
            lines.append(f"{place} {row['error'][:90]}")
            continue
        floor, graph = row["bytes"] / rate, row.get("both graph", math.nan)
        best = graph if graph == graph else row["both"]
        lines.append(
            f"{place} {row['forward'] * 1e6:8.0f} {row['both'] * 1e6:8.0f} ({graph * 1e6:8.0f}) "
            f"     {floor * 1e6:8.0f} {best / floor:6.2f} {row.get('peak', 0) / 1e6:8.0f}"
        )
    return lines


def _prepare_lines(rows: Sequence[Row], results: dict[str, Row]) -> list[str]:
    return [f"   {row['of']}: {row['error']}" for row in rows if "error" in row][:4]


def _plain_lines(rows: Sequence[Row], results: dict[str, Row]) -> list[str]:
    return [f"   { ({key: value for key, value in row.items() if key != 'what'}) }" for row in rows]


def _steps_lines(rows: Sequence[Row], results: dict[str, Row]) -> list[str]:
    lines = ["   operator    batch precision   ms  graph ms  busy  kernel ms  launches  GB peak"]
    for row in _of(rows, "step"):
        place = f"   {row['upsampler']:11} {row['batch']:5} {row['precision']:9}"
        if "error" in row:
            lines.append(f"{place} {row['error'][:100]}")
            continue
        ms = {key: row.get(key, math.nan) * 1e3 for key in ("seconds", "graph", "kernels")}
        lines.append(
            f"{place} {ms['seconds']:6.2f}  {ms['graph']:6.2f} {row.get('busy', math.nan):7.2f} {ms['kernels']:8.2f} "
            f"{row.get('launches', math.nan):8.0f} {row.get('peak', 0) / 1e9:8.2f}"
            + (
                f"  cudnn.benchmark {row['seconds, cudnn.benchmark'] * 1e3:.2f}"
                if "seconds, cudnn.benchmark" in row
                else ""
            )
        )
    for row in _of(rows, "pipeline"):
        told = {key: value for key, value in row.items() if key not in ("what", "seconds", "error", "ok")}
        said = row.get("error") or f"{row['seconds'] * 1e3:.2f} ms a step"
        short = ", ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in told.items())
        lines.append(f"   run(): {said}; {short}")
    return lines


def _together_lines(rows: Sequence[Row], results: dict[str, Row]) -> list[str]:
    return ["   " + ", ".join(f"{row['processes']} processes {row['rate']:.0f} steps/s" for row in rows)]


def _tune_lines(rows: Sequence[Row], results: dict[str, Row]) -> list[str]:
    return [f"   {line}" for row in rows for line in row["said"]]


def _record_lines(rows: Sequence[Row], results: dict[str, Row]) -> list[str]:
    lines = []
    for row in rows:
        spent = ", ".join(f"{key} {value:.1f} s" for key, value in row.get("seconds", {}).items())
        told = row.get("error") or f"{row['steps']} steps in {row['whole']:.1f} s: {spent}; {row['result']}"
        lines.append(f"   {row['upsampler']}: {told}")
    return lines


_TABLES: dict[str, Callable[[Sequence[Row], dict[str, Row]], list[str]]] = {
    "machine": _machine_lines, "tests": _tests_lines, "operators": _operators_lines, "training": _training_lines,
    "prepare": _prepare_lines, "peer": _plain_lines, "compile": _plain_lines, "bench": _plain_lines,
    "memory": _plain_lines, "kernels": _kernels_lines, "steps": _steps_lines, "together": _together_lines,
    "record": _record_lines, "tune": _tune_lines,
}  # fmt: skip
