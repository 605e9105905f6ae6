"""Help pages in other languages: whole, true to the English page, derived from one source."""

import re

import pytest
from cascadevsr.tools import locales, pages

CODE = re.compile(r"`[^`]*`|\d+(?:\.\d+)?")  # what reads the same in every language


@pytest.fixture(params=locales.languages())
def language(request):
    return request.param


def test_every_language_says_all_of_it_and_nothing_else():
    for language in locales.languages():
        source = pages.read_source(language)
        assert pages.missing(source) == [], "translate them in tools/languages/pages"
        stale = set(source) - set(pages.wanted())
        assert not stale, "an English text changed: translate the new one"


def test_pages_are_what_the_sources_make(language):
    made = pages.page_files(language, locales.schemas())
    assert {path: path.read_text(encoding="utf-8") for path in made} == made, "run python3 tools/make_locales.py"


def test_pages_have_the_shape_of_the_english_one(language):
    for path, text in pages.page_files(language, locales.schemas()).items():
        kinds = [[kind for kind, _ in pages.blocks(page)] for page in (pages.english(path.parent.name), text)]
        assert kinds[0] == kinds[1], path


def test_names_and_numbers_of_the_english_text_are_there(language):
    offered = {f"`{value}`" for value in locales.english_choices(locales.schemas())}
    lost = {
        text: gone
        for text, said in pages.read_source(language).items()
        if (gone := {code for code in CODE.findall(text) if code not in said} - offered)
    }
    assert not lost


def test_a_text_that_changes_in_english_is_noticed(monkeypatch):
    english = pages.english
    monkeypatch.setattr(
        pages, "english", lambda node: english(node).replace("A file appears whole", "A file comes whole")
    )
    lacking = pages.missing(pages.read_source("fr"))
    assert len(lacking) == 1 and "A file comes whole" in lacking[0]
