"""What to draw: one dataclass, whose fields are also the keyword arguments of public functions."""

import dataclasses
from typing import get_type_hints

import pytest

from fadeviz.errors import FadevizError
from fadeviz.render.selection import MapOptions, MapSelection


def test_the_keyword_arguments_are_the_fields():
    assert get_type_hints(MapOptions) == get_type_hints(MapSelection)
    assert MapOptions.__required_keys__ == frozenset()
    assert [field.name for field in dataclasses.fields(MapSelection)] == list(MapOptions.__annotations__)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channel": 3}, "channel=3: 'feature' maps have no channels. Use kind='channels', or omit channel=..."),
        ({"kind": "gate", "channel": [0]}, "'gate' maps have no channels"),
        ({"kind": "channels", "channel": []}, "channel=[]: give at least one channel"),
        ({"kind": "channels", "channels": 0}, "channels=0: must be at least 1"),
    ],
)
def test_selections_that_fit_no_run(options, message):
    with pytest.raises(FadevizError) as caught:
        MapSelection(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize("channel", [0, [0, 2], range(3), None])
def test_channels_of_a_kind_that_has_them(channel):
    assert MapSelection(kind="channels", channel=channel).channel == channel
