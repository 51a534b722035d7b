"""Compiles every Triton launch ahead of time, without a GPU: `python -m arcompile.kernels.aot`.

What it tells of each: bytes of shared memory, registers a thread, and bytes spilled to the stack.
An oversize tile compiles without a word (and slowly), so what does not fit is an error here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from arcompile.errors import MACHINE, ArcError
from arcompile.kernel import KERNELS, Case, Kernel, Version
from arcompile.kernels import lang
from arcompile.kernels.check import tensors

SHARED = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448}  # bytes that a block may ask for
REGISTERS = 255
SPILLED = 64  # bytes a thread: a few outside of loops do no harm
TYPES = {"torch.float32": "*fp32", "torch.float16": "*fp16", "torch.bfloat16": "*bf16",
         "torch.int64": "*i64", "torch.int32": "*i32", "torch.int8": "*i8", "torch.uint8": "*u8",
         "torch.bool": "*i1"}


def launches(k: Kernel, v: Version, c: Case) -> list[lang.Launch]:
    """What the version launches for a case. Nothing runs."""
    arguments = k.inputs(c, np.random.default_rng(0))
    with lang.recorded() as made:
        v.run(**tensors(k, arguments, c.dtype, "cpu"))
    return made


def compiled(one: lang.Launch, arch: int) -> dict[str, int]:
    """Compile a launch for sm_`arch`. Raises ArcError when it needs more than there is."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = [n for n in one.fn.arg_names if n not in one.constants]
    given = dict(zip(names, one.args, strict=True))
    constants = {**one.constants, **{n: a for n, a in given.items() if _one(a)}}
    signature = {n: _type(a) for n, a in given.items()} | dict.fromkeys(constants, "constexpr")
    at = {n: i for i, n in enumerate(one.fn.arg_names)}
    attrs = {(at[n],): [["tt.divisibility", 16]] for n, t in signature.items()
             if t[0] == "*" or (t == "i32" and given[n] % 16 == 0)}
    source = ASTSource(one.fn, {n: signature[n] for n in one.fn.arg_names}, constants, attrs)
    made = lang.triton.compile(source, target=GPUTarget("cuda", arch, 32), options=one.options)
    found = {"shared": made.metadata.shared, **_resources(made.asm["cubin"])}
    if found["shared"] > SHARED[arch] or found["registers"] > REGISTERS or (
            found["spilled"] > SPILLED):
        raise ArcError(f"{one.fn.__name__} does not fit sm_{arch}: {found}", code=MACHINE,
                       hint=f"shared memory goes up to {SHARED[arch]}, spills to {SPILLED}")
    return found


def _one(a: Any) -> bool:
    """A launch makes these constants, and tells what 16 divides."""
    return isinstance(a, int) and a == 1


def _type(a: Any) -> str:
    if isinstance(a, float):
        return "fp32"
    return "i32" if isinstance(a, int) else TYPES[str(a.dtype)]


def _resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread, and bytes on the stack."""
    tool = Path(lang.triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as f:
        f.write(cubin)
        f.flush()
        done = subprocess.run([str(tool), "-res-usage", f.name], capture_output=True, text=True,
                              check=True)
    said = re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", done.stdout)
    assert said, done.stdout
    return {"registers": int(said[1]), "spilled": int(said[2]) + int(said[3])}


def plan(names: Sequence[str], newest: bool) -> Iterator[tuple[str, lang.Launch]]:
    """Each distinct launch of the real shapes: a name, and what is launched."""
    for k in KERNELS.all().values():
        if names and k.name not in names:
            continue
        versions = [v for v in k.versions.values() if "triton" in v.needs]
        for v in versions[-1:] if newest else versions:
            yield from _of(k, v, newest)


def _of(k: Kernel, v: Version, newest: bool) -> Iterator[tuple[str, lang.Launch]]:
    seen = set[str]()
    cases = [c for c in k.large if not v.refusal(c)] or [
        c for c in k.shapes if not v.refusal(c)][:1]
    for c in cases[:1] if newest else cases:
        for one in launches(k, v, c):
            options = {**one.constants, **one.options}
            key = " ".join([c.dtype, *(f"{a}={b}" for a, b in options.items())])
            if key not in seen:
                seen.add(key)
                yield f"{k.name} {v.name} {one.fn.__name__} {key}", one


def main(argv: Sequence[str] | None = None) -> int:
    asked = argparse.ArgumentParser(prog="python -m arcompile.kernels.aot")
    asked.add_argument("kernels", nargs="*", help="names; default: all")
    asked.add_argument("--arch", type=int, action="append", help="80, 90; default: both")
    asked.add_argument("--newest", action="store_true", help="one case of the last version of each")
    asked.add_argument("--jobs", type=int, default=os.cpu_count())
    told = asked.parse_args(argv)
    if lang.triton is None or lang.interpreting():
        print("Triton is not installed, or TRITON_INTERPRET is set", file=sys.stderr)
        return MACHINE
    work = [(name, one, arch) for name, one in plan(told.kernels, told.newest)
            for arch in told.arch or (80, 90)]

    def work_one(job: tuple[str, lang.Launch, int]) -> tuple[str, dict[str, Any]]:
        name, one, arch = job
        try:
            return f"{name} sm_{arch}", compiled(one, arch)
        except ArcError as e:
            return f"{name} sm_{arch}", {"error": e.what}

    with ThreadPoolExecutor(told.jobs) as pool:
        found = dict(pool.map(work_one, work))
    print("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in found.items()) + "\n}")
    return int(any("error" in v for v in found.values()))


if __name__ == "__main__":
    sys.exit(main())
