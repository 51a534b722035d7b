"""DiSA: denoising steps that fall from one iteration to the next. https://arxiv.org/abs/2505.20297"""

from __future__ import annotations

import numpy as np
import plain
import pytest

from arcompile.family import FAMILIES
from arcompile.models.diffusion import ANNEALING, annealed, ddpm, respaced

MAR = FAMILIES["mar"]


@pytest.mark.parametrize("kind", ANNEALING)
@pytest.mark.parametrize(("high", "low", "count"), [
    (50, 5, 64), (25, 25, 8), (9, 2, 4), (7, 3, 1)])
def test_schedules(kind, high, low, count):
    found = annealed(high, low, kind, count)
    assert found[0] == high
    assert len(found) == count
    assert found == sorted(found, reverse=True)
    assert count == 1 or found[-1] == low
    assert all(low <= n <= high for n in found)


def test_schedules_by_the_formula():
    k = np.arange(64)
    assert annealed(50, 5, "linear", 64) == [(63 - i) * 45 // 63 + 5 for i in k]
    share = (np.cos(np.pi * k / 63) + 1) / 2
    assert annealed(50, 5, "cosine", 64) == (np.floor(share * 45 + 1e-9) + 5).astype(int).tolist()
    assert annealed(50, 5, "two-stage", 64) == [50] * 32 + [5] * 32


def programs(**options):
    m = MAR.model(MAR.random("tiny"), options)
    return m, m.program


def test_each_iteration_loops_over_its_own_table():
    m, p = programs(diffusion_steps=5, diffusion_least=2, num_iter=4)
    loops = [c.loop for s in p.steps for c in s.calls if c.loop]
    assert loops == ["ddpm5", "ddpm4", "ddpm3", "ddpm2"]
    rows = [p.tables[name]["turn"] for name in loops]
    assert sum(rows, ()) == tuple(range(14))
    table = m.weights["@mar.diffloss.schedule"]
    for n, at in zip((5, 4, 3, 2), rows, strict=True):
        np.testing.assert_array_equal(table[list(at)], ddpm(n))
        assert (respaced(n)[0], respaced(n)[-1]) == (0, 999)  # each spans all of the time
    assert m.weights["@mar.diffloss.net.time_embed.rows"].shape == (14, 256)


@pytest.mark.parametrize("kind", ANNEALING)
def test_neutral(kind):
    """From T to T steps is T steps."""
    (m, p), (n, q) = programs(), programs(diffusion_least=5, annealing=kind)
    assert p == q
    for k in ("@mar.diffloss.schedule", "@mar.diffloss.net.time_embed.rows"):
        np.testing.assert_array_equal(m.weights[k], n.weights[k])


def test_an_engine(tmp_path):
    e = plain.engine("mar", MAR.random("tiny"), tmp_path / "e", "reference", diffusion_least=2)
    plain.latents_are_solo(e, [1, 3])
    assert e.manifest["info"]["diffusion_least"] == 2


@pytest.mark.parametrize(("options", "why"), [
    ({"diffusion_least": 6}, "diffusion_least=6 is not between 2 and diffusion_steps=5"),
    ({"diffusion_least": 1}, "diffusion_least=1 is not between"),
    ({"diffusion_least": 0}, "diffusion_least must be a positive integer"),
    ({"annealing": "steep"}, "no annealing 'steep'")])
def test_refuses(options, why):
    plain.refuses(why, lambda: MAR.model(MAR.random("tiny"), options))


# --- xAR: the flow of each cell ------------------------------------------------------------------

XAR = FAMILIES["xar"]


def cells(**options):
    m = XAR.model(XAR.random("tiny"), options)
    return m, m.program


def test_each_cell_loops_over_its_own_flow():
    from arcompile.models.xar import flow, times

    m, p = cells(flow_steps=5, flow_least=2)
    assert [c.loop for s in p.steps for c in s.calls if c.loop] == ["flow5", "flow4", "flow3",
                                                                    "last"]
    table = m.weights["@xar.schedule"]
    assert len(table) == 5 + 4 + 3 + 2 + 1
    for n in (5, 4, 3):
        *rows, clean = p.tables[f"flow{n}"]["turn"]
        np.testing.assert_array_equal(table[rows], flow(n))
        assert clean == len(table) - 1
        assert not table[clean].any()
        assert times(n)[[0, -1]].tolist() == [1, 0.04]  # each spans all of the time
    np.testing.assert_array_equal(table[list(p.tables["last"]["turn"])], flow(2))


@pytest.mark.parametrize("kind", ANNEALING)
def test_flows_of_one_length_are_as_they_were(kind):
    (m, p), (n, q) = cells(), cells(flow_least=3, annealing=kind)
    assert p == q
    for k in ("@xar.schedule", "@xar.time_embed.rows"):
        np.testing.assert_array_equal(m.weights[k], n.weights[k])


@pytest.mark.parametrize(("options", "why"), [
    ({"flow_least": 4}, "flow_least=4 is not between 2 and flow_steps=3"),
    ({"annealing": "sudden"}, "no annealing 'sudden'")])
def test_xar_refuses(options, why):
    with pytest.raises(plain.ArcError, match=why):
        cells(**options)
