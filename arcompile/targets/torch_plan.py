"""A graph as a list of torch calls: what is written in place, and what our kernels take over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from arcompile.errors import ArcError
from arcompile.ir import Graph, Node, Value, bind, concrete
from arcompile.target import RUN
from arcompile.targets import torch_attention, torch_kernels, torch_quant
from arcompile.targets.torch_ops import DTYPES, TORCH
from arcompile.targets.torch_profile import Notes

CACHES = {  # operands that are overwritten
    "cache_append": (0,), "decode_attention": (3, 4), "var_feed": (4,)}
assert torch_attention
assert torch_quant


@dataclass(frozen=True)
class Step:
    """One call: run(torch, *arguments, **attrs). name: of the node it stands for, or of the first
    that it makes something of, as profiles tell it. free: values that nobody reads later."""

    op: str
    run: Callable[..., Any]
    args: tuple[Value, ...]
    outs: tuple[Value, ...]
    attrs: Mapping[str, Any]
    copies: tuple[int, ...]
    free: tuple[Value, ...]
    name: str = ""


class Plan:
    """A graph that runs on tensors. kernels: whether ours may take over what they can."""

    def __init__(self, g: Graph, weights: Mapping[str, Any], device: str, kernels: bool,
                 states: frozenset[str]):
        import torch

        self.g, self.t, self.device = g, torch, device
        self.notes: Notes | None = None  # of a profiled run
        self.inputs = [p.name for p in g.params]
        self.states = [p.name for p in g.params if p.name in states]
        self.types = [(p.name, p.type) for p in g.params]
        self.held: dict[Value, Any] = {w: weights[w.name] for w in g.weights}
        nodes = [n for n in g.nodes if not self._constant(n)]
        calls = torch_kernels.fused(g, nodes) if kernels else [
            torch_kernels.Fused(None, n.args, n.outs, n.attrs, n.op) for n in nodes]
        kept = {v for _, v in g.results} | self.held.keys()
        last = {a: i for i, c in enumerate(calls) for a in c.args}
        self.steps = [
            Step(c.op, c.run or self._op(c.op, kernels), c.args, c.outs, c.attrs,
                 self._copies(c, i, last),
                 tuple(a for a in {*c.args} if last[a] == i and a not in kept), self._name(c))
            for i, c in enumerate(calls)]
        over = {s.args[k].name for s in self.steps for k in CACHES.get(s.op, ())
                if k not in s.copies}
        self.written = [k for k in self.states if k in over]  # where they lie

    def _name(self, c: torch_kernels.Fused) -> str:
        made = self.g.producer.get(c.outs[0])
        origin = made.origin if made else ""
        return f"{origin or '(top)'}/{c.op}:{c.outs[0].name}#0"

    def _constant(self, n: Node) -> bool:
        if n.op != "const":
            return False
        made = self.t.tensor(n.attrs["value"], dtype=getattr(self.t, DTYPES[n.attrs["dtype"]]),
                             device=self.device)
        self.held[n.outs[0]] = made
        return True

    def _op(self, op: str, kernels: bool) -> Callable[..., Any]:
        if op in ("arange", "full"):
            return self._arange if op == "arange" else self._full
        if kernels and op in torch_kernels.KERNEL:
            return torch_kernels.KERNEL[op]
        if op not in TORCH:
            raise ArcError(f"op {op} has no torch form", hint="use --target reference")
        return TORCH[op]

    def _copies(self, c: torch_kernels.Fused, i: int, last: Mapping[Value, int]) -> tuple[int, ...]:
        """Operands to copy before they are overwritten: all but states that nobody reads later."""
        own = {p for p in self.g.params if p.name in self.states}
        return tuple(k for k in CACHES.get(c.op, ())
                     if c.args[k] not in own or last[c.args[k]] > i)

    def _arange(self, t: Any, dtype: str, shape: tuple[int, ...]) -> Any:
        return t.arange(shape[0], dtype=getattr(t, DTYPES[dtype]), device=self.device)

    def _full(self, t: Any, dtype: str, shape: tuple[int, ...], value: float) -> Any:
        return t.full(shape, value, dtype=getattr(t, DTYPES[dtype]), device=self.device)

    def run(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Tensors by parameter name in, results by name out. States are written in place."""
        if self.notes is None:
            return self._run(given)
        before = self.notes.mark()
        made = self._run(given)
        self.notes.add(self.g.name, RUN, RUN, before)
        return made

    def _run(self, given: Mapping[str, Any]) -> dict[str, Any]:
        sizes = bind(self.types, {k: given[k].shape for k in self.inputs})
        env = {**self.held, **{p: given[p.name] for p in self.g.params}}
        for s in self.steps:
            args = [env[a] for a in s.args]
            for k in s.copies:
                args[k] = args[k].clone()
            before = self.notes.mark() if self.notes else None
            out = s.run(self.t, *args, **concrete(s.attrs, sizes))
            if self.notes:
                self.notes.add(self.g.name, s.name, s.op, before)
            env.update(zip(s.outs, out if isinstance(out, tuple | list) else (out,), strict=True))
            for a in s.free:
                del env[a]
        return {name: env[v] for name, v in self.g.results}

