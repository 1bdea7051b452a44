"""Animations: each observed image and one tile a run, side by side, a frame a step; exact to the pixel."""

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
from ..storage.stored_run import StoredRun
from .colormap import NON_FINITE, palette, to_indices
from .drawing import Notes, choose_colormap, overlay_sentence, select_sequences
from .fonts import font, spell
from .frames import FrameSequence, collect_notes, scale_maps
from .labels import (
    describe,
    format_number,
    heading,
    image_name,
    object_name,
    provenance,
    short_caption,
    shorten,
    truth_name,
)
from .overlay import blend, contour, contour_colour, draw_contour, image_part
from .predictions import true_outline
from .selection import FigureContent, MapSelection
from .style import FigureStyle

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
"""Most tiles in a row; more of them (channels) go into further rows of the same length."""
_POINTS = 8.25
"""Font size of the caption beside tiles of 256 pixels, in points at 96 pixels per inch."""


def write_animation(
    runs: Sequence[StoredRun],
    output: str | Path,
    selection: MapSelection = MapSelection(),
    *,
    duration_ms: int = 130,
    colormap: str = "gray",
    scale: int | None = None,
    content: FigureContent = FigureContent(),
    style: FigureStyle = FigureStyle(),
) -> Notes:
    """Write the training as an animation that loops: GIF, APNG, WebP or MP4, by the file's ending.

    The tiles of a GIF, an APNG (``.png`` or ``.apng``) and a WebP decode to exactly the colours of the map. A GIF has
    256 colours, all of them the colour map's: the observed image and the text are drawn in these too; with an overlay
    they approximate all colours. MP4 loses colour detail.

    Args:
        runs: one run, or several to be compared, side by side.
        output: the file to write, replaced only once the new one is complete.
        selection: which maps, and the range of values that the colours span.
        duration_ms: duration of a frame in milliseconds: a multiple of 10, at least 20.
        colormap: ``gray``, ``signed`` or the name of a matplotlib colour map.
        scale: width and height of a map value in pixels; None makes tiles of about 256 pixels.
        content: what is shown and said besides.
        style: its font, and the size of the caption's words in points at 96 pixels per inch; the rest is of figures
            on paper.

    Returns:
        Notes on what was omitted or marked, and what the animation shows.

    Raises:
        FadevizError: if the file ending, ``duration_ms``, ``colormap`` or ``scale`` is invalid, or as
            :func:`~fadeviz.render.frames.select_frames`.
        MissingExtra: if ffmpeg is needed and not installed.
    """
    path = Path(output)
    ending = check_ending(path)
    _check_duration(duration_ms)
    colormap = choose_colormap(colormap, content)
    ffmpeg = _ffmpeg() if ending == ".mp4" else None
    sequences = select_sequences(runs, selection, content, colormap, MAX_FRAMES)
    description = describe(sequences, overlay_sentence(sequences, content))
    notes, origin = collect_notes(sequences), provenance(runs, description)
    with style.applied(), replacing(path) as partial:
        film = _Film(
            sequences, colormap, layout_animation(sequences, scale=scale, content=content, style=style), content
        )
        if ending == ".gif":
            frames, more = _approximate(film) if content.overlay else _gif_frames(film)
            notes += more
            # Optimised palettes would differ from frame to frame. Disposal 1 keeps a frame under the next one.
            _save(partial, frames, "GIF", duration=duration_ms, optimize=False, disposal=1, comment=origin.encode())
        elif ffmpeg is not None:
            _write_mp4(partial, _rgb_frames(film), duration_ms, ffmpeg, origin)
        else:
            frames = [Image.fromarray(frame) for frame in _rgb_frames(film)]
            if ending == ".webp":
                exif = Image.Exif()
                exif[ExifTags.Base.ImageDescription] = origin
                _save(partial, frames, "WEBP", duration=duration_ms, lossless=True, method=4, exif=exif)
            else:
                text = PngInfo()
                text.add_text("Description", origin)
                _save(partial, frames, "PNG", duration=duration_ms, pnginfo=text)
    return Notes(notes, description)


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
    sequences: Sequence[FrameSequence],
    *,
    colormap: str = "gray",
    scale: int | None = None,
    content: FigureContent = FigureContent(),
    style: FigureStyle = FigureStyle(),
) -> Iterator[NDArray[np.uint8]]:
    """The frames of the animation, each ``(H, W, 3)`` uint8, from which every format but GIF is written."""
    palette(colormap)
    layout = layout_animation(sequences, scale=scale, content=content, style=style)
    frames = _rgb_frames(_Film(sequences, colormap, layout, content))
    while True:
        with style.applied():
            frame = next(frames, None)
        if frame is None:
            return
        yield frame


@dataclass(frozen=True)
class AnimationLayout:
    """Where everything of a frame is, in pixels from the upper left corner.

    Attributes:
        width: width of a frame; even, as video requires.
        height: height of a frame; even.
        unit: size of text and gaps, relative to that for a tile of 256 pixels.
        tile: width and height of the largest tile, and of the observed images.
        sizes: width and height of each sequence's tile; they differ where the sizes of the runs' maps do.
        scales: width and height of a map value of each sequence.
        left: left side of everything.
        images: index of a sequence that has an observed image, and the image's upper left corner.
        tiles: the upper left corner of each sequence's tile.
        pitch: width that is reserved for a tile and its words.
        title: the title, and the line on which it stands; empty for none.
        progress: top of the line with the step.
        caption: the lines below, and the top of the first.
    """

    width: int
    height: int
    unit: float
    tile: tuple[int, int]
    sizes: list[tuple[int, int]]
    scales: list[int]
    left: int
    images: list[tuple[int, tuple[int, int]]]
    tiles: list[tuple[int, int]]
    pitch: int
    title: tuple[str, int]
    progress: int
    caption: tuple[list[str], int]

    @property
    def image(self) -> tuple[int, int]:
        """Upper left corner of the first observed image; if there is none, of the first tile."""
        return self.images[0][1] if self.images else self.tiles[0]

    def px(self, size: float) -> int:
        """A size given for a tile of 256 pixels, in pixels of this layout."""
        return round(size * self.unit)


def layout_animation(
    sequences: Sequence[FrameSequence],
    *,
    scale: int | None = None,
    content: FigureContent = FigureContent(),
    style: FigureStyle = FigureStyle(),
) -> AnimationLayout:
    """Where an animation puts its tiles.

    Raises:
        FadevizError: if ``scale`` is less than 1, or a frame is too large.
    """
    if scale is not None and scale < 1:
        raise FadevizError(f"scale={scale}: must be at least 1")
    scales, sizes = scale_maps(sequences, scale, _TILE)
    tile = max(width for width, _ in sizes), max(height for _, height in sizes)
    unit = max(1.0, tile[0] / _TILE) * style.points(1, _POINTS)

    def px(size: float) -> int:
        return round(size * unit)

    margin, gap = px(16), px(14)
    room = max(tile[0], px(104))
    groups: dict[int, list[int]] = {}
    for index, sequence in enumerate(sequences):
        groups.setdefault(sequence.image, []).append(index)
    count = max(map(len, groups.values()))
    columns = math.ceil(count / math.ceil(count / _ROW))
    top, row_height = px(36), tile[1] + px(62)
    title = content.title or ""
    title_line = px(24)
    top += px(26) * bool(title)
    ahead = int(any(sequence.observed_image is not None for sequence in sequences))  # images, on the left of their rows
    total = 2 * margin + (columns + ahead) * room + (columns + ahead - 1) * gap
    total += total % 2
    tiles: list[tuple[int, int]] = []
    images = []
    for members in groups.values():
        known = next((index for index in members if sequences[index].observed_image is not None), None)
        if known is not None:
            images.append((known, (margin, top)))
        tiles += [
            (margin + (place % columns + ahead) * (room + gap), top + place // columns * row_height)
            for place in range(len(members))
        ]
        top += math.ceil(len(members) / columns) * row_height
    progress = top - px(62) + px(36)
    lines: list[str] = []
    if content.caption:
        with style.applied():
            lines = short_caption(
                sequences, max(1, px(11)), total - 2 * margin, further=overlay_sentence(sequences, content)
            )
    below = progress + px(32)
    bottom = below + len(lines) * px(15) + px(12) * bool(lines)
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
        left=margin,
        images=images,
        tiles=tiles,
        pitch=room,
        title=(title, title_line),
        progress=progress,
        caption=(lines, below),
    )


@dataclass(frozen=True)
class _Film:
    """What all frames of an animation are drawn from."""

    sequences: Sequence[FrameSequence]
    colormap: str
    layout: AnimationLayout
    content: FigureContent

    @property
    def colors(self) -> NDArray[np.uint8]:
        """The colours of the tiles, ``(256, 3)``."""
        colours = self.sequences[0].colours
        return palette(self.colormap) if colours is None else colours.palette


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


def _words(film: _Film) -> Image.Image:
    """What is the same in every frame, in greys: names, the track of the steps, the caption."""
    sequences, layout = film.sequences, film.layout
    canvas = Image.new("L", (layout.width, layout.height), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    px = layout.px
    first = sequences[0]
    title, line = layout.title
    if title:
        text = spell(shorten(title, px(17), layout.width - 2 * layout.left, bold=True))
        draw.text((layout.left, line), text, _BRIGHT, font(px(17), True), anchor="ls")
    boxes = [*zip(layout.tiles, layout.sizes, map(heading, sequences), strict=True)]
    boxes += [(corner, layout.tile, "Image") for _, corner in layout.images]
    for (x, y), (width, height), name in boxes:
        text = spell(shorten(name, px(15), layout.pitch, bold=True))
        draw.text((x, y - px(9)), text, _BRIGHT, font(px(15), True), anchor="ls")
        draw.rectangle((x - 1, y - 1, x + width, y + height), fill=None, outline=_TRACK)
    for index, (x, y) in layout.images:
        below = _below_image(sequences[index], layout)
        draw.text((x, y + layout.tile[1] + px(26)), spell(below), _FAINT, font(px(11)), anchor="ls")
    left, right, middle = _track(sequences, layout)
    draw.rectangle((left, middle - px(1), right, middle + px(1)), fill=_TRACK)
    for step in first.steps:
        place = _place(step, first.steps, left, right)
        draw.rectangle((place, middle - px(4), place, middle + px(4)), fill=_TICK)
    lines, top = layout.caption
    for index, line_of_caption in enumerate(lines):
        baseline = top + index * px(15) + px(11)
        draw.text((layout.left, baseline), spell(line_of_caption), _FAINT, font(px(11)), anchor="ls")
    return canvas


def _below_image(sequence: FrameSequence, layout: AnimationLayout) -> str:
    """The name of an observed image, and of its object."""
    px, named = layout.px, object_name(sequence)
    suffix = f", {truth_name(sequence.run)} outlined" + (f"; object: {named}" if named else "")
    if not named:
        return shorten(image_name(sequence) + suffix, px(11), layout.pitch)
    # A long name of the image leaves room for that of its object.
    room = layout.pitch - math.ceil(font(px(11)).getlength(suffix))
    return shorten(shorten(image_name(sequence), px(11), max(room, px(40))) + suffix, px(11), layout.pitch)


def _track(sequences: Sequence[FrameSequence], layout: AnimationLayout) -> tuple[int, int, int]:
    """Left end, right end and middle line of the progress bar."""
    px, steps = layout.px, sequences[0].steps
    widest = max(font(px(17), True).getlength(f"step {step}") for step in (steps[-1], steps[0]))
    left = layout.left + round(widest) + px(16)
    return left, layout.width - layout.left - px(4), layout.progress + px(11)


def _place(step: int, steps: Sequence[int], left: int, right: int) -> int:
    span = steps[-1] - steps[0]
    return right if span == 0 else left + round((step - steps[0]) / span * (right - left))


def _grays(film: _Film) -> Iterator[NDArray[np.uint8]]:
    """The text and lines of every frame, ``(H, W)`` uint8."""
    sequences, layout = film.sequences, film.layout
    still = _words(film)
    px, steps = layout.px, sequences[0].steps
    left, right, middle = _track(sequences, layout)
    for frame, step in enumerate(steps):
        canvas = still.copy()
        draw = ImageDraw.Draw(canvas)
        baseline = middle + px(6)
        draw.text((layout.left, baseline), f"step {step}", _BRIGHT, font(px(17), True), anchor="ls")
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


def _observed(film: _Film) -> list[tuple[tuple[int, int], NDArray[np.uint8]]]:
    """The observed images at the size of a tile, with the true outline in white with a dark rim; with their corners."""
    observed = []
    for index, corner in film.layout.images:
        sequence = film.sequences[index]
        image = Image.fromarray(image_part(sequence)).resize(film.layout.tile, Image.Resampling.LANCZOS)
        line = contour(sequence, film.layout.tile, 1)
        observed.append((corner, draw_contour(np.asarray(image), line, (255, 255, 255), rim=True)))
    return observed


def _rgb_frames(film: _Film) -> Iterator[NDArray[np.uint8]]:
    layout, colors = film.layout, film.colors
    observed = _observed(film)
    lines = [_contour_on_tile(film, index) for index in range(len(film.sequences))]
    for frame, gray in enumerate(_grays(film)):
        canvas = gray[..., None].repeat(3, axis=2)
        for corner, image in observed:
            _paste(canvas, corner, image)
        for index, ((x, y), sequence) in enumerate(zip(layout.tiles, film.sequences, strict=True)):
            pixels = colors[_outlined(to_indices(sequence.unit[frame]), sequence, layout.scales[index])]
            pixels[_upscale(np.isnan(sequence.unit[frame]), layout.scales[index])] = NON_FINITE
            if film.content.overlay == "map":
                pixels = blend(sequence, pixels, film.content.alpha)
            line = lines[index]
            if line is not None:
                colour, rim = contour_colour(film.colormap)
                pixels = draw_contour(pixels, line, colour, rim=rim)
            _paste(canvas, (x, y), pixels)
            for left, top, part in _below(sequence, layout, layout.sizes[index][0]):
                _paste(canvas, (x + left, y + layout.sizes[index][1] + top), colors[part])
        yield canvas


def _contour_on_tile(film: _Film, index: int) -> NDArray[np.bool_] | None:
    """The contour that is laid over a tile; None for none."""
    if film.content.overlay != "contour":
        return None
    return contour(film.sequences[index], film.layout.sizes[index], max(1, round(film.layout.unit)))


def _approximate(film: _Film) -> tuple[list[Image.Image], tuple[str, ...]]:
    """Frames of many colours in the 256 that suit them best, the same in all frames; and a note."""
    frames = [Image.fromarray(frame) for frame in _rgb_frames(film)]
    samples = [frames[round(place)] for place in np.linspace(0, len(frames) - 1, min(8, len(frames)))]
    every = Image.fromarray(np.concatenate([np.asarray(sample) for sample in samples]))
    common = every.quantize(256, method=Image.Quantize.MEDIANCUT)
    note = "GIF has 256 colours: those of the overlay are approximated. Write .apng or .webp for all colours"
    return [frame.quantize(palette=common, dither=Image.Dither.NONE) for frame in frames], (note,)


def _gif_frames(film: _Film) -> tuple[list[Image.Image], tuple[str, ...]]:
    """Frames with one fixed palette, the colour map's, so that every tile decodes to its exact colours; and notes."""
    sequences, layout, colors = film.sequences, film.layout, film.colors
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
    ramp = merged[image_ramp]
    observed = [(corner, ramp[np.asarray(Image.fromarray(image).convert("L"))]) for corner, image in _observed(film)]
    frames = []
    for frame, gray in enumerate(_grays(film)):
        canvas = text_ramp[gray]
        for corner, image in observed:
            _paste(canvas, corner, image)
        for index, ((x, y), values, sequence) in enumerate(zip(layout.tiles, indices, sequences, strict=True)):
            _paste(canvas, (x, y), _outlined(values[frame], sequence, layout.scales[index]))
            for left, top, part in _below(sequence, layout, layout.sizes[index][0]):
                _paste(canvas, (x + left, y + layout.sizes[index][1] + top), merged[part])
        drawn = Image.fromarray(canvas)
        drawn.putpalette(colors.tobytes())
        frames.append(drawn)
    return frames, notes


def _inks(colors: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The colours of a palette that stand for greys: for each grey an index, for text and for the observed image.

    Both take the colours from the darkest to the lightest. A palette whose middle is the lightest (diverging) has no
    colour dark enough for a background: there text is dark on light, in the colours of the bluer side, or of the other
    if that is much darker.
    """
    light = colors @ np.array([0.299, 0.587, 0.114])
    lightest = int(light.argmax())
    on_paper = 96 <= lightest < 160
    if on_paper:
        bluer = colors[:, 2].astype(int) - colors[:, 0]
        darkest = 0 if bluer[0] >= bluer[255] else 255
        if light[darkest] > light[255 - darkest] + 40:  # too pale for text
            darkest = 255 - darkest
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
