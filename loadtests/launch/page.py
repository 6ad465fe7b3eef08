"""The verdict as one HTML page, without anything from elsewhere; reports of the load tests are linked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --go: #2a7d46; --no-go: #b3261e; --not-shown: #b26a00; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 64rem; padding: 0 1rem; }
h1 { font-size: 1.35rem; margin: 0 0 .25rem; } h2 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; }
h2::first-letter { text-transform: uppercase; }
.verdict { border-left: .5rem solid; background: var(--soft); padding: .6rem .9rem; margin: .8rem 0; }
.verdict b { font-size: 1.5rem; } .verdict ul { margin: .4rem 0 0; padding-left: 1.2rem; }
.go { border-color: var(--go); } .no-go { border-color: var(--no-go); } .not-shown { border-color: var(--not-shown); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
td:first-child { white-space: nowrap; }
.mark { border-radius: .6rem; padding: 0 .6rem; color: #fff; font-size: .85em; }
.mark.go { background: var(--go); } .mark.no-go { background: var(--no-go); }
.mark.not-shown { background: var(--not-shown); }
.soft { opacity: .7; } code { font-size: .9em; overflow-wrap: anywhere; }
"""


def page(document: Mapping[str, Any], folder: Path) -> str:
    """The page.

    Args:
        document: of `run.check`.
        folder: that the page will be in; evidence within it is linked.
    """
    verdict = document["verdict"]
    why = "".join(f"<li>{escape(reason)}</li>" for reason in document["reasons"])
    servers = " GPU servers were stand-ins, which take time and compute nothing." if document["stand_ins"] else ""
    areas = (
        _area(area, list(lines), folder) for area, lines in groupby(document["lines"], key=lambda line: line["area"])
    )
    return "\n".join(
        (
            "<!doctype html><html lang=en><head><meta charset=utf-8>",
            '<meta name=viewport content="width=device-width, initial-scale=1">',
            f"<title>{escape(document['name'])}: {verdict}</title><style>{_STYLE}</style></head><body><main>",
            f"<h1>Launch of {escape(document['name'])}</h1>",
            f"<p class=soft>{escape(document['created'].replace('T', ' '))}, from {escape(document['file'])}, in ",
            f"{document['seconds']:.0f} s on {escape(document['machine']['processor'])}.{servers}</p>",
            f"<div class='verdict {verdict}'><b>{verdict.upper()}</b>{f'<ul>{why}</ul>' if why else ''}</div>",
            *areas,
            "</main></body></html>",
            "",
        )
    )


def _area(area: str, lines: Sequence[Mapping[str, str]], folder: Path) -> str:
    rows = "".join(
        f"<tr><td><span class='mark {line['mark'].replace(' ', '-')}'>{line['mark']}</span></td>"
        f"<td>{escape(line['claim'])}</td><td>{escape(line['found'])}</td><td>{_evidence(line, folder)}</td></tr>"
        for line in lines
    )
    head = "<tr><th></th><th>what has to hold</th><th>what was found</th><th>evidence</th></tr>"
    return f"<h2>{escape(area)}</h2><div class=scroll><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>"


def _evidence(line: Mapping[str, str], folder: Path) -> str:
    path = Path(line["evidence"])
    if not path.is_file():
        return f"<code>{escape(line['evidence'])}</code>"
    seen = os.path.relpath(path.resolve(), folder.resolve())
    # The parent says which: each scenario has a report.html of its own.
    name = f"{path.parent.name}/{path.name}" if path.parent.resolve() != folder.resolve() else path.name
    return f"<a href='{escape(seen, quote=True)}'>{escape(name)}</a>"
