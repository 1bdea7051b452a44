"""That training learns what the images claim: minutes, so `pytest -m slow`."""

import numpy as np
import pytest

from fadeviz import open_run
from fadeviz.data.synthetic.dataset import TEST_DRAWINGS, SyntheticHorses
from fadeviz.demo import IMAGE, UPSAMPLERS, run_demo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    run_demo(out)
    return {name: open_run(out / name) for name in UPSAMPLERS}


def colour_rule_iou(config):
    """Horse IoU on the demo's test drawings of the best rule that sees one pixel's colour, fitted to 200 others."""

    def pixels(stream, count):
        seed = config["split_seed" if stream == "test" else "seed"]
        samples = [SyntheticHorses(128, seed, stream=stream)[i] for i in range(count)]
        colours = np.stack([s.image for s in samples]).reshape(-1, 3).astype(np.int64) // 32
        return colours @ [64, 8, 1], np.stack([s.mask for s in samples]).reshape(-1) == 1

    bins, horse = pixels("train", 200)
    share = np.bincount(bins, horse, minlength=512) / np.maximum(np.bincount(bins, minlength=512), 1)
    test_bins, test_horse = pixels("test", TEST_DRAWINGS)
    best = 0.0
    for threshold in np.linspace(0.05, 0.95, 37):  # the best threshold for the test itself: in the rule's favour
        found = share[test_bins] > threshold
        best = max(best, (found & test_horse).sum() / (found | test_horse).sum())
    return best


def test_fade_learns_what_colour_alone_does_not_tell(demo):
    colour = colour_rule_iou(demo["fade"].info.config)
    assert 0.2 < colour < 0.45
    assert demo["fade"].info.result["iou"] > colour + 0.1


def test_a_horse_is_visible_in_the_late_frames(demo):
    """Inside and outside of the mask differ in FADE's last map, for one polarity or the other (0.5: not at all)."""
    run = demo["fade"]
    ranks = []
    for value, mask in zip(run.maps(kind="feature")[-1], run.observation[1], strict=True):
        share = mask.reshape(64, 2, 64, 2).mean((1, 3))
        inside, outside = value[share == 1], value[share == 0]
        rank = (inside[:, None] > outside[None]).mean()
        ranks.append(max(rank, 1 - rank))
    assert ranks[IMAGE] > 0.75  # the image that the demo's figures show
    assert np.mean(ranks) > 0.62
