"""Where a run of torch-cuda happens: tensors that stay where they are, and CUDA graphs over them.

A captured graph reads and writes fixed addresses. So every input of a graph lies in a Place, by its
name and shape, and a result that a graph reads is copied there by the graph that made it: what one
graph hands on, the next one finds. A room outlives its run, and with it what was captured in it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from arcompile import debug
from arcompile.errors import quoted
from arcompile.runtime.runner import Env
from arcompile.targets.torch_ops import DTYPES

if TYPE_CHECKING:
    from arcompile.targets.torch_plan import Plan

EAGER = 2  # runs of a shape before it is captured: kernels compile and choose in them
MOST = 512  # sets of shapes that a room knows; with more it begins anew
CAPTURING = threading.Lock()  # one at a time in a process: CUDA waits for the device before each


class Place:
    """A tensor that stays. holds: what it is known to hold, itself or an array that was moved."""

    __slots__ = ("holds", "name", "shape", "tensor")

    def __init__(self, name: str, tensor: Any):
        self.name, self.tensor, self.shape = name, tensor, tuple(tensor.shape)
        self.holds: Any = None

    def put(self, t: Any, value: Any) -> bool:
        """Whether it fits. Arrays are pageable: CUDA has copied them to a buffer of its own when
        the call returns, so they need no waiting for, and may go."""
        if value is self.tensor:
            self.holds = value
        elif tuple(value.shape) != self.shape:
            return False
        elif isinstance(value, np.ndarray):
            self.tensor.copy_(t.from_numpy(np.array(value)), non_blocking=True)
            self.holds = value  # the loop makes new arrays, and writes to none that it handed on
        else:
            self.tensor.copy_(value)
            self.holds = None
        return True


class Recorded:
    """Work captured as a CUDA graph with memory of its own: the results of another graph may not
    lie in this one's scratch. `out` is what every replay writes anew."""

    def __init__(self, t: Any, work: Callable[[], dict[str, Any]]):
        self.graph = t.cuda.CUDAGraph()
        # torch leaves its own stream current where a capture fails; other threads may go on
        with CAPTURING, t.cuda.stream(t.cuda.current_stream()), t.cuda.graph(
                self.graph, capture_error_mode="thread_local"):
            self.out = work()

    def replay(self) -> None:
        self.graph.replay()


class Bound:
    """A graph over the places of one set of shapes. made: places that its results are copied to.
    late: it is no graph of the loop, and must not touch what the loop goes on with."""

    def __init__(self, plan: Plan, late: bool, places: list[Place]):
        self.plan, self.late, self.places = plan, late, places
        self.made: list[Place] = []
        self.runs, self.stuck = 0, False
        self.recorded: Recorded | None = None

    def take(self, t: Any, env: Env) -> bool:
        """Put what it reads where it reads it. Whether all fits; places tell what they hold, so
        that half of it does no harm."""
        for place in self.places:
            value = env[place.name]
            if value is not place.holds and not place.put(t, value):
                return False
        return True


class Room:
    """Places and captured graphs of one run at a time, for any number of runs one after another.

    What is captured stays: its scratch, of each set of shapes, the image decoder's too, and the
    states; a run with other sizes of a state empties the room. loop: graphs that steps run; what
    others make (a preview) lies apart.
    """

    def __init__(self, t: Any, device: str, plans: Mapping[str, Plan], loop: frozenset[str],
                 capture: bool):
        self.t, self.device, self.plans, self.loop, self.capture = t, device, plans, loop, capture
        self.read = {name for p in plans.values() for name in p.inputs}
        self.empty()

    def empty(self) -> None:
        """What a run still holds stays its own."""
        self.places: dict[Any, Place] = {}
        self.bound: dict[Any, Bound] = {}
        self.last: dict[str, Bound] = {}
        self.sizes: dict[str, tuple[int, ...]] = {}  # of states

    def begin(self) -> None:
        """For another run, whose arrays are others."""
        for place in self.places.values():
            place.holds = None

    def place(self, late: bool, name: str, shape: tuple[int, ...], dtype: str) -> Place:
        key = (late, name, shape, dtype)
        if key not in self.places:
            made = self.t.zeros(shape, dtype=getattr(self.t, DTYPES[dtype]), device=self.device)
            self.places[key] = Place(name, made)
        return self.places[key]

    def state(self, name: str, shape: tuple[int, ...], dtype: str) -> Any:
        """Zeros."""
        if self.sizes.setdefault(name, shape) != shape:
            self.empty()
            self.sizes[name] = shape
        place = self.place(False, name, shape, dtype)
        return place.tensor.zero_()

    def first(self, value: Any, rows: int) -> Any:
        """Of a place, the same memory: nobody reads the rest, and the next run finds it there."""
        part = value[:rows]
        key = next((k for k, p in self.places.items() if p.tensor is value), None)
        if key is None:
            return part
        late, name, _, dtype = key
        place = self.places.setdefault((late, name, tuple(part.shape), dtype), Place(name, part))
        return place.tensor if place.tensor.data_ptr() == part.data_ptr() else part

    def keep(self, graphs: set[str]) -> None:
        """Without captures nothing waits for another run: let go of what these do not read."""
        if self.capture:
            return
        read = {name for g in graphs for name in self.plans[g].inputs}
        self.places = {k: p for k, p in self.places.items() if p.name in read}
        self.bound, self.last = {}, {}

    def run(self, graph: str, env: Env) -> dict[str, Any]:
        bound = self.last.get(graph)
        if bound is None or not bound.take(self.t, env):
            bound = self.last[graph] = self._bound(graph, env)
        if bound.recorded is None:
            out = self._call(graph, bound)
        else:
            bound.recorded.replay()
            out = bound.recorded.out
        for place in bound.made:
            place.holds = place.tensor
        return out

    def _bound(self, graph: str, env: Env) -> Bound:
        plan, late = self.plans[graph], graph not in self.loop
        shapes = [tuple(env[name].shape) for name in plan.inputs]
        key = (graph, *shapes)
        if key not in self.bound:
            if len(self.bound) >= MOST:
                self.empty()
            self.bound[key] = Bound(plan, late, [
                self.place(late, name, shape, t.dtype)
                for (name, t), shape in zip(plan.types, shapes, strict=True)])
        self.bound[key].take(self.t, env)
        return self.bound[key]

    def _call(self, graph: str, bound: Bound) -> dict[str, Any]:
        """The first times, call by call; then capture it. What cannot be captured stays so."""
        bound.runs += 1
        if self.capture and bound.runs > EAGER and not bound.stuck:
            try:
                made = Recorded(self.t, partial(self._over, bound))
            except RuntimeError as e:
                bound.stuck = True
                debug.log(0, f"graph {graph} is run call by call, as it cannot be captured: "
                             f"{quoted(e)}")
            else:
                bound.recorded = made
                made.replay()
                return made.out
        return self._over(bound)

    def _over(self, bound: Bound) -> dict[str, Any]:
        """Run it on its places, and hand on what graphs read."""
        made = bound.plan.run({p.name: p.tensor for p in bound.places})
        mine = {p.tensor.untyped_storage().data_ptr(): p for p in bound.places}
        apart = {}
        for name, v in made.items():  # all, before anything is written over
            place = mine.get(v.untyped_storage().data_ptr())
            there = place is not None and place.name == name and _same(v, place.tensor)
            apart[name] = v.clone() if place is not None and not there else v
        bound.made = []
        types = {name: v.type for name, v in bound.plan.g.results}
        for name in self.read & apart.keys():
            v = apart[name]
            place = self.place(bound.late, name, tuple(v.shape), types[name].dtype)
            if not _same(v, place.tensor):
                place.tensor.copy_(v)
            apart[name] = place.tensor
            bound.made.append(place)
        return apart


def _same(a: Any, b: Any) -> bool:
    return bool(a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.dtype == b.dtype
                and a.stride() == b.stride())
