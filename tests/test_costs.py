"""The cost table against the rows that were published or worked out by hand, to the digits given."""

import pytest
import torch

from fadeviz.models import NETWORKS
from fadeviz.models.costs import operator_cost
from fadeviz.upsamplers import UPSAMPLERS

# Millions of parameters and thousands of millions of multiply-adds, as strings: their digits say how exact they are.
SEGNET = {
    "deconv": ("5.494", "1.965"),
    "pixel_shuffle": ("21.98", "7.861"),
    "carafe": ("0.383", "1.213"),
    "indexnet": ("0.0236", "0.024"),
    "indexnet:kind=m2o": ("9.765", "3.494"),
    "a2u": ("0.062", "0.167"),
    "sapa_i": ("0", "0.306"),
    "sapa_b": ("0.1004", "0.451"),
    "dysample": ("0.0473", "0.073"),
    "dysample:style=pl": ("0.0030", "0.037"),
    "fade": ("0.2623", "1.860"),
    "fade_lite": ("0.0765", "0.377"),
}
SEGFORMER = {
    "carafe": ("0.44", "1.45"),
    "indexnet:nonlinear=true,context=true": ("12.60", "30.65"),
    "a2u:down_head=true": ("0.12", "0.41"),
    "fade": ("0.29", "2.65"),
    "fade_lite": ("0.080", "0.89"),
    "sapa_i": ("0", "0.75"),
    "sapa_b": ("0.10", "1.02"),
    "deconv": ("3.54", None),
    "pixel_shuffle": ("14.16", None),
}
EXACT = {
    ("carafe", "segformer"): (6 * (64 * 256 + 57_764), None),
    ("indexnet:nonlinear=true,context=true", "segformer"): (6 * (32 * 256**2 + 12 * 256), None),
    ("a2u:down_head=true", "segformer"): (6 * (78 * 256 + 74), None),
    ("a2u", "segformer"): (6 * (42 * 256 + 38), None),
    ("fade", "segformer"): (6 * (129 * 256 + 14_490), 14_592 * (5 * (64 * 256 + 14_400) + 256 + 100 * 256 + 8 * 256)),
    ("fade_lite", "segformer"): (6 * (51 * 256 + 276), None),
    ("sapa_b", "segformer"): (6 * (68 * 256 + 64), None),
    ("dysample", "segformer"): (6 * (32 * 256 + 32), None),
}
"""By formula; 14,592 low-resolution pixels lie at the six sites."""


def digits(value, wanted):
    """The value in millions or thousands of millions with as many decimal places as were published."""
    return f"{value:.{len(wanted.partition('.')[2])}f}"


@pytest.mark.parametrize(("network", "rows"), [("segnet", SEGNET), ("segformer", SEGFORMER)])
def test_published_rows(network, rows):
    for name, (parameters, multiply_adds) in rows.items():
        cost = operator_cost(name, network)
        assert digits(cost.parameters / 1e6, parameters) == parameters, name
        if multiply_adds is not None:
            assert digits(cost.multiply_adds / 1e9, multiply_adds) == multiply_adds, name


def test_formulas():
    assert sum(side**2 for _, side in NETWORKS["segformer"].sites) == 14_592
    for (name, network), (parameters, multiply_adds) in EXACT.items():
        cost = operator_cost(name, network)
        assert cost.parameters == parameters, name
        assert multiply_adds in (None, cost.multiply_adds), name


def test_nothing_is_drawn_to_count():
    before = torch.get_rng_state()
    for name in UPSAMPLERS:
        operator_cost(name, "segnet")
    assert torch.equal(torch.get_rng_state(), before)
