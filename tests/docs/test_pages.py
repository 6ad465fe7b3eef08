"""What the pages say is there: commands and their options, files, sections, targets of make."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

import deploy.container.__main__ as container
import jobs.__main__
import loadtests.cli
import pipeline.commands.cli
import routing.cli

from .pages import LANGUAGES, NOTES, PAGES, ROOT, anchors, blocks, comments, links, quoted

PARSERS = {
    "jobs": jobs.__main__.build_parser,
    "pipeline": pipeline.commands.cli.build_parser,
    "routing": routing.cli.build_parser,
    "loadtests": loadtests.cli.build_parser,
    "deploy.container": container.build_parser,
}
RUNS_A_MODULE = re.compile(r"python -m (pipeline|jobs|routing|loadtests|deploy\.container)\s(.*)")
TARGETS = set(re.findall(r"^\.PHONY: ([a-z-]+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))

each_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


@each_page
def test_a_block_says_its_language_and_a_note_what_is_known(page):
    for block in blocks(page):
        assert block.language in LANGUAGES, block
    for comment in comments(page):
        assert NOTES.fullmatch(comment), comment
    noted = [block for block in blocks(page) if block.note]
    assert len(noted) == len(comments(page)), "a note stands right before the block that it is about"
    for block in noted:
        assert block.language in {"sh", "python"}, block
        if block.note.startswith("run by "):
            assert (ROOT / block.note.removeprefix("run by ")).is_file(), block


@each_page
def test_commands_are_those_of_the_programs(page, capsys):
    for block in blocks(page):
        if block.language != "sh":
            continue
        for command in block.commands():
            for module, arguments in re.findall(
                r"python -m (pipeline|jobs|routing|loadtests|deploy\.container)\s(.*)", command
            ):
                plain = re.sub(r"\$(?:\w+|\(.*?\))", "1", arguments.replace("{full-house,herd}", "herd"))
                words = shlex.split(re.split(r" [|>&] ", plain)[0])
                try:
                    PARSERS[module]().parse_args(words)
                except SystemExit:
                    pytest.fail(f"{block}: {command}\n{capsys.readouterr().err}")
            for target in re.findall(r"^(?:\w+=\S+ )*make ([a-z-]+)", command):
                assert target in TARGETS, f"{block}: make {target}"


@each_page
def test_links_lead_somewhere(page):
    for link in links(page):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


@each_page
def test_files_that_are_named_are_there(page):
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")} - {
        "runs",
        "build",
    }
    for text in quoted(page):
        if re.fullmatch(r"[\w.-]+(?:/[\w.-]+)+/?", text) and Path(text).parts[0] in folders:
            assert (ROOT / text).exists() or (ROOT / f"{text}.ipynb").exists(), f"{page.name}: {text}"


@each_page
def test_examples_in_yaml_can_be_read(page):
    for block in blocks(page):
        if block.language == "yaml":
            assert yaml.safe_load(block.text), block


def test_the_index_leads_to_every_page():
    index = ROOT / "docs" / "README.md"
    reached = {(index.parent / link.split("#")[0]).resolve() for link in links(index)}
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if page != index and page.resolve() not in reached]
    assert not missing


def test_decision_records_are_all_listed():
    folder = ROOT / "docs" / "decisions"
    listed = {link for link in links(folder / "README.md") if not link.startswith("http")}
    assert listed == {path.name for path in folder.glob("[0-9]*.md")}
