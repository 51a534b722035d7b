"""Targets `torch-cuda` and `torch-cpu`: the same graphs run by torch, op by op.

On a GPU our own kernels take over what they can, and each graph is captured once a shape as a CUDA
graph, so that a step costs one launch. `torch-cpu` is the same interpreter without kernels and
capture: slow, for looking at what a GPU would compute.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from arcompile import dims
from arcompile.errors import MACHINE, ArcError
from arcompile.ir import Type
from arcompile.plan import Memory
from arcompile.program import Program
from arcompile.runtime.runner import Array, Env
from arcompile.target import Event, target
from arcompile.targets.reference import Reference, stored
from arcompile.targets.torch_room import Room


class Models:
    """An engine's graphs and weights on one device. Shared by runs, and never written to."""

    def __init__(self, folder: Path, program: Program, device: str, kernels: bool, capture: bool):
        import torch

        from arcompile.targets.torch_plan import Plan
        from arcompile.targets.torch_products import columns

        self.t, self.device, self.capture = torch, device, capture
        graphs, held = stored(program, folder)
        turned = columns(graphs.values()) if kernels else set()
        self.weights = {name: self._weight(a, name in turned) for name, a in held.items()}
        states = frozenset(name for name, _ in program.state)
        self.plans = {name: Plan(g, self.weights, device, kernels, states)
                      for name, g in graphs.items()}
        self.loop = frozenset(c.graph for calls in (program.prompt, *(
            s.calls for s in program.steps)) for c in calls)
        self.idle: list[Room] = []  # appending and popping need no lock

    def _weight(self, a: Array, by_columns: bool) -> Any:
        made = self.tensor(a)
        return made.t().contiguous().t() if by_columns else made

    def tensor(self, a: Array) -> Any:
        """A copy on the device; uint16 are the bits of bf16."""
        if a.dtype == np.uint16:
            return self.t.from_numpy(np.array(a).view(np.int16)).view(self.t.bfloat16).to(
                self.device)
        return self.t.from_numpy(np.array(a)).to(self.device)

    def watch(self) -> None:
        from arcompile.targets.torch_profile import Notes

        self.capture, self.notes = False, Notes(self.t, self.device)
        for plan in self.plans.values():
            plan.notes = self.notes

    def events(self) -> list[Event]:
        """What every call took since `watch`."""
        return self.notes.events()

    def runner(self) -> Runner:
        """In an idle room, or in a new one: runs at the same time have rooms of their own, and
        there are never more than were once needed together. Nothing waits where nothing is
        captured."""
        try:
            room = self.idle.pop()
        except IndexError:
            room = Room(self.t, self.device, self.plans, self.loop, self.capture)
        room.begin()
        made = Runner(self, room)
        if self.capture:
            weakref.finalize(made, self.idle.append, room).atexit = False
        return made


class Runner:
    """One run, in a room that goes back to the models with it."""

    def __init__(self, models: Models, room: Room):
        self.m, self.room = models, room

    def state(self, name: str, t: Type, sizes: Mapping[str, int]) -> Any:
        with self.m.t.inference_mode():
            return self.room.state(name, tuple(dims.value(d, sizes) for d in t.shape), t.dtype)

    def inputs(self, graph: str) -> list[str]:
        return list(self.m.plans[graph].inputs)

    def by_row(self, graph: str) -> set[str]:
        return {k for k, v in self.m.plans[graph].g.results if v.type.shape[:1] == ("r",)}

    def first(self, value: Any, rows: int) -> Any:
        with self.m.t.inference_mode():
            return self.room.first(value, rows)

    def run(self, graph: str, env: Env) -> Env:
        """What it returns holds until the graph runs again."""
        with self.m.t.inference_mode():
            return self.room.run(graph, env)

    def keep(self, graphs: set[str]) -> None:
        """Captured graphs stay for the next run, with their scratch and the states that they hang
        on: while pictures are made, what drew them is still there."""
        self.room.keep(graphs)

    def numpy(self, value: Any) -> Array:
        if isinstance(value, np.ndarray):
            return value
        if value.dtype == self.m.t.bfloat16:
            value = value.float()
        found: Array = value.cpu().numpy().copy()
        return found

    def held(self, value: Any) -> Any:
        """A copy on the device: nothing waits for it."""
        with self.m.t.inference_mode():
            return value if isinstance(value, np.ndarray) else value.clone()

    def arrays(self, held: list[Any]) -> list[Array]:
        """Moved together."""
        if any(isinstance(x, np.ndarray) for x in held) or not held:
            return [self.numpy(x) for x in held]
        with self.m.t.inference_mode():
            flat = self.numpy(self.m.t.cat([x.reshape(-1) for x in held]))
        ends = np.cumsum([x.numel() for x in held])[:-1]
        return [x.reshape(h.shape) for x, h in zip(np.split(flat, ends), held, strict=True)]

    def wait(self) -> None:
        if self.m.device == "cuda":
            self.m.t.cuda.current_stream().synchronize()


@target("torch-cpu")
class TorchCpu(Reference):
    """torch on the CPU, op by op: the interpreter of torch-cuda, for looking at it."""

    passes = ("fold, simplify, cse, qkv, swiglu, norm-silu, rotary-attention, "
              "fuse-sampling, dead-code")
    dtypes = ("f32", "f16", "bf16")
    needs: ClassVar[tuple[str, ...]] = ("torch==2.13.0",)
    memory = Memory(in_place=True)

    def open(self, program: Program, folder: Path, threads: int) -> Models:
        self._refuse()
        return Models(folder, program, "cpu", kernels=False, capture=False)

    def profile(self, program: Program, folder: Path, threads: int, notes: Path) -> Models:
        """Call by call: nothing is captured."""
        models: Models = self.open(program, folder, threads)
        models.watch()
        return models

    def _refuse(self) -> None:
        if reason := self.available():
            raise ArcError(reason, code=MACHINE, hint="arcompile doctor tells what is missing")

    def available(self) -> str:
        try:
            import torch  # noqa: F401
        except ImportError:
            return "torch is not installed"
        return ""


@target("torch-cuda")
class TorchCuda(TorchCpu):
    """torch on an NVIDIA GPU, with our kernels, and a CUDA graph for each step's shape."""

    device = "cuda"
    needs = ("torch==2.13.0", "triton>=3.9")

    def open(self, program: Program, folder: Path, threads: int) -> Models:
        self._refuse()
        import torch

        from arcompile.kernels import lang, tune  # Triton: 85 MB that other targets do without
        from arcompile.targets import torch_kernels

        torch_kernels.choose(torch.cuda.get_device_name(), tune.kept(), folder / tune.FILE)
        return Models(folder, program, "cuda", kernels=not lang.missing(), capture=True)

    def available(self) -> str:
        if reason := super().available():
            return reason
        import torch

        if torch.version.cuda is None:
            return "this torch was built without CUDA"
        return "" if torch.cuda.is_available() else "no NVIDIA GPU is seen, or its driver is old"
