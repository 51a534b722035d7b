"""A whole generator as data: which graphs run, on which positions, in what order.

A Program is a prompt, an ordered list of steps, and a finish. Each is a list of Calls; a Call runs
one graph over an environment of named tensors: a graph's inputs are read by name, its results
written by name. The runtime knows the names in BUILTIN; everything else comes from the request,
from the Program's state, draws and tables, or from an earlier call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from arcompile import dims
from arcompile.dims import Dim
from arcompile.errors import ArcError, did_you_mean
from arcompile.ir import Graph, Node, Type, verify

Mask = Literal["causal", "full", "none"]
Accept = Literal["all", "prefix", "confident"]
KINDS = ("uniform", "normal", "gumbel", "order")
TIMES = ("start", "step", "place", "loop")

PROMPT = 64  # what a size that only a request tells counts as, where no request is at hand
LONGEST = 4096  # and the most it is thought to be

# r rows (sequences the network runs: each image, then the unconditional twin of those that need
# one), b images, N positions.
BUILTIN: dict[str, str] = {
    "image": "i64[r]",  # the image each row belongs to
    "row": "i64[b]",  # the row of each image
    "is_null": "bool[r]",  # is this row the unconditional twin?
    "null_row": "i64[b]",  # the row of each image's twin (its own row when it has none)
    "past": "i32[r]",  # cache slots filled
    "scale": "f32[b]",  # guidance of this step
    "temperature": "f32[b]",
    "top_k": "i64[b]",
    "top_p": "f32[b]",
    "most": "i64[1]",  # sorted logits that filtering needs, over all images
    "tokens": "i64[b,N]",  # what is committed so far
    # of a step with a window:
    "first": "i64[b]",  # the position its first slot queries
    "shift": "i64[b]",  # how far it moved since the round before
    "done": "i64[b]",  # its slots that are committed already
    "scales": "f32[b,c]",  # guidance of each slot
}


@dataclass(frozen=True, slots=True)
class Call:
    """Run a graph: once, once per row of table `loop`, or image by image when `each`."""

    graph: str
    loop: str = ""
    each: bool = False

    def __str__(self) -> str:
        return self.graph + (f"*{self.loop}" if self.loop else "") + ("/each" if self.each else "")

    @staticmethod
    def parse(text: str) -> Call:
        name, _, each = text.partition("/")
        graph, _, loop = name.partition("*")
        return Call(graph, loop, each == "each")


@dataclass(frozen=True, slots=True)
class Step:
    """Run `calls` on the positions `query`, keep those of `commit`.

    Raster, scale and diagonal orders commit what they query; a masked model queries every unknown
    position and commits a few; speculation queries a window and commits the accepted prefix. The
    guidance of a step is guide[0] + guide[1] * what the user asked for. `append` is the number of
    cache slots the step fills, a size like "p" where an input i64[b,p] tells it; `set` gives
    constants to its graphs.

    A step with a `window` runs its calls in rounds, on so many neighbouring positions of its own,
    each image at its own place, until all are committed. Its graphs make `token` i64[b,window] and
    `accepted` i64[b], how many slots of the window are right. The window ends at the last position
    at the latest; what is committed already then fills its first slots.
    """

    query: tuple[int, ...]
    commit: tuple[int, ...]
    calls: tuple[Call, ...] = (Call("step"),)
    guide: tuple[float, float] = (0.0, 1.0)
    append: Dim = 0
    set: tuple[tuple[str, float | int | tuple[Any, ...]], ...] = ()
    window: int = 0


@dataclass(frozen=True, slots=True)
class Draw:
    """Noise by name: `width` numbers a position.

    when: `start` over all positions before the loop, `step` over a step's committed positions
    (those of a window anew each round), `place` likewise, but the same numbers in every round,
    `loop` like `step`, anew for each row of a call's table. kind `order` is a permutation of all
    positions and has no width.
    """

    name: str
    kind: Literal["uniform", "normal", "gumbel", "order"]
    width: int = 1
    when: Literal["start", "step", "place", "loop"] = "step"

    def __str__(self) -> str:
        return f"{self.name}: {self.kind} x {self.width} per {self.when}"


@dataclass(frozen=True)
class Program:
    """See the module. `inputs` come with the request; `state` starts as zeros and is carried."""

    name: str
    positions: int
    steps: tuple[Step, ...]
    graphs: tuple[Graph, ...] = ()
    prompt: tuple[Call, ...] = ()
    finish: tuple[Call, ...] = ()
    preview: tuple[Call, ...] = ()  # makes pixels cheaply while it draws; by default the finish
    inputs: tuple[tuple[str, Type], ...] = ()
    state: tuple[tuple[str, Type], ...] = ()
    draws: tuple[Draw, ...] = ()
    tables: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)
    fold: Graph | None = None  # weights computed from weights when the engine is built
    mask: Mask = "causal"
    accept: Accept = "all"
    cache: str = "full"

    def graph(self, name: str) -> Graph:
        found = {g.name: g for g in self.graphs}
        if name not in found:
            raise ArcError(f"no graph named {name!r}", hint=did_you_mean(name, found))
        return found[name]

    def on_graphs(self, fn: Callable[[Graph], Graph]) -> Program:
        new = tuple(fn(g) for g in self.graphs)
        same = all(a is b for a, b in zip(new, self.graphs, strict=True))
        return self if same else replace(self, graphs=new)

    def sizes(self, b: int = 1, r: int = 1, **known: int) -> dict[str, int]:
        """The sizes of a run; those that only a request tells are `known`, or PROMPT."""
        told = {s: min(PROMPT, most) for s, most in self.longest().items()}
        return {**told, "b": b, "r": r, "N": self.positions, **known}

    def longest(self) -> dict[str, int]:
        """Of each size that only a request tells, the largest that leaves no size of a graph below
        nothing; LONGEST where none is."""
        told = {s for _, t in self.inputs for d in t.shape for s in dims.symbols(d)}
        less = {d for g in self.graphs if told for v in g.values() for d in v.type.shape
                if isinstance(d, str) and "-" in d}
        return {s: min((dims.root(d, s, LONGEST) for d in less if dims.symbols(d) == {s}),
                       default=LONGEST) for s in told}

    def calls(self) -> Iterator[Call]:
        """Every call, in the order it may run."""
        yield from self.prompt
        for s in self.steps:
            yield from s.calls
        yield from self.finish
        yield from self.preview

    def check(self) -> None:
        """What can be verified without the graphs: words, steps, sizes. Raises ArcError."""
        _verify_words(self)
        _verify_cover(self)
        _verify_sizes(self)
        _verify_tables(self)

    def verify(self) -> None:
        """Raise ArcError unless every position is committed, and every graph can be fed."""
        self.check()
        for g in self.graphs:
            verify(g)
            if self.graph(g.name) is not g:
                raise ArcError(f"two graphs are named {g.name!r}")
        if self.fold:
            verify(self.fold)
        _verify_feeds(self)
        _verify_states(self)

    def __str__(self) -> str:
        from arcompile.program_text import show_program

        return show_program(self)


def _verify_words(p: Program) -> None:
    """mask, accept, and what draws ask for, are words the runtime knows."""
    words: list[tuple[str, str, tuple[str, ...]]]
    words = [("mask", p.mask, get_args(Mask)), ("accept", p.accept, get_args(Accept))]
    for d in p.draws:
        words += [(f"kind of draw {d.name}", d.kind, KINDS)]
        words += [(f"time of draw {d.name}", d.when, TIMES)]
    for what, word, known in words:
        if word not in known:
            raise ArcError(f"{what} is {word!r}", hint=did_you_mean(word, known))


def _verify_cover(p: Program) -> None:
    done: set[int] = set()
    for i, s in enumerate(p.steps):
        if not set(s.commit) <= set(s.query):
            raise ArcError(f"step {i} commits positions it does not query")
        twice = len(set(s.commit)) < len(s.commit) or len(set(s.query)) < len(s.query)
        if twice or (p.accept == "all" and done & set(s.commit)):
            raise ArcError(f"step {i} commits a position twice")
        done |= set(s.commit)
        _verify_window(p, i, s)
    if done != set(range(p.positions)):
        missing = sorted(set(range(p.positions)) - done)
        if not missing:
            raise ArcError(f"steps commit positions outside the {p.positions} there are")
        raise ArcError(f"{len(missing)} of {p.positions} positions are never committed",
                       hint=f"the first is {missing[0]}")


def _verify_window(p: Program, i: int, s: Step) -> None:
    if (s.window > 0) > (p.accept == "prefix"):
        raise ArcError(f"step {i} has a window, but the program does not accept prefixes")
    if not 0 <= s.window <= len(s.commit):
        raise ArcError(f"step {i} has a window of {s.window} on {len(s.commit)} positions")
    if s.window and s.commit != tuple(range(s.query[0], s.query[0] + len(s.query))):
        raise ArcError(f"the window of step {i} moves over positions that are not neighbours")


def _verify_sizes(p: Program) -> None:
    """What a state and a step need at run time, the request must tell."""
    known = p.sizes()
    needs = [(f"state {k}", d) for k, t in p.state for d in t.shape]
    needs += [(f"step {i}", s.append) for i, s in enumerate(p.steps)]
    for who, d in needs:
        if lost := sorted(dims.symbols(d) - known.keys()):
            raise ArcError(f"{who} has the size {d}, but no input tells {lost[0]}",
                           hint=did_you_mean(lost[0], known))


def _verify_tables(p: Program) -> None:
    """Columns of one length, and a table for every loop."""
    for name, columns in p.tables.items():
        if len({len(c) for c in columns.values()}) != 1:
            raise ArcError(f"the columns of table {name} differ in length, or there are none")
    for call in {c for c in p.calls() if c.loop}:
        if call.loop not in p.tables:
            raise ArcError(f"call {call} loops over {call.loop!r}, which is not a table",
                           hint=did_you_mean(call.loop, p.tables))


def _verify_feeds(p: Program) -> None:
    """Walk the calls once each, in order; every input must have a source of its dtype."""
    have = {k: Type.parse(v) for k, v in BUILTIN.items()}
    have.update(p.inputs)
    have.update(p.state)
    for d in p.draws:
        have[d.name] = Type("i64" if d.kind == "order" else "f32", ())
    for s in p.steps:
        have.update({k: Type(_dtype(v), ()) for k, v in s.set})
    seen: set[Call] = set()
    for call in p.calls():
        if call in seen:
            continue
        seen.add(call)
        columns = p.tables[call.loop] if call.loop else {}
        g = p.graph(call.graph)
        for v in g.params:
            if v.name in columns:
                continue
            if v.name not in have:
                raise ArcError(f"graph {g.name} reads {v.name}, which nothing provides",
                               hint=did_you_mean(v.name, have))
            if have[v.name].dtype != v.type.dtype:
                raise ArcError(f"graph {g.name} reads {v.name} as {v.type}, "
                               f"but it is {have[v.name]}")
        have.update({name: v.type for name, v in g.results})


def _verify_states(p: Program) -> None:
    """Targets write a state's next value over it, and run nodes in an order of their own: whatever
    else reads the state must be something that the next value is made of.

    `kv_attend` reads what is held and what is new as one, which `kv_update` is made of too.
    """
    carried = {name for name, _ in p.state}
    for g in p.graphs:
        after = dict(g.results)
        for v in g.params:
            made = g.producer.get(after.get(v.name, v)) if v.name in carried else None
            if made is None:
                continue
            before = {made} | _makers(g, made)
            for n in g.users.get(v, ()):
                if n not in before and n.op != "kv_attend":
                    raise ArcError(f"{n.op} of graph {g.name} reads {v.name}, which {made.op} may "
                                   "have written its next value over",
                                   hint="make the next value of what else reads the state")


def _makers(g: Graph, n: Node) -> set[Node]:
    """The nodes that n depends on."""
    found: set[Node] = set()
    todo = [n]
    while todo:
        for v in todo.pop().args:
            maker = g.producer.get(v)
            if maker is not None and maker not in found:
                found.add(maker)
                todo.append(maker)
    return found


def _dtype(value: Any) -> str:
    first = value
    while isinstance(first, tuple):
        first = first[0] if first else 0.0
    return "i64" if isinstance(first, int) else "f32"


# --- orders: each family's order is a short function ---------------------------------------------


def groups(sizes: Iterable[int], **kw: Any) -> tuple[Step, ...]:
    """Consecutive runs of positions; a cached family appends what it queries."""
    steps, at = [], 0
    for n in sizes:
        here = tuple(range(at, at + n))
        steps.append(Step(here, here, append=n, **kw))
        at += n
    return tuple(steps)


def raster(n: int, **kw: Any) -> tuple[Step, ...]:
    return groups([1] * n, **kw)


def scales(sides: Iterable[int], **kw: Any) -> tuple[Step, ...]:
    return groups([s * s for s in sides], **kw)


def diagonals(h: int, w: int, **kw: Any) -> tuple[Step, ...]:
    """Anti-diagonals of a raster grid: cells (i, j) with i + j = d."""
    lines = [
        tuple(i * w + j for i in range(h) for j in range(w) if i + j == d) for d in range(h + w - 1)
    ]
    return tuple(Step(x, x, append=len(x), **kw) for x in lines)


def masked(n: int, counts: Iterable[int], **kw: Any) -> tuple[Step, ...]:
    """Slots of a random order: the runtime draws the permutation, the sizes are static."""
    steps, at = [], 0
    for c in counts:
        steps.append(Step(tuple(range(at, n)), tuple(range(at, at + c)), **kw))
        at += c
    return tuple(steps)


def blocks(n: int, size: int, refine: int, **kw: Any) -> tuple[Step, ...]:
    """Block diffusion: each block is queried `refine` times, a share of it committed each time."""
    steps = []
    for at in range(0, n, size):
        whole, share = tuple(range(at, at + size)), size // refine
        steps += [Step(whole, whole[k * share : (k + 1) * share], **kw) for k in range(refine)]
    return tuple(steps)
