"""The loop over hand-written programs a few lines long, by the reference's meaning of each op."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from arcompile.program import Call, Program
from arcompile.program_text import parse_program
from arcompile.runtime import rng
from arcompile.runtime.loop import Loop, Request
from arcompile.sampling import sample_graph
from arcompile.targets.reference import models
from arcompile.text import parse_graph

V = 8
TABLE = np.random.default_rng(0).normal(size=(V + 5, V)).astype(np.float32)

# One token a step from the last token's row of a table; row V + label starts, V + 4 is the null
# class. The state `sum` [r] adds up the tokens a row has seen.
CHAIN = f"""\
program chain positions=4 mask=causal accept=all
  cache full
  input cond: i64[b]
  state sum: f32[r]
  draw noise: uniform x 2 per step
  prompt prompt
  steps 3 x 1 : step sample feed ; append=1
  steps 1 x 1 : step sample ; append=1
graph prompt(%cond: i64[b], %image: i64[r], %is_null: bool[r]) {{
  %0 = gather(%cond, %image) {{axis=0}} : i64[r]
  %1 = const() {{dtype='i64', value=4}} : i64[]
  %2 = where(%is_null, %1, %0) : i64[r]
  %3 = const() {{dtype='i64', value={V}}} : i64[]
  %4 = add(%2, %3) : i64[r]
  %5 = reshape(%4) {{shape=('r', 1)}} : i64[r,1]
  return x=%5
}}
graph step(%x: i64[r,1], %sum: f32[r], %past: i32[r]) {{
  @table : f32[{V + 5},{V}]
  %0 = gather(@table, %x) {{axis=0}} : f32[r,1,{V}]
  %1 = reshape(%x) {{shape=('r',)}} : i64[r]
  %2 = cast(%1) {{dtype='f32'}} : f32[r]
  %3 = add(%sum, %2) : f32[r]
  %4 = cast(%past) {{dtype='f32'}} : f32[r]
  %5 = reshape(%4) {{shape=('r', 1, 1)}} : f32[r,1,1]
  %6 = const() {{dtype='f32', value=0.25}} : f32[]
  %7 = mul(%5, %6) : f32[r,1,1]
  %8 = mul(%0, %7) : f32[r,1,{V}]
  %9 = add(%0, %8) : f32[r,1,{V}]
  return logits=%9, sum=%3
}}
graph feed(%token: i64[b,c], %image: i64[r]) {{
  %0 = gather(%token, %image) {{axis=0}} : i64[r,c]
  return x=%0
}}"""


def chain(**kw) -> Program:
    p = parse_program(CHAIN)
    p = replace(p, **{"graphs": (*p.graphs, sample_graph(V)), **kw})
    p.verify()
    return p


def request(b: int = 3, **kw) -> Request:
    given = {"inputs": {"cond": np.arange(b) % 4}, "seeds": np.arange(b, dtype=np.uint64) + 5,
             "copies": np.arange(b), "guidance": np.ones(b),
             "temperature": np.ones(b, np.float32), "top_k": np.zeros(b, np.int64),
             "top_p": np.ones(b, np.float32)}
    return Request(**{**given, **kw})


def loop(p: Program, q: Request) -> Loop:
    found = Loop(p, models(p, {"@table": TABLE}).runner(), q, V)
    found.keep_logits = True
    return found


def run(p: Program, q: Request):
    return loop(p, q).run()


def logits(token: int, past: int):
    return TABLE[token] * (1 + np.float32(past) * np.float32(0.25))


def test_the_chain_by_hand():
    """Tokens, logits and carried state against four lines of numpy."""
    q = request(temperature=np.zeros(3, np.float32))
    res = run(chain(), q)
    for i in range(3):
        x, total = V + int(q.inputs["cond"][i]), 0
        for j in range(4):
            want = logits(x, j)
            np.testing.assert_allclose(res.logits[j][0][i, 0], want, rtol=1e-6)
            total += x
            x = int(want.argmax())
            assert res.tokens[i, j] == x
        assert res.env["sum"][i] == total


def test_drawn_tokens_follow_the_noise():
    q = request(temperature=np.full(3, 0.7, np.float32))
    res = run(chain(), q)
    u = rng.draw(chain().draws[0], 0, q.seeds, q.copies, np.arange(4))
    for i in range(3):
        x = V + int(q.inputs["cond"][i])
        for j in range(4):
            p = np.exp(logits(x, j).astype(np.float64) / 0.7)
            x = int((np.cumsum(p) > u[i, j, 1] * p.sum()).argmax())
            assert res.tokens[i, j] == x


def test_progress_and_timings():
    seen = []
    q = request()
    res = loop(chain(), q).run(lambda s: seen.append((s.step, s.steps, s.tokens.copy())))
    assert [s[:2] for s in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for step, _, tokens in seen:
        assert (tokens[:, step:] == -1).all()
        assert (tokens[:, :step] == res.tokens[:, :step]).all()
    assert len(res.timings["steps"]) == 4


# --- guidance ------------------------------------------------------------------------------------

GUIDANCE = np.array([1.0, 4.0, 1.0, 1.5])


def test_a_graph_that_reads_the_tokens_finds_those_before_it():
    """Tokens are committed when somebody reads them, and a graph is somebody."""
    text = CHAIN.replace("feed(%token: i64[b,c], %image: i64[r])",
                         "feed(%token: i64[b,c], %image: i64[r], %tokens: i64[b,4])")
    p = parse_program(text)
    p = replace(p, graphs=(*p.graphs, sample_graph(V)))
    p.verify()
    found, seen = loop(p, request()), []
    plain = found.runner.run

    def watched(graph, env):
        if graph == "feed":
            seen.append(env["tokens"].copy())
        return plain(graph, env)

    found.runner.run = watched
    res = found.run()
    assert len(seen) == 3
    for count, tokens in enumerate(seen, 1):
        assert (tokens[:, :count] == res.tokens[:, :count]).all()
        assert (tokens[:, count:] == -1).all()


def test_only_guided_images_get_a_null_row():
    q = request(4, guidance=GUIDANCE)
    res = run(chain(), q)
    assert res.env["image"].tolist() == [0, 1, 2, 3, 1, 3]
    assert res.env["is_null"].tolist() == [False] * 4 + [True] * 2
    assert res.env["null_row"].tolist() == [0, 4, 2, 5]
    assert res.env["sum"].shape == (6,)
    null = res.logits[0][1]
    assert (null[[1, 3]] == TABLE[V + 4]).all()  # the null class
    assert (null[[0, 2]] == res.logits[0][0][[0, 2]]).all()  # its own row


def test_guidance_moves_the_tokens():
    q = request(4, guidance=GUIDANCE, temperature=np.zeros(4, np.float32))
    res = run(chain(), q)
    for j, (cond, null) in enumerate(res.logits):
        mixed = null + GUIDANCE[:, None, None].astype(np.float32) * (cond - null)
        assert (res.tokens[:, j] == mixed[:, 0].argmax(-1)).all()


@pytest.mark.parametrize("guidance", [1.0, 0.5, 0.0])
def test_scale_one_and_below_is_exactly_conditional(guidance):
    q = request(4, guidance=np.full(4, guidance))
    plain, res = run(chain(), request(4)), run(chain(), q)
    assert len(res.env["image"]) == 4
    assert (res.tokens == plain.tokens).all()


def test_an_unguided_image_is_not_touched_by_guided_ones():
    plain, mixed = run(chain(), request(4)), run(chain(), request(4, guidance=GUIDANCE))
    for i in (0, 2):
        assert (mixed.tokens[i] == plain.tokens[i]).all()
        for (a, _), (b, _) in zip(mixed.logits, plain.logits, strict=True):
            assert (a[i] == b[i]).all()


def test_interval_ends_guidance():
    """Guided up to `interval` steps after the first, as LlamaGen's cfg_interval counts them."""
    scales = Loop(chain(), None, request(2, guidance=np.full(2, 3.0), interval=1)).scales
    assert scales[:, 0].tolist() == [3, 3, 3, 1]
    res = run(chain(), request(2, guidance=np.full(2, 3.0), interval=0,
                               temperature=np.zeros(2, np.float32)))
    for j, (cond, null) in enumerate(res.logits):
        want = cond + np.float32(2) * (cond - null) if j < 2 else cond
        assert (res.tokens[:, j] == want[:, 0].argmax(-1)).all()


def test_steps_ramp_guidance():
    p = chain()
    ramp = tuple(replace(s, guide=(1.0, j / 4)) for j, s in enumerate(p.steps))
    scales = Loop(replace(p, steps=ramp), None, request(2, guidance=np.array([4.0, 0.0]))).scales
    assert scales.tolist() == [[1, 1], [2, 1], [3, 1], [4, 1]]


# --- rows do not know their neighbours -----------------------------------------------------------

MIXED = {"guidance": np.array([1, 4, 2, 1.0, 3]), "top_k": np.array([0, 3, 0, 1, 5]),
         "top_p": np.array([1, 0.9, 0.5, 1, 1], np.float32),
         "temperature": np.array([1, 0.5, 1.5, 1, 0], np.float32)}


def test_mixed_batch_is_solo_rows_bit_for_bit():
    q = request(5, **MIXED)
    whole = run(chain(), q)
    for i in range(5):
        one = Request({"cond": q.inputs["cond"][i : i + 1]}, *(
            getattr(q, k)[i : i + 1] for k in ("seeds", "copies", "guidance", "temperature",
                                               "top_k", "top_p")))
        solo = run(chain(), one)
        assert (solo.tokens[0] == whole.tokens[i]).all()
        for (a, an), (b, bn) in zip(solo.logits, whole.logits, strict=True):
            assert (a[0] == b[i]).all()
            assert (an[0] == bn[i]).all()


def test_per_row_parameters_reach_the_sampler():
    b = 6
    q = request(b, inputs={"cond": np.zeros(b, np.int64)}, top_k=np.array([1, 0] * 3))
    res = run(chain(), q)
    best = res.logits[0][0][0, 0].argmax()
    assert (res.tokens[::2, 0] == best).all()
    assert len(set(res.tokens[1::2].ravel().tolist())) > 1
    alike = request(b, inputs={"cond": np.zeros(b, np.int64)}, seeds=np.zeros(b, np.uint64))
    assert len({tuple(t) for t in run(chain(), alike).tokens.tolist()}) > 1  # copies differ
    same = run(chain(), replace(alike, copies=np.zeros(b, np.int64)))
    assert (same.tokens == same.tokens[0]).all()


# --- what the user gives -------------------------------------------------------------------------


def test_forced_tokens_are_committed_and_fed():
    forced = np.array([[1, 2, 3, 4], [7, 6, 5, 4]])
    res = run(chain(), request(2, forced=forced))
    assert (res.tokens == forced).all()
    for j in range(1, 4):
        for i in range(2):
            np.testing.assert_allclose(res.logits[j][0][i, 0], logits(forced[i, j - 1], j),
                                       rtol=1e-6)


def test_given_noise_replaces_the_draw():
    q = request()
    u = rng.draw(chain().draws[0], 0, q.seeds, q.copies, np.arange(4))
    assert (run(chain(), replace(q, given={"noise": u})).tokens == run(chain(), q).tokens).all()
    low = run(chain(), replace(q, given={"noise": np.zeros_like(u)}))
    assert (low.tokens == 0).all()


# --- tables, sets, each --------------------------------------------------------------------------

TABLES = """\
program tables positions=4 mask=none accept=all
  cache full
  state acc: f32[b,2]
  state seen: i64[b]
  draw first: normal x 1 per start
  draw kick: normal x 2 per loop
  draw place: order x 1 per start
  table time.t = [0.5, 0.25, 2.0]
  table time.n = [1, 2, 3]
  steps 1 x 2 : move*time commit ; set.gain=2.0
  steps 1 x 2 : move*time commit ; set.gain=10.0
  finish paint/each
graph move(%acc: f32[b,2], %kick: f32[b,c,2], %t: f32[], %n: i64[], %seen: i64[b], %gain: f32[]) {
  %0 = slice(%kick) {axis=1, start=0, stop=1} : f32[b,1,2]
  %1 = reshape(%0) {shape=('b', 2)} : f32[b,2]
  %2 = mul(%t, %gain) : f32[]
  %3 = mul(%1, %2) : f32[b,2]
  %4 = add(%acc, %3) : f32[b,2]
  %5 = add(%seen, %n) : i64[b]
  return acc=%4, seen=%5
}
graph commit(%seen: i64[b], %kick: f32[b,c,2]) {
  %0 = reshape(%seen) {shape=('b', 1)} : i64[b,1]
  %1 = concat(%0, %0) {axis=1} : i64[b,2]
  return token=%1
}
graph paint(%tokens: i64[b,4], %acc: f32[b,2], %most: i64[1]) {
  %0 = cast(%tokens) {dtype='f32'} : f32[b,4]
  %1 = concat(%0, %acc) {axis=1} : f32[b,6]
  return pixels=%1
}"""


@pytest.mark.parametrize("ahead", [1, 24, 1 << 15])
def test_tables_sets_and_each(ahead, monkeypatch):
    """Two steps of three turns each: the state adds gain * t * kick, `seen` adds n.

    However many turns' noise is drawn ahead: 1 number is one turn, 24 are two of 3 * 2 * 2.
    """
    monkeypatch.setattr("arcompile.runtime.loop.AHEAD", ahead)
    p, q = parse_program(TABLES), request(3)
    p.verify()
    res = Loop(p, models(p, {}).runner(), q).run()
    assert res.tokens.tolist() == [[6, 6, 12, 12]] * 3
    acc = np.zeros((3, 2), np.float32)
    for where, gain in (((0, 1), 2.0), ((2, 3), 10.0)):
        for turn, t in enumerate((0.5, 0.25, 2.0)):
            kick = rng.draw(p.draws[1], 1, q.seeds, q.copies, np.array(where), turn)
            acc = acc + kick[:, 0] * np.float32(t) * np.float32(gain)
    np.testing.assert_allclose(res.env["acc"], acc, rtol=1e-5)
    assert res.env["pixels"].shape == (3, 6)
    assert (res.env["pixels"][:, :4] == res.tokens).all()
    assert res.env["first"].shape == (3, 4, 1)
    assert (np.sort(res.env["place"]) == np.arange(4)).all()


def test_each_runs_image_by_image():
    p = parse_program(TABLES)
    runner = models(p, {}).runner()
    sizes, run_one = [], runner.run
    runner.run = lambda g, env: (sizes.append((g, len(env["acc"]))), run_one(g, env))[1]
    Loop(p, runner, request(3)).run()
    assert [s for g, s in sizes if g == "paint"] == [1, 1, 1]
    assert [s for g, s in sizes if g == "move"] == [3] * 6
    sizes.clear()
    Loop(p, runner, request(3)).run(finish=False)
    assert not [s for g, s in sizes if g == "paint"]


def test_what_a_graph_hands_on_stays_as_it_was():
    """`past` and `tokens` move on; a value read off them earlier does not."""
    note = "graph note(%past: i32[r], %tokens: i64[b,N]) {\n  return was=%past, had=%tokens\n}"
    first = replace(chain().steps[0], calls=(*chain().steps[0].calls, Call("note")))
    p = chain(steps=(first, *chain().steps[1:]), graphs=(*chain().graphs, parse_graph(note)))
    res = run(p, request(2))
    assert res.env["was"].tolist() == [0, 0]
    assert (res.env["had"][:, 1:] == -1).all()
