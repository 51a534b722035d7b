"""The plot of a quality report: a mark for each set of passes, where it was measured."""

from __future__ import annotations

import pytest

from arcompile.bench import plots

LINES = {"base": {"weights": 4_000_000, "state": 100, "seconds": 2.0, "score": 0.9,
                  "interval": [0.85, 0.93]},
         "passes": {"int8": {"weights": 1_000_000, "state": 100, "seconds": 1.0, "score": 0.89,
                             "interval": [0.84, 0.92]},
                    "int4": {"weights": 500_000, "kl": 0.1}}}
ROW = {"suite": "demo", "dtype": "f32", "batch": 1, "guidance": 2.0, "machine": {"threads": 1}}


@pytest.mark.parametrize(("row", "marks"), [
    ({**ROW, "quality": LINES}, 2), (ROW, 0), ({**ROW, "quality": {"not measured": "why"}}, 0)])
def test_a_mark_for_each_measured_line(row, marks):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    ax = figure.subplots()
    if not plots._lossy(row):
        assert marks == 0
        return
    plots._quality(ax, row)
    assert [t.get_text() for t in ax.texts] == ["none\n2 s", "int8\n1 s"]
    assert len(ax.texts) == marks
    assert ax.get_ylabel().startswith("judged")
    places = [tuple(c.get_offsets()[0]) for c in ax.collections if len(c.get_offsets())]
    assert (pytest.approx(4.0001), pytest.approx(0.9)) in places
