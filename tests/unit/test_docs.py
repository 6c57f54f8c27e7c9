"""Documents tell what is there: citations, links, names, flags and variables are looked up."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from ltx2rt.cli.__main__ import COMMANDS
from ltx2rt.cli.fields import all_flags, flags_for
from ltx2rt.pipelines.base import pipeline_class
from tests.module_tables import PAGE, ROOT, folders, modules, rewritten, sentence
from tests.unit.test_house_rules import tracked

SPEC = ROOT / "docs/spec"
NUMBER = r"\d+(?:\.\d+)?"
#: `spec/audio.md §4.1`, `spec/audio.md §4 to §6`, across line breaks of comments
CITATION = re.compile(
    rf"(?<![\w/])spec/(\w+\.md)((?:[\s#:]+§{NUMBER}(?:(?:,| and| to)[\s#:]+§{NUMBER})*)?)"
)
#: other spellings of a section, which nothing would check
LOOSE = re.compile(rf"(?<![\w/])spec/\w+\.md`?,?\s[\s#:]*(?:sections?\b|{NUMBER})")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
    *sorted((ROOT / "kernels").rglob("*.md")),
]
#: files that pages name although they are not here: another project's, and one that must not be
ELSEWHERE = {"comfy_extras/nodes_lt.py", "utils.py"}
#: pages about this code, as opposed to the specification, which is about the official package
OURS = [p for p in PAGES if SPEC not in p.parents]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def files() -> frozenset[str]:
    return frozenset(name_of(p) for p in tracked())


@cache
def sources() -> dict[str, str]:
    """The text of every Python file but this one, by name."""
    own = name_of(Path(__file__))
    return {f: (ROOT / f).read_text() for f in files() if f.endswith(".py") and f != own}


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", text)


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", prose(page.read_text()), re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    plain = [re.sub(r"[^\w\- ]", "", h.lower()) for h in headings(page)]
    return {h.replace(" ", "-") for h in plain}


@cache
def sections(name: str) -> set[str]:
    """Numbers of a specification page's sections."""
    found = (re.match(rf"({NUMBER})\.? ", h) for h in headings(SPEC / name))
    return {m[1] for m in found if m}


def test_every_citation_is_a_section_of_the_specification() -> None:
    count, wrong = 0, []
    for path, text in {**sources(), **{name_of(p): p.read_text() for p in PAGES}}.items():
        wrong += [f"{path}: '{m[0]}': write §N" for m in LOOSE.finditer(text)]
        for name, cited in CITATION.findall(text):
            count += 1
            if not (SPEC / name).is_file():
                wrong.append(f"{path}: there is no docs/spec/{name}")
                continue
            unknown = set(re.findall(NUMBER, cited)) - sections(name)
            wrong += [f"{path}: spec/{name} has no §{n}" for n in sorted(unknown)]
    assert not wrong
    assert count > 100


@pytest.mark.parametrize("page", sorted(SPEC.glob("*.md")), ids=lambda p: p.name)
def test_sections_of_the_specification_are_numbered(page: Path) -> None:
    """Also the `§N` by which a page speaks of itself exist."""
    if page.name == "README.md":  # the index
        listed = re.findall(r"\]\((\w+\.md)", page.read_text())
        assert {p.name for p in SPEC.glob("*.md")} == {page.name, *listed}
        return
    title, *rest = headings(page)
    assert [h for h in rest if not re.match(rf"{NUMBER}\.? ", h)] == []
    own = re.sub(r"\[[^\]]*\]\([^)]*\)", "", page.read_text())
    assert set(re.findall(rf"§({NUMBER})", own)) <= sections(page.name), title


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for target in LINK.findall(prose(page.read_text())):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            wrong.append(target)
    assert not wrong


def test_the_modules_page_is_up_to_date() -> None:
    """`make docs` writes it."""
    nameless = [name_of(m) for f in folders() for m in modules(f) if not sentence(m)]
    nameless += [name_of(f) for f in folders() if not sentence(f / "__init__.py")]
    assert not nameless, "these need a docstring: its first sentence is their row"
    text = PAGE.read_text()
    assert "`transformer.py` |" in text
    assert rewritten(text) == text, "run `make docs`"


@pytest.mark.parametrize("page", OURS, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    """`bundle/loader.py` is a tracked file of that ending, `media/` a folder."""
    places = files() | {f"{parent.as_posix()}/" for f in files() for parent in Path(f).parents}
    beside = name_of(page.parent) if page.parent != ROOT else ""
    wrong = []
    for code in CODE.findall(prose(page.read_text())):
        if not re.fullmatch(r"[\w./-]+(\.py|/)", code) or code in ELSEWHERE:
            continue
        ends = (f"/{code}", f"{beside}/{code.removeprefix('../')}")
        if code not in places and not any(f"/{p}".endswith(ends) for p in places):
            wrong.append(code)
    assert not wrong


def test_names_in_the_architecture_exist() -> None:
    """Identifiers in backticks occur in the source."""
    words = {w for text in sources().values() for w in re.findall(r"\w+", text)}
    words |= {part.partition(".")[0] for p in files() for part in p.split("/")}
    codes = CODE.findall(prose(PAGE.read_text()))
    dotted = [c for c in codes if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(\(.*\))?", c)]
    named = {c.partition("(")[0].rpartition(".")[2] for c in dotted if not c.endswith(".py")}
    assert len(named) > 20
    assert sorted(named - words) == []


def commands() -> Iterator[tuple[str, str]]:
    """Command lines in fenced blocks: page, line; comments and what is piped on are cut off."""
    for page in OURS:
        for language, block in FENCE.findall(page.read_text()):
            if language:
                continue
            for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
                yield name_of(page), re.split(r"\s{3,}|\s+#\s|\s\|\s", line.strip())[0]


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"ltx2rt {command}", exit_on_error=False, allow_abbrev=False
    )
    importlib.import_module(f"ltx2rt.cli.{command}").add_arguments(parser)
    return parser


LTX2RT = sorted({(page, line) for page, line in commands() if line.startswith("ltx2rt ")})


@pytest.mark.parametrize(("page", "line"), LTX2RT, ids=[line[:60] for _, line in LTX2RT])
def test_commands_are_understood(page: str, line: str) -> None:
    """Each parses: flags, types, choices and what is required; `...` stands for more."""
    command, *words = shlex.split(line.removeprefix("ltx2rt "))
    parser = parser_of(command)
    if "..." in line.split():
        words = [w for w in words if w != "..."]
        for action in parser._actions:
            action.required = False
    options = parser.parse_args(words)
    if command == "generate":
        given = {a.dest for a in parser._actions if set(a.option_strings) & {*words}}
        taken = flags_for(pipeline_class(options.pipeline or "distilled"))
        assert not (given & all_flags().keys()) - {flag.key for flag in taken}


def test_flags_in_the_text_exist() -> None:
    parsers = [sub for command in COMMANDS for sub in subparsers(parser_of(command))]
    flags = {flag for p in parsers for action in p._actions for flag in action.option_strings}
    outside = (text for f, text in sources().items() if not f.startswith("ltx2rt/"))
    flags |= {flag for text in outside for flag in re.findall(r'"(--[a-z][\w-]+)"', text)}
    wrong = {}
    for page in OURS:
        found = CODE.findall(page.read_text())
        codes = [c for c in found if not c.startswith(("pip ", "python -m build "))]
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", " ".join(codes)))
        if named - flags:
            wrong[name_of(page)] = sorted(named - flags)
    assert not wrong


def subparsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return [parser, *(p for action in below for p in action.choices.values())]


def test_scripts_that_are_run_exist() -> None:
    """`python -m benchmarks.run` names a module, and its flags occur in it or beside it."""
    found = [re.search(r"python -m ([\w.]+)(.*)", line) for _, line in commands()]
    ran = [m for m in found if m and m[1] != "pytest"]
    assert len(ran) > 5
    for match in ran:
        spec = importlib.util.find_spec(match[1])
        assert spec is not None, match[0]
        assert spec.origin is not None
        source = "".join(p.read_text() for p in Path(spec.origin).parent.glob("*.py"))
        for flag in re.findall(r"--[a-z][\w-]+", match[2]):
            assert f'"{flag}"' in source, f"{match[1]} has no {flag}"


def test_the_page_of_commands_has_all() -> None:
    """Their page has a row for every sub-command, and none else."""
    rows = re.findall(r"^\| `ltx2rt (\w+)", (ROOT / "docs/commands.md").read_text(), re.MULTILINE)
    assert set(rows) == set(COMMANDS)


def test_environment_variables_are_listed() -> None:
    read = set(re.findall(r'"([A-Z][A-Z0-9_]+)"', (ROOT / "ltx2rt/env.py").read_text()))
    page = (ROOT / "docs/env_vars.md").read_text()
    assert set(re.findall(r"^\| `([A-Z0-9_]+)`", page, re.MULTILINE)) == read


def test_nothing_else_reads_environment_variables() -> None:
    """Handing the whole environment to a child process is not reading it."""
    reading = re.compile(r"os\.environ(?:\.get|\[)|os\.getenv")
    found = [
        name_of(p) for p in tracked("ltx2rt/*.py", "export/*.py") if reading.search(p.read_text())
    ]
    assert found == ["ltx2rt/env.py"]


def test_the_readme_is_short() -> None:
    """One screen and a half, nothing wider than a terminal but links and one command."""
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 120
    assert [line for line in lines if len(line) > 110] == []


#: pages of the first hour, which are read in terminals and reviews
FIRST_PAGES = ("install", "first_video", "onnx", "serving", "lora", "troubleshooting")


@pytest.mark.parametrize("name", FIRST_PAGES)
def test_prose_of_the_first_pages_is_no_wider_than_a_terminal(name: str) -> None:
    """Tables, and commands that are pasted whole, may be."""
    prose = FENCE.sub("", (ROOT / "docs" / f"{name}.md").read_text())
    wide = [line for line in prose.splitlines() if len(line) > 100 and not line.startswith("|")]
    # one word of it may be longer: a link
    assert [line for line in wide if " " in line.strip()] == []
