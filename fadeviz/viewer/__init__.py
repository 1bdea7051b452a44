"""The viewer: a local page that lists the runs below folders, shows their maps, and follows those being recorded."""

from .server import Viewer, view

__all__ = ["Viewer", "view"]
