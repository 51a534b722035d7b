"""Plain torch, written from the papers' facts, sharing nothing with models/; and test helpers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from arcompile.checkpoint import Entry, Weights
from arcompile.compile import write
from arcompile.errors import ArcError
from arcompile.family import FAMILIES, Source
from arcompile.pipeline import parse_pipeline
from arcompile.runtime.engine import load
from arcompile.target import TARGETS

BOTH = [pytest.param("ort-cpu", marks=pytest.mark.ort), "reference"]


def engine(family, source, folder: Path, target="ort-cpu", passes="", **options):
    """Compile weights that are in memory."""
    model = FAMILIES[family].model(source, options)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, family, model, target, "f32",
          parse_pipeline(TARGETS[target].passes) + parse_pipeline(passes))
    return load(folder)


def held(arrays, name="test weights"):
    """A checkpoint of arrays."""
    return Weights(name, {k: Entry(tuple(a.shape), "f32", lambda a=a: np.array(a, np.float32))
                          for k, a in arrays.items()})


def torches(t):
    return {k: torch.from_numpy(t.load(k)) for k in t}


def shaken(t, seed=1, scale=0.3):
    """The same names with larger random numbers, norms and biases included: no ties, no zeros."""
    rng = np.random.default_rng(seed)
    return held({k: rng.standard_normal(t.shape(k)) * scale + (1.0 if _unit(k, t.shape(k)) else 0)
                 for k in t})


def _unit(name, shape):
    return len(shape) == 1 and name.endswith("weight")


def claimants(source):
    return [name for name, f in FAMILIES.all().items() if f.claims(source.tensors)]


def near(a, b, most=1e-4):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    off = np.linalg.norm(a - b) / np.linalg.norm(b)
    assert off < most, off


def mixed_is_solo(e, cond, rows, most=1e-5):
    """A batch of two of everything gives each row what it gets alone, and a seed gives it again."""
    ask = {"seed": [5, 9], "guidance": [3.0, 1.0], "temperature": [1.0, 0.7], "top_k": [0, 20],
           "top_p": [0.9, 1.0]}
    both = e.generate(cond, **ask)
    assert (e.generate(cond, **ask).tokens == both.tokens).all()
    for i, row in enumerate(rows):
        one = e.generate(row, **{k: v[i] for k, v in ask.items()})
        assert (one.tokens[0] == both.tokens[i]).all()
        if one.pixels is not None:
            near(one.pixels[0], both.pixels[i], most)
    other = e.generate(cond, **{**ask, "seed": [6, 10]})
    assert (other.tokens != both.tokens).any(1).all()


def latents_are_solo(e, cond):
    """The same for families that draw continuous latents."""
    ask = {"seed": [5, 9], "guidance": [3.0, 1.0], "temperature": [1.0, 0.7]}
    both = e.generate(cond, **ask)
    assert (e.generate(cond, **ask).latents == both.latents).all()
    for i, row in enumerate(cond):
        one = e.generate([row], **{k: v[i] for k, v in ask.items()})
        near(one.latents[0], both.latents[i], 1e-5)
        near(one.pixels[0], both.pixels[i], 1e-5)
    other = e.generate(cond, **{**ask, "seed": [6, 10]})
    assert (other.latents != both.latents).any((1, 2)).all()


def refuses(said, run):
    """`run` raises one ArcError whose line, of no more than one, says `said`."""
    with pytest.raises(ArcError) as e:
        run()
    assert said in e.value.what, e.value.what
    assert "\n" not in e.value.what
    return e.value


def rms(x, w, eps=1e-5):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * w


def turned(x, angles, live):
    """x [b,h,s,e] by angles [s,e/2] over neighbouring pairs; rows that are not live become 0."""
    c, s = (f(angles) * live[:, None] for f in (torch.cos, torch.sin))
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack((a * c - b * s, b * c + a * s), -1).flatten(-2)


def grid_angles(cells, e):
    """Angles [s,e/2] of cells (row, column): half of the pairs turn by each."""
    freq = 10000.0 ** (-torch.arange(0, e // 2, 2).float() / (e // 2))
    rows, columns = torch.tensor(cells, dtype=torch.float32).T
    return torch.cat((rows[:, None] * freq, columns[:, None] * freq), -1)


def llamagen_layer(w, i, x, heads, angles, live, seen):
    """One block over the whole sequence; seen bool [b,s,s]."""
    p = f"layers.{i}."
    b, s, d = x.shape
    h = rms(x, w[p + "attention_norm.weight"]) @ w[p + "attention.wqkv.weight"].T
    q, k, v = (y.view(b, s, heads, -1).transpose(1, 2) for y in h.chunk(3, -1))
    q, k = turned(q, angles, live), turned(k, angles, live)
    score = (q @ k.transpose(-1, -2)) * (d // heads) ** -0.5
    a = score.masked_fill(~seen[:, None], float("-inf")).softmax(-1) @ v
    x = x + a.transpose(1, 2).reshape(b, s, d) @ w[p + "attention.wo.weight"].T
    h = rms(x, w[p + "ffn_norm.weight"])
    gate, up = (h @ w[p + f"feed_forward.w{n}.weight"].T for n in (1, 3))
    return x + (F.silu(gate) * up) @ w[p + "feed_forward.w2.weight"].T


__all__ = ["F", "Source"]
