"""What a run needs in memory, before anything is allocated: weights, caches, activations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arcompile.errors import MACHINE, ArcError

if TYPE_CHECKING:
    from arcompile.ir import Graph, Value
    from arcompile.program import Program
    from arcompile.walk import Run

UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
         "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@dataclass(frozen=True)
class Memory:
    """How a target uses memory. resident: bytes of the runtime itself; graph, node: what each
    loaded graph and each of its nodes add to that. arenas: each graph keeps what it once needed.
    waste: what its allocator takes for each byte that is live at once. in_place: a state's next
    value takes the place of the last."""

    resident: int = 60 << 20
    graph: int = 0
    node: int = 0
    arenas: bool = False
    waste: float = 1.0
    in_place: bool = False


@dataclass(frozen=True)
class Plan:
    """Bytes of a run of `batch` images: the runtime with its graphs, the weights of those that run,
    caches and other carried tensors, the most that activations of the loop take, the most that the
    image decoder takes with what it reads of what is carried, and the pictures."""

    batch: int
    guided: bool
    runtime: int
    weights: int
    state: int
    activations: int
    decoder: int
    pictures: int

    @property
    def total(self) -> int:
        """The most at once: the caches are gone when pictures are made of what was drawn."""
        drawn = self.decoder + self.pictures
        return self.runtime + self.weights + self.activations + max(self.state, drawn)

    def parts(self) -> dict[str, int]:
        return {k: v for k, v in asdict(self).items() if k not in ("batch", "guided")}

    def of(self, batch: int, two: Plan) -> Plan:
        """For another batch: what one image more took from here, with one, to `two`."""
        grown = {k: n + (batch - 1) * (two.parts()[k] - n) for k, n in self.parts().items()}
        return Plan(batch, self.guided, **grown)


def plan(p: Program, memory: Memory, batch: int = 1, guided: bool = True) -> Plan:
    """What a run of the program needs. Raises ArcError when `batch` is no number of images."""
    from arcompile.walk import guided_rows, walk
    from arcompile.weights import used

    if batch < 1:
        raise ArcError(f"batch must be 1 or more, got {batch}")
    turns = list(walk(p, batch, guided))
    finish = [run for t in turns if t.name == "finish" for run in t.runs]
    loop = [run for t in turns if t.name != "finish" for run in t.runs]
    ran = {run.graph.name: run.graph for run in (*loop, *finish)}
    sizes = p.sizes(batch, guided_rows(p, batch, guided))
    state = _states(p, sizes) * (1 if memory.in_place else 2)
    carried = {name for name, _ in p.state}
    read = {v.name for run in finish for v in run.graph.params}
    kept = sum(t.nbytes(sizes) for k, t in p.state if k in read)
    runtime = memory.resident + sum(memory.graph + memory.node * len(g.nodes)
                                    for g in ran.values())
    return Plan(batch, guided, runtime,
                sum(v.type.nbytes() for v in used(ran.values()).values()), state,
                _peaks(loop, carried, memory), _peaks(finish, carried, memory) + kept,
                sum(_given(run, carried) * run.times for run in finish))


def _states(p: Program, sizes: Mapping[str, int]) -> int:
    """The most bytes carried at once: each state from the first step that reads it to the last."""
    reads = {g.name: {v.name for v in g.params} for g in p.graphs}
    turns = [p.prompt, *(s.calls for s in p.steps), p.finish]
    spans: dict[str, list[int]] = {}
    for i, calls in enumerate(turns):
        for name in {k for c in calls for k in reads[c.graph]}:
            spans.setdefault(name, [i, i])[1] = i
    size = {k: t.nbytes(sizes) for k, t in p.state if k in spans}
    return max((sum(n for k, n in size.items() if spans[k][0] <= i <= spans[k][1])
                for i in range(len(turns))), default=0)


def _peaks(runs: Iterable[Run], carried: set[str], memory: Memory) -> int:
    """The most that graphs need: together, or one at a time."""
    most: dict[str, int] = {}
    seen = set[Any]()
    for run in runs:
        key = (run.graph.name, *sorted(run.sizes.items()))
        if key not in seen:
            seen.add(key)
            here = _peak(run.graph, run.sizes, carried)
            most[run.graph.name] = max(most.get(run.graph.name, 0), here)
    need = sum(most.values()) if memory.arenas else max(most.values(), default=0)
    return int(memory.waste * need)


def _peak(g: Graph, sizes: Mapping[str, int], carried: set[str]) -> int:
    """The most bytes live at once. A reshape is the same memory; states are counted elsewhere."""
    from arcompile.liveness import liveness

    root: dict[Value, Value] = {}
    for n in g.nodes:
        if n.op == "reshape":
            root[n.outs[0]] = root.get(n.args[0], n.args[0])
    apart = {v for v in g.params if v.name in carried}
    apart |= {v for name, v in g.results if name in carried}
    most = 0
    for live in liveness(g, sizes):
        here = {root.get(v, v) for v in live.values} - apart
        most = max(most, sum(v.type.nbytes(sizes) for v in here))
    return most


def _given(run: Run, carried: set[str]) -> int:
    return sum(v.type.nbytes(run.sizes) for name, v in run.graph.results if name not in carried)


# --- limits --------------------------------------------------------------------------------------


def read_bytes(text: str) -> int:
    """`4GiB`, `600 MB`, `1e9` -> bytes. Raises ArcError."""
    word = text.strip().removesuffix("B").strip()
    unit = next((u for u in sorted(UNITS, key=len, reverse=True) if u and word.endswith(u)), "")
    try:
        n = int(float(word.removesuffix(unit)) * UNITS[unit])
    except (ValueError, OverflowError):
        n = 0
    if n <= 0:
        raise ArcError(f"not an amount of memory: {text!r}", hint="write it as 4GiB or 600MB")
    return n


def available() -> int | None:
    """Bytes that this process may still take, where the system tells."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(s.split()[1]) * 1024 for s in lines if s.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            found.append(int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError, IndexError):
        pass
    return min(found, default=None)


def refuse(need: Plan, held: int, free: int | None) -> None:
    """Raise ArcError when what a run needs beyond `held` bytes does not fit into `free`."""
    more = need.total - held
    if free is None or more <= free:
        return
    from arcompile.cost import figure

    images = f"{need.batch} images" if need.batch > 1 else "an image"
    raise ArcError(f"{images} would need {figure(more, 'B')} more memory, "
                   f"and {figure(free, 'B')} are free", code=MACHINE,
                   hint="draw fewer at a time, or build with --memory")


def read_plan(batch: int, guided: bool, data: Any) -> Plan:
    """From `parts`, as an engine's manifest holds them. Raises ArcError."""
    names = [f.name for f in fields(Plan) if f.name not in ("batch", "guided")]
    fits = isinstance(data, dict) and all(isinstance(data.get(k), int) for k in names)
    if not fits:
        raise ArcError("the engine holds no plan of its memory", hint="rebuild the engine")
    return Plan(batch, guided, **{k: data[k] for k in names})


def rows(plans: Mapping[str, Plan]) -> list[tuple[str, ...]]:
    """A row for each target, under a row of titles."""
    from arcompile.cost import figure

    names = [f.name for f in fields(Plan) if f.name not in ("batch", "guided")]
    table: list[tuple[str, ...]] = [("target", *names, "total")]
    for name, one in plans.items():
        table.append((name, *(figure(n, "B") for n in one.parts().values()),
                      figure(one.total, "B")))
    return table
