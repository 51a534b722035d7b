"""The decode loop: interprets a Program over a target's sessions. It knows no family by name."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import numpy as np

from arcompile import dims
from arcompile.ir import bind
from arcompile.program import Call, Draw, Program, Step
from arcompile.runtime import rng
from arcompile.runtime.preview import filled, partial
from arcompile.runtime.runner import Array, Env, Runner
from arcompile.runtime.window import Window

AHEAD = 1 << 15  # numbers of noise drawn ahead for the turns of a loop


@dataclass(frozen=True)
class Request:
    """What to draw, one entry per image (b of them); see Engine.generate for the meanings."""

    inputs: Mapping[str, Array]
    seeds: Array  # uint64 [b]
    copies: Array  # which copy of its condition each image is, i64 [b]
    guidance: Array  # f64 [b]
    temperature: Array  # f32 [b]
    top_k: Array  # i64 [b]
    top_p: Array  # f32 [b]
    interval: int = -1  # guidance only until so many tokens follow the first; -1: always
    given: Mapping[str, Array] = field(default_factory=dict)  # noise that replaces draws, by name
    forced: Array | None = None  # tokens to commit instead of the sampled ones, i64 [b,N]

    @property
    def images(self) -> int:
        return len(self.seeds)


@dataclass(frozen=True)
class Progress:
    """What on_step sees after each step: tokens committed so far (-1 elsewhere).

    pixels() decodes them, f32 [b,3,H,W]; looking changes nothing that is drawn later.
    """

    step: int
    steps: int
    tokens: Array
    pixels: Callable[[], Array] = field(repr=False)


@dataclass
class Result:
    tokens: Array
    env: Env
    logits: list[tuple[Array, Array]]
    timings: dict[str, Any]
    rounds: Array  # positions each image committed in each round of a window, i64 [rounds,b]


OnStep = Callable[[Progress], Any]


class Loop:
    """One run of a program. Rows 0..b-1 are the images, then the unconditional twins."""

    def __init__(self, program: Program, runner: Runner, request: Request, vocabulary: int = 0):
        self.p, self.runner, self.q = program, runner, request
        b = request.images
        self.scales = self._scales()
        guided = np.flatnonzero((self.scales != 1).any(0))
        null = np.arange(b)
        null[guided] = b + np.arange(len(guided))
        image = np.concatenate((np.arange(b), guided))
        r = len(image)
        told = bind(program.inputs, {k: np.shape(v) for k, v in request.inputs.items()})
        self.sizes = program.sizes(**{**told, "b": b, "r": r})
        self._tokens = np.full((b, program.positions), -1, np.int64)
        self.pending: list[tuple[Array, Any]] = []  # positions, and tokens that were not read yet
        self.begun: set[str] = set()  # graphs whose states are there
        self.reads: dict[str, bool] = {}  # whether a graph reads the tokens
        self.past = np.zeros(r, np.int32)
        self.env: Env = {
            **request.inputs, "image": image, "row": np.arange(b), "null_row": null,
            "is_null": np.arange(r) >= b, "past": self.past, "tokens": self._tokens,
            "temperature": request.temperature, "top_k": request.top_k, "top_p": request.top_p,
            "most": np.array([_most(request, vocabulary)], np.int64),
            "scale": np.ones(b, np.float32),
        }
        self.logits: list[tuple[Array, Array]] = []
        self.keep_logits = False
        self.again = _again(program)
        self.rounds: list[Array] = []
        self.ahead: dict[tuple[int, int], Array] = {}  # noise by draw and step
        self.whole, self.ended = False, 0.0  # all is drawn; seconds of the finish, when it ran
        self.drew = False  # tokens; a program may draw continuous latents instead
        self.of_rows = {k for k, t in program.state if t.shape[:1] == ("r",)}

    @property
    def tokens(self) -> Array:
        """What is committed so far, i64 [b,N], -1 elsewhere. To ask is to wait for it."""
        self._flush()
        return self._tokens

    @tokens.setter
    def tokens(self, value: Array) -> None:
        self._tokens = self.env["tokens"] = value

    def _flush(self) -> None:
        if self.pending:
            tokens = self._tokens.copy()  # a new one each time: graphs may have handed on the old
            made = self.runner.arrays([token for _, token in self.pending])
            for (where, _), found in zip(self.pending, made, strict=True):
                tokens[:, where] = found
            self.pending, self.tokens = [], tokens

    def _wait(self) -> None:
        """Until what was launched is done, so that times tell what it took."""
        self._flush()
        self.runner.wait()

    def _scales(self) -> Array:
        """Guidance by step and image, [steps, b]. Below 1 there is none, as upstream.

        A position of a step with a window counts as a step.
        """
        guide = np.array([s.guide for s in self.p.steps for _ in range(_span(s))]).reshape(-1, 2)
        scales = np.maximum(guide[:, :1] + guide[:, 1:] * self.q.guidance, 1.0)
        if self.q.interval >= 0:
            counts = [len(s.commit) // _span(s) for s in self.p.steps for _ in range(_span(s))]
            drawn = np.cumsum(counts) - counts  # tokens before each step
            scales[drawn > self.q.interval + 1] = 1.0
        return scales.astype(np.float32)

    def run(self, on_step: OnStep | None = None, finish: bool = True) -> Result:
        """Raises ArcError; leaves nothing behind. Stops early when on_step says False."""
        clock, spent = time.perf_counter, []
        start = clock()
        self._hold({c.graph for c in self.p.prompt})
        self._draw("start", np.arange(self.p.positions))
        for call in self.p.prompt:
            self._call(call, None)
        self._wait()
        before = ready = clock()
        for count in self._steps():
            if on_step is not None:
                self._wait()
            spent.append(clock() - before)
            self.whole = count == len(self.scales)
            if on_step is not None and on_step(Progress(
                    count, len(self.scales), self.tokens, lambda: partial(self))) is False:
                break
            before = clock()
        self._wait()
        if finish and self.p.finish:
            self.end()
        end = clock()
        timings = {"prompt": ready - start, "steps": spent, "loop": end - ready - self.ended,
                   "finish": self.ended, "total": end - start}
        tokens = self.tokens if self.drew else self.tokens[:, :0]
        rounds = np.array(self.rounds, np.int64).reshape(-1, self.q.images)
        return Result(tokens, self.env, self.logits, timings, rounds)

    def end(self) -> None:
        """The finish, once: a preview of what is whole already needs what it makes."""
        if self.ended:
            return
        begun = time.perf_counter()
        self._hold(ends := {c.graph for c in self.p.finish})
        self._forget(ends)
        if (self.tokens < 0).any() and self.drew:
            self.env["tokens"] = filled(self.tokens)
        for call in self.p.finish:
            self._call(call, None)
        self.ended = time.perf_counter() - begun

    def _hold(self, graphs: set[str]) -> None:
        """Begin with what these graphs carry, where it has not begun."""
        if graphs <= self.begun:
            return
        self.begun |= graphs
        read = {name for g in graphs for name in self.runner.inputs(g)}
        for name, t in self.p.state:
            if name in read and name not in self.env:
                self.env[name] = self.runner.state(name, t, self.sizes)

    def _forget(self, graphs: set[str]) -> None:
        """Caches that these graphs, all that are still to run, do not read: others need the
        memory."""
        read = {name for g in graphs for name in self.runner.inputs(g)}
        for name, _ in self.p.state:
            if name not in read:
                self.env.pop(name, None)
        self.runner.keep(graphs)

    def _steps(self) -> Iterator[int]:
        """Run step by step, a window round by round; yields how many steps are done."""
        window, done, later = Window(self), 0, later_graphs(self.p)
        for i, step in enumerate(self.p.steps):
            self._hold({c.graph for c in step.calls})
            for name, value in step.set:
                self.env[name] = np.asarray(value, np.float32 if _is_float(value) else np.int64)
            if step.window:
                yield from window.run(step, done)
            else:
                if (self.env["scale"] != self.scales[done]).any():  # the same lies there
                    self.env["scale"] = self.scales[done]
                self._step(i)
            self.past = self.env["past"] = self.past + np.int32(dims.value(step.append, self.sizes))
            done += _span(step)
            if later[i + 1] and later[i + 1] != later[i]:
                self._forget(later[i + 1])
            self._dismiss(done)
            if not step.window:
                yield done

    def _dismiss(self, done: int) -> None:
        """Unconditional twins that no later step guides by leave: fewer rows, the same images."""
        b, rest = self.q.images, self.scales[done:]
        if self.sizes["r"] == b or self.keep_logits or not len(rest) or (rest[0] != 1).any() or (
                rest != 1).any():
            return
        for name in self.of_rows & self.env.keys():
            self.env[name] = self.runner.first(self.env[name], b)
        self.past = self.past[:b]
        self.env.update(image=np.arange(b), null_row=np.arange(b), is_null=np.zeros(b, bool),
                        past=self.past)
        self.sizes["r"] = b

    def _step(self, i: int) -> None:
        step = self.p.steps[i]
        where = np.array(step.commit, np.int64)
        for index, d in enumerate(self.p.draws):
            if d.when in ("step", "place") and d.name in self.q.given:
                self.env[d.name] = self._given(d.name, d.when, where)
            elif d.when in ("step", "place"):
                self.env[d.name] = self._noise(index, d, i)
        for call in step.calls:
            self._call(call, where)

    def _noise(self, index: int, d: Draw, i: int) -> Array:
        """Noise of step i. That of the next steps is made too: many small arrays cost most."""
        if (index, i) not in self.ahead:
            turn = self.again[i] if d.when == "step" else 0
            most = max(1, AHEAD // max(1, self.q.images * d.width * len(self.p.steps[i].commit)))
            same = list(takewhile(lambda j: self._alike(d, i, j), range(i, len(self.again))))[:most]
            where = np.array([self.p.steps[j].commit for j in same], np.int64)
            made = rng.draw(d, index, self.q.seeds, self.q.copies, where.ravel(), turn)
            parts = made.reshape(len(made), *where.shape, *made.shape[2:]).swapaxes(0, 1)
            self.ahead.update({(index, j): x.copy() for j, x in zip(same, parts, strict=True)})
        return self.ahead.pop((index, i))

    def _alike(self, d: Draw, i: int, j: int) -> bool:
        """Whether the noise of steps i and j can be made at once."""
        one, other = self.p.steps[i], self.p.steps[j]
        return i == j or (d.kind != "order" and not other.window and self.again[i] == self.again[j]
                          and len(one.commit) == len(other.commit))

    def _draw(self, when: str, where: Array) -> None:
        for index, d in enumerate(self.p.draws):
            if d.when == when:
                self.env[d.name] = (
                    self._given(d.name, when, where) if d.name in self.q.given else
                    rng.draw(d, index, self.q.seeds, self.q.copies, where))

    def _turns(self, count: int, where: Array) -> Iterator[Env]:
        """The draws of each turn of a loop. Many turns at a time: few small arrays cost most."""
        own = [(i, d) for i, d in enumerate(self.p.draws) if d.when == "loop"]
        given = {d.name: self.q.given[d.name] for _, d in own if d.name in self.q.given}
        draws = [(i, d) for i, d in own if d.name not in given]
        each = self.q.images * len(where) * sum(d.width for _, d in draws)
        block = max(1, AHEAD // max(each, 1))
        for first in range(0, count, block):
            turns = np.arange(first, min(first + block, count))
            seeds, copies = (np.tile(x, len(turns)) for x in (self.q.seeds, self.q.copies))
            which = turns.repeat(self.q.images)
            made = {d.name: rng.draw(d, i, seeds, copies, where, which) for i, d in draws}
            for k, turn in enumerate(turns):
                at = slice(k * self.q.images, (k + 1) * self.q.images)
                yield {**{name: x[at] for name, x in made.items()},
                       **{name: np.ascontiguousarray(x[:, where, turn])
                          for name, x in given.items()}}

    def _given(self, name: str, when: str, where: Array) -> Array:
        """What the user gave instead of a draw: whole, or the rows of these positions."""
        whole = self.q.given[name]
        return whole if when == "start" else np.ascontiguousarray(whole[:, where])

    def _call(self, call: Call, where: Array | None) -> None:
        if call.loop:
            columns = self.p.tables[call.loop]
            count = len(next(iter(columns.values())))
            positions = where if where is not None else np.arange(0)
            for turn, noise in enumerate(self._turns(count, positions)):
                self.env.update({k: _scalar(v[turn]) for k, v in columns.items()}, **noise)
                self._run(call.graph, where)
        elif call.each:
            self._each(call.graph)
        else:
            self._run(call.graph, where)

    def _run(self, graph: str, where: Array | None) -> None:
        self._ready(graph)
        out = self.runner.run(graph, self.env)
        self.env.update(out)
        if where is not None and self.keep_logits and "logits" in out:
            rows = self.runner.numpy(out["logits"])
            self.logits.append((rows[self.env["row"]], rows[self.env["null_row"]]))
        if where is not None and "token" in out:
            self._commit(where, out["token"])

    def _ready(self, graph: str) -> None:
        """Have the tokens there for a graph that reads them."""
        if graph not in self.reads:
            self.reads[graph] = "tokens" in self.runner.inputs(graph)
            self.of_rows |= self.runner.by_row(graph)
        if self.reads[graph]:
            self._flush()

    def _commit(self, where: Array, token: Any) -> None:
        """Tokens are read when they are asked for: a step need not wait for the one before."""
        self.drew = True
        if self.q.forced is not None:
            tokens = self._tokens.copy()
            tokens[:, where] = self.q.forced[:, where]
            self.env["token"] = np.ascontiguousarray(tokens[:, where])
            self.tokens = tokens
        else:
            self.pending.append((where, self.runner.held(token)))

    def _each(self, graph: str) -> None:
        """Image by image: bounded memory, and pixels that cannot depend on the batch."""
        self._ready(graph)
        want = set(self.runner.inputs(graph))
        made: dict[str, list[Array]] = {}
        for i in range(self.q.images):
            one = {k: self._one(self.env[k], i) for k in want}
            for name, value in self.runner.run(graph, one).items():
                made.setdefault(name, []).append(self.runner.numpy(value))
        self.env.update({k: np.concatenate(v) for k, v in made.items()})

    def _one(self, value: Any, i: int) -> Array:
        whole = value if isinstance(value, np.ndarray) else self.runner.numpy(value)
        return whole[i : i + 1] if whole.ndim and len(whole) == self.q.images else whole


def _span(s: Step) -> int:
    return len(s.commit) if s.window else 1


def later_graphs(p: Program) -> list[set[str]]:
    """The graphs that still run when so many steps are done; one entry more than steps."""
    found = [{c.graph for c in p.finish}]
    for s in reversed(p.steps):
        more = {c.graph for c in (*s.calls, *p.preview)} - found[-1]
        found.append(found[-1] | more if more else found[-1])
    return found[::-1]


def _again(p: Program) -> list[int]:
    """How often the positions of each step were committed before: fresh noise every time."""
    if p.accept == "all":
        return [0] * len(p.steps)
    found, seen = [], Counter[int]()
    for s in p.steps:
        found.append(max((seen[i] for i in s.commit), default=0))
        seen.update(s.commit)
    return found


def _is_float(value: Any) -> bool:
    while isinstance(value, tuple):
        value = value[0] if value else 0.0
    return isinstance(value, float)


def _scalar(value: Any) -> Array:
    return np.asarray(value, np.float32 if _is_float(value) else np.int64)


def _most(q: Request, vocabulary: int) -> int:
    """How many sorted logits the filters need: see filter_logits."""
    need = np.where(q.top_k > 0, q.top_k, np.where(q.top_p < 1, vocabulary, 1))
    return int(np.minimum(need, max(vocabulary, 1)).max(initial=1))
