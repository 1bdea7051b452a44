"""The predictions that fit in a page: what the runs' models made of each image, step by step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import FadevizError
from ..render.frames import ClassColours
from ..render.labels import truth_image
from ..render.predictions import colours_of, predictions_of
from ..storage.stored_run import StoredRun
from .codec import Packed, pack_levels
from .contour import classes_uri
from .sequences import Place, text_size
from .text import plain

SHARE = 0.25
"""Largest share of the space for maps that predictions may take."""


@dataclass(frozen=True)
class ReportPredictions:
    """What a page shows of predictions.

    Attributes:
        packed: the levels of each run and image, indices of the palette.
        sizes: height and width of each.
        colours: the colours of the levels.
        truths: the truth of each image, as the address of an image; empty if it is not known.
        outlined: whether the outline of the true object is drawn.
        sentence: what the colours stand for.
    """

    packed: dict[Place, Packed]
    sizes: dict[Place, tuple[int, int]]
    colours: ClassColours
    truths: tuple[str, ...]
    outlined: bool
    sentence: str

    @property
    def size(self) -> int:
        """Bytes that all sequences take in the page."""
        return sum(map(text_size, self.packed.values()))

    def elements(self) -> Iterator[tuple[str, Packed]]:
        """The id of the element of each sequence, and what it holds."""
        return ((f"prediction-{run}-{image}", packed) for (run, image), packed in self.packed.items())

    def data(self) -> dict[str, Any]:
        """What the page's script reads."""
        return {
            "colours": self.colours.palette.ravel().tolist(),
            "legend": [[plain(name, 60), index] for name, index in self.colours.legend],
            "outlined": self.outlined,
            "truths": list(self.truths),
            "sequences": [
                {"run": run, "image": image, "size": list(self.sizes[run, image]),
                 "element": f"prediction-{run}-{image}", "holes": False}
                for run, image in self.packed
            ],
        }  # fmt: skip


def select_report_predictions(
    runs: Sequence[StoredRun], shown: Sequence[int], steps: Sequence[int], images: int, budget: int
) -> tuple[ReportPredictions | None, tuple[str, ...]]:
    """Pack predictions of the shown runs, image by image, until ``budget`` bytes are used.

    Args:
        runs: all runs of the page.
        shown: indices of the runs that it shows.
        steps: the steps that it shows.
        images: the number of images that it shows.
        budget: available space in bytes.

    Returns:
        The predictions, None if no run has any or nothing fits; and what was left out, one sentence each.
    """
    having = [run for run in shown if runs[run].info.predictions is not None]
    if not having:
        return None, ()
    kinds = {runs[run].info.predictions for run in having}
    if len(kinds) > 1:
        return None, ("predictions: some runs have classes and others alphas",)
    packed: dict[Place, Packed] = {}
    sizes: dict[Place, tuple[int, int]] = {}
    used, complete = 0, images
    try:
        frames = (frame for run in having for step in steps for frame in runs[run].prediction(step)[:images])
        colours, indices = colours_of([runs[run] for run in having], frames)
        for image in range(images):
            own: dict[Place, Packed] = {}
            for run in having:
                levels = indices[predictions_of(runs[run], steps, image)]
                one = pack_levels(levels, 3 / 4 * (budget - used))
                if one is None or used + text_size(one) > budget:
                    break
                own[run, image] = one
                sizes[run, image] = (levels.shape[1], levels.shape[2])
                used += text_size(one)
            if len(own) < len(having):
                complete = image
                break
            packed |= own
    except FadevizError as error:
        return None, (f"predictions: {error}",)
    left_out = () if complete == images else (f"predictions of images {complete + 1} to {images}: no room",)
    if not packed:
        return None, left_out
    first = runs[having[0]]
    known = not first.lost and (first.mattes is not None or bool(first.observation[1].any()))
    truths = tuple(classes_uri(truth_image(first, image)) if known else "" for image in range(complete))
    outlined = known and first.info.predictions == "classes"
    sentence = colours.sentence + " Line: true outline." * outlined
    return ReportPredictions(packed, sizes, colours, truths, outlined, sentence), left_out


__all__ = ["ReportPredictions", "select_report_predictions"]
