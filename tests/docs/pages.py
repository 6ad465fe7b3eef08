"""Pages of the documentation as a reader meets them: headings, links, and blocks of code with what is said of them.

A block of commands (`sh`) or of Python is run by `test_commands.py`, each page from top to bottom, unless a comment
before it, which no reader sees, says otherwise:

    <!-- not run: wants a cluster -->
    <!-- run by tests/pipeline/test_demo.py -->
    <!-- serves: http://127.0.0.1:3000/readyz -->          stays in the background once this answers
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "decisions").glob("*.md")),
]
LANGUAGES = {"json", "promql", "python", "sh", "text", "yaml"}
NOTES = re.compile(r"<!-- (not run: .+|run by tests/\S+\.py|serves: http://\S+) -->")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    note: str | None

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_run(self):
        return self.language in {"sh", "python"} and not (self.note or "").startswith(("not run", "run by"))

    @property
    def served_at(self):
        return self.note.removeprefix("serves: ") if (self.note or "").startswith("serves: ") else None

    def commands(self):
        """Lines of a block of commands, continued ones in one, without comments."""
        for line in self.text.replace("\\\n", " ").splitlines():
            command = re.sub(r"(^|\s)#.*$", "", line).strip()
            if command:
                yield command


def tokens(page):
    return MarkdownIt("commonmark").enable("table").parse(page.read_text())


def blocks(page):
    found, note = [], None
    for token in tokens(page):
        if token.type == "fence":
            found.append(Block(page, token.map[0] + 1, token.info.strip(), token.content, note))
        if token.type == "html_block" and (match := NOTES.fullmatch(token.content.strip())):
            note = match[1]
        elif token.type not in {"list_item_open", "bullet_list_open", "ordered_list_open"}:
            note = None
    return found


def comments(page):
    return [token.content.strip() for token in tokens(page) if token.type == "html_block" and "<!--" in token.content]


def links(page):
    """Targets of links and pictures."""
    for token in tokens(page):
        for child in token.children or []:
            target = child.attrGet("href") if child.type == "link_open" else child.attrGet("src")
            if child.type in {"link_open", "image"} and target:
                yield str(target)


def anchors(page):
    """Names of headings, as GitHub makes them."""
    found, all_tokens = set(), tokens(page)
    for opening, inline in itertools.pairwise(all_tokens):
        if opening.type == "heading_open":
            text = "".join(child.content for child in inline.children or [] if child.type in {"text", "code_inline"})
            found.add(re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-"))
    return found


def quoted(page):
    """What stands in a line of text between backticks."""
    return [child.content for token in tokens(page) for child in token.children or [] if child.type == "code_inline"]
