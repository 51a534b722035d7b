"""The CPU kernels (csrc/cpu) as a library of ONNX Runtime custom ops: found, or compiled once.

Models name these ops as functions, so they run without the library too, on ONNX Runtime's own
kernels and slower. ARC_KERNELS names the library to use; "off" uses none.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from arcompile.cache import cache
from arcompile.errors import MACHINE, ArcError

SOURCES = Path(__file__).parent / "csrc" / "cpu"
NAME = "libarcompile_ops.so"
PACKAGED = Path(__file__).parents[1] / "arcompile" / "_native" / NAME  # of a native install
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-Wno-psabi")
# One copy of the inner loops for each of these; one is picked at run time.
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma",
          "-mprefer-vector-width=512")
VNNI = (*AVX512, "-mavx512vnni")
ISAS = {
    "x86_64": {"avx512": AVX512, "avx2": ("-mavx2", "-mfma"), "plain": ()},
}
# The file of inner loops -> the instruction sets that only it knows.
LOOPS: dict[str, dict[str, dict[str, tuple[str, ...]]]] = {
    "lanes.cpp": {},
    "rows.cpp": {"x86_64": {"vnni": VNNI}},
    "tiles.cpp": {"x86_64": {"bf16": (*VNNI, "-mavx512bf16"), "vnni": VNNI}},
}
LONGEST = 300  # seconds for one file


def library() -> Path | None:
    """The library for this machine, or None when there is none. Raises ArcError when the one
    that ARC_KERNELS names is not there."""
    if os.getenv("ARC_KERNELS"):
        return named("ARC_KERNELS")
    return next((p for p in (PACKAGED, _built()) if p.is_file()), None)


def named(variable: str) -> Path | None:
    """The library that a variable of the environment names; None where that is "off"."""
    wanted = os.environ[variable]
    if wanted != "off" and not Path(wanted).is_file():
        raise ArcError(f"{variable} is {wanted!r}, which is not a file",
                       hint=f"{variable}=off uses none", code=MACHINE)
    return None if wanted == "off" else Path(wanted)


def compiler() -> str:
    """The C++ compiler: $CXX, else the first found; "" when there is none."""
    names = (os.environ["CXX"],) if os.getenv("CXX") else ("c++", "g++", "clang++")
    return next((found for n in names if (found := shutil.which(n))), "")


def build() -> Path:
    """The library, compiled now unless it is there. Raises ArcError."""
    if (found := library()) is not None:
        return found
    cxx, target = compiler(), _built()
    if not cxx:
        raise ArcError("no C++ compiler to build the CPU kernels with", code=MACHINE,
                       hint="install g++ or clang++; engines run without, slower")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / NAME
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda job: _compile(cxx, Path(folder), *job), _jobs()))
        _run([cxx, "-shared", "-s", *map(str, objects), "-o", str(made)])
        os.replace(made, target)
    return target


def isa(path: Path) -> str:
    """The instruction set that the library uses here."""
    ask = ctypes.CDLL(str(path)).arcompile_ops_isa
    ask.restype = ctypes.c_char_p
    told: bytes = ask()
    return told.decode()


def _built() -> Path:
    """Where this version's library lies, for this kind of machine."""
    how = (FLAGS, ISAS, LOOPS, platform.machine(), platform.system())
    digest = hashlib.sha256(repr(how).encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return cache() / "kernels" / digest.hexdigest()[:24] / NAME


def _jobs() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(source, object, flags), the slowest first."""
    machine = platform.machine()
    for source, more in LOOPS.items():
        for name, flags in {**ISAS.get(machine, {"plain": ()}), **more.get(machine, {})}.items():
            yield source, f"{Path(source).stem}_{name}.o", (f"-DARC_ISA={name}", *flags)
    for path in sorted(SOURCES.glob("*.cpp")):
        if path.name not in LOOPS:
            yield path.name, f"{path.stem}.o", ()


def _compile(cxx: str, folder: Path, source: str, made: str, flags: tuple[str, ...]) -> Path:
    _run([cxx, *FLAGS, *flags, "-c", str(SOURCES / source), "-o", str(folder / made)])
    return folder / made


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
        said = done.stderr.strip().splitlines() if done.returncode else []
    except (OSError, subprocess.TimeoutExpired) as e:
        said = [str(e)]
    if said:
        wrong = next((s for s in said if "error" in s), said[0])
        raise ArcError(f"{Path(command[0]).name} cannot build the CPU kernels: {wrong[:300]}",
                       code=MACHINE, hint="engines run without them, slower")
