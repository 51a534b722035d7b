from dataclasses import replace

import pytest
from tiny import llama

from arcompile.errors import ArcError
from arcompile.passes.fuse_sampling import FuseSampling
from arcompile.passes.token_shuffle import TokenShuffle, windows
from arcompile.pipeline import PASSES, parse_pipeline, run
from arcompile.program import Program, raster
from arcompile.program_text import parse_program

LAYERS = """graph shuffle(%x: f32[r,4,8]) {
  @squeeze : f32[8,2]
  %0 = matmul(%x, @squeeze) : f32[r,4,2]
  %1 = reshape(%0) {shape=('r', 1, 8)} : f32[r,1,8]
  return x=%1
}
graph unshuffle(%x: f32[r,1,8]) {
  @spread : f32[8,32]
  %0 = matmul(%x, @spread) : f32[r,1,32]
  %1 = reshape(%0) {shape=('r', 4, 8)} : f32[r,4,8]
  return x=%1
}
"""


def with_layers(layers=1):
    return parse_program(f"{llama(layers)}\n{LAYERS}")


def test_it_merges_the_layers_into_step_and_feed(golden):
    p = run(with_layers(), [TokenShuffle(window=2)])
    head = replace(p, graphs=())
    assert f"{head}\n{p.graph('feed')}" == golden
    ops = [n.op for n in p.graph("step").nodes]
    assert ops[-7:] == ["add", "slice", "matmul", "reshape", "rms_norm", "transpose", "matmul"]
    assert str(parse_program(str(p))) == str(p)


def test_caches_and_rotary_tables_shrink():
    p = run(with_layers(), [TokenShuffle(window=2)])
    assert {t.shape[2] for k, t in p.state if k != "unread"} == {2}  # the prompt and one window
    step = p.graph("step")
    rope = next(n for n in step.nodes if n.op == "rope")
    assert [a.type.shape for a in rope.args[1:3]] == [(2, 2), (2, 2)]


def test_after_other_passes_the_same_tables():
    """Fusions that came first leave the classifier's tail and the rotary tables to find."""
    before = parse_pipeline("fold, rotary-attention, fuse-sampling")
    p = run(with_layers(), [*before, TokenShuffle(window=2)])
    attention = next(n for n in p.graph("step").nodes if n.op == "decode_attention")
    assert [a.type.shape for a in attention.args[6:8]] == [(2, 2), (2, 2)]
    assert [c.graph for c in p.steps[0].calls] == ["step", "sample"]


def test_a_window_of_one_changes_nothing():
    p = with_layers()
    assert run(p, [TokenShuffle()]) is p
    plain = llama()
    assert run(plain, [TokenShuffle(window=1)]) is plain


def test_sampling_still_moves_into_the_step():
    p = run(with_layers(), [TokenShuffle(window=2), FuseSampling()])
    assert {c.graph for s in p.steps for c in s.calls} == {"step"}


@pytest.mark.parametrize(("grid", "window"), [(8, 2), (8, 4), (6, 3), (4, 4)])
def test_windows_cover_the_image_in_order(grid, window):
    p = Program("p", grid**2, raster(grid**2))
    steps = windows(p, grid, window, "half-linear")
    assert len(steps) == (grid // window) ** 2  # window**2 times fewer forwards
    assert sorted(c for s in steps for c in s.commit) == [*range(grid**2)]
    assert all(s.append == 1 for s in steps)
    for k, s in enumerate(steps):
        rows, columns = ({c // grid for c in s.commit}, {c % grid for c in s.commit})
        assert (len(rows), len(columns)) == (window, window)
        assert (min(rows), min(columns)) == tuple(window * i for i in divmod(k, grid // window))


def test_guidance_grows_over_the_first_half():
    p = Program("p", 64, raster(64))
    scale = [a + b * 5.0 for a, b in (s.guide for s in windows(p, 8, 2, "half-linear"))]
    assert scale[0] == 1.0
    assert scale[4] == 3.0
    assert set(scale[8:]) == {5.0}
    assert scale == sorted(scale)
    assert {s.guide for s in windows(p, 8, 2, "constant")} == {(0.0, 1.0)}


@pytest.mark.parametrize(("said", "program", "options"), [
    ("tiny has none", llama(1), {"window": 2}),
    ("take 4 tokens, not 4 x 4", with_layers(), {"window": 4}),
    ("has no guidance 'cosine'", with_layers(), {"window": 2, "guidance": "cosine"}),
    ("draws several tokens a step already", run(with_layers(), [TokenShuffle(window=2)]),
     {"window": 2}),
])
def test_refusals(said, program, options):
    with pytest.raises(ArcError, match=said) as e:
        run(program, [PASSES["token-shuffle"](**options)])
    assert e.value.hint


def test_prompts_of_any_length_are_refused():
    text = str(with_layers()).replace("steps 3 x 1 : step sample feed ; append=1",
                                      "steps 1 x 1 : step sample feed ; append='p'\n"
                                      "  steps 2 x 1 : step sample feed ; append=1")
    p = parse_program(text.replace("input cond: i64[b]", "input cond: i64[b]\n  input w: i64[b,p]"))
    with pytest.raises(ArcError, match="prompts of one fixed length"):
        run(p, [TokenShuffle(window=2)])
