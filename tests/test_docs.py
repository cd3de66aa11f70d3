"""The documentation: every command, public name and page is there, links and messages are true, it builds."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest

import glance_fast
from benchmarks import report, tables
from benchmarks.accuracy import results
from glance_fast import kernels
from glance_fast.config import Config
from glance_fast.evaluation import metrics

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
SECTIONS = ("## When and how", "## What it writes", "## Messages", "## Options")
FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text_of(page):
    return page.read_text(encoding="utf-8")


def listed():
    """Names of the pages in the toctrees."""
    trees = re.findall(r"```\{toctree\}\n(.*?)```", text_of(DOCS / "index.md"), re.DOTALL)
    lines = (line for tree in trees for line in tree.splitlines())
    return [line for line in lines if line and not line.startswith(":")]


class TestPages:
    def test_every_command_has_its_page_and_every_page_its_command(self, generate):
        names = set(generate.commands())
        assert {"train", "score-dir", "experiment"} <= names
        pages = {page.stem: text_of(page) for page in (DOCS / "commands").glob("*.md")}
        assert sorted(names - pages.keys()) == [], "commands without docs/commands/<name>.md"
        assert sorted(pages.keys() - names) == [], "pages of commands that are not there"
        lacking = {
            name: [part for part in (*SECTIONS, f"\n<!-- command {name} -->\n") if part not in text]
            for name, text in pages.items()
        }
        assert {name: parts for name, parts in lacking.items() if parts} == {}

    def test_every_page_is_listed_once_and_every_listed_one_is_there(self):
        names = [page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES]
        assert sorted(["index", *listed()]) == sorted(names)

    @pytest.mark.parametrize(
        "page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.stem
    )
    def test_links_lead_somewhere(self, page):
        links = re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", text_of(page)))
        assert [link for link in links if not leads(page, link)] == []

    def test_a_link_that_leads_nowhere_is_found(self):
        page = DOCS / "index.md"
        assert leads(page, "choose.md#image-size") and leads(page, "cost.png") and leads(page, "#install")
        assert not any(leads(page, link) for link in ("no.md", "choose.md#no", "#no", "/choose.md"))


def leads(page, link):
    """Whether a link of a page leads to a file, and to a heading in it; those to the web count as such."""
    if link.startswith(("http://", "https://")):
        return True
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    if link.startswith("/") or not target.exists():
        return False
    return not anchor or anchor in anchors(target)


def anchors(page):
    """Names of a page's headings, as GitHub and MyST give them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


class TestGenerated:
    def test_a_command_has_all_its_options_and_its_example(self, generate):
        for name, command in generate.commands().items():
            text = generate.command_reference(name)
            for one in getattr(command, "commands", {name: command}).values():
                assert all(f"`{o}" in text for p in one.params for o in p.opts if o.startswith("-"))
                assert all(p.metavar in text for p in one.params if p.metavar)
            assert f"\n```sh\nglance-fast {name}" in text
            # Nothing of the terminal's markup is left.
            assert "[dim]" not in text and "\\[" not in text

    def test_an_option_has_its_default(self, generate):
        text = generate.command_reference("serve")
        assert "| `--port N` | Port to listen on; 0 takes a free one. | `8000` |" in text.splitlines()
        assert "must be given |" in generate.command_reference("train")

    def test_options_in_prose_are_code_and_all_else_stands_as_it_is(self, generate):
        text = generate.command_reference("score-dir")
        assert "it goes on with `--resume`, and so it does" in text and "maps/\\*.tiff" in text
        assert "```sh\nglance-fast score-dir run photos/new --out scores --overlays\n```" in text

    def test_the_table_of_commands_links_to_their_pages(self, generate):
        found = re.findall(r"\[`(.+?)`\]\(commands/(.+?)\.md\)", generate.command_table())
        assert found == [(name, name) for name in generate.commands()]

    def test_all_settings_are_in_their_table(self, generate):
        found = re.findall(r"^\| `(\w+)`", generate.settings_table(), re.MULTILINE)
        assert found == [field.name for field in fields(Config)]

    def test_patches_are_counted(self, generate):
        assert "| 256 | 961 | 225 | 1.0 |" in generate.patch_table()

    def test_marks_are_replaced_and_nothing_else(self, generate):
        assert generate.with_generated("a\n<!-- speed -->\nb <!-- settings -->\n") == (
            "a\n<!-- speed -->\nb <!-- settings -->\n"
        )
        assert generate.with_generated("a\n<!-- commands -->\nb") == f"a\n{generate.command_table()}\nb"
        for page in PAGES:
            assert not generate.MARK.search(generate.with_generated(text_of(page)))


class TestReference:
    def names(self):
        pattern = r"^\.\. auto\w+:: ([\w.]+)"
        return [n for page in (DOCS / "api").glob("*.md") for n in re.findall(pattern, text_of(page), re.M)]

    def test_every_public_name_is_there(self):
        public = {f"glance_fast.{name}" for name in glance_fast.__all__}
        public |= {f"glance_fast.kernels.{name}" for name in kernels.__all__}
        public |= {f"glance_fast.evaluation.metrics.{name}" for name in metrics.__all__}
        assert sorted(public - set(self.names())) == []

    def test_every_name_has_a_docstring_of_its_own(self):
        for name in self.names():
            module, _, last = name.rpartition(".")
            assert len(getattr(importlib.import_module(module), last).__doc__) > 30, name


@cache
def said():
    """Every string of the program but its docstrings; an ellipsis where it puts something in."""
    found = []
    for path in (path for top in ("glance_fast", "kernels") for path in (ROOT / top).rglob("*.py")):
        tree = ast.parse(text_of(path))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and id(node) not in docstrings:
                found.append(str(node.value))
    return found


def is_said(message):
    parts = [part.strip() for part in message.split("…") if part.strip()]
    pattern = re.compile(".*".join(map(re.escape, parts)))
    return any(pattern.search(text) for text in said())


class TestMessages:
    @pytest.mark.parametrize(
        "page", [DOCS / "commands.md", *(DOCS / "commands").glob("*.md")], ids=lambda page: page.stem
    )
    def test_the_program_says_what_a_page_explains(self, page):
        messages = re.findall(r"^\|(?: \d+ \|)? `([^`]+)` \|", text_of(page).partition("Messages")[2], re.M)
        assert messages and [message for message in messages if not is_said(message)] == []

    def test_what_nobody_says_is_found(self):
        assert is_said("is not empty") and is_said("to train on, … held out")
        assert not is_said("the moon is made of cheese") and not is_said("held out … images to train on")


class TestTables:
    def test_the_readme_is_short(self):
        assert len(text_of(ROOT / "README.md").splitlines()) <= 150

    def test_figures_are_those_of_the_results(self, monkeypatch, tmp_path):
        copies = [tmp_path / name for name in ("README.md", "accuracy.md", "speed.md")]
        for copy, page in zip(copies, (tables.README, tables.PAGE, report.PAGE), strict=True):
            copy.write_text(re.sub(r"\d\.\d\d\d", "?", text_of(page)), encoding="utf-8")
        monkeypatch.setattr(tables, "README", copies[0])
        monkeypatch.setattr(tables, "PAGE", copies[1])
        tables.main()
        report.main(["--readme", str(copies[0]), "--page", str(copies[2])])
        parts = r"<!-- (accuracy|demo|speed|short|all) -->.*?<!-- /\1 -->"
        for copy, page in zip(copies, (ROOT / "README.md", DOCS / "accuracy.md", report.PAGE), strict=True):
            found = [m[0] for m in re.finditer(parts, text_of(copy), re.DOTALL)]
            assert found and found == [m[0] for m in re.finditer(parts, text_of(page), re.DOTALL)]

    def test_a_page_without_marks_is_told(self, monkeypatch, tmp_path):
        page = tmp_path / "page.md"
        page.write_text("nothing\n")
        monkeypatch.setattr(tables, "README", page)
        with pytest.raises(SystemExit, match=r"page\.md: lacks the marks of accuracy"):
            tables.main()
        assert page.read_text() == "nothing\n"

    def test_the_short_table_has_means_over_all_beds(self):
        lines = results.summary(results.read()).splitlines()
        means = results.table(results.read()).splitlines()
        head, mean = (next(r for r in means if r.startswith(f"| {name} ")) for name in ("bed", "mean"))
        whole = dict(zip(head.split(" | "), mean.split(" | "), strict=True))
        for line in lines[2:]:
            name, pro, pixel, image, *_ = line.strip("| ").split(" | ")
            assert whole[name].strip("| ") == f"{pro} / {pixel} / {image}"


class TestContainer:
    def lines(self, *words):
        found = re.findall(rf"^(?:{'|'.join(words)}) (.+)$", text_of(ROOT / "Dockerfile"), re.MULTILINE)
        assert found
        return found

    def test_what_it_copies_is_there_and_not_ignored(self):
        kept = text_of(ROOT / ".dockerignore").splitlines()
        names = [name for line in self.lines("COPY") for name in line.split()[:-1]]
        assert names and all((ROOT / name).exists() and f"!{name}" in kept for name in names)

    def test_its_command_is_one_of_ours(self, generate):
        (entry,), (command,) = self.lines("ENTRYPOINT"), self.lines("CMD")
        name, run, *options = json.loads(command)
        assert json.loads(entry) == ["glance-fast"] and run == "/model"
        known = {flag for parameter in generate.commands()[name].params for flag in parameter.opts}
        assert {option for option in options if option.startswith("-")} <= known
        # Others than those in the container ask it, at the port that is told and looked at.
        (port,) = self.lines("EXPOSE")
        assert options[options.index("--host") + 1] == "0.0.0.0" and options[-1] == port
        assert f"127.0.0.1:{port}/health" in text_of(ROOT / "Dockerfile")
        assert f':{port} -v "$PWD/run:{run}:ro"' in text_of(DOCS / "container.md")


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    needed = ("sphinx", "myst_parser", "furo")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        pytest.skip(f"needs {', '.join(missing)}: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", str(tmp_path / "trees")]
    done = subprocess.run(
        [*command, str(DOCS), str(tmp_path / "site")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    train = text_of(tmp_path / "site/commands/train.html")
    assert "\N{EN DASH}resume" not in train
    assert "--teacher-weights" in train and "<!-- command" not in train
    assert "<math" in text_of(tmp_path / "site/method.html")
    # Machines at a line have no internet connection.
    for page in (tmp_path / "site").rglob("*.html"):
        assert not re.search(r'<(script|img|iframe)[^>]+src="https?:|<link[^>]+href="https?:', text_of(page))
