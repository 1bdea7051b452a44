"""Spectrum and checkerboard: known answers on synthetic maps, and a second, slow formula for each measure."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from fadeviz.analysis.blocks import has_pattern
from fadeviz.analysis.spectrum import checkerboard, high_share, phase_pattern, radial_centroid, radial_spectrum
from fadeviz.errors import FadevizError

CHECKER = np.array([[1.0, -1.0], [-1.0, 1.0]])
STRIPES = np.array([[1.0, -1.0], [1.0, -1.0]])


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def bilinear(low):
    """Twice the size along both axes, as with align_corners=False."""
    for axis in (-2, -1):
        low = np.moveaxis(low, axis, -1)
        before = np.concatenate([low[..., :1], low[..., :-1]], -1)
        after = np.concatenate([low[..., 1:], low[..., -1:]], -1)
        low = np.stack([0.75 * low + 0.25 * before, 0.75 * low + 0.25 * after], -1).reshape(*low.shape[:-1], -1)
        low = np.moveaxis(low, -1, axis)
    return low


def planted(pattern, height, width):
    s = len(pattern)
    return np.array([[pattern[y % s, x % s] for x in range(width)] for y in range(height)])


def slow_spectrum(values, border):
    """Power and radius by the sums that define them, a frequency at a time."""
    values = values[border : values.shape[0] - border, border : values.shape[1] - border]
    h, w = values.shape
    y, x = np.mgrid[:h, :w]
    window = (0.5 - 0.5 * np.cos(2 * np.pi * (y + 0.5) / h)) * (0.5 - 0.5 * np.cos(2 * np.pi * (x + 0.5) / w))
    centred = window * (values - np.average(values, weights=window))
    found = []
    for ky, kx in itertools.product(range(h), range(w)):
        wave = np.exp(-2j * np.pi * (ky * y / h + kx * x / w))
        fy, fx = min(ky, h - ky) / h, min(kx, w - kx) / w
        found.append((abs((centred * wave).sum()) ** 2, (fy**2 + fx**2) ** 0.5))
    return np.array(found).T


@pytest.mark.parametrize(("shape", "border"), [((16, 19), 4), ((9, 12), 0)])
def test_centroid_and_share_by_the_defining_sums(shape, border):
    values = noise(*shape)
    power, radius = slow_spectrum(values, border)
    assert radial_centroid(values, border) == pytest.approx((power * radius).sum() / power.sum(), rel=1e-10)
    for above in (0.1, 0.25, 0.6):
        expected = power[radius > above].sum() / power.sum()
        assert 0 < expected < 1
        assert high_share(values, above, border) == pytest.approx(expected, rel=1e-10)


def test_radial_spectrum_by_the_defining_sums():
    values = noise(2, 18, 17)
    frequencies, shares = radial_spectrum(values, bins=5, border=3)
    edges = np.linspace(0, 0.5**0.5, 6)
    assert frequencies == pytest.approx((edges[1:] + edges[:-1]) / 2)
    for one, share in zip(values, shares, strict=True):
        power, radius = slow_spectrum(one, 3)
        rings = [power[(radius >= a) & (radius < b)].sum() for a, b in itertools.pairwise(edges)]
        assert share == pytest.approx(np.array(rings) / power.sum(), rel=1e-9)
        assert share.sum() == pytest.approx(1)


@pytest.mark.parametrize("k", [3, 10, 25])
def test_a_wave_has_its_own_frequency(k):
    # The window spreads it over three bins along each axis, 1 : 4 : 1 in energy.
    wave = np.cos(2 * np.pi * k * np.arange(72) / 64)[None, :].repeat(72, axis=0) + 5
    expected = sum(
        a * b / 36 * np.hypot(k + i, j) / 64
        for (i, a), (j, b) in itertools.product(zip((-1, 0, 1), (1, 4, 1), strict=True), repeat=2)
    )
    assert radial_centroid(wave) == pytest.approx(expected, rel=1e-9)
    assert radial_centroid(wave) == pytest.approx(k / 64, rel=0.02)
    assert radial_centroid(wave.T) == pytest.approx(expected, rel=1e-9)
    assert high_share(wave) == pytest.approx(1.0 if k == 25 else 0.0, abs=1e-9)


def test_white_noise_has_the_flat_spectrums_numbers():
    maps = noise(40, 72, 72)
    grid = (np.arange(2000) + 0.5) / 4000  # a quarter of the square of frequencies
    radius = np.hypot(grid[:, None], grid)
    assert radial_centroid(maps).mean() == pytest.approx(radius.mean(), abs=0.003)
    assert radius.mean() == pytest.approx(0.3826, abs=1e-4)
    assert high_share(maps).mean() == pytest.approx(1 - np.pi / 16, abs=0.01)
    assert checkerboard(maps).nyquist.mean() == pytest.approx(1, abs=0.05)


def test_the_range_of_the_reference_curve():
    # Frames of 192 x 128: their curve starts at .021 for a blob, which is the floor that the frame's size sets, and
    # at .270 for fine grain, below white noise.
    y, x = np.mgrid[:128, :192]
    blob = np.exp(-((y - 64) ** 2 + (x - 96) ** 2) / 40**2)
    disc = ((y - 64) ** 2 + (x - 96) ** 2 < 40**2).astype(float)
    ring = disc - ((y - 64) ** 2 + (x - 96) ** 2 < 37**2)
    smooth, filled, outline, grain = radial_centroid(np.stack([blob, disc, ring, noise(128, 192)]))
    assert 0.008 < smooth < 0.021
    assert smooth < filled < outline < grain
    # An outline that fills falls; a blob that sharpens rises: the directions of the two reference curves.
    filling = radial_centroid(np.stack([(1 - a) * ring + a * disc for a in np.linspace(0, 1, 6)]))
    assert (np.diff(filling) < 0).all()
    sharpening = radial_centroid(np.stack([(1 - a) * blob + a * disc for a in np.linspace(0, 1, 6)]))
    assert (np.diff(sharpening) > 0).all()


def test_measures_of_a_spectrum_do_not_depend_on_mean_and_scale():
    values = noise(3, 40, 50)
    for other in (values * 1e-30 + 0, values * -7 + 100):
        assert radial_centroid(other) == pytest.approx(radial_centroid(values), rel=1e-9)
        assert high_share(other) == pytest.approx(high_share(values), rel=1e-9)
        assert checkerboard(other).share == pytest.approx(checkerboard(values).share, rel=1e-6)
        assert checkerboard(other).nyquist == pytest.approx(checkerboard(values).nyquist, rel=1e-9)


def slow_pattern(values, s, border):
    """The detrended pixels of each phase, a pixel at a time: whole periods, labels from the uncropped corner."""
    h, w = values.shape
    half = s // 2
    offsets = [(o, (0.5 if s % 2 == 0 and abs(o) == half else 1) / s) for o in range(-half, half + 1)]
    starts = [-(-(border + half) // s) * s] * 2
    stops = [start + (n - border - half - start) // s * s for start, n in zip(starts, (h, w), strict=True)]
    rest = {}
    for y, x in itertools.product(range(starts[0], stops[0]), range(starts[1], stops[1])):
        trend = sum(a * b * values[y + i, x + j] for (i, a), (j, b) in itertools.product(offsets, repeat=2))
        rest[y, x] = values[y, x] - trend
    return rest, starts, stops


def phase_means(rest, s):
    means = np.array([[np.mean([v for (y, x), v in rest.items() if (y % s, x % s) == (a, b)]) for b in range(s)]
                      for a in range(s)])  # fmt: skip
    return means - means.mean()


@pytest.mark.parametrize(
    ("s", "border", "shape"), [(2, 4, (20, 23)), (2, 3, (21, 18)), (3, 4, (26, 22)), (4, 0, (19, 21))]
)
def test_phase_pattern_a_pixel_at_a_time(s, border, shape):
    values = noise(*shape)
    rest, _, _ = slow_pattern(values, s, border)
    assert phase_pattern(values, s, border) == pytest.approx(phase_means(rest, s), abs=1e-12)


def slow_share(values, s, border):
    """Share and amplitude a pixel at a time."""
    rest, starts, stops = slow_pattern(values, s, border)
    periods = {}
    for y, x in itertools.product(range(starts[0], stops[0], s), range(starts[1], stops[1], s)):
        period = [rest[y + a, x + b] for a, b in itertools.product(range(s), repeat=2)]
        periods[y // s, x // s] = [value - sum(period) / s**2 for value in period]

    def product(down, along):
        pairs = [(p, periods[i + down, j + along]) for (i, j), p in periods.items() if (i + down, j + along) in periods]
        return np.mean([sum(a * b for a, b in zip(p, q, strict=True)) / s**2 for p, q in pairs])

    repeated = [(product(0, 2) + product(2, 0)) / 2, (product(2, 2) + product(2, -2)) / 2]
    inner = values[border : len(values) - border, border : values.shape[1] - border]
    places = itertools.product(range(inner.shape[0] - s + 1), range(inner.shape[1] - s + 1))
    within = np.mean([inner[y : y + s, x : x + s].var() for y, x in places])
    return min(repeated) / within, max(min(repeated), 0) ** 0.5


@pytest.mark.parametrize(("s", "border"), [(2, 4), (2, 3), (2, 0), (3, 3), (3, 4), (4, 1)])
def test_checkerboard_share_a_pixel_at_a_time(s, border):
    values = noise(30, 37) + planted(noise(s, s, seed=1), 30, 37) + 0.1 * np.arange(37)
    share, amplitude = slow_share(values, s, border)
    found = checkerboard(values, s, border)
    assert share > 0.1
    assert found.share == pytest.approx(share, rel=1e-9)
    assert found.amplitude == pytest.approx(amplitude, rel=1e-9)


@pytest.mark.parametrize("s", [2, 4])
def test_power_at_the_lines_by_the_defining_sums(s):
    values = noise(28, 25)
    power, _ = slow_spectrum(values, 4)
    h, w = 20, 17
    on, beside = [], []
    for (ky, kx), p in zip(itertools.product(range(h), range(w)), power, strict=True):
        f = min(ky, h - ky) / h, min(kx, w - kx) / w
        away = min(abs(one - line / s) for one in f for line in range(1, s // 2 + 1))
        (on if away <= 0.03 else beside if away <= 0.10 else []).append(p)
    assert checkerboard(values, s).nyquist == pytest.approx(np.mean(on) / np.mean(beside), rel=1e-9)


def drifting(height, width):
    """A lattice of 2 x 2 pixels whose phase turns once in 60 pixels along and once in 90 down: no mean anywhere."""
    y, x = np.mgrid[:height, :width]
    angle = 2 * np.pi * (x / 60 + y / 90)
    parts = (planted(p, height, width) for p in (CHECKER, STRIPES, STRIPES.T))
    return sum(np.cos(angle + 2 * np.pi * n / 3) * part for n, part in enumerate(parts))


def flipping(height, width):
    """A checkerboard whose sign turns over three times a map."""
    y, x = np.mgrid[:height, :width]
    return planted(CHECKER, height, width) * np.where((x // 24 + y // 32) % 2, -1, 1)


class TestLattice:
    """What an eye sees as a lattice has a share, whatever else is in the map; what is none has not."""

    y, x = np.mgrid[:96, :96]
    blob = np.exp(-((y - 40) ** 2 + (x - 50) ** 2) / 25**2)

    @pytest.mark.parametrize(
        ("lattice", "least"),
        [
            (planted(CHECKER, 96, 96), 0.99),
            (planted(STRIPES, 96, 96), 0.99),
            (drifting(96, 96), 0.85),
            (flipping(96, 96), 0.5),
            (np.cos(2 * np.pi * (x + y) / 80) * planted(CHECKER, 96, 96), 0.8),
        ],
    )
    def test_is_seen_alone_and_on_a_blob_twenty_times_as_high(self, lattice, least):
        assert least < checkerboard(lattice).share <= 1
        on_blob = checkerboard(self.blob + 0.025 * lattice).share
        assert 0.5 * least < on_blob < checkerboard(lattice).share
        assert (0.025 * lattice).var() < 0.03 * self.blob.var()

    def test_no_phase_of_a_drifting_lattice_has_a_mean(self):
        for lattice in (drifting(98, 98), flipping(104, 72)):
            assert np.abs(phase_pattern(lattice)).max() < 0.15
            assert checkerboard(lattice).share > 0.5

    @pytest.mark.parametrize(
        ("s", "sigma", "share", "power"),
        [(2, 16, 0.7, 100), (2, 8, 0.6, 20), (2, 4, 0.4, 4), (2, 3, 0.25, 2), (2, 2, 0.05, 1.6), (3, 8, 0.5, 10),
         (3, 4, 0.1, 3), (4, 8, 0.25, 8), (4, 6, 0.1, 5)],
    )  # fmt: skip
    def test_follows_a_random_sign_and_height(self, s, sigma, share, power):
        # Patches of about three times sigma, half of them with the opposite sign; none has a mean over the map.
        pattern = noise(s, s, seed=3)
        height = ndimage.gaussian_filter(noise(6, 96, 96, seed=sigma), (0, sigma, sigma))
        lattice = planted(pattern - pattern.mean(), 96, 96) * height / height.std()
        seen, flat = checkerboard(lattice, s), checkerboard(height, s)
        assert seen.share.min() > share
        assert seen.nyquist.mean() > power
        # The same heights without a lattice.
        assert np.abs(flat.share).max() < 0.02
        assert flat.nyquist.max() < 1.3

    def test_a_lattice_of_four_pixels_is_seen_by_the_measure_of_two(self):
        pattern = noise(4, 4, seed=3)
        assert checkerboard(planted(pattern - pattern.mean(), 96, 96)).share > 0.5

    def test_follows_the_sign_of_the_map(self):
        smooth = bilinear(bilinear(bilinear(noise(6, 12, 12))))
        assert np.abs(checkerboard(smooth).share).max() < 0.002
        assert checkerboard(smooth * (1 + 0.1 * planted(STRIPES, 96, 96))).share.min() > 0.05

    def test_the_sum_of_smooth_map_and_noise_has_the_share_of_its_parts(self):
        values = noise(20, 96, 96) + 0.5 * planted(CHECKER, 96, 96)
        # Within 2 x 2 pixels white noise has three quarters of its variance, a lattice all.
        assert checkerboard(values).share.mean() == pytest.approx(0.25 / (0.25 + 0.75), rel=0.05)

    @pytest.mark.parametrize("low", [noise(20, 48, 48), bilinear(noise(20, 24, 24)), np.cumsum(noise(20, 48, 48), -1)])
    def test_bilinear_upsampling_has_none(self, low):
        share = checkerboard(bilinear(low)).share
        assert np.abs(share).max() < 0.02
        assert abs(share.mean()) < 0.005

    @pytest.mark.parametrize(
        "edges",
        [
            *(x > 47, x > 48, y > 51, x > y, 3 * x > y + 90, 2 * x > y + 40, x + 5 * y > 300, x % 16 < 8),
            (abs(x - 40) < 17) & (abs(y - 45) < 22),
            abs(x - 40) + abs(y - 45) < 25,
            np.hypot(y - 48, x - 48) < 30,
            abs(np.hypot(y - 48, x - 48) - 30) < 1.5,
            np.random.default_rng(0).uniform(size=(12, 12)).repeat(8, 0).repeat(8, 1) > 0.5,
        ],
    )
    def test_edges_have_none(self, edges):
        found = checkerboard(edges.astype(float))
        assert found.share < 0.04
        # Nor do they add to the power on the lines.
        assert np.isnan(found.nyquist) or found.nyquist < 1.3

    def test_white_noise_is_around_zero(self):
        share = checkerboard(noise(300, 40, 40), border=0).share
        error = share.std() / 300**0.5
        # The smaller of two numbers around 0 is a little below it.
        assert -0.02 < share.mean() < 4 * error
        assert np.abs(share).max() < 0.12

    def test_steps_of_a_slope_are_one_and_steps_of_detail_are_none(self):
        smooth = np.sin(np.mgrid[:48, :48].sum(0) / 9)
        assert checkerboard(np.kron(smooth, np.ones((2, 2)))).share > 0.2
        assert abs(checkerboard(np.kron(noise(48, 48), np.ones((2, 2)))).share) < 0.05
        assert abs(checkerboard(bilinear(smooth)).share) < 0.001

    def test_of_an_untrained_carafe_and_not_of_what_it_replaces(self):
        torch = pytest.importorskip("torch")
        from fadeviz.upsamplers import build_upsampler

        torch.manual_seed(0)
        x = torch.randn(4, 8, 12, 12)
        for name in ("bilinear", "bilinear", "carafe"):
            x = build_upsampler(name, 8)(x).detach()
        carafe = checkerboard(x.mean(1).numpy())
        y = build_upsampler("bilinear", 8)(torch.nn.functional.avg_pool2d(x, 2))
        replaced = checkerboard(y.mean(1).numpy())
        assert carafe.share.min() > 50 * np.abs(replaced.share).max()
        assert carafe.share.min() > 0.1
        assert carafe.nyquist.min() > 5 * replaced.nyquist.max()


def test_power_on_the_lines_of_the_null():
    assert checkerboard(bilinear(noise(30, 48, 48))).nyquist.max() < 1


def test_a_staircase_is_on_the_lines():
    low = bilinear(bilinear(noise(8, 20, 20)))
    stairs, smooth = checkerboard(low.repeat(2, -2).repeat(2, -1)), checkerboard(bilinear(low))
    assert (stairs.nyquist > 5 * smooth.nyquist).all()


@pytest.mark.parametrize("pattern", [CHECKER, STRIPES, STRIPES.T])
@pytest.mark.parametrize("amplitude", [0.05, 0.3, 2.0])
def test_a_planted_pattern_is_recovered(pattern, amplitude):
    y, x = np.mgrid[:104, :96]
    smooth = np.exp(-((y - 40) ** 2 + (x - 50) ** 2) / 25**2) + 0.01 * y + bilinear(noise(52, 48)) * 0.1
    found = checkerboard(smooth + amplitude * planted(pattern, 104, 96))
    assert found.amplitude == pytest.approx(amplitude, rel=0.03)
    within = np.lib.stride_tricks.sliding_window_view(smooth[4:-4, 4:-4], (2, 2)).var((-2, -1)).mean()
    assert found.share == pytest.approx(amplitude**2 / (within + amplitude**2), rel=0.05)
    assert found.nyquist > 3
    recovered = phase_pattern(smooth + amplitude * planted(pattern, 104, 96))
    assert recovered == pytest.approx(amplitude * pattern, abs=0.03 * amplitude)


def test_a_pattern_of_four_pixels_is_recovered_with_its_phases():
    pattern = noise(4, 4, seed=3)
    pattern -= pattern.mean()
    values = planted(pattern, 90, 81) + 0.02 * np.arange(81)
    assert phase_pattern(values, 4, border=5) == pytest.approx(pattern, abs=1e-9)
    assert checkerboard(values, 4).amplitude == pytest.approx((pattern**2).mean() ** 0.5, rel=1e-9)


def test_nothing_but_a_pattern_has_share_one():
    found = checkerboard(planted(CHECKER, 72, 80))
    assert found.share == pytest.approx(1)
    assert found.amplitude == pytest.approx(1)
    assert np.isnan(found.nyquist)


def test_a_trend_is_no_pattern():
    y, x = np.mgrid[:40, :40].astype(float)
    assert checkerboard(y).share == pytest.approx(0, abs=1e-9)
    for trend in (y, x, 3 * y - x + y * x / 40, y**2 - 3 * x**2):
        assert np.abs(phase_pattern(trend)).max() < 1e-9 * np.abs(trend).max()
    # The plain phase means are no 0 of it.
    assert abs(y[::2].mean() - y[1::2].mean()) == 1


def test_the_response_to_a_constant():
    kernel = np.array([[1.0, 0.8], [0.8, 0.6]])
    response = np.stack([planted(kernel, 24, 24), np.full((24, 24), 0.7)])
    response[:, 0] = response[:, :, -1] = 9  # zero padding reaches the border
    pattern = phase_pattern(response)
    assert pattern[0] == pytest.approx(kernel - 0.8)
    assert pattern[1] == pytest.approx(np.zeros((2, 2)), abs=1e-15)


def test_undefined_maps_are_missing():
    good, constant, broken = noise(40, 40), np.full((40, 40), 3.7), noise(40, 40)
    broken[20, 20] = np.inf
    rounding = np.float32(0.1) + np.float32(5e-9) * noise(40, 40).astype(np.float32)
    maps = np.stack([good, constant, broken, rounding, good * np.nan]).astype(np.float32).reshape(5, 1, 40, 40)
    missing = np.array([[False], [True], [True], [True], [True]])
    assert np.array_equal(~has_pattern(maps), missing)
    for measure in (radial_centroid, high_share, *(lambda m, i=i: checkerboard(m)[i] for i in range(3))):
        assert np.array_equal(np.isnan(measure(maps)), missing)
        assert np.isnan(measure(noise(10, 11)[None])).all()
        assert measure(np.empty((0, 3, 30, 30))).shape == (0, 3)
    assert np.array_equal(np.isnan(radial_spectrum(maps)[1]).all(-1), missing)
    pattern = phase_pattern(maps)
    assert np.array_equal(np.isnan(pattern).any((-2, -1)), [[False], [False], [True], [False], [True]])
    assert np.isnan(phase_pattern(noise(9, 9))).all()
    assert len(np.unique(maps[3])) > 1
    # Wide enough for a spectrum, not for blocks of whole periods.
    small = checkerboard(noise(20, 17), 4, border=0)
    assert np.isnan([small.share, small.amplitude, small.nyquist]).tolist() == [True, True, False]
    # What is not finite only in the border that is cropped does no harm.
    edge = good.copy()
    edge[0, 0] = np.nan
    assert radial_centroid(edge) == radial_centroid(good)
    assert checkerboard(edge).share == checkerboard(good).share
    assert np.array_equal(phase_pattern(edge), phase_pattern(good))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: radial_centroid(np.zeros(5)), r"\(..., h, w\) are needed"),
        (lambda: radial_centroid(np.zeros((9, 9)), -1), "border=-1"),
        (lambda: high_share(np.zeros((9, 9)), 0.8), "above=0.8"),
        (lambda: radial_spectrum(np.zeros((9, 9)), 0), "bins=0"),
        (lambda: checkerboard(np.zeros((9, 9)), 1), "scale=1"),
        (lambda: phase_pattern(np.zeros((9, 9)), 2, -2), "border=-2"),
    ],
)
def test_messages(call, message):
    with pytest.raises(FadevizError, match=message):
        call()
