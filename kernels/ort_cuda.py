"""The CUDA kernels (csrc/cuda) as a library of ONNX Runtime custom ops: found, or compiled once.

Built by nvcc for sm_80 and sm_90, later GPUs by PTX, against no headers of ONNX Runtime's. Models
name these ops as functions, so they run without the library too, on ONNX Runtime's own kernels.
ARC_CUDA_KERNELS names the library to use; "off" uses none.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from arcompile.cache import cache
from arcompile.errors import MACHINE, ArcError
from arcompile.kernels import cuda
from arcompile.kernels.cpu import compiler, named

SOURCES = (cuda.SOURCES.parent / "ort_cuda.cpp", *sorted(cuda.SOURCES.glob("*.cu")))
READ = (*SOURCES, *sorted(cuda.SOURCES.glob("*.*h")), *(
    cuda.SOURCES.parent / "cpu" / name for name in ("op.h", "ort.h")))
NAME = "libarcompile_cuda_ops.so"
ARCH = tuple(f"-gencode=arch=compute_{a},code={kind}_{a}"
             for a, kind in ((80, "sm"), (90, "sm"), (90, "compute")))


def library() -> Path | None:
    """The library, or None where there is none. Raises ArcError when the one that ARC_CUDA_KERNELS
    names is not there."""
    if os.getenv("ARC_CUDA_KERNELS"):
        return named("ARC_CUDA_KERNELS")
    made = _built(_nvcc())
    return made if made.is_file() else None


def build() -> Path:
    """The library, compiled now unless it is there. Raises ArcError."""
    if (found := library()) is not None:
        return found
    if not cuda.nvcc():
        raise ArcError("nvcc is not installed: no CUDA kernels for ONNX Runtime", code=MACHINE,
                       hint="install the CUDA toolkit; engines run without, on ONNX Runtime's own")
    return _make(_nvcc())


def emulated() -> Path:
    """The same ops for the CPU provider, their kernels emulated: for checks where no GPU is.
    Raises ArcError."""
    if not compiler():
        raise ArcError("no C++ compiler to emulate CUDA kernels with", code=MACHINE)
    first, *kernels = map(str, SOURCES)
    flags = tuple(f for f in cuda.HOST if f not in ("-x", "c++"))
    return _make((compiler(), *flags, "-shared", first, "-x", "c++", *kernels))


def _nvcc() -> tuple[str, ...]:
    return (cuda.nvcc() or "nvcc", *cuda.NVCC, "-DARC_CUDA", *ARCH, "-shared", "-cudart=static",
            "--threads=0", *map(str, SOURCES))


def _built(command: tuple[str, ...]) -> Path:
    digest = hashlib.sha256(repr(command[1:]).encode())
    for path in READ:
        digest.update(path.read_bytes())
    return cache() / "kernels" / digest.hexdigest()[:24] / NAME


def _make(command: tuple[str, ...]) -> Path:
    target = _built(command)
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / NAME
            cuda.compiled([*command, "-o", str(made)])
            os.replace(made, target)
    return target
