"""Triton where it is installed: `jit`, `tl`, and `launch`, which also records and interprets.

Where Triton is not installed, kernels still import, are listed, and say what they lack.
TRITON_INTERPRET=1, set before Triton is imported, runs kernels on the CPU. There bf16 is silently
wrong (Triton 3.9: products off by 1e10), so that it is refused.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from arcompile.errors import MACHINE, ArcError
from arcompile.ops.tensor import Array

HINT = "pip install 'arcompile[kernels]'"


def _load() -> tuple[Any, Any]:
    try:
        return importlib.import_module("triton"), importlib.import_module("triton.language")
    except ImportError:
        return None, _Absent()


class _Absent:
    """Stands for triton.language in annotations and defaults."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any) -> Any:
        return args[0] if args else self


triton, tl = _load()


def jit(fn: Callable[..., Any]) -> Any:
    """A Triton function; without Triton, the plain function, which nobody calls."""
    return triton.jit(fn) if triton else fn


def interpreting() -> bool:
    """Do launches run in Triton's interpreter, on the CPU?"""
    return triton is not None and os.environ.get("TRITON_INTERPRET") == "1"


def missing() -> str:
    """"" when Triton kernels can run here, else what is missing."""
    if triton is None:
        return "triton is not installed"
    if interpreting():
        return ""
    import torch

    return "" if torch.cuda.is_available() else "no NVIDIA GPU is seen"


def device() -> str:
    """Where kernels run: without Triton, those in CUDA C++ are emulated."""
    return "cpu" if interpreting() or triton is None else "cuda"


@dataclass(frozen=True)
class Launch:
    """One launch, as ahead-of-time compilation needs it."""

    fn: Any
    args: tuple[Any, ...]
    options: dict[str, int]
    constants: dict[str, Any]


_recording: list[Launch] | None = None
_poison = False


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Launches are noted, not run."""
    global _recording
    _recording = made = []
    try:
        yield made
    finally:
        _recording = None


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """What `empty` makes holds NaN or absurd numbers: what a kernel leaves unwritten shows."""
    global _poison
    _poison = True
    try:
        yield
    finally:
        _poison = False


def empty(*shape: int, like: Any, dtype: Any = None) -> Any:
    """A tensor on the device of `like` with its dtype, to be written by a kernel."""
    import torch

    made = torch.empty(shape, dtype=dtype or like.dtype, device=like.device)
    if _poison:
        made.fill_(float("nan") if made.is_floating_point() else -(1 << 30)
                   if made.dtype in (torch.int32, torch.int64) else 85)
    return made


def launch(fn: Any, grid: tuple[int, ...], *args: Any, warps: int = 4, stages: int = 2,
           fusion: bool = True, registers: int = 0, **constants: Any) -> None:
    """Run a Triton function over a grid. fusion: may a*b+c round once? registers: at most so many
    a thread, 0 as the compiler likes. Raises ArcError."""
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": fusion}
    if registers:
        options["maxnreg"] = registers
    if _recording is not None:
        _recording.append(Launch(fn, args, options, constants))
        return
    if reason := missing():
        raise ArcError(f"kernel {fn.__name__} cannot run: {reason}", code=MACHINE, hint=HINT)
    if interpreting() and any("bfloat16" in str(getattr(a, "dtype", "")) for a in args):
        raise ArcError(f"kernel {fn.__name__}: Triton's interpreter gets bf16 wrong",
                       code=MACHINE, hint="check with f16 or f32, or on a GPU")
    fn[grid](*args, **options, **constants)


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def pow2(n: int, least: int = 1) -> int:
    """The smallest power of two that is n or more."""
    return max(least, 1 << max(0, n - 1).bit_length())




__all__ = ["Array", "Launch", "cdiv", "device", "empty", "interpreting", "jit", "launch",
           "missing", "pow2", "recorded", "tl", "triton"]
