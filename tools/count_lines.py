#!/usr/bin/env python3
"""Count lines of code by folder: `python3 tools/count_lines.py [ROOT]`.

A line counts where a token of the program lies on it: blank lines, comments and docstrings (of modules, classes and
functions) do not; other strings do, on each of their lines.
"""

import ast
import sys
import tokenize
from pathlib import Path

FOLDERS = ("models", "nodes", "runner", "training", "media", "research", "tools", "tests")
SHIPPED = ("models", "nodes", "runner", "training")  # with media/ what a user or a lab installs
_SPACING = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
_SPACING |= {tokenize.ENCODING, tokenize.ENDMARKER}


def code_lines(path: Path) -> tuple[int, int]:
    """Return (lines of code, lines with a comment) of a Python file."""
    docstrings = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str):
                docstrings |= set(range(first.lineno, first.end_lineno + 1))
    code, comments = set(), set()
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.COMMENT:
                comments.add(token.start[0])
            elif token.type not in _SPACING:
                code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings), len(comments)


def main(root: Path) -> None:
    """Print files, lines of code and comments of every folder."""
    print(f"{'':10} {'files':>6} {'code':>7} {'comments':>9}")
    totals = {}
    for folder in FOLDERS:
        counts = [code_lines(path) for path in sorted((root / folder).rglob("*.py"))]
        if counts:
            totals[folder] = sum(code for code, _ in counts)
            comments = sum(comment for _, comment in counts)
            print(f"{folder:10} {len(counts):6} {totals[folder]:7} {comments:9}")
    print(f"{' + '.join(SHIPPED)}: {sum(totals.get(folder, 0) for folder in SHIPPED)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).absolute().parent.parent)
