"""Animations: every frame decodes to the exact colours, for the exact time; none is merged or lost."""

import sys

import numpy as np
import pytest
from PIL import ExifTags, Image

from fadeviz.errors import FadevizError
from fadeviz.render import animation
from fadeviz.render.animation import layout_animation, render_frames, write_animation
from fadeviz.render.colormap import colorize
from fadeviz.render.frames import select_frames
from fadeviz.render.selection import MapSelection
from render_runs import STEPS, make_run

ALL_LEVELS = np.stack([np.roll(np.arange(768) % 256, 37 * t).reshape(24, 32) for t in range(12)]).astype(np.float32)


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "fade", maps=ALL_LEVELS)


@pytest.fixture
def pair(tmp_path, run):
    return [run, make_run(tmp_path / "carafe", upsampler="carafe", run_id="b")]


def decode(path):
    """Frames ``(T, H, W, 3)`` and the time of each in milliseconds."""
    frames, times = [], []
    with Image.open(path) as file:
        for index in range(file.n_frames):
            file.seek(index)
            file.load()
            frames.append(np.asarray(file.convert("RGB")))
            times.append(file.info["duration"])
    return np.stack(frames), times


def tiles(frames, layout, index):
    (x, y), (width, height) = layout.tiles[index], layout.tile
    return frames[:, y : y + height, x : x + width]


def upscaled(unit, colormap, scale):
    return colorize(unit, colormap).repeat(scale, axis=1).repeat(scale, axis=2)


@pytest.mark.parametrize("ending", ["gif", "apng", "png", "webp"])
@pytest.mark.parametrize("colormap", ["gray", "viridis", "coolwarm"])
def test_tiles_decode_exactly(tmp_path, pair, ending, colormap):
    path = tmp_path / f"a.{ending}"
    assert write_animation(pair, path, MapSelection(normalize="run"), colormap=colormap, scale=3, duration_ms=70) == ()
    frames, times = decode(path)
    assert times == [70] * len(STEPS)
    sequences = select_frames(pair, MapSelection(normalize="run"), centered=colormap == "coolwarm")
    layout = layout_animation(sequences, scale=3)
    for index, sequence in enumerate(sequences):
        assert np.array_equal(tiles(frames, layout, index), upscaled(sequence.unit, colormap, 3))
    if ending != "gif":
        assert np.array_equal(frames, np.stack(list(render_frames(sequences, colormap=colormap, scale=3))))


def test_a_gray_gif_holds_all_256_levels(tmp_path, run):
    write_animation([run], tmp_path / "a.gif")
    frames, _ = decode(tmp_path / "a.gif")
    sequences = select_frames([run])
    layout = layout_animation(sequences)
    assert len(np.unique(tiles(frames, layout, 0))) == 256
    # Gray words and a gray map: but for the image, which loses its colours, the whole frame is exact.
    exact = np.stack(list(render_frames(sequences)))
    (x, y), (width, height) = layout.image, layout.tile
    exact[:, y : y + height, x : x + width] = frames[:, y : y + height, x : x + width]
    assert np.array_equal(frames, exact)


@pytest.mark.parametrize("ending", ["gif", "apng", "webp"])
def test_identical_maps_are_frames_of_their_own(tmp_path, ending):
    same = make_run(tmp_path / "r", maps=np.repeat(ALL_LEVELS[:1], 12, axis=0))
    write_animation([same], tmp_path / f"a.{ending}", scale=1)
    frames, times = decode(tmp_path / f"a.{ending}")
    assert len(frames) == len(STEPS)
    assert times == [130] * len(STEPS)
    with Image.open(tmp_path / f"a.{ending}") as file:
        assert file.info["loop"] == 0


def test_each_frame_shows_its_step(tmp_path, run):
    sequences = select_frames([run], MapSelection(normalize="run"))
    layout = layout_animation(sequences)
    lines = np.stack(list(render_frames(sequences)))[:, layout.progress : layout.progress + layout.px(22)]
    assert len({line.tobytes() for line in lines}) == len(STEPS)


def test_non_finite_cells_in_a_gif(tmp_path):
    maps = ALL_LEVELS.copy()
    maps[:, 5, 6] = np.nan
    run = make_run(tmp_path / "full", maps=maps)
    notes = write_animation([run], tmp_path / "a.gif", scale=2)
    assert any("painted magenta" in note for note in notes)
    assert any("one level lower" in note for note in notes)
    (sequence,) = select_frames([run])
    layout = layout_animation([sequence], scale=2)
    decoded = tiles(decode(tmp_path / "a.gif")[0], layout, 0).astype(int)
    expected = upscaled(sequence.unit, "gray", 2).astype(int)
    assert (decoded[:, 10, 12] == (255, 0, 255)).all()
    assert np.abs(decoded - expected).max() == 1
    # A level that no cell has is free for magenta.
    spared = make_run(tmp_path / "spared", maps=np.where(maps == 100, 101, maps))
    assert len(write_animation([spared], tmp_path / "b.gif", scale=2)) == 1
    (sequence,) = select_frames([spared])
    decoded = tiles(decode(tmp_path / "b.gif")[0], layout, 0)
    assert np.array_equal(decoded, upscaled(sequence.unit, "gray", 2))


def test_one_step_many_channels_and_tiny_tiles(tmp_path):
    one = make_run(tmp_path / "r", steps=(0,))
    write_animation([one], tmp_path / "a.gif", MapSelection(kind="channels"), scale=1)
    frames, _ = decode(tmp_path / "a.gif")
    sequences = select_frames([one], MapSelection(kind="channels"))
    layout = layout_animation(sequences, scale=1)
    assert len({y for _, y in layout.tiles}) == 2
    for index, sequence in enumerate(sequences):
        assert np.array_equal(tiles(frames, layout, index), colorize(sequence.unit, "gray"))


def test_an_animation_of_a_long_run_says_what_it_leaves_out(tmp_path, monkeypatch):
    monkeypatch.setattr(animation, "MAX_FRAMES", 5)
    run = make_run(tmp_path / "fade", size=(6, 8))
    (note,) = write_animation([run], tmp_path / "a.gif", scale=1)
    assert note.startswith("5 of 12 snapshots are shown, evenly spaced from step 0 to 110.")
    assert len(decode(tmp_path / "a.gif")[0]) == 5
    assert write_animation([run], tmp_path / "a.gif", MapSelection(steps=run.steps), scale=1) == ()
    assert len(decode(tmp_path / "a.gif")[0]) == 12


def test_the_same_run_gives_the_same_bytes(tmp_path, pair):
    for ending in ("gif", "apng", "webp"):
        for name in ("one", "two"):
            write_animation(pair, tmp_path / f"{name}.{ending}", scale=1)
        assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"two.{ending}").read_bytes()


def test_the_ids_of_the_runs_are_in_the_file(tmp_path, pair):
    runs = "fadeviz runs: a1b2c3 (FADE, seed 0), b (CARAFE, seed 0)"
    for ending in ("gif", "apng", "webp"):
        write_animation(pair, tmp_path / f"a.{ending}", MapSelection(steps=[0, 10]), scale=1)
    with Image.open(tmp_path / "a.gif") as file:
        assert file.info["comment"].decode().startswith(f"{runs}. SegNet, ")
    with Image.open(tmp_path / "a.apng") as file:
        assert file.text["Description"].endswith("seed 0 each. 2 of 12 recorded steps are shown.")
    with Image.open(tmp_path / "a.webp") as file:
        assert file.getexif()[ExifTags.Base.ImageDescription].startswith(f"{runs}. SegNet, ")


def test_mp4_has_every_frame(tmp_path, pair):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    try:
        imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        pytest.skip(f"no ffmpeg: {error}")
    write_animation(pair, tmp_path / "a.mp4", duration_ms=100, scale=4)
    assert b"fadeviz runs: a1b2c3 (FADE, seed 0), b (CARAFE, seed 0)" in (tmp_path / "a.mp4").read_bytes()
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "a.mp4"))
    assert frames == len(STEPS)
    assert seconds == pytest.approx(1.2, abs=0.06)
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "a.mp4"))
    width, height = next(reader)["size"]
    first = np.frombuffer(next(reader), np.uint8).reshape(height, width, 3).astype(int)
    reader.close()
    sequences = select_frames(pair)
    exact = next(iter(render_frames(sequences, scale=4)))
    assert exact.shape == first.shape
    assert np.abs(first - exact).mean() < 4


def test_mp4_without_its_extra(tmp_path, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(FadevizError, match=r'pip install "\.\[video\]"'):
        write_animation([run], tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.gif", {"duration_ms": 125}, "duration 125 ms: GIF counts in hundredths of a second. Use 120 or 130"),
        ("a.webp", {"duration_ms": 25}, "Use 20 or 30"),
        ("a.gif", {"duration_ms": 10}, "Use 20 or more"),
        ("a.gif", {"duration_ms": -130}, "Use 20 or more"),
        ("a.avi", {}, r"cannot be written as .avi. Endings: .gif .png .apng .webp .mp4"),
        ("a.gif", {"colormap": "viridi"}, "Nearest: 'viridis'"),
        ("a.gif", {"scale": 0}, "scale=0: must be at least 1"),
        ("a.gif", {"selection": MapSelection(layer="decoder")}, "no layer in"),
    ],
)
def test_errors_leave_the_old_file(tmp_path, run, name, options, message):
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / name).write_text("old")
    with pytest.raises(FadevizError, match=message):
        write_animation([run], folder / name, **options)
    assert [f.name for f in folder.iterdir()] == [name]
    assert (folder / name).read_text() == "old"


def test_a_failure_while_writing_leaves_the_old_file(tmp_path, run, monkeypatch):
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "a.gif").write_text("old")

    def fail(path, *_, **__):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(animation, "_save", fail)
    with pytest.raises(FadevizError, match="disk full"):
        write_animation([run], folder / "a.gif")
    assert [f.name for f in folder.iterdir()] == ["a.gif"]
    assert (folder / "a.gif").read_text() == "old"
