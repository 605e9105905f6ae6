"""Help pages in other languages: js/docs/NODE/LANGUAGE.md, derived from the English page and tools/languages/pages/.

1. `blocks` cuts the English page into headings, paragraphs, entries of lists and cells of tables
2. tables of inputs and outputs are laid out anew, with the names and tooltips of locales/
3. every other block is what `tools/languages/pages/LANGUAGE.json` says, by the English text: one that changed has no
   translation any more, and a test says so

`python3 tools/make_locales.py` writes the result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from . import locales

ROOT = Path(__file__).resolve().parent.parent
PAGES, SOURCES = ROOT / "js" / "docs", ROOT / "tools" / "languages" / "pages"
NODES = ("VSRUpscaleFilm", "VSRLoadFilm", "VSRSaveFilm", "VSRCompareVideo", "VSRCascadeInput", "VSRPlan")
TABLES = {"Inputs": "inputs", "Outputs": "outputs"}
FACTS = ("choice of", "default", "optional", "advanced")  # words in the facts of an input
_ENTRY = re.compile(r"(- |\d+\. )")
_ROW = re.compile(r"\| `(\w+)` \| (?:\*\*.+?\*\*, )?\*(.+?)\*<br>.* \|")
_LINE = re.compile(r"\|[-| ]+\|")
_WORD = re.compile(r"[^\W\d_]{3,}|\bno\b")
_CODE = re.compile(r"`[^`]*`")


def english(node: str) -> str:
    """Read the English page."""
    return (PAGES / f"{node}.md").read_text(encoding="utf-8")


def blocks(page: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (kind, texts) of a page, in order: "#" and "##", "", an entry's "- ", "|" with cells, "```" as it is."""
    kind, text, fenced = "", "", False
    for line in [*page.splitlines(), ""]:
        begins = _ENTRY.match(line)
        if fenced:
            text += f"\n{line}"
            if line.startswith("```"):
                yield "```", [text]
                fenced, text = False, ""
            continue
        if text and (not line or begins or line[0] in "#|`"):
            yield kind, [text]
            kind, text = "", ""
        if line.startswith("```"):
            fenced, text = True, line
        elif line.startswith("#"):
            mark, _, title = line.partition(" ")
            yield mark, [title]
        elif line.startswith("|"):
            yield "|", [line] if _ROW.fullmatch(line) or _LINE.fullmatch(line) else _cells(line)
        elif begins:
            kind, text = begins[0], line[len(begins[0]) :]
        elif line:
            text = f"{text} {line.strip()}".strip()


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line[1:-1].split("|")]


def wanted() -> list[str]:
    """List every English text of the pages that needs a translation, once."""
    found: dict[str, None] = dict.fromkeys(FACTS)
    for node in NODES:
        for kind, texts in list(blocks(english(node)))[1:]:
            for text in texts:
                if kind != "```" and not (
                    kind == "|" and (_ROW.fullmatch(text) or not _WORD.search(_CODE.sub("", text)))
                ):
                    found[text] = None
    return list(found)


def read_source(language: str) -> dict[str, str]:
    """Read what a language says, by English text."""
    return json.loads((SOURCES / f"{language}.json").read_text(encoding="utf-8"))


def missing(source: Mapping[str, str]) -> list[str]:
    """List the texts that a language does not say."""
    return [text for text in wanted() if not source.get(text)]


def page_files(language: str, info: Mapping[str, dict]) -> dict[Path, str]:
    """Give the pages of a language by their paths."""
    said, texts = read_source(language), locales.locale_files(language, info)["nodeDefs.json"]
    said = {**locales.choices(language, info), **said}
    return {PAGES / node / f"{language}.md": page(node, said, texts[node]) for node in NODES}


def page(node: str, said: Mapping[str, str], texts: Mapping[str, dict]) -> str:
    """Lay out a page: `said` by English text, `texts` of nodeDefs.json for the node."""
    parts, before, rows = [], "", {}
    for kind, found in blocks(english(node)):
        if kind == "#":
            parts.append(f"# {texts['display_name']}")
        elif kind == "##":
            rows = dict(texts.get(TABLES.get(found[0], ""), {}))
            parts.append(f"## {said[found[0]]}")
        elif kind == "```":
            parts.append(found[0])
        elif kind == "|":
            row = _ROW.fullmatch(found[0])
            line = _row(row, rows, said) if row else found[0]
            if not row and not _LINE.fullmatch(line):
                line = f"| {' | '.join(said.get(cell, cell) for cell in found)} |"
            parts.append(line if before != "|" else f"{parts.pop()}\n{line}")
        else:
            line = f"{kind}{said[found[0]]}"
            parts.append(line if not kind or before != kind else f"{parts.pop()}\n{line}")
        before = kind
    return "\n\n".join(parts) + "\n"


def _fact(fact: str, said: Mapping[str, str]) -> str:
    """Say a fact of an input: "choice of scale", "default scale", "100; default 1", "optional"."""
    before, mark, rest = fact.rpartition("; ")
    for word in FACTS:
        if rest == word or rest.startswith(f"{word} "):
            value = rest[len(word) :].strip()
            rest = f"{said[word]} {said.get(value, value)}".strip()
            return f"{before and said.get(before, before)}{mark}{rest}"
    return f"{before and said.get(before, before)}{mark}{said.get(rest, rest)}"


def _row(row: re.Match, rows: dict[str, dict], said: Mapping[str, str]) -> str:
    """Lay out the row of an input or output; what is below a choice is called by both names in `rows`."""
    name, facts = row.groups()
    key = next((key for key in rows if key == name or key.endswith(f"_{name}")), None)
    entry = rows.pop(key) if key else rows.pop(next(iter(rows)))  # outputs go by their order
    facts = ", ".join(_fact(part, said) for part in facts.split(", "))
    facts = re.sub(r"(\d) to (\d)", "\\1 – \\2", facts)
    called = entry.get("name") or name
    title = f"`{name}`" if called == name else f"`{name}`<br>**{called}**"
    return f"| {title} | *{facts}*<br>{entry.get('tooltip', '')} |"
