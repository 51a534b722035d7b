"""The README's family table is what `arcompile list models --markdown` prints."""

from __future__ import annotations

from pathlib import Path

from arcompile.cli.machine import LISTS, markdown_table

README = Path(__file__).parent.parent / "README.md"


def test_the_family_table_is_current():
    text = README.read_text()
    table = text.partition("--markdown` -->\n")[2].partition("\n<!-- /families -->")[0]
    ours = [row for row in LISTS["models"]() if row["name"] != "rows"]  # another test's example
    assert table == markdown_table(ours)


def test_every_file_it_links_to_is_there():
    import re

    for link in re.findall(r"\]\(([^)#:]+)\)", README.read_text()):
        assert (README.parent / link).exists(), link
