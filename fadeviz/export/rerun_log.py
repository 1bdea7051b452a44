"""Export to a Rerun recording: maps as images and metrics as scalars on a timeline of steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from .places import needs, new_file
from .selection import ExportSelection, draw, undrawn
from .tensorboard_log import scalars

_APPLICATION = "fadeviz"


def write_rerun(selection: ExportSelection, out: Path, *, overwrite: bool = False) -> tuple[str, ...]:
    """Write a selection as an .rrd file, which ``rerun FILE`` opens.

    Entities are ``/maps/LAYER/KIND/IMAGE``, ``/observed/IMAGE/image`` and ``/mask``, ``/metrics/NAME`` and
    ``/run.json``; the timeline is called ``step``. Row numbers that Rerun draws make other bytes each time.

    Raises:
        FadevizError: if Rerun is not installed, the name does not end in .rrd, or an existing file must not be
            replaced.
    """
    with needs("rerun"):
        import rerun
    cells = 0
    with new_file(out, ".rrd", _is_ours, overwrite=overwrite) as partial:
        recording = rerun.RecordingStream(_APPLICATION, recording_id=selection.run.run_id, send_properties=False)
        try:
            recording.save(partial)
            recording.log(
                ["run.json"], rerun.TextDocument(json.dumps(selection.run.info.to_dict(), indent=2)), static=True
            )
            seen = selection.observation()
            for index, number in enumerate(selection.images if seen else ()):
                at = ["observed", selection.label(number)]
                recording.log([*at, "image"], rerun.Image(seen["images"][index]), static=True)
                recording.log([*at, "mask"], rerun.SegmentationImage(seen["masks"][index]), static=True)
                for name in ("alpha", "trimap"):
                    if f"{name}s" in seen:
                        recording.log([*at, name], rerun.Image(seen[f"{name}s"][index]), static=True)
            for name, step, value in scalars(selection):
                recording.set_time("step", sequence=step)
                recording.log(["metrics", name], rerun.Scalars(value))
            for maps in draw(selection):
                cells += maps.sequence.non_finite
                for step, pixels in maps.frames():
                    recording.set_time("step", sequence=step)
                    recording.log(["maps", *maps.name.split("/")], rerun.Image(np.ascontiguousarray(pixels)))
            recording.flush()
        finally:
            recording.disconnect()
    return selection.notes + undrawn(selection, cells)


def _is_ours(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError:
        return False
    return start.startswith(b"RRF") and b"\x07" + _APPLICATION.encode() in start
