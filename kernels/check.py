"""Checks and times every version of a kernel: `python -m arcompile.kernels.<op>`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from arcompile.kernel import KERNELS, Case, Kernel, Version
from arcompile.kernels import lang

TORCH = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "i8": "int8", "u8": "uint8"}
# Of the largest value of a result; f16 and bf16 round once when they are stored and a few times
# on the way (products of values, probabilities).
TOLERANCE = {"f32": 2e-5, "f16": 3e-3, "bf16": 2e-2}


@dataclass(frozen=True)
class Found:
    """What a check found. reason: why the version was not run; wrong: what is wrong with it."""

    kernel: str
    version: str
    case: Case
    reason: str = ""
    wrong: str = ""
    error: float = 0.0


def tensors(k: Kernel, arguments: dict[str, Any], dtype: str, device: str) -> dict[str, Any]:
    """numpy arrays as torch tensors, those of f32 in `dtype` but for the kernel's exact ones.
    Options stay as they are."""
    import torch

    def made(name: str, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        t = torch.from_numpy(np.array(value))
        if value.dtype == np.float32 and name not in k.exact:
            t = t.to(getattr(torch, TORCH[dtype]))
        return t.to(device)

    return {k: made(k, v) for k, v in arguments.items()}


def rounded(k: Kernel, arguments: dict[str, Any], dtype: str) -> dict[str, Any]:
    """What the tensors hold, as f32 again: the meaning is computed from that."""
    held = tensors(k, arguments, dtype, "cpu")
    return {n: v.float().numpy() if getattr(v, "is_floating_point", lambda: False)() else
            arguments[n] for n, v in held.items()}


def check(k: Kernel, v: Version, c: Case, seed: int = 0) -> Found:
    """Run one version on one case with poisoned outputs, against the numpy meaning; on real shapes
    against torch's own kernels, where there are some."""
    reason = v.refusal(c) or absent(v)
    if not reason and lang.interpreting() and c.dtype == "bf16" and "triton" in v.needs:
        reason = "Triton's interpreter gets bf16 wrong"
    if reason:
        return Found(k.name, v.name, c, reason)
    arguments = k.inputs(c, np.random.default_rng(seed))
    given = tensors(k, arguments, c.dtype, lang.device())
    if k.peer is not None and c in k.large:
        want = _arrays(k.peer(**given))
    else:
        want = k.reference(**rounded(k, arguments, c.dtype))
    with lang.poisoned():
        got = v.run(**given)
    limit = k.tolerance.get(c.dtype, TOLERANCE[c.dtype])
    worst, wrong = compare(got, want, limit)
    return Found(k.name, v.name, c, "", wrong, worst)


def _arrays(made: Any) -> Any:
    if isinstance(made, tuple):
        return tuple(map(_arrays, made))
    return (made.float() if made.is_floating_point() else made).cpu().numpy()


def absent(v: Version) -> str:
    """Why this machine cannot run the version; "" when it can."""
    if "triton" in v.needs:
        return lang.missing()
    if "nvcc" in v.needs:
        from arcompile.kernels import cuda

        return cuda.missing()
    return ""


def compare(got: Any, want: Any, limit: float) -> tuple[float, str]:
    """(largest relative error, what is wrong) of results, in order."""
    got, want = (x if isinstance(x, tuple) else (x,) for x in (got, want))
    if len(got) != len(want):
        return np.inf, f"{len(got)} results, not {len(want)}"
    worst = 0.0
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        a = a.float().cpu().numpy() if a.is_floating_point() else a.cpu().numpy()
        if a.shape != b.shape:
            return np.inf, f"result {i} has shape {list(a.shape)}, not {list(b.shape)}"
        if b.dtype.kind in "iub":
            if (a != b).any():
                return np.inf, f"result {i}: {int((a != b).sum())} of {b.size} numbers differ"
            continue
        if (bad := ~np.isfinite(a) & np.isfinite(b)).any():
            return np.inf, f"result {i}: {int(bad.sum())} of {b.size} numbers are not finite"
        error = float(np.abs(a - b).max(initial=0) / max(float(np.abs(b).max(initial=0)), 1e-30))
        worst = max(worst, error)
        if not error <= limit:
            return worst, f"result {i} is off by {error:.2g}, the limit is {limit:.2g}"
    return worst, ""


def cases(k: Kernel, wide: bool) -> Iterator[tuple[Case, int]]:
    """Declared cases, and random ones: one, or many when wide."""
    for c in k.shapes:
        yield c, 0
    rng = np.random.default_rng(7)
    for seed in range(1, 12 if wide else 2):
        yield k.random(rng), seed


def sweep(k: Kernel, wide: bool = False) -> Iterator[Found]:
    for v in k.versions.values():
        for c, seed in cases(k, wide):
            yield check(k, v, c, seed)


__all__ = ["KERNELS", "Found", "cases", "check", "compare", "sweep", "tensors"]
