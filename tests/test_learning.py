"""That training learns what the images claim: minutes, so `pytest -m slow`."""

import numpy as np
import pytest

from fadeviz import open_run
from fadeviz.data.synthetic.dataset import TEST_DRAWINGS, SyntheticHorses
from fadeviz.demo import IMAGE, RUNS, run_demo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    run_demo(out)
    return {names: open_run(out / "-".join(names)) for names in RUNS}


def colour_rule_iou(config):
    """Horse IoU on the demo's test drawings of the best rule that sees one pixel's colour, fitted to 200 others."""

    def pixels(stream, count):
        seed = config["split_seed" if stream == "test" else "seed"]
        samples = [SyntheticHorses(config["size"], seed, stream=stream)[i] for i in range(count)]
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


@pytest.mark.parametrize("names", RUNS[:2], ids="-".join)  # in SegNet they need more steps, CARAFE far more
def test_they_learn_what_colour_alone_does_not_tell(demo, names):
    colour = colour_rule_iou(demo[names].info.config)
    assert 0.2 < colour < 0.45
    assert demo[names].info.result["iou"] > colour + 0.1


def test_a_horse_is_visible_in_the_late_frames(demo):
    """Inside and outside of the mask differ in FADE's last map, for one polarity or the other (0.5: not at all)."""
    run = demo["unet", "fade"]
    ranks = []
    for value, mask in zip(run.maps(kind="feature")[-1], run.observation[1], strict=True):
        share = mask.reshape(48, 2, 48, 2).mean((1, 3))
        inside, outside = value[share == 1], value[share == 0]
        rank = (inside[:, None] > outside[None]).mean()
        ranks.append(max(rank, 1 - rank))
    assert ranks[IMAGE] > 0.75  # the image that the demo's figures show
    assert np.mean(ranks) > 0.62
