"""Pages that are made of the repository when the site is built: operators, commands, the API and the gallery.

They are written to docs/generated, which git ignores; a page whose text is the same keeps its time, so that a second
build is quick.
"""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import dedent

import click
from docutils import nodes
from fadeviz_cli.main import main
from PIL import Image
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import fadeviz
from fadeviz.models import NETWORKS
from fadeviz.models.costs import operator_cost
from fadeviz.upsamplers import UPSAMPLERS

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
GENERATED = DOCS / "generated"
GALLERY = ROOT / "outputs" / "gallery"

IMAGE_WIDTH = 1000
"""Widest image on a page, in pixels; a click opens the original."""

SECTIONS = ("Limit cases", "Limit case", "Shape", "Units", "Cost", "Raises", "Source", "Differs")
"""The sections of an operator's docstring, which follow its formula in this order."""

NEEDS = {"": "nothing", "indices": "pooling indices", "feature": "the encoder feature"}

LIBRARY = {
    "Recording": ("fadeviz.recording.probe", "fadeviz.recording.views", "fadeviz.storage.schedule"),
    "Training": ("fadeviz.experiment", "fadeviz.sweep"),
    "Operators": (
        "fadeviz.upsamplers.base",
        "fadeviz.replacement.report",
        "fadeviz.models.base",
        "fadeviz.models.costs",
        "fadeviz.ops.reassemble",
    ),
    "Drawing": (
        "fadeviz.render.selection",
        "fadeviz.render.normalize",
        "fadeviz.render.step_axis",
        "fadeviz.plotting",
    ),
    "Analysis": (
        "fadeviz.analysis.result",
        "fadeviz.analysis.measures",
        "fadeviz.analysis.regions",
        "fadeviz.analysis.ranks",
        "fadeviz.analysis.zones",
        "fadeviz.analysis.contrasts",
        "fadeviz.analysis.chance",
        "fadeviz.analysis.arrival",
        "fadeviz.analysis.jackknife",
        "fadeviz.analysis.onset",
        "fadeviz.analysis.verdicts",
        "fadeviz.analysis.controls",
        "fadeviz.analysis.onsets",
        "fadeviz.analysis.sentences",
        "fadeviz.analysis.kymograph",
        "fadeviz.analysis.statistics",
        "fadeviz.analysis.curves",
        "fadeviz.analysis.table",
        "fadeviz.analysis.spectrum",
        "fadeviz.analysis.similarity",
        "fadeviz.analysis.classes",
        "fadeviz.analysis.gates",
        "fadeviz.analysis.splices",
    ),
    "Errors": ("fadeviz.errors",),
}
"""Modules behind the front door that have a page of their own."""


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages before Sphinx looks for its sources, and mend links that lead out of docs/."""
    app.connect("config-inited", lambda app, config: write_pages())
    app.connect("source-read", mend_links)
    app.connect("missing-reference", find_at_front_door)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write_pages() -> None:
    """Write every generated page, and remove those that are no more."""
    pages = {**operator_pages(), **command_pages(), **api_pages(), **gallery_pages()}
    (GENERATED / "extra").mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        path = GENERATED / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    for path in [*GENERATED.rglob("*.rst"), *GENERATED.rglob("*.md")]:
        if path.relative_to(GENERATED).as_posix() not in pages and GENERATED / "extra" not in path.parents:
            path.unlink()


def title(text: str, line: str = "=") -> list[str]:
    """A heading in reStructuredText."""
    return [text, line * len(text), ""]


def table(rows: Iterable[Sequence[str]], header: bool = True) -> list[str]:
    """A table in reStructuredText; its first row is the header."""
    lines = [".. list-table::", *(["   :header-rows: 1"] if header else []), ""]
    for row in rows:
        lines += [f"   {'*' if i == 0 else ' '} - {cell}" for i, cell in enumerate(row)]
    return [*lines, ""]


def toctree(entries: Iterable[str], depth: int = 1) -> list[str]:
    """A hidden table of contents."""
    return [".. toctree::", "   :hidden:", f"   :maxdepth: {depth}", "", *(f"   {entry}" for entry in entries), ""]


# Operators


def split_docstring(text: str) -> tuple[str, dict[str, str]]:
    """An operator's docstring: what comes before its first section, and the sections by name."""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):\n", text, flags=re.MULTILINE)
    sections = {name: dedent(body).strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}
    if "Raises" in sections:
        error, _, condition = sections["Raises"].partition(": ")
        sections["Raises"] = f"``{error}`` {' '.join(condition.split())}"
    return parts[0].strip(), sections


def operator_pages() -> dict[str, str]:
    """A page an operator, and the table of all."""
    pages = {f"operators/{name}.rst": operator_page(name) for name in UPSAMPLERS}
    rows = [("Operator", "``--upsampler``", "Reads of the encoder", "Year")]
    for name, entry in UPSAMPLERS.items():
        rows.append((f":doc:`{name}`", f"``{name}``", NEEDS[entry.needs], str(entry.year or "")))
    lines = [*title("All operators"), *table(rows), *toctree(UPSAMPLERS)]
    return {**pages, "operators/index.rst": "\n".join(lines)}


def operator_page(name: str) -> str:
    """One operator: its docstring, its options and what it costs."""
    entry = UPSAMPLERS[name]
    build = entry.build
    text, sections = split_docstring(inspect.getdoc(build) or "")
    first, _, rest = text.partition("\n\n")
    options = [p for p in inspect.signature(build).parameters.values() if p.name != "in_channels"]
    lines = [*title(entry.title), *table(operator_facts(name), header=False), first, ""]
    lines += [*title("Definition", "-"), rest, ""] if rest else []
    lines += title("Properties", "-")
    for section, body in sections.items():
        lines += [section, *(f"   {line}".rstrip() for line in body.splitlines()), ""]
    lines += title("Options", "-")
    lines += [
        f"On the command line ``--upsampler {name}:option=value,option=value``; in Python keyword arguments of",
        "",
    ]
    lines += [f".. py:class:: {build.__module__}.{build.__qualname__}{signature(build)}", "   :no-index:", ""]
    lines += [f"   {line}".rstrip() for line in (inspect.getdoc(build.__init__) or "").splitlines()]
    lines += ["", *table([("Option", "Default"), *((f"``{p.name}``", f"``{p.default}``") for p in options)])]
    lines += [*title("What it costs in the networks", "-"), "All sites of the operator together, for one image.", ""]
    lines += table([("Network", "Parameters", "Multiply-adds"), *costs(name)])
    return "\n".join(lines)


def operator_facts(name: str) -> list[tuple[str, str]]:
    """The table at the head of an operator's page."""
    entry = UPSAMPLERS[name]
    facts = [("Command line", f"``fadeviz record --upsampler {name}``")]
    facts += [("Python", f"``fadeviz.upsamplers.{entry.build.__name__}``")]
    facts += [("Reads of the encoder", NEEDS[entry.needs])]
    return [*facts, ("Published", f"{entry.paper}, {entry.year}")] if entry.year else facts


def signature(build: type) -> str:
    """The arguments of a class with their defaults, without types."""
    parameters = inspect.signature(build).parameters.values()
    return f"({', '.join(p.name if p.default is p.empty else f'{p.name}={p.default!r}' for p in parameters)})"


def costs(name: str) -> list[tuple[str, str, str]]:
    """Parameters and multiply-adds in each network."""
    rows = []
    for key, network in NETWORKS.items():
        cost = operator_cost(name, key)
        title = f"{network.title}, image of {network.reference_size}x{network.reference_size}"
        rows.append((title, f"{cost.parameters:,}", f"{cost.multiply_adds:,}"))
    return rows


# Commands


def command_pages() -> dict[str, str]:
    """A page a command, from its options."""
    context = click.Context(main, info_name="fadeviz")
    commands = {name: main.get_command(context, name) for name in main.list_commands(context)}
    pages, rows = {}, [("Command", "What it does")]
    for name, command in commands.items():
        if command is None:
            continue
        rows.append((f":doc:`fadeviz {name} <{name}>`", command.get_short_help_str(200)))
        nested = "full" if isinstance(command, click.Group) else "none"
        lines = [f".. click:: {place(command)}", f"   :prog: fadeviz {name}", f"   :nested: {nested}", ""]
        pages[f"commands/{name}.rst"] = "\n".join(lines)  # the directive writes the heading
    lines = [*title("All commands"), *table(rows), *toctree(commands)]
    return {**pages, "commands/index.rst": "\n".join(lines)}


def place(command: click.Command) -> str:
    """Where a command is defined, as ``module:name``."""
    callback = inspect.unwrap(command.callback) if command.callback else main.callback
    module = inspect.getmodule(callback)
    names = [name for name, value in vars(module).items() if value is command]
    return f"{module.__name__}:{names[0]}"


# The API


def api_pages() -> dict[str, str]:
    """A page for each public name of ``fadeviz``, and one for each module of ``LIBRARY``."""
    names = sorted(name for name in fadeviz.__all__ if not name.startswith("_"))
    pages, rows = {}, [("Name", "What it is")]
    for name in names:
        value = getattr(fadeviz, name)
        rows.append((f":doc:`fadeviz.{name} <{name}>`", summary(value)))
        pages[f"api/{name}.rst"] = "\n".join([*title(f"fadeviz.{name}"), *api_entry(name, value)])
    lines = [*title("API reference"), "What ``import fadeviz`` offers:", "", *table(rows)]
    lines += [*title("Modules", "-"), "What the names above are built from.", ""]
    modules = [module for group in LIBRARY.values() for module in group if exists(module)]
    for module in modules:
        exclude = ", ".join(names)  # these have pages of their own
        options = ["   :members:", f"   :exclude-members: {exclude}", "   :show-inheritance:", ""]
        pages[f"api/{module}.rst"] = "\n".join([*title(module), f".. automodule:: {module}", *options])
    rows = [(group, ", ".join(f":doc:`{m} <{m}>`" for m in known if exists(m))) for group, known in LIBRARY.items()]
    lines += [*table([row for row in rows if row[1]], header=False), *toctree([*names, *modules])]
    return {**pages, "api/index.rst": "\n".join(lines)}


def api_entry(name: str, value: object) -> list[str]:
    """The directive that documents a public name."""
    if inspect.isclass(value):
        return [
            f".. autoclass:: fadeviz.{name}",
            "   :members:",
            "   :inherited-members: Exception, tuple, dict, Module",
        ]
    return [f".. {'autofunction' if callable(value) else 'autodata'}:: fadeviz.{name}"]


def summary(value: object) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ")


def exists(module: str) -> bool:
    """Whether there is such a module."""
    return (ROOT / f"{module.replace('.', '/')}.py").exists() or (ROOT / module.replace(".", "/")).is_dir()


def find_at_front_door(
    app: Sphinx, environment: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """Resolve a reference to ``fadeviz.storage.schedule.Schedule`` to ``fadeviz.Schedule``, where it is documented."""
    name = node.get("reftarget", "").rpartition(".")[2]
    if node.get("refdomain") != "py" or name not in fadeviz.__all__:
        return None
    domain = environment.domains["py"]
    return domain.resolve_xref(
        environment, node["refdoc"], app.builder, node["reftype"], f"fadeviz.{name}", node, content
    )


# The gallery


def gallery_pages() -> dict[str, str]:
    """The gallery and the study as pages: reduced images, which open the originals."""
    shutil.copytree(GALLERY, GENERATED / "extra" / "gallery", dirs_exist_ok=True)
    return {
        "gallery.md": gallery_page(GALLERY / "README.md"),
        "study.md": gallery_page(GALLERY / "study" / "STUDY.md"),
    }


def gallery_page(path: Path) -> str:
    """One Markdown file of the gallery, with images and links that hold on the site."""
    folder = path.parent

    def image(match: re.Match[str]) -> str:
        file = folder / match[2]
        return f'<img class="figure" alt="{match[1]}" src="{reduced(file)}">'

    def linked_image(match: re.Match[str]) -> str:
        return f'<a href="{target(folder / match[3])}">{image(match)}</a>'

    def plain_image(match: re.Match[str]) -> str:
        return f'<a href="../{original(folder / match[2])}">{image(match)}</a>'

    def link(match: re.Match[str]) -> str:
        return f'<a href="{target(folder / match[2])}">{match[1]}</a>'

    text = re.sub(r"\[!\[([^\]]*)\]\(([^)]+)\)\]\(([^)]+)\)", linked_image, path.read_text())
    text = re.sub(r"!\[([^\]]*)\]\(([^)]+)\)", plain_image, text)
    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?:)([^)#]+)\)", link, text)


def target(file: Path) -> str:
    """Where a link of the gallery leads on the site, from a page in generated/."""
    file = file.resolve()
    if file.name == "STUDY.md":
        return "study.html"
    if file == (GALLERY / "README.md").resolve():
        return "gallery.html"
    if DOCS in file.parents and file.suffix == ".md":
        return f"../{file.relative_to(DOCS).with_suffix('.html').as_posix()}"
    return f"../{original(file)}"


def original(file: Path) -> str:
    """A file of the gallery as the site has it, from its root."""
    return f"gallery/{file.resolve().relative_to(GALLERY).as_posix()}"


def reduced(file: Path) -> str:
    """An image no wider than ``IMAGE_WIDTH``, in fewer bytes, as a page in generated/ names it."""
    place = GENERATED / "extra" / "reduced" / file.resolve().relative_to(GALLERY).with_suffix(".webp")
    with Image.open(file) as image:
        if getattr(image, "is_animated", False) or image.width <= IMAGE_WIDTH:
            return f"../{original(file)}"
        if not place.exists() or place.stat().st_mtime < file.stat().st_mtime:
            place.parent.mkdir(parents=True, exist_ok=True)
            size = (IMAGE_WIDTH, round(image.height * IMAGE_WIDTH / image.width))
            image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(place, quality=85)
    return f"../{place.relative_to(GENERATED / 'extra').as_posix()}"


# Links


def mend_links(app: Sphinx, name: str, source: list[str]) -> None:
    """Links of hand-written pages that leave docs/ work on a code host; the site has those files under other names."""
    if name.startswith("generated/"):
        return
    here = (DOCS / name).parent

    def link(match: re.Match[str]) -> str:
        file = (here / match[2]).resolve()
        if DOCS in file.parents:
            return match[0]
        up = "../" * name.count("/")
        if file == GALLERY or file == GALLERY / "README.md":
            return f"[{match[1]}]({up}generated/gallery.md)"
        if file.name == "STUDY.md":
            return f"[{match[1]}]({up}generated/study.md)"
        path = file.relative_to(ROOT).as_posix()
        return f"`{path}`" if match[1].strip("`") == path or match[1] in path else f"{match[1]} (`{path}`)"

    source[0] = re.sub(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#]*)\)", link, source[0])
