"""Grids, animations and comparisons as they were looked at: a change of their layout or words shows here."""

import numpy as np
import pytest
from PIL import Image

import fadeviz
from fadeviz.render.comparison import write_comparison
from fadeviz.render.comparison_layout import Row
from fadeviz.render.style import FigureStyle
from fadeviz.render.zoom import Box
from render_runs import disc, make_run

FEW = (0, 30, 60, 80, 110)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    made = [
        make_run(folder / "fade", size=(16, 20)),
        make_run(folder / "carafe", upsampler="carafe", run_id="b", seed=1, size=(16, 20), outline_first=False),
    ]
    return [fadeviz.open_run(run.path) for run in made]


def write_panel(runs, file):
    inside = disc(48, 64) < 0
    image = np.where(inside[..., None], (150, 90, 40), (90, 110, 90)).astype(np.uint8)
    results = tuple((np.roll(inside, shift, axis=1) * 255).astype(np.uint8) for shift in (3, 9))
    row = Row(
        "disc", image, (inside * 255).astype(np.uint8), results, ("mIoU 0.91", "mIoU 0.72"), 0, box=Box(40, 16, 12)
    )
    write_comparison([row], ["FADE (ours)", "CARAFE"], file, caption=["One sentence.", "Another."], title="A title",
                     legend=[("disc", (255, 255, 255))], style=FigureStyle(width="85mm", dpi=110))  # fmt: skip


def write_frame(runs, file):
    """The middle frame of an animation of two images."""
    fadeviz.animate(runs, file.with_suffix(".apng"), images=[0, 1], steps=FEW, title="A title", scale=5)
    with Image.open(file.with_suffix(".apng")) as frames:
        frames.seek(2)
        frames.convert("RGB").save(file)


PICTURES = {
    "two_runs": lambda runs, file: fadeviz.grid(runs, file, steps=FEW, scale=3, dpi=100),
    "many_steps": lambda runs, file: fadeviz.grid(runs[0], file, scale=2, dpi=100, colormap="viridis"),
    "column": lambda runs, file: fadeviz.grid(
        runs, file, steps=FEW, width="85mm", dpi=140, labels=["FADE (ours)", "CARAFE"], title="A title",
        overlay="contour", normalize="shared", font="DejaVu Serif",
    ),
    "images": lambda runs, file: fadeviz.grid(
        runs, file, steps=FEW[::2], images=[0, 1], overlay="map", colormap="magma", caption=False, scale=3, dpi=100
    ),
    "crop": lambda runs, file: fadeviz.grid(runs, file, steps=FEW[::2], crop=(8, 4, 16), scale=5, dpi=100),
    "difference": lambda runs, file: fadeviz.grid(
        runs, file, steps=FEW, difference=True, normalize="run", scale=3, dpi=100
    ),
    "above": lambda runs, file: fadeviz.grid(
        runs, file, width="column", dpi=140, title="A title in two lines, because it is longer than the figure is wide",
        caption=False, colormap="magma", overlay="map",
    ),
    "channels": lambda runs, file: fadeviz.grid(
        runs[0], file, kind="channels", channels=3, steps=FEW, scale=3, dpi=100
    ),
    "panel": write_panel,
    "frame": write_frame,
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_figures_are_as_they_were(tmp_path, golden, runs, name):
    PICTURES[name](runs, tmp_path / "drawn.png")
    golden(tmp_path / "drawn.png", f"figures/{name}")
