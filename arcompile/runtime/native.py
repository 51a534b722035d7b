"""ARC_RUNTIME=native: the loop runs in libarcompile. The same numbers, less time between steps."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from arcompile.errors import MACHINE, ArcError, did_you_mean
from arcompile.runtime.loop import Array, OnStep, Progress, Request, Result

if TYPE_CHECKING:
    from arcompile.runtime.engine import Engine

RUNTIMES = ("python", "native")


def asked() -> bool:
    """Does ARC_RUNTIME ask for the native loop? Raises ArcError for a word it does not know."""
    word = os.getenv("ARC_RUNTIME") or "python"
    if word not in RUNTIMES:
        raise ArcError(f"ARC_RUNTIME is {word!r}", hint=did_you_mean(word, RUNTIMES))
    return word == "native"


class Native:
    """One engine, opened by libarcompile."""

    def __init__(self, engine: Engine):
        try:
            from arcompile.runtime import _native  # type: ignore[attr-defined]
        except ImportError:
            raise ArcError("this installation has no native runtime", code=MACHINE,
                           hint="ARCOMPILE_NATIVE=1 pip install . builds it") from None
        from arcompile.kernels import cpu

        kernels = cpu.library()
        self.engine = _native.Engine(str(engine.folder), engine.threads, _ort_library(),
                                     str(kernels) if kernels else "off")

    def run(self, q: Request, on_step: OnStep | None = None) -> Result:
        """What Loop.run returns. Raises ArcError."""
        n = int(q.copies.max()) + 1  # images of each condition lie side by side
        numbers = {"guidance": q.guidance, "temperature": q.temperature, "top_k": q.top_k,
                   "top_p": q.top_p}
        made = self.engine.generate(
            _arrays({k: v[::n] for k, v in q.inputs.items()}), n, q.seeds.tolist(),
            {k: v.astype(np.float64).tolist() for k, v in numbers.items()},
            q.interval, _arrays(q.given), None if on_step is None else _told(on_step))
        env = {k: made[k] for k in ("pixels", "latents") if made[k] is not None}
        rounds = made["rounds"]
        none = np.zeros((0, q.images), np.int64)
        return Result(made["tokens"], env, [], made["timings"], none if rounds is None else rounds)


def _arrays(given: Mapping[str, Array]) -> dict[str, Array]:
    return {k: np.ascontiguousarray(v) for k, v in given.items()}


def _told(on_step: OnStep) -> Any:
    return lambda step, steps, tokens, pixels: on_step(
        Progress(step, steps, tokens, pixels)) is not False


def _ort_library() -> str:
    """The wheel's own file, without importing it: that would load a second copy."""
    from importlib.util import find_spec

    if os.getenv("ARC_ORT_LIBRARY"):
        return ""
    found = find_spec("onnxruntime")
    folder = Path(found.origin).parent / "capi" if found and found.origin else None
    files = sorted(folder.glob("libonnxruntime.*")) if folder else []
    return str(files[0]) if files else ""
