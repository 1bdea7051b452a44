"""Fonts inside SVG files: text stays text, and looks the same where the font is not installed."""

from __future__ import annotations

import base64
import html
import io
import re
from functools import lru_cache

from .fonts import Face, other_faces, own_faces

_TEXT = re.compile(r"<text\b[^>]*>(.*?)</text>", re.DOTALL)
_TAG = re.compile(r"<[^>]*>")


def embed_fonts(svg: str) -> str:
    """Embed the glyphs that the text of an SVG uses, as fonts of which it is drawn first.

    Args:
        svg: a file whose text is text, drawn in the main font (:func:`~fadeviz.render.fonts.main_family`).

    Returns:
        The file with a font for each weight of the main one that it uses, and for other fonts of missing characters.
    """
    text = html.unescape(_TAG.sub("", "".join(_TEXT.findall(svg))))
    characters = "".join(sorted(set(text) - {"\n"}))
    regular, bold = own_faces()
    faces = [(regular, 400, characters)]
    if re.search(r"font(-weight)?: (700|bold)", svg):
        faces.append((bold, 700, characters))
    faces += [(face, 400, letters) for face, letters in other_faces(characters).items()]
    rules = "".join(_rule(face, weight, letters) for face, weight, letters in faces if letters)
    return svg.replace("</style>", f"{rules}</style>", 1)


def _rule(face: Face, weight: int, characters: str) -> str:
    if not face.path.lower().endswith((".ttf", ".otf")):  # a collection: a browser may have it installed
        return ""
    data = base64.b64encode(_glyphs(face.path, characters)).decode()
    family = html.escape(face.family.replace("\\", "").replace("'", ""), quote=False)
    return f"@font-face{{font-family:'{family}';font-weight:{weight};src:url(data:font/ttf;base64,{data})}}"


@lru_cache(maxsize=16)
def _glyphs(path: str, characters: str) -> bytes:
    """A font with the glyphs of these characters alone."""
    # matplotlib needs fontTools, to embed fonts in PDF files.
    from fontTools import subset
    from fontTools.ttLib import TTFont

    font = TTFont(path, recalcTimestamp=False)
    options = subset.Options(hinting=False, layout_features=["kern"], notdef_outline=True)
    options.drop_tables += ["FFTM"]  # says when it was made
    cut = subset.Subsetter(options)
    cut.populate(text=characters)
    cut.subset(font)
    file = io.BytesIO()
    font.save(file)
    return file.getvalue()


__all__ = ["embed_fonts"]
