"""One program through every pass, and drawn by every CPU target: the same tokens."""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random

import engines
import numpy as np
from fuzz.check import Wrong, _refusal, values
from fuzz.programs import weights

from arcompile.errors import ArcError
from arcompile.pipeline import PASSES, parse_pipeline, run
from arcompile.program import Program
from arcompile.program_text import from_data, parse_program, to_data
from arcompile.runtime.engine import load
from arcompile.runtime.loop import Loop, Request
from arcompile.target import TARGETS
from arcompile.targets.reference import models
from arcompile.weights import Store, of_arrays

SAME_TOKENS = ("jacobi",)  # drafts, but draws what is drawn without
LAW = ("sjd", "scd")  # drafts of the same law: other tokens, as many


def check(p: Program) -> None:
    """Raise Wrong where a pass or a target draws something else than the program's meaning."""
    if str(parse_program(str(p))) != str(p):
        raise Wrong("text: the program does not read back as it was written")
    if to_data(from_data(to_data(p))) != to_data(p):
        raise Wrong("data: program.json does not read back")
    case = _Case(p)
    random = Random(p.name)
    some = ", ".join(random.choice(values()) for _ in range(3))
    default = TARGETS["ort-cpu"].passes
    for passes in (*values(), default, some, *(f"{default}, {d}{{window=2}}" for d in SAME_TOKENS)):
        case.passed(passes)
    for passes in (f"{default}, int8", f"{default}, int4{{block=16,only='*'}}",
                   *(f"{default}, {d}{{window=2}}" for d in LAW)):
        case.sound(passes)
    case.engine(random.choice(("", default, default)))


class _Case:
    def __init__(self, p: Program):
        self.p, self.held = p, weights(p)
        self.vocabulary = int(p.graph("step").result("logits").type.shape[-1])
        self.ask = _request(Random(p.name), self.vocabulary)
        self.expected = self.reference(p)
        self.sure = self._gaps()

    def reference(self, p: Program):
        store = Store(self.held, p.fold)
        loop = Loop(p, models(p, store).runner(), self.ask, self.vocabulary)
        return loop.run()

    def _gaps(self) -> bool:
        """Does a sixth digit of the weights leave all tokens as they are?"""
        def moved(name):
            x = self.held[name]
            turn = np.random.default_rng(x.size).choice((-1e-5, 1e-5), x.shape)
            return (x * (1 + turn)).astype(x.dtype) if x.dtype.kind == "f" else x

        held = self.held
        try:
            self.held = of_arrays({k: moved(k) for k in held.load})
            return bool((self.reference(self.p).tokens == self.expected.tokens).all())
        finally:
            self.held = held

    def compare(self, where: str, tokens, pixels) -> None:
        if not self.sure:  # a draw hangs on the last bit
            return
        if tokens.shape != self.expected.tokens.shape or (tokens != self.expected.tokens).any():
            raise Wrong(f"{where}: it draws {tokens.tolist()}, "
                        f"not {self.expected.tokens.tolist()}")
        want = self.expected.env["pixels"]
        gap = np.abs(pixels - want).max()
        if not gap <= 1e-4 * (1 + np.abs(want).max()):
            raise Wrong(f"{where}: pixels differ by {gap:.1e}")

    def passed(self, passes: str) -> None:
        new = self.made(passes)
        if new is not None and new is not self.p:
            out = self.reference(new)
            self.compare(f"passes {passes}", out.tokens, out.env["pixels"])

    def made(self, passes: str):
        try:
            return run(self.p, parse_pipeline(passes), self.held)
        except ArcError as e:
            if _refusal(e):
                return None
            raise Wrong(f"passes {passes}: {e.what}") from e

    def sound(self, passes: str) -> None:
        """Other values or other draws, but every position has a token of the vocabulary."""
        new = self.made(passes)
        if new is None or new is self.p:
            return
        out = self.reference(new).tokens
        if out.shape != self.expected.tokens.shape or out.min() < 0 or out.max() >= self.vocabulary:
            raise Wrong(f"passes {passes}: it draws {out.tolist()}")

    def engine(self, passes: str) -> None:
        """As engine folders: reference, and ort-cpu with our kernels (see ARC_KERNELS)."""
        for target in ("reference", "ort-cpu"):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    engines.write(Path(folder) / "e", self.p, self.held, self.vocabulary, target,
                                  passes)
                    e = load(Path(folder) / "e", threads=1)
                    out = e._loop(self.ask).run()
                except ArcError as e:
                    if _refusal(e):
                        return
                    raise Wrong(f"{target} after {passes or 'no pass'}: {e.what}") from e
                runner = e.models.runner()
                self.compare(f"{target} after {passes or 'no pass'}", out.tokens,
                             runner.numpy(out.env["pixels"]))


def _request(random: Random, vocabulary: int) -> Request:
    b = random.randint(1, 3)

    def each(of, *choices):
        return np.array([random.choice(choices) for _ in range(b)], of)

    return Request({"cond": each(np.int64, 0, 1, 2)}, each(np.uint64, 1, 2, 3),
                   np.zeros(b, np.int64), each(np.float64, 1.0, 2.0, 3.5),
                   each(np.float32, 0.0, 0.7, 1.0), each(np.int64, 0, 2, vocabulary),
                   each(np.float32, 1.0, 0.8))


assert PASSES
