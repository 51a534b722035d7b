"""LlamaGen against what upstream computes: greedy tokens, logits, pixels, encoding."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import arcompile

KINDS = ("c2i", "t2i")
GUIDANCE = {"c2i": 4.0, "t2i": 7.5}


@pytest.fixture(scope="module")
def engines(goldens, tmp_path_factory):
    """kind, target -> engine, each built once."""
    made, root = {}, tmp_path_factory.mktemp("llamagen")

    def get(kind: str, target: str = "ort-cpu"):
        if (kind, target) not in made:
            folder = goldens / f"llamagen-{kind}"
            made[kind, target] = arcompile.build(
                folder / f"{kind}_tiny.pt", decoder=folder / f"vq_ds16_{kind}_tiny.pt",
                options={"n_head": 4, "grid": 8}, target=target, out=root / f"{kind}-{target}")
        return made[kind, target]

    return get


@pytest.fixture(scope="module")
def expected(goldens):
    return {k: np.load(goldens / f"llamagen-{k}" / "expected.npz") for k in KINDS}


def condition(kind, data, mask=True):
    if kind == "c2i":
        return data["cond"]
    return {"features": data["cond"]} | ({"mask": data["emb_masks"]} if mask else {})


def one(cond, i):
    if isinstance(cond, dict):
        return {k: v[i : i + 1] for k, v in cond.items()}
    return cond[i : i + 1]


def distance(x, y):
    return np.linalg.norm(np.float64(x) - y) / np.linalg.norm(y)


@pytest.mark.parametrize("target", ["ort-cpu", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_and_pixels_are_upstreams(engines, expected, kind, target):
    data = expected[kind]
    out = engines(kind, target).generate(condition(kind, data), guidance=GUIDANCE[kind],
                                         temperature=0)
    assert (out.tokens == data["greedy_tokens"]).all()
    assert distance(out.pixels, data["image"]) < 1e-4
    assert out.images.dtype == np.uint8
    assert out.images.shape == (2, 128, 128, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_teacher_forced_logits_are_upstreams(engines, expected, kind):
    data = expected[kind]
    cond, uncond = engines(kind).logits(condition(kind, data, mask=False), data["teacher_tokens"])
    assert distance(cond, data["teacher_logits_cond"]) < 1e-4
    assert distance(uncond, data["teacher_logits_uncond"]) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_is_upstreams(engines, expected, kind):
    tokens = engines(kind).encode(expected[kind]["encode_image"])
    assert (tokens == expected[kind]["encode_tokens"]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_of_a_mixed_batch_equals_its_solo_run(engines, expected, kind):
    engine, cond = engines(kind), condition(kind, expected[kind])
    mixed = {"seed": [5, 2**63 + 9], "guidance": [3.0, 1.0], "temperature": [1.0, 0.7],
             "top_k": [0, 20], "top_p": [0.9, 1.0]}
    together = engine.generate(cond, **mixed)
    for i in range(2):
        alone = engine.generate(one(cond, i), **{k: v[i] for k, v in mixed.items()})
        assert (together.tokens[i] == alone.tokens[0]).all()
        assert (together.pixels[i] == alone.pixels[0]).all()


def test_targets_draw_the_same_tokens(engines, expected):
    setting = {"seed": 3, "guidance": 2.0, "top_k": 50, "top_p": 0.95}
    cond = expected["c2i"]["cond"]
    ort = engines("c2i").generate(cond, **setting)
    reference = engines("c2i", "reference").generate(cond, **setting)
    assert (ort.tokens == reference.tokens).all()


def test_copies_differ_and_repeat(engines):
    engine = engines("c2i")
    out = engine.generate(3, n=3, seed=11)
    assert len({t.tobytes() for t in out.tokens}) == 3
    assert (engine.generate(3, n=3, seed=11).tokens == out.tokens).all()
    assert (engine.generate(3, n=1, seed=11).tokens[0] == out.tokens[0]).all()


def test_guidance_interval_ends_guidance(engines):
    engine = engines("c2i")
    whole = engine.generate(3, seed=1, guidance=6.0).tokens
    none = engine.generate(3, seed=1, guidance=6.0, guidance_interval=-1).tokens
    some = engine.generate(3, seed=1, guidance=6.0, guidance_interval=4).tokens
    assert (whole == none).all()
    assert (whole[0, :6] == some[0, :6]).all()  # the first token and interval + 1 more
    assert (whole != some).any()


def test_greedy_ignores_the_seed(engines):
    engine = engines("c2i")
    a, b = (engine.generate(2, seed=s, temperature=0).tokens for s in (1, 2))
    assert (a == b).all()


def test_on_step_sees_tokens_as_they_are_committed(engines):
    seen = []
    out = engines("c2i").generate(1, on_step=lambda p: seen.append((p.step, p.tokens.copy())))
    assert [s for s, _ in seen] == list(range(1, 65))
    assert (seen[9][1][0, :10] == out.tokens[0, :10]).all()
    assert (seen[9][1][0, 10:] == -1).all()


def test_without_a_decoder_there_are_only_tokens(goldens, tmp_path):
    engine = arcompile.build(goldens / "llamagen-c2i" / "c2i_tiny.pt", out=tmp_path / "e",
                             options={"n_head": 4, "grid": 8})
    out = engine.generate(0)
    assert out.pixels is None
    assert out.images is None
    assert out.tokens.shape == (1, 64)
    with pytest.raises(arcompile.ArcError, match="no image encoder"):
        engine.encode(np.zeros((1, 3, 128, 128)))


def test_an_engine_runs_without_torch_and_onnx(engines):
    folder = engines("c2i").folder
    code = f"""
import sys
for name in ("torch", "onnx", "safetensors", "networkx", "matplotlib"):
    sys.modules[name] = None
import arcompile
print(arcompile.load({str(folder)!r}).generate(1, temperature=0).tokens.sum())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == engines("c2i").generate(1, temperature=0).tokens.sum()


@pytest.mark.parametrize(("asked", "says"), [
    ({"cond": 10}, "class 10 is out of range"),
    ({"cond": -1}, "class -1 is out of range"),
    ({"cond": 1.5}, "class 1.5 is out of range"),
    ({"cond": "cat"}, "no class named 'cat'"),
    ({"cond": []}, "no condition given"),
    ({"cond": 1, "seed": -1}, "seed must be"),
    ({"cond": 1, "seed": 2**64}, "seed must be"),
    ({"cond": 1, "guidance": float("nan")}, "guidance must be"),
    ({"cond": [1, 2], "top_k": [1, 2, 3]}, "top_k has 3 values for 2 images"),
    ({"cond": 1, "top_p": 0}, "top_p must be"),
    ({"cond": 1, "temperature": -1}, "temperature must be"),
    ({"cond": 1, "n": 0}, "n must be"),
    ({"cond": 1, "nosie": 0}, "generate has no argument 'nosie'"),
])
def test_bad_requests_are_refused(engines, asked, says):
    with pytest.raises(arcompile.ArcError, match=says):
        engines("c2i").generate(**asked)


def test_family_specific_refusals(goldens, tmp_path):
    tiny, vq = goldens / "llamagen-c2i" / "c2i_tiny.pt", "vq_ds16_c2i_tiny.pt"
    for options, says in (
        ({}, "number of heads"), ({"n_head": 4}, "tokens per side"),
        ({"n_head": 3, "grid": 8}, "n_head=3 does not divide"),
        ({"n_heads": 4}, "no option 'n_heads'"), ({"n_head": 4, "grid": -2}, "positive integer"),
    ):
        with pytest.raises(arcompile.ArcError, match=says):
            arcompile.build(tiny, decoder=tiny.parent / vq, options=options, out=tmp_path / "e")
    with pytest.raises(arcompile.ArcError, match="codebook"):
        arcompile.build(tiny, decoder=goldens / "flexvar" / "FlexVAE_tiny.pth",
                        options={"n_head": 4, "grid": 8}, out=tmp_path / "e")
    assert not list(tmp_path.iterdir())
