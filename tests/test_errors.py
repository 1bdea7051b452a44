"""The errors a user meets: a missing extra is an ImportError too, and names the command that installs it."""

import pytest

from fadeviz.errors import FadevizError, MissingExtra


@pytest.mark.parametrize("caught_as", [FadevizError, ImportError, ValueError])
def test_a_missing_extra_is_an_import_error_too(caught_as):
    with pytest.raises(caught_as, match=r'^MP4 needs ffmpeg\. Install it, .*: pip install "\.\[video\]"$'):
        raise MissingExtra("video", "MP4 needs ffmpeg")
