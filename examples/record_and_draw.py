"""Record two trainings from the library and draw them: what `fadeviz demo` does, in a few lines."""

from pathlib import Path

from fadeviz.experiment import RunConfig, train
from fadeviz.render.animation import write_animation
from fadeviz.render.grid import write_grid
from fadeviz.render.selection import MapSelection


def main(steps: int = 300, out: Path = Path("outputs/example"), size: int = 128, width: float = 0.25) -> list[Path]:
    """Train with two operators and draw both; returns the images."""
    runs = []
    for upsampler in ("fade", "carafe"):
        snapshots = f"1:{steps}:{steps // 3}"
        config = RunConfig(upsampler=upsampler, size=size, width=width, steps=steps, snapshots=snapshots)
        runs.append(train(config, out / upsampler, overwrite=True))
    images = [out / "features.png", out / "gradients.pdf", out / "features.gif"]
    write_grid(runs, images[0])
    write_grid(runs, images[1], MapSelection(kind="gradient"), colormap="magma")
    write_animation(runs, images[2], MapSelection(normalize="run", percentiles=(1, 99)))
    return images


if __name__ == "__main__":
    print(*main(), sep="\n")
