"""CUDA C++ kernels (csrc/cuda): compiled by nvcc for a GPU, or by the C++ compiler to be emulated.

The emulation runs every thread of every block as a fiber on the CPU: slow, for checks of the
kernels' arithmetic and indices where no GPU is. Libraries are kept in the cache by content.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache as once
from pathlib import Path
from typing import Any

from arcompile.cache import cache
from arcompile.errors import MACHINE, ArcError
from arcompile.kernels.cpu import compiler

SOURCES = Path(__file__).parent / "csrc" / "cuda"
DTYPES = {"torch.float32": 0, "torch.float16": 1, "torch.bfloat16": 2}
NVCC = ("-std=c++17", "-O3", "-fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden")
HOST = ("-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-x", "c++")
SHARED = 227 * 1024  # bytes that a block may ask for on sm_90
LONGEST = 300  # seconds for one file


def nvcc() -> str:
    """$NVCC, or nvcc on the path; "" when there is none."""
    return os.getenv("NVCC") or shutil.which("nvcc") or ""


def emulated() -> bool:
    from arcompile.kernels import lang  # Triton: 85 MB that those who only build do without

    return lang.interpreting() or lang.triton is None


def missing() -> str:
    """"" when the kernels can run here, on a GPU or emulated, else what is missing."""
    if emulated():
        return "" if compiler() else "there is no C++ compiler to emulate with"
    import torch

    if not torch.cuda.is_available():
        return "no NVIDIA GPU is seen"
    return "" if nvcc() else "nvcc is not installed"


@once
def library(name: str) -> Any:
    """The compiled kernel `name` of this machine. Raises ArcError."""
    return ctypes.CDLL(str(built(name)))


def built(name: str) -> Path:
    """Its library, compiled now unless it is there. Raises ArcError."""
    if emulated():
        command = [compiler(), *HOST, "-shared", str(SOURCES / f"{name}.cu")]
    else:
        import torch

        major, minor = torch.cuda.get_device_capability()
        command = [nvcc(), *NVCC, f"-arch=sm_{10 * major + minor}", "-shared", "-cudart=static",
                   str(SOURCES / f"{name}.cu")]
    digest = hashlib.sha256(repr(command).encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.read_bytes())
    target = cache() / "kernels" / digest.hexdigest()[:24] / f"{name}.so"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / target.name
            compiled([*command, "-o", str(made)])
            os.replace(made, target)
    return target


def resources(name: str, arch: int) -> dict[str, dict[str, int]]:
    """Compile for sm_`arch`: registers and bytes spilled of each kernel. Raises ArcError."""
    with tempfile.TemporaryDirectory() as folder:
        said = compiled([nvcc(), *NVCC, f"-arch=sm_{arch}", "-cubin", "-Xptxas", "-v",
                     str(SOURCES / f"{name}.cu"), "-o", f"{folder}/{name}.cubin"])
    found = re.findall(r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes "
                       r"spill loads.*?Used (\d+) registers", said, re.DOTALL)
    return {entry: {"registers": int(used), "spilled": int(stores) + int(loads)}
            for entry, stores, loads, used in found}


def compiled(command: list[str]) -> str:
    """What the compiler said. Raises ArcError."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
        wrong = done.stderr.strip().splitlines() if done.returncode else []
    except (OSError, subprocess.TimeoutExpired) as e:
        wrong = [str(e)]
    if wrong:
        line = next((s for s in wrong if "error" in s), wrong[0])
        raise ArcError(f"{Path(command[0]).name} cannot build a CUDA kernel: {line[:300]}",
                       code=MACHINE, hint="another version of it is used instead")
    return done.stderr


def call(name: str, *arguments: Any, like: Any) -> None:
    """Run arc_`name` on tensors, ints, floats and None, on the stream of torch. Raises ArcError."""
    stream = None
    if like.is_cuda:
        import torch

        stream = torch.cuda.current_stream(like.device).cuda_stream
    given = [_argument(a) for a in arguments]
    code = getattr(library(name), f"arc_{name}")(DTYPES[str(like.dtype)], *given,
                                                 ctypes.c_void_p(stream))
    if code:
        raise ArcError(f"CUDA kernel {name} failed with error {code}", code=MACHINE)


def _argument(a: Any) -> Any:
    if a is None or hasattr(a, "data_ptr"):
        return ctypes.c_void_p(None if a is None else a.data_ptr())
    return ctypes.c_float(a) if isinstance(a, float) else ctypes.c_int(a)


def main() -> None:
    """Build every library that is not there, all at once: `python -m arcompile.kernels.cuda`."""
    names = sorted(p.stem for p in SOURCES.glob("*.cu"))
    with ThreadPoolExecutor(len(names)) as pool:
        for path in pool.map(built, names):
            print(path)


if __name__ == "__main__":
    main()
