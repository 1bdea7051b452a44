"""What to draw: one dataclass, whose fields are also the keyword arguments of public functions."""

import dataclasses
from typing import get_type_hints

import pytest

from fadeviz.errors import FadevizError
from fadeviz.render.selection import ContentOptions, FigureContent, MapOptions, MapSelection, parse_crop, split_options
from fadeviz.render.style import FigureStyle


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


def test_the_content_of_a_figure_has_the_same_options():
    assert get_type_hints(ContentOptions) == get_type_hints(FigureContent)
    assert [field.name for field in dataclasses.fields(FigureContent)] == list(ContentOptions.__annotations__)


def test_options_are_split_into_their_parts():
    maps, content, style = split_options({"kind": "gate", "title": "T", "width": "85mm", "crop": (1, 2, 3)})
    assert maps == MapSelection(kind="gate")
    assert content == FigureContent(title="T", crop=(1, 2, 3))
    assert style == FigureStyle(width="85mm")
    with pytest.raises(TypeError, match="colour"):
        split_options({"colour": "red"})


@pytest.mark.parametrize("text", ["", "1,2", "1,2,3,4", "a,b,c", "-1,0,4", "1.5,0,4"])
def test_what_is_no_crop(text):
    with pytest.raises(FadevizError, match="must be a window in pixels: LEFT,TOP,SIDE"):
        parse_crop(text)
