"""Formulas as MathML, which browsers typeset themselves: no script, no font and no network are needed."""

import re
from html import escape

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)


def convert(node: nodes.Element, *, as_block: bool) -> str:
    """A formula as MathML; one that cannot be converted is a warning, and stays as it was written."""
    text = node.astext().replace(r"\dots", r"\ldots")  # docutils does not know the first
    # docutils would put the index of an accented letter below it.
    text = re.sub(r"(\\(?:bar|hat|tilde)\s*(?:\{[^{}]*\}|\\[A-Za-z]+|[A-Za-z]))_", r"\1{}_", text)
    try:
        mathml = tex2mathml(text, as_block=as_block)
    except (MathError, IndexError) as error:  # IndexError: docutils, for an argument that is missing
        logger.warning("formula %r: %s", text, error, location=node)
        return f"<code>{escape(text)}</code>"
    # Braces, bars and brackets without \\left and \\right keep their size, as parentheses do.
    mathml = re.sub(r'<mo(?: class="\w+")?>([{}\[\]])</mo>', r'<mo stretchy="false">\1</mo>', mathml)
    return re.sub(r'<mo(?: class="\w+")?>\|</mo>', '<mo stretchy="false" lspace="0" rspace="0">|</mo>', mathml)


def visit_inline(translator: HTML5Translator, node: nodes.math) -> None:
    """Write a formula within a line."""
    translator.body.append(convert(node, as_block=False))
    raise nodes.SkipNode


def visit_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula that stands by itself; it scrolls where it is wider than the page."""
    translator.body.append(f'<div class="math-block">{convert(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer ``mathml``."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
