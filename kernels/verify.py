"""verify: the drafts of a window tested against their laws, the first wrong one drawn anew.

The op `verify` of arcompile/ops/speculation.py; its three couplings in one launch.

v1  one program a slot of a window; only the law that its token comes from is read
"""

from __future__ import annotations

from typing import Any

import numpy as np

from arcompile.ir import OPS
from arcompile.kernel import Case, case, declare, kernel
from arcompile.kernels.lang import Array, cdiv, empty, jit, launch, pow2, tl
from arcompile.kernels.pick import BLOCK, MOST, first_of_largest, pick_token


def inputs(c: Case, rng: np.random.Generator) -> dict[str, Any]:
    b, n, v = c.b, c.c, c.v

    def uniform(*shape: int) -> Array:
        return (rng.integers(0, 1 << 23, shape) / (1 << 23)).astype(np.float32)

    p = rng.gamma(0.3, size=(b, n, v)).astype(np.float32)
    p /= p.sum(-1, keepdims=True)
    rest = np.maximum(p - rng.permuted(p, axis=-1), 0)
    rest[0, 0] = 0  # a residual without mass stands for the law
    made = {"p": p, "rest": rest, "weight": uniform(b, n) * np.float32(1.5),
            "draft": rng.integers(0, v, (b, n)), "chance": uniform(b, n, 1),
            "noise": uniform(b, n, 2), "done": rng.integers(0, n, b), "coupling": c.coupling}
    if c.coupling == "gumbel":
        made["gumbel"] = rng.gumbel(size=(b, n, v)).astype(np.float32)
    return made


def reference(p: Array, rest: Array, weight: Array, draft: Array, chance: Array, noise: Array,
              done: Array, *, coupling: str, gumbel: Array | None = None) -> tuple[Array, Array]:
    more = () if gumbel is None else (gumbel,)
    token, accepted = OPS["verify"].eval(p, rest, weight, draft, chance, noise, done, *more,
                                         coupling=coupling)
    return token, accepted


def random(rng: np.random.Generator) -> Case:
    coupling = str(rng.choice(["independent", "maximal", "gumbel"]))
    return case(b=int(rng.integers(1, 4)), c=int(rng.integers(1, 9)), v=int(rng.integers(2, 700)),
                coupling=coupling)


def cost(c: Case) -> tuple[float, float]:
    return 8.0 * c.b * c.c * c.v, 4.0 * c.b * c.c * c.v


declare(
    "verify", about="drafts of a window tested against their laws, the first wrong one redrawn",
    inputs=inputs, reference=reference, random=random, cost=cost,
    shapes=(case(b=2, c=4, v=300, coupling="independent"),
            case(b=2, c=5, v=130, coupling="maximal"), case(b=1, c=4, v=64, coupling="gumbel")),
    large=tuple(case(b=1, c=16, v=16384, coupling=k)
                for k in ("independent", "maximal", "gumbel")),
)


@jit
def _masses(p, at, v):
    return tl.load(p + at, mask=at < v, other=0.0)


@jit
def _verify(p, rest, weight, draft, chance, noise, done, gumbel, token, accepted, c, v,
            COUPLING: tl.constexpr, C: tl.constexpr, NB: tl.constexpr):
    cell = tl.program_id(0)
    b = cell // c
    here = cell % c
    slot = tl.arange(0, C)
    real = slot < c
    lucky = tl.load(chance + b * c + slot, mask=real, other=0.0) < tl.load(
        weight + b * c + slot, mask=real, other=0.0)
    kept = tl.where(lucky, 1, tl.where(slot < tl.load(done + b), 1, 0))
    first = tl.min(tl.where(real, tl.where(kept == 0, slot, c), c), 0)
    if here == 0:
        tl.store(accepted + b, tl.minimum(first + 1, c).to(tl.int64))
    mine = tl.max(tl.where(slot == here, kept, 0), 0)
    keep = here < first
    if COUPLING == "maximal":
        keep = mine == 1
    if keep:
        tl.store(token + cell, tl.load(draft + cell))
    else:
        at = tl.arange(0, NB)[:, None] * 128 + tl.arange(0, 128)[None, :]
        base = cell.to(tl.int64) * v
        u0 = tl.load(noise + 2 * cell)
        u1 = tl.load(noise + 2 * cell + 1)
        anew = here > first  # behind the first wrong one
        if COUPLING == "maximal":
            anew = here < 0
        if anew:
            mass = _masses(p + base, at, v)
            if COUPLING == "gumbel":
                noisy = tl.log(tl.maximum(mass, 1e-38))  # those beyond v have no mass
                noisy += tl.load(gumbel + base + at, mask=at < v, other=0.0)
                noisy = tl.where(mass > 0, noisy, float("-inf"))
                tl.store(token + cell, first_of_largest(noisy, at, NB).to(tl.int64))
            else:
                tl.store(token + cell, pick_token(mass, u0, u1, NB).to(tl.int64))
        else:
            mass = _masses(rest + base, at, v)
            if tl.sum(tl.sum(mass, 1), 0) <= 0:
                mass = _masses(p + base, at, v)
            tl.store(token + cell, pick_token(mass, u0, u1, NB).to(tl.int64))


def _fits(c: Case) -> str:
    return "" if c.v <= MOST else f"{c.v} tokens do not stay in registers, {MOST} do"


@kernel("verify", dtypes=("f32",), takes=_fits)
def v1(p: Any, rest: Any, weight: Any, draft: Any, chance: Any, noise: Any, done: Any,
       coupling: str, gumbel: Any = None) -> tuple[Any, Any]:
    """one program a slot of a window; only the law that its token comes from is read"""
    b, c, v = p.shape
    token, accepted = empty(b, c, like=draft), empty(b, like=draft)
    blocks = pow2(cdiv(v, BLOCK))
    launch(_verify, (b * c,), p, rest, weight, draft, chance, noise, done,
           p if gumbel is None else gumbel, token, accepted, c, v, fusion=False,
           warps=max(1, min(32, blocks // 4)), COUPLING=coupling, C=pow2(c), NB=blocks)
    return token, accepted


if __name__ == "__main__":
    from arcompile.kernels.timing import main

    main("verify")
