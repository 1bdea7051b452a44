"""The documentation: what its pages show runs, its links lead somewhere, and nothing is left out."""

import inspect
import itertools
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from fadeviz_cli.main import main

from fadeviz.data.synthetic import dataset as synthetic
from fadeviz.upsamplers import UPSAMPLERS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in DOCS.rglob("*.md")
    if not {"generated", "_build"} & set(path.relative_to(DOCS).parts)
)
TUTORIALS = [f"tutorials/{path.stem}" for path in DOCS.glob("tutorials/*.md")]
EXECUTED = ["quickstart", "recorder", "operators", "replacing", *TUTORIALS]
"""Pages whose ``python`` and ``sh`` blocks run, from top to bottom in one folder; ``console`` blocks are only shown."""


@pytest.fixture(autouse=True)
def _few_test_images(monkeypatch):
    monkeypatch.setattr(synthetic, "TEST_DRAWINGS", 12)


def blocks(text):
    """The fenced blocks of a page: language and content."""
    return re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def command_lines(text):
    """The words of each ``fadeviz`` command in a block."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words and words[0] == "fadeviz":
            yield list(itertools.takewhile(lambda word: word not in (">", "|", ";"), words[1:]))


LONG = (
    "quickstart",
    *("tutorials/compare_operators", "tutorials/own_figures", "tutorials/read_report", "tutorials/sweep_on_a_cluster"),
)
"""Pages that train several networks: up to half a minute each on two cores."""


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow) if page in LONG else page for page in EXECUTED]
)
def test_the_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    count = 0
    for language, code in blocks((DOCS / f"{page}.md").read_text()):
        if language == "python":
            exec(compile(code.replace("range(1, 301)", "range(1, 23)"), f"{page}.md", "exec"), namespace)
            count += 1
        elif language == "sh":
            for words in command_lines(code):
                result = CliRunner().invoke(main, words, catch_exceptions=False)
                assert result.exit_code == 0, f"fadeviz {shlex.join(words)}\n{result.output}"
                count += 1
    assert count >= 1


def find_command(words):
    """A command and the words after its name."""
    command = main
    while isinstance(command, click.Group) and words:
        assert words[0] in command.commands, words
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("page", PAGES)
def test_every_command_line_on_the_page_parses(page):
    for language, code in blocks((ROOT / page).read_text()):
        for line in command_lines(code) if language in ("sh", "console") else ():
            command, words = find_command(line)
            command.make_context(command.name, words)  # raises for an unknown or missing option


@pytest.mark.parametrize("page", PAGES)
def test_every_command_in_the_text_exists_and_has_the_options(page):
    for line in re.findall(r"`fadeviz ([a-z][^`]*)`", (ROOT / page).read_text()):
        command, words = find_command(shlex.split(line))
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known | {"--help"}, line


@pytest.mark.parametrize("page", [*PAGES, "README.md", "CONTRIBUTING.md", "outputs/gallery/README.md"])
def test_every_link_on_the_page_leads_to_a_file(page):
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if re.match(r"[a-z]+:", target) or target.startswith("generated/"):
            continue
        assert ((ROOT / page).parent / target).exists(), target


def test_every_page_is_in_the_table_of_contents():
    listed = set(re.findall(r"^[\w/]+$", (DOCS / "index.md").read_text(), re.MULTILINE))
    assert {page.removeprefix("docs/").removesuffix(".md") for page in PAGES} - {"index"} <= listed


SECTIONS = ("Limit case", "Limit cases", "Shape", "Units", "Cost", "Raises", "Source", "Differs")


@pytest.mark.parametrize("name", UPSAMPLERS)
def test_the_docstring_of_an_operator_has_a_formula_and_sections_in_their_order(name):
    summary, _, rest = inspect.getdoc(UPSAMPLERS[name].build).partition("\n\n")
    assert "\n" not in summary
    assert rest.startswith(".. math::\n\n    ")
    sections = re.findall(r"^([A-Z][A-Za-z ]+):$", rest, re.MULTILINE)
    assert sections == [section for section in SECTIONS if section in sections]
    assert {"Shape", "Cost"} < set(sections)
    assert ("Limit case" in sections) != ("Limit cases" in sections)


def test_every_test_that_the_page_of_faults_names_exists():
    names = set(re.findall(r"`([Tt]est_?\w+)(?:\.\.\.)?`", (DOCS / "faults.md").read_text()))
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    assert len(names) > 60
    assert not [name for name in sorted(names) if not re.search(rf"^\s*(def|class) {name}", tests, re.MULTILINE)]


def test_the_first_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_version_has_one_source():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert "version" in project["dynamic"]
    assert not re.search(r"^version:", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)


def test_the_citation_names_the_authors_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = (ROOT / "CITATION.cff").read_text()
    for author in project["authors"]:
        assert f'name: "{author["name"]}"' in citation
    assert f"license: {project['license']}" in citation
