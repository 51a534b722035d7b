"""T5 against a plain numpy one, and prompts end to end through a tiny captioned LlamaGen."""

import json
import shutil
import sys

import numpy as np
import plain
import pytest
from safetensors.numpy import save_file
from torch import nn

import arcompile
from arcompile.compile import _key, write
from arcompile.family import FAMILIES, Model
from arcompile.ir import Type
from arcompile.models import llamagen, t5
from arcompile.pipeline import parse_pipeline
from arcompile.program import Call, Program, Step
from arcompile.quality import WHATEVER
from arcompile.runtime import text
from arcompile.runtime.engine import Engine
from arcompile.target import TARGETS
from arcompile.weights import Weights

WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "circle", "on", "blue", "square", ","]
SLOTS, WIDTH = 6, 24  # of the captioned model
CONFIG = {"model_type": "t5", "vocab_size": 11, "d_model": WIDTH, "num_layers": 3, "num_heads": 3,
          "d_kv": 10, "d_ff": 40, "relative_attention_num_buckets": 8, "eos_token_id": 1,
          "relative_attention_max_distance": 12, "layer_norm_epsilon": 1e-6}


# --- plain: https://arxiv.org/abs/1910.10683, section 2.1 ----------------------------------------


def bucket(offset, count=32, most=128):
    """The bucket of key - query, by whole numbers: exact up to count/4, then by powers."""
    side, exact, away = count // 2, count // 4, abs(offset)
    first = side if offset > 0 else 0
    if away < exact:
        return first + away
    steps = side - exact  # away/exact >= (most/exact)^(k/steps), without a logarithm
    k = sum(away**steps * exact**i >= exact**steps * most**i for i in range(1, steps))
    return first + exact + k


def rms(x, w):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * w


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def forward(w, ids, heads):
    """Features [n,C] of one row of ids; w in double precision."""
    n, x = len(ids), w["shared.weight"][ids]
    at = [[bucket(k - q, 8, 12) for k in range(n)] for q in range(n)]
    bias = w["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"][at]
    for i in range(sum(".SelfAttention.q." in k for k in w)):
        p = f"encoder.block.{i}.layer.0."
        h = rms(x, w[p + "layer_norm.weight"])
        q, k, v = (np.stack(np.split(h @ w[f"{p}SelfAttention.{c}.weight"].T, heads, 1))
                   for c in "qkv")
        a = softmax(q @ k.transpose(0, 2, 1) + bias.transpose(2, 0, 1)) @ v
        x = x + np.concatenate(a, 1) @ w[p + "SelfAttention.o.weight"].T
        p = f"encoder.block.{i}.layer.1."
        x = x + feed(w, p + "DenseReluDense.", rms(x, w[p + "layer_norm.weight"]))
    return rms(x, w["encoder.final_layer_norm.weight"])


def feed(w, p, h):
    if p + "wi.weight" in w:
        return np.maximum(h @ w[p + "wi.weight"].T, 0) @ w[p + "wo.weight"].T
    gate, up = h @ w[p + "wi_0.weight"].T, h @ w[p + "wi_1.weight"].T
    gate = gate / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    return (gate * up) @ w[p + "wo.weight"].T


# --- folders -------------------------------------------------------------------------------------


def shapes(c):
    inner, hidden, d = c["num_heads"] * c["d_kv"], c["d_ff"], c["d_model"]
    wide = ("wi_0", "wi_1") if c["feed_forward_proj"] == "gated-gelu" else ("wi",)
    found = {"shared.weight": (c["vocab_size"], d), "encoder.final_layer_norm.weight": (d,)}
    for i in range(c["num_layers"]):
        p = f"encoder.block.{i}.layer."
        found |= {f"{p}{j}.layer_norm.weight": (d,) for j in (0, 1)}
        found |= {f"{p}0.SelfAttention.{x}.weight": (inner, d) for x in "qkv"}
        found |= {f"{p}1.DenseReluDense.{x}.weight": (hidden, d) for x in wide}
        found |= {f"{p}0.SelfAttention.o.weight": (d, inner),
                  f"{p}1.DenseReluDense.wo.weight": (d, hidden)}
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return found | {bias: (c["relative_attention_num_buckets"], c["num_heads"])}


def folder_of(path, forward="gated-gelu", **more):
    """A T5 of random weights as Hugging Face lays it out, decoder and all; and the weights."""
    said = {**CONFIG, "feed_forward_proj": forward, **more}
    rng = np.random.default_rng(0)
    w = {k: (rng.standard_normal(s) * 0.4 + (len(s) == 1)).astype(np.float32)
         for k, s in shapes(said).items()}
    path.mkdir(parents=True)
    save_file({**w, "lm_head.weight": w["shared.weight"]}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(said))
    (path / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 2, "strategy":
        "LongestFirst", "stride": 0}, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "unk_token": "<unk>",
                  "vocab": {word: i for i, word in enumerate(WORDS)}}}))
    return path, {k: x.astype(np.float64) for k, x in w.items()}


@pytest.fixture(scope="module")
def captioned():
    c = llamagen.Config(32, 2, 2, 48, 40, 3, features=WIDTH, prompt=SLOTS)
    return llamagen.invent(c, llamagen.Transformer, 0)


@pytest.fixture(scope="module")
def checkpoint(captioned, tmp_path_factory):
    path = tmp_path_factory.mktemp("t2i") / "t2i.safetensors"
    tensors = plain.shaken(captioned.tensors)
    save_file({k: tensors.load(k) for k in tensors}, path, metadata=captioned.metadata)
    return path


@pytest.fixture(scope="module")
def engine(checkpoint, tmp_path_factory):
    root = tmp_path_factory.mktemp("engine")
    folder, _ = folder_of(root / "t5")
    return arcompile.build(checkpoint, target="reference", out=root / "e",
                           options={"text_encoder": folder})


def told(engine, **changes):
    """The same engine with another manifest["info"]["text"]."""
    info = {**engine.manifest["info"], "text": {**engine.manifest["info"]["text"], **changes}}
    if not changes:
        del info["text"]
    return Engine(engine.folder, {**engine.manifest, "info": info}, engine.program, [], 1)


@pytest.fixture
def tokenizers():
    return pytest.importorskip("tokenizers", reason="prompts need the package tokenizers")


# --- the encoder ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "most"), [(32, 128), (8, 12), (16, 100)])
def test_buckets(count, most):
    want = [bucket(d, count, most) for d in range(-most, most + 1)]
    assert t5.buckets(count, most).tolist() == want
    assert {bucket(-most - 9, count, most), bucket(most + 9, count, most)} == {want[0], want[-1]}


def encoder(folder, into, target):
    """The encoder alone, compiled."""
    steps = (Step((0,), (0,), (Call("text"),)),)
    inputs = (("ids", Type.parse("i64[b,t]")), ("mask", Type.parse("bool[b,t]")))
    alone = Model(nn.Module(), [], Program("t5", 1, steps, inputs=inputs), Weights({}))
    model = t5.with_text(alone, {"text_encoder": folder}, width=WIDTH, tokens=9)
    passes = parse_pipeline(TARGETS[target].passes)
    (into / "e").mkdir()
    write(into / "e", "t5", model, target, "f32", passes)
    return arcompile.load(into / "e").models


@pytest.mark.parametrize("target", plain.BOTH)
@pytest.mark.parametrize("forward_proj", ["gated-gelu", "relu"])
def test_forward(forward_proj, target, tmp_path):
    """Rows of unequal length in one padded batch; a row longer than the table of offsets."""
    folder, w = folder_of(tmp_path / "t5", forward_proj)
    models = encoder(folder, tmp_path, target)
    ids = np.random.default_rng(1).integers(0, 11, (3, 30))
    mask = np.arange(30) < np.array([[30], [7], [1]])
    runner = models.runner()
    got = runner.numpy(runner.run("text", {"ids": ids, "mask": mask})["features"])
    for row, known, out in zip(ids, mask, got, strict=True):
        plain.near(out[known], forward(w, row[known], 3), 1e-5)


def test_shards_and_tied_embedding(tmp_path):
    folder, w = folder_of(tmp_path / "t5")
    (folder / "model.safetensors").unlink()
    names = [k.replace("shared", "encoder.embed_tokens") for k in w]
    parts = {f"model-{i}.safetensors": names[i::2] for i in range(2)}
    arrays = dict(zip(names, w.values(), strict=True))
    for file, held in parts.items():
        save_file({k: arrays[k].astype(np.float16) for k in held}, folder / file)
    where = {k: file for file, held in parts.items() for k in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    c = t5.config(folder)
    found = t5._weights(folder, t5.T5(c), c)
    assert (found["@t5.shared.weight"] == np.float16(w["shared.weight"])).all()


# --- prompts -------------------------------------------------------------------------------------


def test_prompts_are_features(engine, tokenizers):
    prompts = ["A Red  circle", "a blue square on a red, red circle"]
    found = text.features(engine, prompts)
    assert found["mask"].astype(int).tolist() == [[0, 0, 1, 1, 1, 1], [1] * SLOTS]
    assert not found["features"][0, :2].any()
    ids = [[3, 4, 5, 1], [3, 7, 8, 6, 3, 1]]  # cut to five, and the end
    for row, want in zip(found["features"], ids, strict=True):
        given = {"ids": np.array([want]), "mask": np.ones((1, len(want)), bool)}
        out = engine.models.runner().run("text", given)["features"][0]
        assert (row[SLOTS - len(want) :] == out).all()
    ask = {"seed": [3, 4], "guidance": 3.0}
    both = engine.generate(prompts, **ask)
    assert (engine.generate(found, **ask).tokens == both.tokens).all()
    assert (engine.generate(prompts[1], seed=4, guidance=3.0).tokens == both.tokens[1]).all()
    assert (engine.logits(prompts, both.tokens)[0] == engine.logits(found, both.tokens)[0]).all()


def test_empty_prompt(engine, tokenizers):
    assert text.features(engine, [""])["mask"].tolist() == [[False] * 5 + [True]]
    assert engine.generate("", n=2).tokens.shape == (2, 9)


def test_bad_prompts(engine, tokenizers):
    plain.refuses("a prompt is text, got int", lambda: engine.generate(["a", 3]))
    plain.refuses("not text: surrogates", lambda: engine.generate("a \ud800"))
    plain.refuses("20000 characters", lambda: engine.generate("ab" * 10000))
    plain.refuses("5000 prompts", lambda: engine.generate(["a"] * 5000))


def test_tokens_of_another_model(engine, tokenizers):
    plain.refuses("token 5, but the text encoder knows 5", lambda: told(
        engine, vocabulary=5).generate("circle"))


def test_without_tokenizers(engine, monkeypatch):
    text._tokenizer.cache_clear()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    said = plain.refuses("package tokenizers", lambda: engine.generate("a red circle"))
    assert (said.code, said.hint) == (2, "pip install 'arcompile[text]'")


def test_without_text_encoder(engine):
    said = plain.refuses("no text encoder", lambda: told(engine).generate(["a red circle"]))
    assert "text_encoder" in said.hint
    assert "features" in said.hint


def test_place():
    rows = [np.ones((2, 3)), np.full((1, 3), 2.0)]
    left, right = (text.place(rows, 3, pad) for pad in ("left", "right"))
    assert left["features"][:, :, 0].tolist() == [[0, 1, 1], [0, 0, 2]]
    assert right["features"][:, :, 0].tolist() == [[1, 1, 0], [2, 0, 0]]
    assert left["mask"].tolist() == [[False, True, True], [False, False, True]]


@pytest.mark.parametrize(("said", "meant"), [
    ("A Red Circle, on a mat.", "a red circle, on a mat."),
    ("  two\n\twords ", "two words"),
    ("see http://x.org/a?b=c and www.y.de now", "see and now"),
    ("by example.com/shop today", "by today"),
    ("<b>bold</b> &amp; &lt;i&gt;slanted&lt;/i&gt;", "bold slanted"),
    ("by @nick#12 at 10.0.0.1", "by at"),
    ("“curly” ‘quotes’ – dashes — too", "\"curly\" 'quotes' - dashes - too"),
    ("'a quoted prompt'", "a quoted prompt"),
    ("this_is_my_cute_cat", "this is my cute cat"),
    ("a well-known tree", "a well-known tree"),
    ("photo.jpeg of cat_01.png 1920x1080", "of"),
    ("wait... (what) [now] *wow*", "wait what now wow"),
    ("red,blue,green", "red, blue, green"),
    ("item 1234567 jc6640", "item"),
    ("猫 cat caf\u0065\u0301", "cat café"),
    ("50%25 off+now", "50% off now"),
    ("3.5 apples at 10:30", "3.5 apples at 10:30"),
    ("", ""),
])
def test_clean(said, meant):
    assert text.clean(text.clean(said)) == meant


def test_clean_is_quick():
    for part in ("a.", "a-", "<a", "a1", '"', "@", "\\n", "1.1.", "a.png", "&lt;", " .", "www."):
        said = part * (text.MAX_PROMPT // len(part))  # a pattern that backtracks would never end
        assert len(text.clean(said)) <= 2 * len(said)


# --- what cannot be built ------------------------------------------------------------------------


def test_refusals(captioned, tmp_path):
    folder, _ = folder_of(tmp_path / "t5")

    def build(where=folder, source=captioned):
        return lambda: FAMILIES["llamagen"].model(source, {"text_encoder": str(where)})

    def damaged(name, say=None, **config):
        other = tmp_path / f"other{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folder, other)
        if config:
            said = json.loads((other / "config.json").read_text())
            (other / "config.json").write_text(json.dumps({**said, **config}))
        elif say is None:
            (other / name).unlink()
        else:
            (other / name).write_text(say)
        return build(other)

    plain.refuses("is not a folder", build(tmp_path / "none"))
    plain.refuses("draws classes", build(source=FAMILIES["llamagen"].random("tiny")))
    plain.refuses("features of 32 numbers, the model takes 24", damaged("", d_model=32))
    plain.refuses("not a T5", damaged("", model_type="umt5"))
    plain.refuses("'gated-silu' is not supported", damaged("", feed_forward_proj="gated-silu"))
    plain.refuses("no possible d_kv: 0", damaged("", d_kv=0))
    plain.refuses("impossible", damaged("", layer_norm_epsilon="x"))
    plain.refuses("impossible", damaged("", relative_attention_num_buckets=30))
    plain.refuses("T5 of its config.json", damaged("", num_layers=4))
    plain.refuses("config.json", damaged("config.json"))
    plain.refuses("config.json", damaged("config.json", "[1"))
    plain.refuses("no weights", damaged("model.safetensors"))
    plain.refuses("describes no tokenizer", damaged("tokenizer.json", "{}"))
    assert "save_pretrained" in plain.refuses("no tokenizer.json", damaged("tokenizer.json")).hint


def test_spiece_alone(captioned, tmp_path):
    folder, _ = folder_of(tmp_path / "t5")
    (folder / "tokenizer.json").rename(folder / "spiece.model")
    plain.refuses("no tokenizer.json but spiece.model", lambda: FAMILIES["llamagen"].model(
        captioned, {"text_encoder": folder}))


def test_key_knows_the_folder(checkpoint, tmp_path):
    """By what it holds, wherever it lies."""
    folder, _ = folder_of(tmp_path / "t5")

    def key(where):
        return _key(checkpoint, None, None, "reference", "f32", [], {"text_encoder": where},
                    WHATEVER)

    before = key(folder)
    assert before == key(str(folder)) == key(shutil.copytree(folder, tmp_path / "copy"))
    (folder / "tokenizer.json").write_text("{}")
    assert key(folder) != before
