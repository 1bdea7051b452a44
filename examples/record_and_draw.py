"""Record two trainings from the library and draw them: what `fadeviz demo` does, in a few lines."""

from pathlib import Path

import fadeviz


def main(steps: int = 300, out: Path = Path("outputs/example"), size: int = 128, width: float = 0.25) -> list[Path]:
    """Train with two operators and draw both; returns the images."""
    runs = []
    for upsampler in ("fade", "carafe"):
        snapshots = f"1:{steps}:{steps // 3}"
        config = fadeviz.RunConfig(upsampler=upsampler, size=size, width=width, steps=steps, snapshots=snapshots)
        runs.append(fadeviz.train(config, out / upsampler, overwrite=True))
    images = [out / "features.png", out / "gradients.pdf", out / "features.gif"]
    fadeviz.grid(runs, images[0])
    fadeviz.grid(runs, images[1], kind="gradient", colormap="magma")
    fadeviz.animate(runs, images[2], normalize="run", percentiles=(1, 99))
    return images


if __name__ == "__main__":
    print(*main(), sep="\n")
