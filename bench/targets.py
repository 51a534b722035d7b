"""One model on every target of this machine: `python -m arcompile.bench.targets demo`.

Each target's engine draws greedy tokens, which are compared with those of ort-cpu in f32 (a target
of 16 bits may turn where two logits are near), and whole images are timed by turns. A row of
results/targets.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from arcompile.bench import built, eager, machine, suites
from arcompile.bench.images import ROWS
from arcompile.bench.machine import PAUSE
from arcompile.bench.profile import PROGRAM
from arcompile.bench.spread import figure, summary
from arcompile.bench.suites import Suite
from arcompile.cache import cache
from arcompile.errors import MACHINE, ArcError, quoted
from arcompile.program_text import parse_program
from arcompile.runtime.engine import Engine, load
from arcompile.target import TARGETS

RESULTS = ROWS.with_name("targets.jsonl")
FIRST = "ort-cpu"  # whose tokens are right
WARM = 3  # images on a GPU before one is timed: torch-cuda captures each step in the third
WIDTHS = ("f32", "bf16", "f16")  # the first that a target takes


def here(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The targets that can run here, the first one first, and why others cannot. Raises ArcError
    for names that are none."""
    asked = [TARGETS[n].name for n in names] if names else sorted(TARGETS.all())
    why = {n: TARGETS[n].available() for n in asked if n != FIRST}
    return [FIRST, *(n for n, said in why.items() if not said)], {k: v for k, v in why.items() if v}


def width(target: str, dtype: str) -> str:
    """The dtype that is asked for, or the widest that the target takes."""
    return next(w for w in (dtype, *WIDTHS) if w in TARGETS[target].dtypes)


def opened(suite: Suite, target: str, dtype: str) -> Engine:
    """The suite's engine for a target, built unless it is there. Raises ArcError."""
    own = replace(suite, name=f"{suite.name}-{target}-{dtype}", target=target, dtype=dtype)
    folder = cache() / "bench" / own.name / built.key(own)[:16]
    if not (folder / "manifest.json").is_file():
        try:
            TARGETS[target].prepare(lambda stage, share: None)
        except ArcError as e:
            print(f"{target}: {e.what}; {e.hint}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        built.build(own, folder)
    return load(folder, check=False)


@dataclass
class Open:
    """One target's engine, and the greedy tokens it drew."""

    engine: Engine
    dtype: str
    tokens: np.ndarray[Any, Any]
    images: list[float] = field(default_factory=list)  # seconds
    steps: list[float] = field(default_factory=list)

    def told(self, want: np.ndarray[Any, Any] | None) -> dict[str, Any]:
        return {"dtype": self.dtype,
                "same_tokens": None if want is None else share(self.tokens, want),
                "image_s": summary(self.images, 1.0), "step_ms": summary(self.steps, 1e3),
                "step_read_gbs": figure(read(self.engine.folder) / 1e9 / min(self.steps))}


def _open(suite: Suite, name: str, dtype: str, missing: dict[str, str]) -> Open | None:
    """None, and why in `missing`, where the target fails: the others are timed all the same."""
    kind = width(name, "" if name == FIRST else dtype)
    try:
        e = opened(suite, name, kind)
        cond = suites.condition(e.manifest["info"], suite.batch)
        for _ in range(WARM if TARGETS[name].device == "cuda" else 1):
            tokens = e.generate(cond, seed=0, guidance=suite.guidance, temperature=0).tokens
        return Open(e, width, tokens)
    except (ArcError, RuntimeError) as wrong:
        if name == FIRST:
            raise
        missing[name] = quoted(wrong)
        return None


def run(suite: Suite, names: Sequence[str], turns: int, dtype: str = "", alone: bool = False,
        with_eager: bool = False) -> dict[str, Any]:
    """The row. dtype: of all but the first; alone: without the first, so that no tokens are
    compared; with_eager: the authors' loop too, on the GPU. Raises ArcError."""
    able, missing = here(names)
    made = {n: _open(suite, n, dtype, missing) for n in able[alone:]}
    each = {n: o for n, o in made.items() if o is not None}
    if not each:
        raise ArcError("no target can run here", hint=str(missing), code=MACHINE)
    first = next(iter(each.values())).engine
    cond = suites.condition(first.manifest["info"], suite.batch)
    for _ in range(turns):
        for o in each.values():
            time.sleep(PAUSE)
            start = time.perf_counter()
            out = o.engine.generate(cond, seed=0, guidance=suite.guidance, top_k=suite.top_k)
            o.images.append(time.perf_counter() - start)
            o.steps.append(out.timings["loop"] / len(out.timings["steps"]))
    extra: dict[str, Any] = {}
    if with_eager:
        try:
            spent = eager_times(suite, cond, len(first.program.steps), turns)
            extra["eager_bf16_image_s"] = summary(spent, 1.0)
        except (ArcError, RuntimeError) as wrong:
            missing["eager"] = quoted(wrong)
    want = each[FIRST].tokens if FIRST in each else None
    return {"suite": f"targets-{suite.name}", "kind": "targets",
            "time": datetime.now(UTC).isoformat(timespec="seconds"), "host": machine.host(),
            "targets": {n: o.told(want) for n, o in each.items()},
            "missing": missing, "machine": machine.facts(), **extra, **_gpu()}


def eager_times(suite: Suite, cond: Any, steps: int, turns: int,
                device: str = "cuda") -> list[float]:
    """Seconds of whole images by the authors' loop in eager torch, bf16; the first does not count.
    Raises ArcError, and RuntimeError where the loop keeps tensors that do not move."""
    import torch

    loop = eager.load(suite.family, suites.source(suite))
    if loop is None or (device == "cuda" and not torch.cuda.is_available()):
        raise ArcError("no eager loop can run here: it wants a family that has one, and a GPU")
    for part in vars(loop).values():
        if isinstance(part, torch.nn.Module):
            part.to(device, torch.bfloat16)
    spent, was = [], torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            for _ in range(turns + 1):
                start = time.perf_counter()
                loop.begin(cond, suite.guidance, 1.0, suite.top_k)
                tokens = torch.cat([loop.step() for _ in range(steps)], 1)
                loop.finish(tokens).float().cpu()  # which waits for the GPU
                spent.append(time.perf_counter() - start)
    finally:
        torch.set_default_dtype(was)
    return spent[1:]


def read(folder: Path) -> float:
    """Bytes of weights that an engine's average step reads whole: tables that it looks rows up in
    are left out."""
    p = parse_program((folder / PROGRAM).read_text())
    each = {g.name: sum(w.type.nbytes() for w in g.weights
                        if any(n.op != "gather" for n in g.users[w])) for g in p.graphs}
    return sum(each[c.graph] * built._turns(p, c.loop) for s in p.steps for c in s.calls) / len(
        p.steps)


def _gpu() -> dict[str, Any]:
    """The GPU's own facts and ceilings, where torch sees one."""
    try:
        from arcompile.kernels import timing

        top = timing.ceilings()
    except ArcError:
        return {}
    return {"gpu": {**timing.facts(), "read_gbs": figure(top["bytes"] / 1e9),
                    "bf16_tflops": figure(top["flops"] / 1e12)}}


def share(x: np.ndarray[Any, Any], want: np.ndarray[Any, Any]) -> float | None:
    """Of tokens that are equal, up to the first that is not: later ones follow from it."""
    if not want.size:
        return None  # a model without tokens
    same = (x == want).reshape(len(want), -1)
    return figure(float(np.cumprod(same, axis=1).mean()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite")
    parser.add_argument("targets", nargs="*", help="default: all that can run here")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--dtype", default="", help="of all but ort-cpu; default: f32 if it can")
    parser.add_argument("--alone", action="store_true", help="without ort-cpu and its tokens")
    parser.add_argument("--eager", action="store_true", help="the authors' loop in bf16 too")
    parser.add_argument("--build", action="store_true", help="only build the targets' engines")
    parser.add_argument("-o", "--out", type=Path, default=RESULTS, help="the file that gets a row")
    told = parser.parse_args()
    if told.build:
        for name in told.targets:
            print(opened(suites.SUITES[told.suite], name, width(name, told.dtype)).folder)
        sys.exit()
    row = run(suites.SUITES[told.suite], told.targets, told.turns, told.dtype, told.alone,
              told.eager)
    with told.out.open("a") as f:
        f.write(json.dumps(row) + "\n")
    print(json.dumps({k: row[k] for k in ("targets", "eager_bf16_image_s", "missing", "gpu")
                      if k in row}, indent=1))
