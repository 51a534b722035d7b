"""Rules: say what to find, when it is legal, what to put instead."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from arcompile import debug
from arcompile.errors import PassError
from arcompile.ir import OPS, Builder, Graph, Node, Value, dce


class Miss(Exception):
    """A structural match that is not legal; the reason is shown at ARC_DEBUG=4."""


class Hole:
    """A pattern variable (no op) or a pattern node; results of a multi-result node by index."""

    def __init__(self, name: str = "", op: str = "", args: tuple[Hole, ...] = (),
                 attrs: Mapping[str, Any] | None = None, index: int = 0):
        self.name, self.op, self.args, self.attrs = name, op, args, attrs or {}
        self.index = index


class _Tracer:
    def __getattr__(self, op: str) -> Callable[..., Hole]:
        return lambda *args, **attrs: Hole(op=op, args=args, attrs=attrs)


class Rule:
    """Subclass with three methods over the same argument names.

    pattern(op, x, ...)   the shape to find, written as calls
    check(x, ...)         raise Miss(reason) when the match is not legal; may return more bindings
    replace(op, x, ...)   what to emit instead: a value for each result of the matched root

    A `node` argument of check or replace receives the matched root. Interior values with other
    users make a match fail unless the rule says `shares = True`: no silent duplicated work.
    """

    shares = False
    pattern: Callable[..., Any]
    replace: Callable[..., Value | tuple[Value, ...]]

    check: Callable[..., dict[str, Any] | None] = staticmethod(lambda **bound: None)

    @cached_property
    def shape(self) -> Hole:
        holes = list(inspect.signature(self.pattern).parameters)[1:]
        found = self.pattern(_Tracer(), *map(Hole, holes))
        assert isinstance(found, Hole)
        return found

    def match(self, g: _Walk, root: Node) -> dict[str, Any] | None:
        bound: dict[str, Any] = {}
        inner: list[Node] = []
        if not _unify(g, self.shape, root.outs[0], bound, inner):
            return None
        if not self.shares and any(g.shared(n, root, inner) for n in inner):
            debug.log(4, f"miss {type(self).__name__} at {root.outs[0]}: inner values have users")
            return None
        return bound


class _Walk:
    """What the driver knows while it walks one graph."""

    def __init__(self, g: Graph):
        self.made: dict[Value, Node] = {}
        self.swap: dict[Value, Value] = {}
        self.readers: dict[Value, int] = {}
        self.inside: dict[Node, int] = {}
        for n in g.nodes:
            self._count(n)
        for _, v in g.results:
            self.readers[v] = self.readers.get(v, 0) + 1

    def _count(self, n: Node) -> None:
        for a in n.args:
            self.readers[a] = self.readers.get(a, 0) + 1

    def retire(self, n: Node) -> None:
        """Node n is replaced: it reads nothing any more, nor do those whom only it read."""
        gone = [n]
        while gone:
            for a in gone.pop().args:
                self.readers[a] -= 1
                made = self.made.get(a)
                if made is not None and not any(self.readers.get(v) for v in made.outs):
                    gone.append(made)

    def shared(self, n: Node, root: Node, inner: list[Node]) -> bool:
        """Does anybody outside the match read a result of inner node n?"""
        if n is root:
            return False
        inside = sum(a in n.outs for m in {root, *inner} for a in m.args)
        return sum(self.readers.get(v, 0) for v in n.outs) > inside

    def final(self, v: Value) -> Value:
        while v in self.swap:
            v = self.swap[v]
        return v

    def redirect(self, n: Node) -> Node:
        args = tuple(self.final(a) for a in n.args)
        return n if args == n.args else Node(n.op, args, n.outs, n.attrs, n.origin)


def _unify(g: _Walk, want: Hole, v: Value, bound: dict[str, Any], inner: list[Node]) -> bool:
    if not want.op:
        return bool(bound.setdefault(want.name, v) is v)
    n = g.made.get(v)
    if n is None or n.op != want.op or len(n.args) != len(want.args) or n.outs[want.index] is not v:
        return False
    trial = dict(bound)
    if not _attrs(want.attrs, n.attrs, trial):
        return False
    orders = [n.args, n.args[::-1]] if OPS[n.op].commutes else [n.args]
    for args in orders:
        attempt, deeper = dict(trial), [*inner, n]
        pairs = zip(want.args, args, strict=True)
        if all(_unify(g, w, a, attempt, deeper) for w, a in pairs):
            bound.update(attempt)
            inner[:] = deeper
            return True
    return False


def _attrs(want: Mapping[str, Any], have: Mapping[str, Any], bound: dict[str, Any]) -> bool:
    """Attributes in a pattern are literals to equal or holes to bind."""
    for k, a in want.items():
        if isinstance(a, Hole):
            if bound.setdefault(a.name, have.get(k)) != have.get(k):
                return False
        elif have.get(k) != a:
            return False
    return True


def rewrite(g: Graph, rules: Sequence[Rule], by: str = "") -> Graph:
    """One walk, producers first; what a rule emits is walked again, so rules feed each other."""
    b = Builder(g.name, taken=[v.name for v in g.values()])
    b.weights.update({w.name: w for w in g.weights})
    walk, fired, fuel = _Walk(g), False, 100 * len(g.nodes) + 100
    todo = list(reversed(g.nodes))
    while todo:
        if (fuel := fuel - 1) < 0:
            raise PassError("rules keep firing on their own output",
                            hint="run with ARC_DEBUG=3 to see which")
        n = walk.redirect(todo.pop())
        walk.made.update({v: n for v in n.outs})
        b.origin = n.origin + (f" > {by}" if by and not n.origin.endswith(by) else "")
        if (outs := _fire(rules, walk, n, b)) is None:
            continue
        fired = True
        walk.swap.update(zip(n.outs, outs, strict=True))
        for v, new in zip(n.outs, outs, strict=True):
            walk.readers[new] = walk.readers.get(new, 0) + walk.readers.pop(v, 0)
        emitted = b.take()
        for e in emitted:
            walk._count(e)
        walk.retire(n)
        todo += reversed(emitted)
    if not fired:
        return g
    order = list(dict.fromkeys(walk.redirect(n) for n in _once(walk.made.values())))
    results = [(name, walk.final(r)) for name, r in g.results]
    return dce(g.with_nodes(order, results, b.weights.values()))


def _once(nodes: Any) -> list[Node]:
    return list(dict.fromkeys(nodes))


def _fire(rules: Sequence[Rule], walk: _Walk, n: Node, b: Builder) -> tuple[Value, ...] | None:
    for rule in rules:
        if (bound := rule.match(walk, n)) is None:
            continue
        names = inspect.signature(rule.replace).parameters
        bound["node"] = n
        try:
            wanted = inspect.signature(rule.check).parameters
            some = any(p.kind is p.VAR_KEYWORD for p in wanted.values())
            given = bound if some else {k: v for k, v in bound.items() if k in wanted}
            extra = rule.check(**given) or {}
        except Miss as miss:
            debug.log(4, f"miss {type(rule).__name__} at {n.outs[0]}: {miss}")
            continue
        if debug.allow(f"{type(rule).__name__} at {n.outs[0]}"):
            bound.update(extra)
            outs = rule.replace(b, **{k: v for k, v in bound.items() if k in names})
            outs = outs if isinstance(outs, tuple) else (outs,)
            _check_replacement(type(rule).__name__, n, outs)
            return outs
    return None


def _check_replacement(rule: str, n: Node, outs: tuple[Value, ...]) -> None:
    """A rule gives new values of the old types. Raises PassError."""
    if [v.type for v in outs] != [v.type for v in n.outs]:
        was, now = (", ".join(str(v.type) for v in vs) for vs in (n.outs, outs))
        raise PassError(f"rule {rule} replaces {was} by {now} at {n.outs[0]}")
    if any(v in n.outs for v in outs):
        raise PassError(f"rule {rule} replaces {n.outs[0]} by itself",
                        hint="raise Miss in check instead")
