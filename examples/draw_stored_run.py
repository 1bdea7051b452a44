"""Draw and measure a run that lies on the disk: no torch, no network, only the files of the run.

python examples/draw_stored_run.py outputs/demo/fade
"""

import sys
from pathlib import Path

import numpy as np

import fadeviz


def main(folder: str | Path = "outputs/demo/fade") -> dict[int, float]:
    """Draw the gradient maps, and return how much of each lies on the horse."""
    run = fadeviz.open_run(folder)
    fadeviz.grid(run, run.path / "figures" / "gradient_run_scale.png", kind="gradient", normalize="run")

    maps = run.maps(kind="gradient", image=0)  # (steps, h, w) float32; a step is read when its turn comes
    mask = run.observation[1][0]
    h, w = maps.shape[1:]
    rows, columns = np.arange(h) * mask.shape[0] // h, np.arange(w) * mask.shape[1] // w
    inside = mask[rows[:, None], columns] == 1
    return {step: float(m[inside].sum() / max(m.sum(), 1e-30)) for step, m in zip(run.steps, maps, strict=True)}


if __name__ == "__main__":
    for step, share in main(*sys.argv[1:]).items():
        print(f"step {step:5}: {100 * share:5.1f} % of the gradient lies on the horse")
