"""How good pictures are, without downloads: a Frechet distance on features of the shipped judge,
SSIM and detail of an image tokenizer; FID and IS by formula on features that the user brings.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from arcompile.bench import suites
from arcompile.bench.spread import figure
from arcompile.errors import ArcError
from arcompile.models.demo import drawings, judge
from arcompile.quality import psnr, settings
from arcompile.runtime.engine import Engine
from arcompile.runtime.image import to_uint8

Array = np.ndarray[Any, Any]
AT_ONCE = 60


def frechet(a: Array, b: Array) -> float:
    """|mean - mean|^2 + tr(A + B - 2 sqrt(AB)) of features [n,d]. https://arxiv.org/abs/1706.08500

    The root's trace is that of the root of sqrt(A) B sqrt(A), which is symmetric.
    """
    if min(len(a), len(b)) < 2 or a.shape[1:] != b.shape[1:]:
        raise ArcError(f"features {list(a.shape)} and {list(b.shape)} cannot be compared",
                       hint="give [n,d] of one network, two rows or more")
    (ma, ca), (mb, cb) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (
        np.asarray(a, np.float64), np.asarray(b, np.float64)))
    root = _root(np.atleast_2d(ca))
    cross = np.linalg.eigvalsh(root @ np.atleast_2d(cb) @ root).clip(0)
    traces = np.trace(np.atleast_2d(ca)) + np.trace(np.atleast_2d(cb))
    return float(max(0.0, ((ma - mb) ** 2).sum() + traces - 2 * np.sqrt(cross).sum()))


def _root(x: Array) -> Array:
    values, vectors = np.linalg.eigh(x)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def inception_score(p: Array) -> float:
    """exp(E KL(p(y|x) || p(y))) of class probabilities [n,k]. https://arxiv.org/abs/1606.03498"""
    p = np.asarray(p, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        kl = np.where(p > 0, p * (np.log(p) - np.log(p.mean(0))), 0).sum(1)
    return float(np.exp(kl.mean()))


def features(images: Array) -> Array:
    """f32 [b,d] of uint8 [b,64,64,3]: the judge's last hidden layer."""
    w, found = judge._weights(), []
    for at in range(0, len(images), AT_ONCE):
        x = images[at : at + AT_ONCE].astype(np.float32) / 127.5 - 1
        for i in range(4):
            x = judge._conv(x, w[f"conv.{i}.weight"], w[f"conv.{i}.bias"])
        found.append(np.maximum(x.reshape(len(x), -1) @ w["hidden.weight"].T + w["hidden.bias"], 0))
    return np.concatenate(found)


def ssim(x: Array, y: Array, window: int = 8) -> float:
    """Structural similarity of [b,3,h,w] in [-1,1], over uniform windows of luma.

    Wang et al., Image quality assessment, IEEE TIP 2004; L = 2.
    """
    weights = np.array([0.299, 0.587, 0.114])
    a, b = (np.tensordot(np.clip(v, -1, 1).astype(np.float64), weights, (1, 0)) for v in (x, y))

    def mean(v: Array) -> Array:
        tall = np.lib.stride_tricks.sliding_window_view(v, (window, window), (1, 2))
        found: Array = tall.mean((-2, -1))
        return found

    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    return float((((2 * ma * mb + c1) * (2 * cov + c2))
                  / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean())


def detail(x: Array, y: Array) -> float:
    """Share of x's fine structure (differences of neighbours) that y has: 1 is all of it."""
    def energy(v: Array) -> float:
        return sum(float(np.square(np.diff(v.astype(np.float64), axis=a)).mean()) for a in (2, 3))

    return energy(y) / max(energy(x), 1e-30)


def drawn(e: Engine, pictures: int) -> tuple[Array, Array]:
    """uint8 pictures of all classes in turn, at the engine's settings, and their labels."""
    labels = np.arange(pictures) % e.manifest["info"]["classes"]
    made = []
    for at in range(0, pictures, AT_ONCE):
        part = slice(at, at + AT_ONCE)
        out = e.generate(labels[part].tolist(), seed=list(range(pictures))[part], **settings(e))
        if out.images is None:
            raise ArcError("this engine draws no pictures", hint="build it with a decoder")
        made.append(out.images)
    return np.concatenate(made), labels


def demo(e: Engine, pictures: int = 180) -> dict[str, Any]:
    """Of an engine of the shipped drawings: the judge, and the distance from real drawings.

    `floor` is the same distance between two sets of real drawings of that size: what a perfect
    engine would get.
    """
    images, labels = drawn(e, pictures)
    real, _ = drawings.batch(pictures, 1)
    other, _ = drawings.batch(pictures, 2)
    said, f = judge.score(images, labels), features(real)
    return {"pictures": pictures, "judge": figure(said["both"]),
            "interval": [figure(x) for x in said["ci"]],
            "frechet": figure(frechet(features(images), f)),
            "floor": figure(frechet(features(other), f))}


def tokenizer(e: Engine, pixels: Array) -> dict[str, Any]:
    """Scores of an engine's encoder and decoder on f32 [b,3,h,w] in [-1,1], after VTBench
    (https://arxiv.org/abs/2505.13439): what of a picture survives becoming tokens."""
    tokens = e.encode(pixels)
    y = redrawn(e, tokens)
    used = len(np.unique(tokens))
    return {"pictures": len(pixels), "psnr": figure(psnr(pixels, y)),
            "ssim": figure(ssim(pixels, y)), "detail": figure(detail(pixels, y)),
            "codes_used": used}


def redrawn(e: Engine, tokens: Array) -> Array:
    """Pixels f32 [b,3,h,w] of given tokens i64 [b,N].

    By the decoder alone where it reads nothing else; else by the loop with these tokens forced, as
    with next-scale models, whose decoder reads what their steps add up.
    """
    from arcompile.runtime.loop import Loop
    from arcompile.runtime.request import make

    p, back = e.program, []
    for one in tokens:
        q = make(e, suites.condition(e.manifest["info"], 1), 0, 1, 1.0, None, 0.0, 0, 1.0, {})
        loop = Loop(p, e.models.runner(), replace(q, forced=one[None]), e.manifest["vocabulary"])
        read = {name for c in p.finish for name in loop.runner.inputs(c.graph)}
        if read & {name for name, _ in p.state}:
            loop.run()
        else:
            loop.tokens = one[None]
            for call in p.finish:
                loop._call(call, None)
        back.append(loop.runner.numpy(loop.env["pixels"]))
    return np.concatenate(back)


def of_drawings(count: int, seed: int = 3) -> Array:
    """Real drawings as pixels f32 [n,3,64,64] in [-1,1]."""
    images, _ = drawings.batch(count, seed)
    return images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1


__all__ = ["demo", "detail", "features", "frechet", "inception_score", "ssim", "to_uint8",
           "tokenizer"]
