"""Drafts of a second model are verified by the first: its law, whatever the drafter's is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engines import signed, write
from tiny import generate, llama, weights
from toy import Toy, chi_square, same_in_any_batch, two_sample, with_graph

from arcompile.drafting import draft, renamed
from arcompile.errors import ArcError
from arcompile.ir import Builder, merge
from arcompile.passes.draft import Draft
from arcompile.passes.kv_int4 import KvInt4
from arcompile.passes.kv_int8 import KvInt8
from arcompile.pipeline import parse_pipeline, run
from arcompile.program_text import parse_program
from arcompile.speculation import Method, ratio, residual
from arcompile.weights import of_arrays

IMAGES, SURE = 4000, 1e-4
ASKED = [{"guidance": 1.5}, {"temperature": 0.7, "guidance": 2.0}, {"top_k": 2},
         {"temperature": 1.6, "top_p": 0.8, "guidance": 1.5}]


def own(w):
    return "@small." + w.lstrip("@")


@pytest.fixture(scope="module")
def toy():
    """A toy that is drafted by another: other weights, half way to its own."""
    made, other = Toy(), Toy(seed=2)
    mixed = {k: 0.5 * made.weights[k] + 0.5 * w if k not in ("@cos", "@sin") else w
             for k, w in other.weights.items()}
    made.weights |= {own(k): w for k, w in mixed.items()}
    made.small = replace(made.program, graphs=tuple(
        renamed(g, g.name, {}, own) for g in made.program.graphs))
    return made


def drafted(toy, window):
    p = draft(toy.program, "draft", window, toy.small, Method(ratio, residual))
    p.verify()
    return p


@pytest.mark.parametrize(("window", "how"), [
    (2, ASKED[0]), (4, ASKED[1]), (3, ASKED[2]), (4, ASKED[3])], ids=str)
def test_the_law_is_the_large_models(toy, window, how):
    _, law = toy.law(**how)
    counts = toy.counts(toy.sample(drafted(toy, window), IMAGES, seed=7, **how).tokens)
    assert chi_square(counts, law) > SURE
    plain = toy.counts(toy.sample(toy.program, IMAGES, seed=8, **how).tokens)
    assert two_sample(counts, plain) > SURE


@pytest.mark.parametrize("by", [KvInt8(), KvInt4(window=0)], ids=str)
def test_a_drafter_of_rounded_caches_keeps_the_law(toy, by):
    """A rejected draft's codes are written over, as whole slots are."""
    how = {"guidance": 1.5}
    p = draft(toy.program, "draft", 3, run(toy.small, [by]), Method(ratio, residual))
    p.verify()
    assert {t.dtype for k, t in p.state if k.startswith("small_k.")} == {"u8", "f32"}
    _, law = toy.law(**how)
    assert chi_square(toy.counts(toy.sample(p, IMAGES, seed=7, **how).tokens), law) > SURE


def test_a_wrong_law_of_drafts_is_seen(toy):
    """Drafts of the small model that are tested as if drawn from anything."""
    def spoil(g):
        b = Builder("spoil")
        q = b.param("q", "f32[b,4,3]")
        flat = b.add(b.mul(q, b.const(dtype="f32", value=0.0)), b.const(dtype="f32", value=1 / 3))
        return merge(g, b.graph(q=flat))

    _, law = toy.law(guidance=1.5)
    bad = with_graph(drafted(toy, 4), "small_read", spoil)
    counts = toy.counts(toy.sample(bad, IMAGES, guidance=1.5, seed=7).tokens)
    assert chi_square(counts, law) < 1e-9


def test_the_model_itself_is_never_refused(toy):
    p = run(toy.program, [Draft(window=4, by="")])
    rounds = toy.sample(p, 200, guidance=1.5).rounds
    assert ((rounds > 0).sum(0) == 2).all()


def test_a_batch_draws_what_each_image_draws_alone(toy):
    same_in_any_batch(toy, drafted(toy, 3))


@pytest.mark.parametrize("by", ["int8{least=1,bound=9.0}", "shallow{layers=1}", "kv-int8",
                                "kv-int4{window=0}"])
def test_greedy_tokens_are_those_of_plain_decoding(by):
    p = llama(2)
    q = run(p, [Draft(window=3, by=by)], weights(p))
    assert str(parse_program(str(q))) == str(q)
    assert (generate(q).tokens == generate(p).tokens).all()
    assert generate(q, temperature=1.0).rounds.sum(0).tolist() == [4, 4]


def test_choices_are_written_down():
    p = llama(2)
    made = Draft(window=3, by="int8{least=1,bound=1e-06}").prepared(p, weights(p))
    assert "skip=" in made.by
    assert parse_pipeline(str(made)) == [made]


# --- an engine as the drafter --------------------------------------------------------------------


def engine(folder, p, source):
    write(folder, p, source)
    (folder / "program.arc").write_text(f"{p}\n")
    signed(folder)
    return str(folder)


def test_an_engine_drafts(tmp_path):
    p = llama(2)
    other = llama(1)
    path = engine(tmp_path / "e", other, weights(other))
    way = Draft(window=3, engine=path)
    source = of_arrays({k: weights(p)[k] for k in weights(p).load}).plus(way.brings().load)
    q = run(p, [way], source)
    assert (generate(q, source).tokens == generate(p).tokens).all()
    assert way.reads() != Draft(window=3).reads()


def test_refuses_an_engine(tmp_path):
    p, other = llama(2), llama(1)
    odd = {k: weights(other)[k] for k in weights(other).load}
    odd["@codes"] = odd["@codes"][::-1]
    path = engine(tmp_path / "a", other, of_arrays(odd))
    with pytest.raises(ArcError, match="their codebooks differ"):
        run(p, [Draft(window=2, engine=path)], weights(p))
    drafts = engine(tmp_path / "b", run(other, [Draft(window=2, by="")]), weights(other))
    with pytest.raises(ArcError, match="takes a plain engine"):
        run(p, [Draft(window=2, engine=drafts)])
    with pytest.raises(ArcError, match="is no engine"):
        run(p, [Draft(window=2, engine=str(tmp_path))])


@pytest.mark.parametrize(("change", "why"), [
    (lambda p: replace(p, inputs=(*p.inputs, ("more", p.inputs[0][1]))), "the same inputs"),
    (lambda p: replace(p, steps=(replace(p.steps[0], append=2), *p.steps[1:])),
     "prompts of one length"),
])
def test_refuses_another_kind_of_model(toy, change, why):
    with pytest.raises(ArcError, match=f"needs two models with {why}"):
        draft(toy.program, "draft", 2, change(toy.small), Method(ratio, residual))


def test_refuses_another_grid_and_codebook(toy):
    for other, why in ((Toy(n=4), "grids of as many tokens, not 5 and 4"),
                       (Toy(v=4), "codebooks of one size, not 3 and 4")):
        with pytest.raises(ArcError, match=why):
            draft(toy.program, "draft", 2, other.program, Method(ratio, residual))


@pytest.mark.parametrize(("way", "why"), [
    (Draft(window=9), "a window of 9 positions in an image of 4"),
    (Draft(window=2, by="scd{window=2}"), "tiny is drafted already"),
    (Draft(window=2, by="shallow{layers=7}"), "no more than 7 layers")])
def test_refuses(way, why):
    with pytest.raises(ArcError, match=why):
        run(llama(2), [way])


def test_a_window_of_one_is_plain_decoding():
    p = llama(1)
    assert run(p, [Draft(window=1)]) is p
