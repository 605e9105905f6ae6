#!/usr/bin/env python3
"""Derive locales/ and help pages in other languages from tools/languages/: `python3 tools/make_locales.py`.

With a language: list the texts that it does not say yet, as JSON: `python3 tools/make_locales.py fr`.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parent.parent))

from runner.pack import register  # noqa: E402

register()

from cascadevsr.runner.paths import write_atomic  # noqa: E402
from cascadevsr.tools import locales, pages  # noqa: E402


def main(languages: list[str]) -> int:
    """Write all locales, or list what `languages` lack."""
    info = locales.schemas()
    for language in languages:
        lacking = locales.missing(locales.read_source(language), info) + pages.missing(pages.read_source(language))
        sys.stdout.write(json.dumps(dict.fromkeys(lacking, ""), indent=1, ensure_ascii=False) + "\n")
    if languages:
        return 0
    for language in locales.languages():
        for name, content in locales.locale_files(language, info).items():
            (locales.LOCALES / language).mkdir(parents=True, exist_ok=True)
            write_atomic(locales.LOCALES / language / name, locales.file_text(content))
        for path, text in pages.page_files(language, info).items():
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
