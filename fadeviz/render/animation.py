"""Animations: the observed image and one tile a run, side by side, a frame a step; exact to the pixel."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from ..errors import FadevizError, MissingExtra
from ..storage.files import replacing
from ..storage.snapshots import PREDICTION
from ..storage.stored_run import StoredRun
from .colormap import NON_FINITE, is_diverging, palette, to_indices
from .fonts import font, spell
from .frames import FrameSequence, collect_notes, scale_maps, select_frames
from .labels import (
    captions,
    format_number,
    heading,
    image_name,
    object_name,
    outline,
    provenance,
    shorten,
    steps_sentence,
    truth_name,
    truth_regions,
    wrap,
)
from .predictions import select_predictions, true_outline
from .selection import MapSelection

ENDINGS = (".gif", ".png", ".apng", ".webp", ".mp4")

MAX_SIDE = 16_383
"""Largest side of a WebP; a larger frame is a mistake in ``scale``."""
MAX_DURATION = 655_350
"""Longest duration of a GIF's frame, in milliseconds."""

MAX_FRAMES = 300
"""Maximum number of frames by default: half a minute, and about as many as writers can hold in memory."""

_TILE = 256
"""Approximate width of a tile in pixels."""
_BACKGROUND, _TRACK, _TICK, _FAINT, _DIM, _BRIGHT = 22, 58, 110, 165, 200, 240
_ROW = 4
"""Tiles in a row; more of them (channels) go into further rows."""


def write_animation(
    runs: Sequence[StoredRun],
    output: str | Path,
    selection: MapSelection = MapSelection(),
    *,
    duration_ms: int = 130,
    colormap: str = "gray",
    scale: int | None = None,
) -> tuple[str, ...]:
    """Write the training as an animation that loops: GIF, APNG, WebP or MP4, by the file's ending.

    The tiles of a GIF, an APNG (``.png`` or ``.apng``) and a WebP decode to exactly the colours of the map. A GIF has
    256 colours, all of them the colour map's: the observed image and the text are drawn in these too. MP4 loses colour
    detail.

    Args:
        runs: one run, or several to be compared, side by side.
        output: the file to write, replaced only once the new one is complete.
        selection: which maps, and the range of values that the colours span.
        duration_ms: duration of a frame in milliseconds: a multiple of 10, at least 20.
        colormap: ``gray`` or the name of a matplotlib colour map.
        scale: width and height of a map value in pixels; None makes tiles of about 256 pixels.

    Returns:
        Notes on what was omitted or marked.

    Raises:
        FadevizError: if the file ending, ``duration_ms``, ``colormap`` or ``scale`` is invalid, or as
            :func:`~fadeviz.render.frames.select_frames`.
        MissingExtra: if ffmpeg is needed and not installed.
    """
    path = Path(output)
    ending = check_ending(path)
    _check_duration(duration_ms)
    colors = palette(colormap)
    ffmpeg = _ffmpeg() if ending == ".mp4" else None
    if selection.kind == PREDICTION:
        sequences = select_predictions(runs, selection, colormap=colormap, max_frames=MAX_FRAMES)
    else:
        sequences = select_frames(runs, selection, centered=is_diverging(colormap), max_frames=MAX_FRAMES)
    if sequences[0].colours is not None:
        colors = sequences[0].colours.palette
    layout = layout_animation(sequences, scale=scale)
    notes, origin = collect_notes(sequences), provenance(runs)
    with replacing(path) as partial:
        if ending == ".gif":
            frames, more = _gif_frames(sequences, layout, colors)
            notes += more
            # Optimised palettes would differ from frame to frame. Disposal 1 keeps a frame under the next one.
            _save(partial, frames, "GIF", duration=duration_ms, optimize=False, disposal=1, comment=origin.encode())
        elif ffmpeg is not None:
            _write_mp4(partial, _rgb_frames(sequences, layout, colors), duration_ms, ffmpeg, origin)
        else:
            frames = [Image.fromarray(frame) for frame in _rgb_frames(sequences, layout, colors)]
            if ending == ".webp":
                exif = Image.Exif()
                exif[ExifTags.Base.ImageDescription] = origin
                _save(partial, frames, "WEBP", duration=duration_ms, lossless=True, method=4, exif=exif)
            else:
                text = PngInfo()
                text.add_text("Description", origin)
                _save(partial, frames, "PNG", duration=duration_ms, pnginfo=text)
    return notes


def check_ending(output: str | Path) -> str:
    """The ending of an animation's file, in lower case.

    Raises:
        FadevizError: if no animation is written in such files.
    """
    ending = Path(output).suffix
    if ending.lower() not in ENDINGS:
        raise FadevizError(
            f"{output}: an animation cannot be written as {ending or 'a file without an ending'}. "
            f"Endings: {' '.join(ENDINGS)}"
        )
    return ending.lower()


def render_frames(
    sequences: Sequence[FrameSequence], *, colormap: str = "gray", scale: int | None = None
) -> Iterator[NDArray[np.uint8]]:
    """The frames of the animation, each ``(H, W, 3)`` uint8, from which every format but GIF is written."""
    colours = sequences[0].colours
    colors = palette(colormap) if colours is None else colours.palette
    return _rgb_frames(sequences, layout_animation(sequences, scale=scale), colors)


@dataclass(frozen=True)
class AnimationLayout:
    """Where everything of a frame is, in pixels from the upper left corner.

    Attributes:
        width: width of a frame; even, as video requires.
        height: height of a frame; even.
        unit: size of text and gaps, relative to that for a tile of 256 pixels.
        tile: width and height of the largest tile, and of the observed image.
        sizes: width and height of each sequence's tile; they differ where the sizes of the runs' maps do.
        scales: width and height of a map value of each sequence.
        image: upper left corner of the observed image; if there is none, of the first tile.
        tiles: the upper left corner of each sequence's tile.
        pitch: width that is reserved for a tile and its words.
        progress: top of the line with the step.
        caption: the lines below, and the top of the first.
    """

    width: int
    height: int
    unit: float
    tile: tuple[int, int]
    sizes: list[tuple[int, int]]
    scales: list[int]
    image: tuple[int, int]
    tiles: list[tuple[int, int]]
    pitch: int
    progress: int
    caption: tuple[list[str], int]

    def px(self, size: float) -> int:
        """A size given for a tile of 256 pixels, in pixels of this layout."""
        return round(size * self.unit)


def layout_animation(sequences: Sequence[FrameSequence], *, scale: int | None = None) -> AnimationLayout:
    """Where an animation puts its tiles.

    Raises:
        FadevizError: if ``scale`` is less than 1, or a frame is too large.
    """
    if scale is not None and scale < 1:
        raise FadevizError(f"scale={scale}: must be at least 1")
    scales, sizes = scale_maps(sequences, scale, _TILE)
    tile = max(width for width, _ in sizes), max(height for _, height in sizes)
    unit = max(1.0, tile[0] / _TILE)

    def px(size: float) -> int:
        return round(size * unit)

    margin, gap = px(16), px(14)
    room = max(tile[0], px(104))
    columns = min(_ROW, len(sequences))
    rows = math.ceil(len(sequences) / columns)
    top, row_height = px(36), tile[1] + px(62)
    ahead = int(_shown(sequences) is not None)  # the image, on the left of all rows
    total = 2 * margin + (columns + ahead) * room + (columns + ahead - 1) * gap
    total += total % 2
    tiles = [
        (margin + (index % columns + ahead) * (room + gap), top + index // columns * row_height)
        for index in range(len(sequences))
    ]
    progress = top + rows * row_height - px(62) + px(36)
    sentences = captions(sequences)
    sentences[1] += steps_sentence(sequences)
    lines = [line for text in sentences for line in wrap(text, px(11), total - 2 * margin)]
    below = progress + px(32)
    bottom = below + len(lines) * px(15) + px(12)
    if max(total, bottom) > MAX_SIDE:
        raise FadevizError(
            f"a frame would be {total}x{bottom} pixels, more than {MAX_SIDE} on a side. Use a smaller scale=..."
        )
    return AnimationLayout(
        width=total,
        height=bottom + bottom % 2,
        unit=unit,
        tile=tile,
        sizes=sizes,
        scales=scales,
        image=(margin, top),
        tiles=tiles,
        pitch=room,
        progress=progress,
        caption=(lines, below),
    )


def _check_duration(duration_ms: int) -> None:
    if duration_ms < 20:
        raise FadevizError(f"duration {duration_ms} ms: viewers slow down frames shorter than 20 ms. Use 20 or more")
    if duration_ms > MAX_DURATION:
        raise FadevizError(f"duration {duration_ms} ms: a GIF's frame lasts at most {MAX_DURATION} ms. Use less")
    if duration_ms % 10:
        lower = int(duration_ms // 10 * 10)
        raise FadevizError(
            f"duration {duration_ms} ms: GIF counts in hundredths of a second. Use {lower} or {lower + 10}"
        )


def _words(sequences: Sequence[FrameSequence], layout: AnimationLayout) -> Image.Image:
    """What is the same in every frame, in greys: names, the track of the steps, the caption."""
    canvas = Image.new("L", (layout.width, layout.height), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    px = layout.px
    first = sequences[0]
    shown = _shown(sequences)
    boxes = [*zip(layout.tiles, layout.sizes, map(heading, sequences), strict=True)]
    boxes = [(layout.image, layout.tile, "Image"), *boxes] if shown else boxes
    for (x, y), (width, height), name in boxes:
        text = spell(shorten(name, px(15), layout.pitch, bold=True))
        draw.text((x, y - px(9)), text, _BRIGHT, font(px(15), True), anchor="ls")
        draw.rectangle((x - 1, y - 1, x + width, y + height), fill=None, outline=_TRACK)
    if shown:
        x, y = layout.image
        named = object_name(shown)
        suffix = f", {truth_name(shown.run)} outlined" + (f"; object: {named}" if named else "")
        if named:  # a long name of the image leaves room for that of its object
            room = layout.pitch - math.ceil(font(px(11)).getlength(suffix))
            below = shorten(shorten(image_name(shown), px(11), max(room, px(40))) + suffix, px(11), layout.pitch)
        else:
            below = shorten(image_name(shown) + suffix, px(11), layout.pitch)
        draw.text((x, y + layout.tile[1] + px(26)), spell(below), _FAINT, font(px(11)), anchor="ls")
    left, right, middle = _track(sequences, layout)
    draw.rectangle((left, middle - px(1), right, middle + px(1)), fill=_TRACK)
    for step in first.steps:
        place = _place(step, first.steps, left, right)
        draw.rectangle((place, middle - px(4), place, middle + px(4)), fill=_TICK)
    lines, top = layout.caption
    for index, line in enumerate(lines):
        draw.text((layout.image[0], top + index * px(15) + px(11)), line, _FAINT, font(px(11)), anchor="ls")
    return canvas


def _track(sequences: Sequence[FrameSequence], layout: AnimationLayout) -> tuple[int, int, int]:
    """Left end, right end and middle line of the progress bar."""
    px, steps = layout.px, sequences[0].steps
    widest = max(font(px(17), True).getlength(f"step {step}") for step in (steps[-1], steps[0]))
    left = layout.image[0] + round(widest) + px(16)
    return left, layout.width - layout.image[0] - px(4), layout.progress + px(11)


def _place(step: int, steps: Sequence[int], left: int, right: int) -> int:
    span = steps[-1] - steps[0]
    return right if span == 0 else left + round((step - steps[0]) / span * (right - left))


def _grays(sequences: Sequence[FrameSequence], layout: AnimationLayout) -> Iterator[NDArray[np.uint8]]:
    """The text and lines of every frame, ``(H, W)`` uint8."""
    still = _words(sequences, layout)
    px, steps = layout.px, sequences[0].steps
    left, right, middle = _track(sequences, layout)
    for frame, step in enumerate(steps):
        canvas = still.copy()
        draw = ImageDraw.Draw(canvas)
        baseline = middle + px(6)
        draw.text((layout.image[0], baseline), f"step {step}", _BRIGHT, font(px(17), True), anchor="ls")
        place = _place(step, steps, left, right)
        draw.rectangle((left, middle - px(1), place, middle + px(1)), fill=_DIM)
        draw.ellipse((place - px(4), middle - px(4), place + px(4), middle + px(4)), fill=_BRIGHT)
        for (x, y), (width, height), sequence in zip(layout.tiles, layout.sizes, sequences, strict=True):
            if sequence.colours is not None:
                for left_end, _, name in _legend(sequence, layout):
                    draw.text((x + left_end + px(11), y + height + px(20)), name, _DIM, font(px(11)), anchor="ls")
                continue
            low, high = map(format_number, sequence.limits[frame])
            under = y + height + px(26)
            draw.text((x, under), low, _DIM, font(px(11)), anchor="ls")
            right_end = x + (width if width >= px(104) else layout.pitch)
            draw.text((right_end, under), high, _DIM, font(px(11)), anchor="rs")
        yield np.asarray(canvas)


def _legend(sequence: FrameSequence, layout: AnimationLayout) -> list[tuple[int, int, str]]:
    """The classes below a tile, as many as fit: the left end of each, the index of its colour, and its name."""
    px, entries, left = layout.px, [], 0
    for name, index in sequence.colours.legend if sequence.colours is not None else ():
        text = spell(shorten(name, px(11), px(90)))
        width = px(11) + round(font(px(11)).getlength(text)) + px(8)
        if left + width > layout.pitch:
            break
        entries.append((left, index, text))
        left += width
    return entries


def _below(sequence: FrameSequence, layout: AnimationLayout, width: int) -> list[tuple[int, int, NDArray[np.uint8]]]:
    """What stands below a tile of that width, in indices of the palette: the colour bar, or a square for each class.

    Each with its place, relative to the tile's lower left corner.
    """
    if sequence.colours is None:
        return [(0, layout.px(5), np.tile(to_indices(np.linspace(0.0, 1.0, width)), (layout.px(6), 1)))]
    side = layout.px(8)
    squares = [(left, index) for left, index, _ in _legend(sequence, layout)]
    return [(left, layout.px(12), np.full((side, side), index, np.uint8)) for left, index in squares]


def _outlined(values: NDArray[np.uint8], sequence: FrameSequence, scale: int) -> NDArray[np.uint8]:
    """A frame's indices ``(h, w)`` at the size of a tile, of predictions with the true object's outline."""
    large: NDArray[np.uint8] = _upscale(values, scale)
    line = true_outline(sequence, scale)
    if sequence.colours is not None and line is not None:
        large[line] = sequence.colours.outline
    return large


def _upscale(values: NDArray[Any], scale: int) -> NDArray[Any]:
    return values.repeat(scale, axis=0).repeat(scale, axis=1)


def _paste(canvas: NDArray[np.uint8], corner: tuple[int, int], pixels: NDArray[np.uint8]) -> None:
    x, y = corner
    canvas[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels


def _shown(sequences: Sequence[FrameSequence]) -> FrameSequence | None:
    """The first sequence whose run has the image."""
    return next((sequence for sequence in sequences if sequence.observed_image is not None), None)


def _observed(sequences: Sequence[FrameSequence], layout: AnimationLayout) -> NDArray[np.uint8]:
    """The observed image at the size of a tile, with the ground truth's outline in white with a black rim.

    Empty if no run has the image.
    """
    sequence = _shown(sequences)
    if sequence is None or sequence.observed_image is None:
        return np.zeros((0, 0, 3), np.uint8)
    pixels = np.array(Image.fromarray(sequence.observed_image).resize(layout.tile, Image.Resampling.LANCZOS))
    regions = Image.fromarray(truth_regions(sequence.run, sequence.image))
    line = outline(np.asarray(regions.resize(layout.tile, Image.Resampling.NEAREST)))
    rim = np.pad(line, 1)
    rim = rim[:-2, 1:-1] | rim[2:, 1:-1] | rim[1:-1, :-2] | rim[1:-1, 2:]
    pixels[rim] = pixels[rim] // 3
    pixels[line] = 255
    return pixels


def _rgb_frames(
    sequences: Sequence[FrameSequence], layout: AnimationLayout, colors: NDArray[np.uint8]
) -> Iterator[NDArray[np.uint8]]:
    observed = _observed(sequences, layout)
    for frame, gray in enumerate(_grays(sequences, layout)):
        canvas = gray[..., None].repeat(3, axis=2)
        _paste(canvas, layout.image, observed)
        for index, ((x, y), sequence) in enumerate(zip(layout.tiles, sequences, strict=True)):
            pixels = colors[_outlined(to_indices(sequence.unit[frame]), sequence, layout.scales[index])]
            pixels[_upscale(np.isnan(sequence.unit[frame]), layout.scales[index])] = NON_FINITE
            _paste(canvas, (x, y), pixels)
            for left, top, part in _below(sequence, layout, layout.sizes[index][0]):
                _paste(canvas, (x + left, y + layout.sizes[index][1] + top), colors[part])
        yield canvas


def _gif_frames(
    sequences: Sequence[FrameSequence], layout: AnimationLayout, colors: NDArray[np.uint8]
) -> tuple[list[Image.Image], tuple[str, ...]]:
    """Frames with one fixed palette, the colour map's, so that every tile decodes to its exact colours; and notes."""
    indices = [to_indices(sequence.unit) for sequence in sequences]
    broken = [np.isnan(sequence.unit) for sequence in sequences]
    merged = np.arange(256, dtype=np.uint8)
    notes: tuple[str, ...] = ()
    text_ramp, image_ramp = _inks(colors)
    if any(cells.any() for cells in broken):
        finite = [v[~cells] for v, cells in zip(indices, broken, strict=True)]
        used = np.bincount(np.concatenate(finite), minlength=256)
        spare = 1 + int(np.argmin(used[1:]))
        merged[spare] = spare - 1
        colors = colors.copy()
        colors[spare] = NON_FINITE
        indices = [np.where(cells, spare, merged[v]) for v, cells in zip(indices, broken, strict=True)]
        if used[spare]:
            notes = (
                "GIF has 256 colours, and cells that are not finite need one of them: "
                f"{used[spare]} other cells are drawn one level lower. Write .apng or .webp for all levels",
            )
    text_ramp = merged[text_ramp]
    pixels = _observed(sequences, layout)
    greys = np.asarray(Image.fromarray(pixels).convert("L")) if pixels.size else np.zeros((0, 0), np.uint8)
    observed = merged[image_ramp][greys]
    frames = []
    for frame, gray in enumerate(_grays(sequences, layout)):
        canvas = text_ramp[gray]
        _paste(canvas, layout.image, observed)
        for index, ((x, y), values, sequence) in enumerate(zip(layout.tiles, indices, sequences, strict=True)):
            _paste(canvas, (x, y), _outlined(values[frame], sequence, layout.scales[index]))
            for left, top, part in _below(sequence, layout, layout.sizes[index][0]):
                _paste(canvas, (x + left, y + layout.sizes[index][1] + top), merged[part])
        image = Image.fromarray(canvas)
        image.putpalette(colors.tobytes())
        frames.append(image)
    return frames, notes


def _inks(colors: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The colours of a palette that stand for greys: for each grey an index, for text and for the observed image.

    Both take the colours from the darkest to the lightest. A palette whose middle is the lightest (diverging) has no
    colour dark enough for a background: there text is dark on light, in the colours of the bluer side.
    """
    light = colors @ np.array([0.299, 0.587, 0.114])
    lightest = int(light.argmax())
    on_paper = 96 <= lightest < 160
    if on_paper:
        bluer = colors[:, 2].astype(int) - colors[:, 0]
        darkest = 0 if bluer[0] >= bluer[255] else 255
    else:
        darkest = int(light.argmin())
    between = np.arange(min(darkest, lightest), max(darkest, lightest) + 1)
    wanted = light[darkest] + np.linspace(0.0, 1.0, 256) * (light[lightest] - light[darkest])
    ramp = between[np.abs(light[between][None] - wanted[:, None]).argmin(axis=1)].astype(np.uint8)
    # Small type needs more contrast, of which a palette may have little.
    on_light = ramp[255 - np.minimum(255, np.arange(256) * 4 // 3)]
    return (on_light if on_paper else ramp), ramp


def _save(path: Path, frames: Sequence[Image.Image], format: str, **options: Any) -> None:
    # Pillow's writers merge identical frames. These never are: each shows the number of its step.
    frames[0].save(path, format, save_all=True, append_images=frames[1:], loop=0, **options)


def _ffmpeg() -> Any:
    """imageio with its ffmpeg."""
    try:
        import_module("imageio_ffmpeg")
        return import_module("imageio.v2")
    except ImportError as error:
        raise MissingExtra("video", "MP4 needs imageio and ffmpeg, which are not installed") from error


_MP4_OPTIONS = ["-crf", "12", "-preset", "medium", "-movflags", "+faststart", "-bitexact"]


def _write_mp4(path: Path, frames: Iterator[NDArray[np.uint8]], duration_ms: int, imageio: Any, origin: str) -> None:
    # Every player supports yuv420p; cells are blocks of pixels, so that the halved colour resolution is hardly visible.
    writer = imageio.get_writer(
        str(path),
        format="FFMPEG",
        mode="I",
        fps=1000 / duration_ms,
        codec="libx264",
        pixelformat="yuv420p",
        macro_block_size=1,
        quality=None,
        output_params=[*_MP4_OPTIONS, "-metadata", f"comment={origin}"],
        ffmpeg_log_level="quiet",
    )
    count = 0
    try:
        with writer:
            for frame in frames:
                writer.append_data(frame)
                count += 1
        # imageio ignores ffmpeg's exit code: the number of frames in the file shows whether all went well.
        written, _ = import_module("imageio_ffmpeg").count_frames_and_secs(str(path))
    except (OSError, RuntimeError):
        written = -1
    if written != count:
        raise OSError("ffmpeg could not finish the video; the disk may be full")
