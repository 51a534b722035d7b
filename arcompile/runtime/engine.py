"""An engine: a checked folder, and what one does with it. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from arcompile.errors import ArcError
from arcompile.plan import Plan, available, read_plan, refuse
from arcompile.program import Program
from arcompile.program_text import from_data
from arcompile.runtime import bundle, native, request, signature
from arcompile.runtime.image import to_uint8
from arcompile.runtime.loop import Array, Loop, OnStep, Request, Result
from arcompile.target import TARGETS

Cond = int | str | Sequence[int | str] | Array | Mapping[str, Any]


@dataclass(frozen=True)
class Output:
    """What generate returns; B images.

    tokens int64 [B,N]; pixels float32 [B,3,H,W], the decoder's raw output, nominally [-1,1], and
    images uint8 [B,H,W,3] (both None without a decoder); latents float32 [B,N,C] for families that
    draw continuous tokens, whose `tokens` are [B,0]; timings in seconds: prompt, steps (a list; on
    torch-cuda, without on_step, what launching them took), loop, finish, total; rounds int64
    [rounds,B], of engines that draft: the positions each image committed in each round.
    """

    tokens: Array
    pixels: Array | None = None
    images: Array | None = None
    latents: Array | None = None
    timings: Mapping[str, Any] = field(default_factory=dict)
    rounds: Array | None = None

    def save(self, path: str | Path) -> None:
        """Write a PNG: the picture, or a contact sheet of several. Raises ArcError."""
        from arcompile.runtime.image import save

        if self.images is None:
            raise ArcError("this engine draws tokens only", hint="build it with --decoder")
        save(self.images, Path(path))


class Engine:
    """Runs one engine folder. May be shared by threads: each call has buffers of its own."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any], program: Program,
                 labels: Sequence[str], threads: int):
        self.folder, self.manifest, self.program = folder, manifest, program
        self.labels, self.threads = labels, threads

    @cached_property
    def models(self) -> Any:
        """The target's models. Raises ArcError when this machine cannot run them."""
        return TARGETS[self.manifest["target"]].open(self.program, self.folder, self.threads)

    @cached_property
    def native(self) -> native.Native:
        """The same in libarcompile. Raises ArcError when this installation has none."""
        return native.Native(self)

    def __repr__(self) -> str:
        m = self.manifest
        return f"<Engine {m['family']} {m['target']} {m['dtype']} at {self.folder}>"

    @cached_property
    def defaults(self) -> dict[str, float]:
        """The family's or the checkpoint's own sampling settings; what the CLI uses."""
        base = {"guidance": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        return {**base, **self.manifest["defaults"]}

    def generate(
        self,
        cond: Cond,
        *,
        seed: int | Sequence[int] = 0,
        n: int = 1,
        guidance: float | Sequence[float] | None = None,
        guidance_interval: int | None = None,
        temperature: float | Sequence[float] = 1.0,
        top_k: int | Sequence[int] = 0,
        top_p: float | Sequence[float] = 1.0,
        on_step: OnStep | None = None,
        **given: Any,
    ) -> Output:
        """Draw n images for each condition. Raises ArcError.

        cond: class ids, class names, prompts (words, or lists of token ids), or a dict of arrays
        by the program's input names. seed (64 bits), guidance, temperature, top_k and top_p take
        a number or one per image; guidance is what the family's authors call the CFG scale (None:
        the engine's default); temperature 0 is argmax. guidance_interval: guide only until
        that many tokens follow the first. on_step sees a Progress after each step, whose pixels()
        are the picture so far; where it returns False, the picture stays as it is. `given`
        replaces random draws by name (see `draws` in the program), for repeatable comparisons.
        """
        q = request.make(self, cond, seed, n, guidance, guidance_interval, temperature, top_k,
                         top_p, given)
        self._fits(q)
        result = self._run(q, on_step)
        pixels = result.env.get("pixels") if self.program.finish else None
        latents = result.env.get("latents")
        return Output(
            result.tokens, pixels, None if pixels is None else to_uint8(pixels),
            latents, result.timings, result.rounds if len(result.rounds) else None,
        )

    def plan(self, batch: int = 1, guided: bool = True) -> Plan:
        """What drawing `batch` images at once needs in memory. Raises ArcError."""
        if batch < 1:
            raise ArcError(f"batch must be 1 or more, got {batch}",
                           hint="it is the number of images drawn together")
        told = self.manifest.get("plan")
        if not isinstance(told, dict):
            raise ArcError("the engine holds no plan of its memory", hint="rebuild the engine")
        pair = told.get("guided" if guided else "plain")
        one, two = (read_plan(i + 1, guided, x) for i, x in enumerate(pair or (0, 0)))
        return one.of(batch, two)

    def _fits(self, q: Request) -> None:
        """Raise ArcError before anything is allocated that this machine has no memory for."""
        if "plan" in self.manifest:
            need = self.plan(q.images, bool((q.guidance != 1).any()))
            held = need.runtime + ("models" in self.__dict__) * need.weights
            refuse(need, held, available())

    def logits(self, cond: Cond, tokens: Any) -> tuple[Array, Array]:
        """(conditional, unconditional) logits [B,N,V] with `tokens` [B,N] forced, step by step.

        Through the same cached steps as generate. Raises ArcError.
        """
        if not self.manifest["vocabulary"]:
            raise ArcError(f"family {self.manifest['family']} has no logits to show",
                           hint="it draws continuous latents")
        forced = np.asarray(tokens, np.int64)
        q = request.make(self, cond, 0, 1, 2.0, None, 0.0, 0, 1.0, {})
        want = (q.images, self.program.positions)
        if forced.shape != want:
            raise ArcError(f"tokens have shape {list(forced.shape)}, expected {list(want)}",
                           hint="one row of tokens for each image")
        if forced.min(initial=0) < 0 or forced.max(initial=0) >= self.manifest["vocabulary"]:
            raise ArcError(f"tokens must be in 0..{self.manifest['vocabulary'] - 1}",
                           hint="they are indices of the codebook")
        loop = self._loop(replace(q, forced=forced))
        loop.keep_logits = True
        pairs = loop.run(finish=False).logits
        if not pairs:
            raise ArcError(f"family {self.manifest['family']} has no logits to show",
                           hint="it draws no tokens")
        order = np.concatenate([np.array(s.commit) for s in self.program.steps])
        out = []
        for half in zip(*pairs, strict=True):
            whole = np.empty((*want, half[0].shape[-1]), np.float32)
            whole[:, order] = np.concatenate(half, 1)
            out.append(whole)
        return out[0], out[1]

    def encode(self, pixels: Any) -> Array:
        """Tokens int64 [B,N] of pixels float32 [B,3,H,W] in [-1,1]. Raises ArcError."""
        runner = self.models.runner()
        if "encode" not in self.manifest.get("graphs", ()):
            raise ArcError("this engine has no image encoder",
                           hint="build it with a --decoder file that holds one")
        x = np.ascontiguousarray(pixels, np.float32)
        side = self.manifest["info"]["pixels"]
        h, w = side if isinstance(side, list) else (side, side)
        if x.ndim != 4 or x.shape[1:] != (3, h, w):
            raise ArcError(f"pixels have shape {list(x.shape)}, expected [B, 3, {h}, {w}]",
                           hint="resize the pictures; values are in [-1, 1]")
        rows = [runner.numpy(runner.run("encode", {"pixels": x[i : i + 1]})["tokens"])
                for i in range(len(x))]
        return np.concatenate(rows)

    def _run(self, q: Request, on_step: OnStep | None) -> Result:
        """By the loop that ARC_RUNTIME names. Latents become an array."""
        if native.asked():
            return self.native.run(q, on_step)
        loop = self._loop(q)  # the next one may run where its values lie
        result = loop.run(on_step)
        if "latents" in result.env:
            result.env["latents"] = loop.runner.numpy(result.env["latents"])
        return result

    def _loop(self, q: Request) -> Loop:
        return Loop(self.program, self.models.runner(), q, self.manifest["vocabulary"])


def load(folder: str | Path, *, threads: int = 0, check: bool = True,
         signed_by: str | Path | None = None) -> Engine:
    """Open an engine folder, after checking every byte of it. threads=0: one per core.

    signed_by: a public key (PEM, Ed25519) that must have signed it. Raises ArcError when it is not
    an engine, was changed, is not so signed, or (unless check is False) cannot run on this machine.
    """
    path = Path(folder)
    manifest = bundle.read_manifest(path)
    if signed_by is not None:
        signature.check(path, Path(signed_by), manifest)
    bundle.verify(path, manifest)
    program = from_data(bundle.read_json(path / "program.json", "program"))
    program.check()
    named = "labels.json" in manifest["files"]
    labels = bundle.read_json(path / "labels.json", "labels") if named else []
    engine = Engine(path, manifest, program, labels, threads)
    if check:
        assert (engine.native if native.asked() else engine.models) is not None
    return engine
