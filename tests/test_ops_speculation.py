"""The verifier's ops: by hand, and the same on ONNX Runtime as in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from arcompile.errors import IRError
from arcompile.ir import OPS, Builder, evaluate, merge
from arcompile.speculation import (
    GUESSES,
    Method,
    draft_graph,
    law_graph,
    ratio,
    residual,
    verify_graph,
)

RANDOM = np.random.default_rng(0)


def laws(*shape):
    x = RANDOM.random(shape) ** 4
    return (x / x.sum(-1, keepdims=True)).astype(np.float32)


def uniforms(*shape):
    return (RANDOM.integers(0, 1 << 23, shape) * 2.0**-23).astype(np.float32)


def ints(n, *shape):
    return RANDOM.integers(0, n, shape)


def window(b=4, c=5, v=300):
    p, q = laws(b, c, v), laws(b, c, v)
    weight = RANDOM.random((b, c)) * 1.6
    return [p, np.maximum(p - q, 0), weight.astype(np.float32), ints(v, b, c), uniforms(b, c, 1),
            uniforms(b, c, 2), ints(3, b)]


def test_slide_by_hand():
    x, fill = np.arange(6).reshape(2, 3), -np.arange(1, 9).reshape(2, 4)
    (out,) = OPS["slide"].eval(x, np.array([1, 3]), fill)
    assert out.tolist() == [[1, 2, -3, -4], [-5, -6, -7, -8]]


def test_agree_by_hand():
    token = np.array([[5, 6, 7, 8]] * 3)
    draft = np.array([[5, 6, 0, 8], [5, 6, 7, 8], [1, 2, 7, 8]])
    out, accepted = OPS["agree"].eval(token, draft, np.array([0, 0, 2]))
    assert out.tolist() == [[5, 6, 7, 8], [5, 6, 7, 8], [1, 2, 7, 8]]
    assert accepted.tolist() == [3, 4, 4]


def test_verify_by_hand():
    """A window of 3: kept, rejected, and after that whatever the coupling says."""
    p = np.zeros((1, 3, 4))
    p[0, :, 3] = 1
    rest = np.zeros((1, 3, 4))
    rest[0, :, 2] = 0.1
    weight, chance = np.array([[0.5, 0.2, 0.5]]), np.array([[[0.4], [0.3], [0.4]]])
    draft, noise, done = np.array([[0, 0, 0]]), np.full((1, 3, 2), 0.5), np.array([0])
    shared = np.zeros((1, 3, 4))
    given = (p, rest, weight, draft, chance, noise)
    for coupling, more, want in (("independent", (), 3), ("maximal", (), 0),
                                 ("gumbel", (shared,), 3)):
        token, accepted = OPS["verify"].eval(*given, done, *more, coupling=coupling)
        assert token.tolist() == [[0, 2, want]]
        assert accepted.tolist() == [2]
    token, accepted = OPS["verify"].eval(*given, np.array([2]), coupling="independent")
    assert token.tolist() == [[0, 0, 0]]
    assert accepted.tolist() == [3]


def test_an_empty_residual_falls_back_to_the_law():
    p = np.zeros((1, 1, 4))
    p[0, 0, 3] = 1
    given = (p, 0 * p, np.array([[0.0]]), np.array([[0]]), np.array([[[0.5]]]), np.zeros((1, 1, 2)))
    token, _ = OPS["verify"].eval(*given, np.array([0]), coupling="maximal")
    assert token.tolist() == [[3]]


def test_the_law_at_temperature_0_is_the_first_best():
    x = np.array([[[1.0, 2.0, 2.0, -np.inf]]] * 2, np.float32)
    (p,) = OPS["law"].eval(x, np.array([0.0, 1.0], np.float32))
    assert p[0, 0].tolist() == [0, 1, 0, 0]
    np.testing.assert_allclose(p[1, 0], np.exp(x[1, 0]) / np.exp(x[1, 0]).sum(), rtol=1e-6)


@pytest.mark.parametrize(("attrs", "more", "why"), [
    ({"coupling": "none"}, 0, "unknown coupling 'none'"),
    ({"coupling": "gumbel"}, 0, "0 noises"),
    ({"coupling": "maximal"}, 1, "1 noises")])
def test_refuses(attrs, more, why):
    b = Builder("g")
    p, cells = [b.param(k, "f32[b,c,9]") for k in "pr"], b.param("d", "i64[b,c]")
    rest = (b.param("w", "f32[b,c]"), cells, b.param("u", "f32[b,c,1]"),
            b.param("n", "f32[b,c,2]"), b.param("e", "i64[b]"))
    with pytest.raises(IRError, match=why):
        b.verify(*p, *rest, *p[:1] * more, **attrs)


# --- ONNX Runtime --------------------------------------------------------------------------------


def model(g, how):
    load = pytest.importorskip("onnx").load_from_string
    from arcompile.targets.onnx_emit import emit

    return load(emit(g, {}, kernels=how is not None))


def onnx(g, feeds, how=None):
    """how: None in standard ops, "functions" as our kernels' functions say, or the kernels'
    library."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    if how not in (None, "functions"):
        options.register_custom_ops_library(str(how))
    s = ort.InferenceSession(model(g, how).SerializeToString(), options,
                             providers=["CPUExecutionProvider"])
    names = [o.name.removeprefix("out.") for o in s.get_outputs()]
    return dict(zip(names, s.run(None, feeds), strict=True))


@pytest.fixture(scope="module", params=["standard", "functions", "kernels"])
def how(request):
    if request.param == "standard":
        return None
    if request.param == "functions":
        return request.param
    from arcompile.kernels import cpu

    if not cpu.compiler():
        pytest.skip("no C++ compiler on this machine")
    return cpu.build()


def agrees(op, arrays, how=None, **attrs):
    kinds = {"f": "f32", "i": "i64"}
    b = Builder("g")
    params = [b.param(f"p{i}", f"{kinds[a.dtype.kind]}[{','.join(map(str, a.shape))}]")
              for i, a in enumerate(arrays)]
    outs = b.emit(op, *params, **attrs)
    g = b.graph(**{f"o{i}": v for i, v in enumerate(outs)})
    feeds = {f"p{i}": a for i, a in enumerate(arrays)}
    same(g, feeds, how)


def same(g, feeds, how, **near):
    want, found = evaluate(g, feeds), onnx(g, feeds, how)
    for k, x in want.items():
        np.testing.assert_allclose(found[k], x, **{"rtol": 1e-5, **near})


@pytest.mark.ort
@pytest.mark.parametrize("vocabulary", [7, 128, 300])
@pytest.mark.parametrize("coupling", ["independent", "maximal", "gumbel"])
def test_verify_on_onnx(vocabulary, coupling, how):
    more = [RANDOM.gumbel(size=(4, 5, vocabulary)).astype(np.float32)] * (coupling == "gumbel")
    agrees("verify", [*window(v=vocabulary), *more], how, coupling=coupling)


@pytest.mark.ort
@pytest.mark.parametrize("vocabulary", [7, 1000])
@pytest.mark.parametrize("coupling", ["independent", "maximal", "gumbel"])
def test_a_round_on_onnx(vocabulary, coupling, how):
    """Guidance, filters, the law and the verifier as programs say them; half of the drafts hold."""
    b, c, r = 6, 4, 9
    g = merge(law_graph(vocabulary), verify_graph(vocabulary, Method(ratio, residual, coupling)))
    q = laws(b, c, vocabulary)
    q[0] = np.eye(vocabulary)[ints(vocabulary, c)]  # a guess, and one that must be drawn anew
    feeds = {
        "logits": RANDOM.normal(0, 2, (r, c, vocabulary)).astype(np.float32), "q": q,
        "row": np.arange(b), "null_row": np.array([6, 7, 8, 3, 4, 5]),
        "scales": RANDOM.uniform(1, 3, (b, c)).astype(np.float32),
        "temperature": np.array([1, 0.7, 0, 1, 2, 1], np.float32),
        "top_k": np.array([0, 5, 0, 3, 0, 1]),
        "top_p": np.array([1, 1, 1, 0.9, 0.8, 1], np.float32),
        "most": np.array([vocabulary]), "draft": q.argmax(-1), "chance": uniforms(b, c, 1),
        "noise": uniforms(b, c, 2), "done": np.array([0, 0, 0, 0, 2, 4])}
    if coupling == "gumbel":
        feeds["gumbel"] = RANDOM.gumbel(size=q.shape).astype(np.float32)
    same(g, feeds, how, rtol=2e-5, atol=1e-9)
    names = {n.op_type for n in model(g, how).graph.node}
    ours = {"GuidedFilter", "Law", "Verify" + "Shared" * (coupling == "gumbel")}
    assert ours <= names if how else not ours & names


@pytest.mark.ort
@pytest.mark.parametrize(("op", "arrays"), [
    ("law", [np.log(laws(2, 3, 9)), np.array([0, 1], np.float32)]),
    ("draw_from", [laws(3, 4, 300), uniforms(3, 4, 2)]),
    ("draw_from", [laws(3, 4, 9), uniforms(3, 4, 2)]),
    ("slide", [ints(9, 3, 4), np.array([0, 2, 9]), ints(9, 3, 5)]),
    ("slide", [laws(3, 4, 6), np.array([1, 4, 3]), laws(3, 2, 6)]),
    ("agree", [ints(2, 9, 4), ints(2, 9, 4), ints(4, 9)])],
    ids=lambda x: x if isinstance(x, str) else "")
def test_ops_on_onnx(op, arrays, how):
    agrees(op, arrays, how)


@pytest.mark.ort
@pytest.mark.parametrize("guess", GUESSES)
def test_guesses_on_onnx(guess, how):
    g = draft_graph(5, 4, 16, guess)
    tokens = ints(3, 6, 16)
    feeds = {"shift": ints(5, 6), "first": np.array([1, 2, 5, 9, 11, 12]), "tokens": tokens,
             "token": ints(5, 6, 4), "p": laws(6, 4, 5)}
    for k, x in evaluate(g, feeds).items():
        np.testing.assert_array_equal(onnx(g, feeds, how)[k], x)


def test_guesses_by_hand():
    """An image 4 wide; the window begins at 9 and keeps nothing."""
    tokens = np.array([[0, 1, 2, 3, 4, 0, 1, 5, 1, -1, -1, -1, -1, -1, -1, -1]])
    feeds = {"shift": np.array([3]), "first": np.array([9]), "tokens": tokens,
             "token": np.array([[7, 7, 7]]), "p": laws(1, 3, 9)}
    for guess, want in (("repeat", [1, 1, 1]), ("above", [0, 1, 5]), ("copy", [1, 1, 1])):
        out = evaluate(draft_graph(9, 3, 16, guess), feeds)
        assert out["draft"].tolist() == [want], guess
        assert out["q"].argmax(-1).tolist() == [want]
        assert out["token"].tolist() == [[1, *want[:2]]]
    again = tokens.copy()
    again[0, 7:9] = 0, 1  # ends as 0 1 2 3 4 began, and as 0 1 at 5 and 6 does: the later counts
    feeds["tokens"] = again
    assert evaluate(draft_graph(9, 3, 16, "copy"), feeds)["draft"].tolist() == [[0, 1, 1]]
