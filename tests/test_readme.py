"""README: its family table is what `arcompile list models --markdown` prints, and each figure in it
says where it is from."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from arcompile.cli.machine import LISTS, markdown_table

README = Path(__file__).parent.parent / "README.md"
RESULTS = README.parent / "bench" / "results"

# 1.3x, 12 ms, 3.5 GB, 18 times, 92 %; "0.63 of Python's time"
FIGURE = re.compile(r"\d(x\b| ?(ms|us|s|minutes|KB|MB|GB|GiB|times|%)(?![\w/])| of \w+'s time)")
# a results file, a command or a page
SOURCE = re.compile(r"\w\.jsonl|`(arcompile|python -m) |\]\((docs|models)/[\w/-]+\.md")


def test_the_family_table_is_current():
    text = README.read_text()
    table = text.partition("--markdown` -->\n")[2].partition("\n<!-- /families -->")[0]
    ours = [row for row in LISTS["models"]() if row["name"] != "rows"]  # another test's example
    assert table == markdown_table(ours)


def test_every_file_it_links_to_is_there():
    text = README.read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (README.parent / link).exists(), link
    for name in re.findall(r"(?:bench/results/|`)([\w-]+\.jsonl)", text):
        assert (RESULTS / name).is_file(), name
    for module in re.findall(r"python -m\s+([\w.]+)", text):
        assert importlib.util.find_spec(module), module


def claims(text):
    """Sentences and tables with figures that neither say where these are from nor stand next to a
    sentence of their paragraph (a table: below a paragraph) that does."""
    text = re.sub(r"<!-- bench: .*?<!-- /bench -->|```.*?```|<!--[^>]*-->", "", text, flags=re.S)
    above = ""
    for block in re.split(r"\n\s*\n|\n(?=- )", text):
        if not block.strip():
            continue
        if block.lstrip().startswith("|"):
            if FIGURE.search(block) and not SOURCE.search(above):
                yield block
            continue
        above, said = block, re.split(r"(?<=[.:;])\s+(?=[A-Z`])", " ".join(block.split()))
        for i, s in enumerate(said):
            near = " ".join(said[max(0, i - 1) : i + 2])
            if FIGURE.search(re.sub(r"`[^`]*`", "", s)) and not SOURCE.search(near):
                yield s


def test_every_figure_names_its_source():
    assert list(claims(README.read_text())) == []


@pytest.mark.parametrize(("text", "count"), [
    ("It is 1.36x as fast.", 1), ("It takes 12 ms.", 1), ("They need 843 MB.", 1),
    ("It takes 0.63 of Python's time", 1), ("- a\n- It takes 27 % off", 1),
    ("A.\n\n| a | 12 ms |", 1), ("It is 1.36x as fast. So it is. Row of\nkernels.jsonl.", 1),
    ("See `arcompile bench x`.\n\nIt takes 12 ms.", 1),
    ("It is 1.36x as fast (bench/results/kernels.jsonl).", 0), ("`--memory 4 GiB` limits it.", 0),
    ("Of `arcompile bench x`:\n\n| a | 12 ms |\n|---|---|", 0), ("pictures of 64x64, 5 steps", 0),
    ("It takes 12 ms: [how](docs/decoding.md).", 0), ("```\nx  # 12 ms\n```", 0),
])
def test_claims(text, count):
    assert len(list(claims(text))) == count
