"""Rooms of torch-cuda: what is captured in one run is right in all that follow.

Without a GPU a capture is rehearsed: it computes nothing, and a replay writes over what the last
one wrote, as CUDA graphs do.
"""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import numpy as np
import pytest
import tiny

import arcompile
from arcompile.compile import write
from arcompile.family import FAMILIES
from arcompile.pipeline import parse_pipeline
from arcompile.target import TARGETS
from arcompile.targets import torch_room
from arcompile.targets.torch_cuda import Models, Runner

torch = pytest.importorskip("torch")
PASSES = TARGETS["torch-cpu"].passes
WORDS = -77  # in memory that nothing was written to


class Rehearsed:
    """A captured graph, on the CPU."""

    made: ClassVar[list[Any]] = []

    def __init__(self, t, work):
        places = work.func.__self__.places.values()
        before = [p.tensor.clone() for p in places]
        self.work, self.out, self.runs = work, work(), 0
        for p, held in zip(places, before, strict=True):
            p.tensor.copy_(held)
        lying = {p.tensor.data_ptr() for p in places}
        for v in self.out.values():
            if v.data_ptr() not in lying:
                v.fill_(WORDS)
        self.made.append(self)

    def replay(self):
        self.runs += 1
        for name, v in self.work().items():
            if v is not self.out[name]:
                self.out[name].copy_(v)


@pytest.fixture
def rehearsed(monkeypatch):
    monkeypatch.setattr(torch_room, "Recorded", Rehearsed)
    monkeypatch.setattr(Rehearsed, "made", [])
    return Rehearsed.made


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for name in ("llamagen", "var", "mar"):
        made[name] = folder = tmp_path_factory.mktemp(name)
        family = FAMILIES[name]
        model = family.model(family.random("tiny"), {})
        write(folder, name, model, "torch-cpu", "f32", parse_pipeline(PASSES))
    return made


def pair(folder):
    """The engine as it is, and with captures."""
    plain, ours = (arcompile.load(folder, check=False) for _ in range(2))
    ours.__dict__["models"] = Models(folder, ours.program, "cpu", kernels=False, capture=True)
    return plain, ours


def drawn(e, classes, seed, **how):
    out = e.generate(classes, seed=seed, guidance=2.0, **how)
    return out.tokens, out.pixels, out.latents


def same(a, b):
    return all((x is None and y is None) or np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", ["llamagen", "var", "mar"])
def test_images_one_after_another(folders, rehearsed, name):
    """Of one size, of others in between, and of the first again."""
    plain, ours = pair(folders[name])
    for seed, classes in enumerate([[0], [1], [0], [2], [0, 1, 2], [1], [0], [2], [1], [0, 1]]):
        assert same(drawn(ours, classes, seed), drawn(plain, classes, seed)), seed
    assert sum(x.runs > 1 for x in rehearsed) >= 3
    assert len(ours.models.idle) == 1


@pytest.mark.parametrize("how", [{"guidance_interval": 5}, {"temperature": 0.0}], ids=str)
def test_twins_leave(folders, rehearsed, how):
    """Fewer rows from some step on: the states' first rows lie where they did."""
    plain, ours = pair(folders["llamagen"])
    for seed in range(4):
        assert same(drawn(ours, [0, 1], seed, **how), drawn(plain, [0, 1], seed, **how))
    room = ours.models.idle[0]
    count = len(room.bound), len(room.places)
    drawn(ours, [0, 1], 7, **how)
    assert (len(room.bound), len(room.places)) == count
    states = {p.tensor.data_ptr() for p in room.places.values() if p.name == "k0"}
    assert len(states) == 1


@pytest.mark.parametrize("name", ["llamagen", "var"])
def test_looking_changes_nothing(folders, rehearsed, name):
    plain, ours = pair(folders[name])
    seen = []
    for seed in range(4):
        found = drawn(ours, [0, 1], seed, on_step=lambda s: seen.append(s.pixels()))
        assert same(found, drawn(plain, [0, 1], seed))
        assert np.array_equal(seen[-1], found[1])


@pytest.mark.parametrize("name", ["llamagen", "var", "mar"])
def test_at_once(folders, rehearsed, name):
    """Two threads, step by step together, each in a room of its own."""
    plain, ours = pair(folders[name])
    drawn(ours, [1], 9)
    found, both = {}, threading.Barrier(2)

    def draw(i):
        for seed in range(4):
            found[i, seed] = drawn(ours, [i], seed, on_step=lambda s: both.wait(60) and None)

    threads = [threading.Thread(target=draw, args=(i,)) for i in range(2)]
    for x in threads:
        x.start()
    for x in threads:
        x.join()
    for i, seed in found:
        assert same(found[i, seed], drawn(plain, [i], seed)), (i, seed)
    assert len(found) == 8
    assert len(ours.models.idle) == 2


def test_tokens_are_read_late(folders, rehearsed, monkeypatch):
    """So they have to be held: the next step writes over them."""
    plain, ours = pair(folders["llamagen"])
    want = drawn(plain, [0], 1)
    monkeypatch.setattr(Runner, "held", lambda self, value: value)
    assert not same(drawn(ours, [0], 1), want)


def test_logits_step_by_step(folders, rehearsed):
    """They are read before the next step writes over them."""
    plain, ours = pair(folders["llamagen"])
    tokens = np.arange(32).reshape(2, 16) % 7
    for _ in range(3):
        for a, b in zip(ours.logits([0, 1], tokens), plain.logits([0, 1], tokens), strict=True):
            assert np.array_equal(a, b)


SWAP = """graph g(%a: f32[b,2], %b: f32[b,2]) {
  %0 = reshape(%b) {shape=('b', 2)} : f32[b,2]
  %1 = reshape(%a) {shape=('b', 2)} : f32[b,2]
  %2 = neg(%a) : f32[b,2]
  return a=%0, b=%1, c=%2
}"""

NEG = "graph g(%a: f32[b,2]) {\n  %0 = neg(%a) : f32[b,2]\n  return y=%0\n}"


def room(text, late=""):
    """late: of a second graph, the same, that no step runs."""
    from arcompile.targets.torch_plan import Plan

    plan = Plan(tiny.of(text).graphs[0], {}, "cpu", False, frozenset())
    plans = {"g": plan, **({late: plan} if late else {})}
    return torch_room.Room(torch, "cpu", plans, frozenset("g"), capture=True)


def test_results_that_are_inputs_are_copies(rehearsed):
    """Handing on one result does not write over another."""
    made, env = room(SWAP), {"a": np.float32([[1, 2]]), "b": np.float32([[3, 4]])}
    for turn in range(6):
        env.update(made.run("g", env))
        want = [[1, 2], [3, 4]][turn % 2 == 0], [[3, 4], [1, 2]][turn % 2 == 0]
        assert (env["a"].tolist(), env["b"].tolist()) == ([want[0]], [want[1]])
        assert env["c"].tolist() == [[-x for x in want[1]]]
    assert rehearsed[0].runs == 4


def test_arrays_are_moved_again_when_a_graph_wrote_over_them(rehearsed):
    made, env = room(SWAP), {"a": np.float32([[1, 2]]), "b": np.float32([[3, 4]])}
    for _ in range(5):
        assert made.run("g", env)["a"].tolist() == [[3, 4]]


def test_arrays_are_moved_again_in_another_run(rehearsed):
    """Whoever asked may write to them in between."""
    made, env = room(NEG), {"a": np.float32([[1, 2]])}
    for n in range(1, 6):
        env["a"][:] = n
        made.begin()
        assert made.run("g", env)["y"].tolist() == [[-n, -n]]


def test_previews_lie_apart(rehearsed):
    """A graph that no step runs writes over nothing that the steps go on with."""
    made, env = room(SWAP, "h"), {"a": np.float32([[1, 2]]), "b": np.float32([[3, 4]])}
    for _ in range(5):
        env.update(made.run("g", env))
        before = {k: v.clone() for k, v in env.items()}
        made.run("h", {**env, "a": np.zeros((1, 2), np.float32)})
        assert all(torch.equal(before[k], env[k]) for k in "ab")


def test_what_cannot_be_captured_is_told_and_run(folders, monkeypatch, capsys):
    def fails(t, work):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch_room, "Recorded", fails)
    plain, ours = pair(folders["llamagen"])
    for seed in range(3):
        assert same(drawn(ours, [0], seed), drawn(plain, [0], seed))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4  # prompt, step, feed, decode: once each
    assert all("not permitted" in line for line in said)


def test_a_room_has_an_end(rehearsed, monkeypatch):
    """Shapes without end do not fill the memory."""
    monkeypatch.setattr(torch_room, "MOST", 3)
    made = room(SWAP)
    for n in range(1, 9):
        env = {"a": np.ones((n, 2), np.float32), "b": np.zeros((n, 2), np.float32)}
        assert made.run("g", env)["a"].shape == (n, 2)
    assert len(made.bound) <= 3
