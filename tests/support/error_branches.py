"""The error branches that no test reached, of the data in .coverage; for `make coverage`."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from coverage import Coverage

SAYS_ERRORS = ("fail", "print_error")


def error_branches(source: str) -> Iterator[int]:
    """Lines that run only when something is wrong.

    They are each `raise`, each handler's first line, and each line that makes an error or says one.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise):
            yield node.lineno
        elif isinstance(node, ast.ExceptHandler):
            yield node.body[0].lineno
        elif isinstance(node, ast.Expr | ast.Assign | ast.Return) and any(
            called.endswith("Error") or called in SAYS_ERRORS for called in calls(node)
        ):
            yield node.lineno


def calls(node: ast.stmt) -> Iterator[str]:
    """Names of what a statement calls."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name):
            yield inner.func.id


def main() -> None:
    """List them; exit 1 where there are some."""
    coverage = Coverage()
    coverage.load()
    total, missed = 0, []
    for path in sorted(Path("src").rglob("*.py")):
        _, _, excluded, missing, _ = coverage.analysis2(str(path.resolve()))
        lines = set(error_branches(path.read_text())) - set(excluded)
        total += len(lines)
        missed += [f"{path}:{line}" for line in sorted(lines & set(missing))]
    print(f"{total - len(missed)} of {total} error branches are tested", *missed, sep="\n")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
