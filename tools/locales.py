"""What the editor shows of our nodes in each language: locales/, derived from tools/languages/.

1. `english_texts` lists every text of the recorded schemas (tests/host/object_info.json) with its place; names are
   those of locales/en, which is written by hand
2. `tools/languages/LANGUAGE.json` says each of them in a language, by the English text: one that changed has no
   translation any more, and a test says so. A text that means two things has an entry "NODE: text" for one of them;
   names that are counted ("picture 1") have one entry ("picture #").
3. Choices are shown by our own code (js/languages.js), for the editor has no place for them: "choice: VALUE"
4. `locale_files` lays them out as the editor wants them

`python3 tools/make_locales.py` writes the result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "tools" / "languages"
LOCALES = ROOT / "locales"
SCHEMAS = ROOT / "tests" / "host" / "object_info.json"
SYNTAX = re.compile(r"[{}@|]")  # what the editor takes for syntax in texts of nodes
_COUNTED = re.compile(r"(?<=^picture )\d+$|(?<=^video )\d+$")
_PHRASE = re.compile(r'\bsay\(\s*"([^"]+)"')
_WORD = re.compile(r'^\s*(\w+): "([^"]+)",$', re.M)

# Choices that are names and read the same in every language.
_NAMES = frozenset(
    "fp32 fp16 bf16 bilinear bicubic lanczos euler plms ddim ddpm pndm wavelet adain lab mp4 mov mkv webm webp png "
    "h264 hevc av1 vp9 prores ffv1".split()
)

Place = tuple[str, ...]  # the keys that lead to a text in nodeDefs.json; the first is the node


def schemas() -> dict[str, dict]:
    """Read the recorded schemas of our nodes."""
    return json.loads(SCHEMAS.read_text(encoding="utf-8"))


def languages() -> list[str]:
    """List the languages that have a source."""
    return sorted(file.stem for file in SOURCES.glob("*.json"))


def read_source(language: str) -> dict[str, str]:
    """Read what a language says, by English text."""
    return json.loads((SOURCES / f"{language}.json").read_text(encoding="utf-8"))


def english_texts(info: Mapping[str, dict]) -> Iterator[tuple[Place, str]]:
    """Yield place and text of all that the editor translates of a node.

    An output that is named as its type is called what the editor calls the type.
    """
    given = json.loads((LOCALES / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    for node, schema in info.items():
        names = {key: dict(given.get(node, {}).get(key, {})) for key in ("inputs", "outputs")}
        yield (node, "display_name"), schema["display_name"]
        yield (node, "description"), schema["description"]
        for name, facts in _flat_inputs(schema["input"]):
            place = (node, "inputs", name.replace(".", "_"))
            yield (*place, "name"), names["inputs"].pop(place[2], {}).get("name") or name.rpartition(".")[2]
            if facts.get("tooltip"):
                yield (*place, "tooltip"), facts["tooltip"]
            if any(key.endswith("upload") and facts[key] is True for key in facts):
                yield (node, "inputs", "upload", "name"), "choose file to upload"  # a button that the editor adds
        for key, grown in names["inputs"].items():  # sockets that grow
            yield (node, "inputs", key, "name"), grown["name"]
        outputs = zip(*(schema[key] for key in ("output", "output_name", "output_tooltips")), strict=True)
        for index, (kind, name, tooltip) in enumerate(outputs):
            if name != kind:
                yield (node, "outputs", str(index), "name"), names["outputs"].get(str(index), {}).get("name") or name
            if tooltip:
                yield (node, "outputs", str(index), "tooltip"), tooltip


def _flat_inputs(inputs: Mapping[str, dict], prefix: str = "") -> Iterator[tuple[str, dict]]:
    for group in ("required", "optional"):
        for name, (_, *rest) in inputs.get(group, {}).items():
            facts = rest[0] if rest else {}
            yield prefix + name, facts
            for option in facts.get("options", []):
                if isinstance(option, dict):
                    yield from _flat_inputs(option["inputs"], f"{prefix}{name}.")


def english_choices(info: Mapping[str, dict]) -> list[str]:
    """List what the dials of all nodes offer to choose from, but for names."""
    kinds = (kind for schema in info.values() for kind in _flat_kinds(schema["input"]))
    return list(dict.fromkeys(value for kind in kinds for value in kind if value not in _NAMES))


def _flat_kinds(inputs: Mapping[str, dict]) -> Iterator[list[str]]:
    for group in ("required", "optional"):
        for kind, *rest in inputs.get(group, {}).values():
            options = kind if isinstance(kind, list) else (rest[0] if rest else {}).get("options", [])
            yield [str(option["key"] if isinstance(option, dict) else option) for option in options]
            for option in options:
                if isinstance(option, dict):
                    yield from _flat_kinds(option["inputs"])


def choices(language: str, info: Mapping[str, dict]) -> dict[str, str]:
    """Give what a language calls the choices."""
    source = read_source(language)
    return {value: source[f"choice: {value}"] for value in english_choices(info)}


def phrases() -> dict[str, dict[str, str]]:
    """Give the texts of our own code in the editor and of the help pages, by their place in main.json."""
    pages, viewer = ROOT / "nodes" / "host" / "pages.py", ROOT / "js" / "compare_video.js"
    said = dict.fromkeys(_PHRASE.findall(pages.read_text(encoding="utf-8")))
    words = viewer.read_text(encoding="utf-8").split("const WORDS = {")[1].split("};")[0]
    return {"cascadevsr": {text: text for text in said}, "compareVideo": dict(_WORD.findall(words))}


def wanted(info: Mapping[str, dict]) -> list[str]:
    """List every English text once."""
    own = [text for texts in phrases().values() for text in texts.values()]
    offered = [f"choice: {value}" for value in english_choices(info)]
    return list(dict.fromkeys([*(_COUNTED.sub("#", text) for _, text in english_texts(info)), *own, *offered]))


def missing(source: Mapping[str, str], info: Mapping[str, dict]) -> list[str]:
    """List the texts that a language does not say."""
    return [text for text in wanted(info) if not source.get(text)]


def stale(source: Mapping[str, str], info: Mapping[str, dict]) -> list[str]:
    """List what a language says of texts that are no more."""
    known = {*wanted(info), *(f"{place[0]}: {text}" for place, text in english_texts(info))}
    return [text for text in source if text not in known]


def locale_files(language: str, info: Mapping[str, dict]) -> dict[str, dict]:
    """Give the content of locales/LANGUAGE by file name."""
    source = read_source(language)
    nodes: dict[str, dict] = {}
    for place, text in english_texts(info):
        inner = nodes
        for key in place[:-1]:
            inner = inner.setdefault(key, {})
        counted = _COUNTED.search(text)
        said = source.get(f"{place[0]}: {text}") or source.get(_COUNTED.sub("#", text), text)
        inner[place[-1]] = said.replace("#", counted[0]) if counted else said
    own = {place: {key: source.get(text, text) for key, text in texts.items()} for place, texts in phrases().items()}
    own["cascadevsrChoices"] = choices(language, info)
    return {"nodeDefs.json": nodes, "main.json": own}


def file_text(content: dict) -> str:
    """Write a locale's file the way it is stored."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
