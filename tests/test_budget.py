"""Size is a budget with an alarm: what outgrows it is split, not excused."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE, FUNCTION, GOLDEN = 400, 60, 60  # lines
CODE = [p for f in ("arcompile", "passes", "kernels", "models", "bench", "tests")
        for p in sorted((ROOT / f).rglob("*.py"))]
# The debts there are. They may shrink, never grow; take the line out when it is paid.
OWED: dict[str, int] = {}


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_files():
    size = {label(p): lines(p) for p in CODE}
    assert not {p: n for p, n in size.items() if n > OWED.get(p, FILE)}


def test_functions():
    long = {}
    for path in CODE:
        for n in ast.walk(ast.parse(path.read_text())):
            if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef):
                long[f"{label(path)}:{n.lineno} {n.name}"] = (n.end_lineno or 0) - n.lineno + 1
    assert not {name: n for name, n in long.items() if n > FUNCTION}


def test_debts_are_still_owed():
    paid = [name for name in OWED if lines(ROOT / name) <= FILE]
    assert not paid, f"take {paid} out of OWED"


def test_goldens():
    size = {label(p): lines(p) for p in (ROOT / "tests" / "golden").rglob("*.txt")}
    assert not {p: n for p, n in size.items() if n > GOLDEN}
