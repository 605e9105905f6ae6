"""Every text of every node in every language: nothing missing, nothing stale, nothing the editor stumbles over."""

import json
import re

import pytest
from cascadevsr.tools import locales

INFO = locales.schemas()
LANGUAGES = "de es fr ja ko pt-BR ru zh zh-TW".split()
CODES = re.compile(r"models/\w+|\w+\.(?:pth|ckpt)|\d+(?:\.\d+)?")  # what reads the same in every language
HOLE = re.compile(r"\{\w+\}")  # where our own code puts a number
PUNCTUATION = {"zh": "。", "zh-TW": "。", "ja": "。"}


@pytest.fixture(params=LANGUAGES)
def language(request):
    return request.param


def test_these_are_the_languages():
    assert locales.languages() == LANGUAGES
    assert sorted(path.name for path in locales.LOCALES.iterdir()) == sorted([*LANGUAGES, "en"])


def test_nothing_is_missing(language):
    assert locales.missing(locales.read_source(language), INFO) == [], "translate them in tools/languages"


def test_nothing_is_stale(language):
    assert locales.stale(locales.read_source(language), INFO) == [], "an English text changed: translate the new one"


def test_files_are_what_the_sources_make():
    for language in LANGUAGES:
        folder = locales.LOCALES / language
        stored = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}
        made = {name: locales.file_text(content) for name, content in locales.locale_files(language, INFO).items()}
        assert stored == made, "run python3 tools/make_locales.py"


def test_the_editor_takes_nothing_for_syntax(language):
    source = locales.read_source(language)
    own = {text for texts in locales.phrases().values() for text in texts.values()}
    assert [said for text, said in source.items() if text not in own and locales.SYNTAX.search(said)] == []
    holes = {text: (HOLE.findall(text), HOLE.findall(source[text])) for text in own}
    assert [text for text, (english, said) in holes.items() if sorted(english) != sorted(said)] == []


def test_names_and_numbers_of_the_english_text_are_there(language):
    """A folder, a file or a number that is said in English is said in the translation."""
    lost = {}
    for english, text in locales.read_source(language).items():
        if " " in english and (gone := {code for code in CODES.findall(english) if code not in text}):
            lost[english] = gone
    assert not lost


def test_sentences_end_as_they_do_in_english(language):
    ends = re.compile(r"\.\.\.$|" + re.escape(PUNCTUATION.get(language, ".")) + "$")
    source = locales.read_source(language)
    wrong = [text for text, said in source.items() if text.endswith(".") != bool(ends.search(said))]
    assert wrong == [] and not [said for said in source.values() if said != said.strip() or "  " in said]


def test_two_names_of_a_node_are_not_the_same(language):
    nodes = json.loads((locales.LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))
    titles = [node["display_name"] for node in nodes.values()]
    assert len(titles) == len(set(titles)) == len(INFO)
    for name, node in nodes.items():
        said = [entry["name"] for entry in node["inputs"].values()]
        english = [text for place, text in locales.english_texts({name: INFO[name]}) if place[1:2] == ("inputs",)]
        assert len(said) == len(set(said)) or len(english) != len(set(english)), (name, said)
