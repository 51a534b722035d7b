"""Builds and pictures that are killed, starved or raced: what is left must be whole.

Each try forks a process that has everything loaded, so that a try costs one small build. After each
the engine folder is absent, or an engine that loads and draws what it should.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np

import arcompile
from arcompile import cli
from arcompile.errors import ArcError
from arcompile.runtime.engine import load

VARIANTS = ("", "int8")  # two engines of one checkpoint, so that a build has something to do
OK, REFUSED, BROKEN = 0, 3, 4


class Yard:
    """A folder with a small checkpoint, and an engine of it that builds try to replace."""

    def __init__(self, home: Path, random: Random):
        import torch

        from arcompile.family import FAMILIES

        torch.set_num_threads(1)
        home.mkdir(parents=True, exist_ok=True)
        self.home, self.random, self.count = home, random, 0
        source = FAMILIES["llamagen"].random("tiny")
        self.file, self.out = home / "tiny.pt", home / "engine"
        torch.save({k: torch.from_numpy(source.tensors.load(k)) for k in source.tensors}, self.file)
        self.expected, self.seconds = {}, 0.0
        for v in VARIANTS:  # also warms everything that forks share
            start = time.monotonic()
            self.expected[v] = tokens(self.build(v, home / f"plain-{v}"))
            self.seconds = time.monotonic() - start

    def build(self, variant: str, out: Path | None = None, progress=lambda stage, share: None):
        return arcompile.build(self.file, family="llamagen", passes=variant or None,
                               options={"n_head": 4, "grid": 4},
                               out=out or self.out, report=False, progress=progress)

    def next(self) -> str:
        self.count += 1
        return VARIANTS[self.count % 2]

    def check(self) -> str:
        """What is wrong with what is there, "" if nothing."""
        if not self.out.exists():
            return ""
        try:
            found = tokens(load(self.out))
        except ArcError as e:
            return f"half an engine: {e.what}"
        if not any((found == want).all() for want in self.expected.values()):
            return "an engine that draws something else"
        return ""

    def again(self) -> str:
        """The next build works, and leaves nothing beside the engine."""
        self.build(self.next())
        left = [p.name for p in self.home.iterdir() if p.name.startswith(".")]
        return self.check() or (f"left behind: {left}" if left else "")


def tokens(engine) -> np.ndarray:
    return engine.generate(1, seed=1).tokens


def forked(job: Callable[[], object]) -> int:
    """Run it in a process of its own; the pid."""
    pid = os.fork()
    if pid:
        return pid
    code = BROKEN
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        job()
        code = OK
    except ArcError as e:
        code = REFUSED if "\n" not in e.what else BROKEN
    except MemoryError:
        code = REFUSED
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Its exit code; minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# --- what happens --------------------------------------------------------------------------------


def kill(y: Yard) -> str:
    """SIGKILL at any moment of a build; in half of the tries at one when files are written."""
    read, write = os.pipe()
    variant = y.next()
    pid = forked(lambda: y.build(variant, progress=lambda s, f: os.write(
        write, b"x" if s in ("graphs", "weights") else b"")))
    os.close(write)
    if y.random.random() < 0.5:
        os.read(read, 1)  # returns when writing begins, or when the build has ended
        time.sleep(y.random.random() * 0.08)
    else:
        time.sleep(y.random.random() * 1.2 * y.seconds)
    os.close(read)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    ended(pid)
    return y.check()


def full(y: Yard) -> str:
    """No file may grow beyond some size: what a full disk is to a writer."""
    size, variant = y.random.choice((0, 100, 1000, 5000, 20_000, 100_000)), y.next()

    def job():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        y.build(variant)

    code = ended(forked(job))
    return y.check() or (f"exit {code}" if code not in (OK, REFUSED) else "")


def race(y: Yard) -> str:
    """Two builds into one folder."""
    pids = [forked(lambda v=v: y.build(v)) for v in VARIANTS]
    codes = [ended(p) for p in pids]
    wrong = [c for c in codes if c not in (OK, REFUSED)]
    return y.check() or (f"exits {codes}" if wrong or OK not in codes else "")


def starved(y: Yard) -> str:
    """Little address space: refused, or ended by the system, but never half an engine."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    more, variant = y.random.choice((0, 1 << 20, 16 << 20, 64 << 20, 256 << 20)), y.next()

    def job():
        resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))
        y.build(variant)

    ended(forked(job))
    return y.check()


def interrupted(y: Yard) -> str:
    """Ctrl-C while pictures are drawn: exit code 130, and no half file."""
    if not y.out.exists():
        y.build(y.next())
    made = y.home / "tokens.npy"
    made.unlink(missing_ok=True)

    def job():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os._exit(cli.run(["generate", str(y.out), "--label", "1,2,3", "--tokens", str(made)]))

    start = time.monotonic()
    pid = forked(job)
    time.sleep(y.random.random() * 0.4)
    os.kill(pid, signal.SIGINT)
    code = ended(pid)
    if time.monotonic() - start > 600:
        return "it did not stop"
    if made.exists():
        np.load(made)
    return "" if code in (OK, 130) or (code == BROKEN and not made.exists()) else f"exit {code}"


def unwritable(y: Yard) -> str:
    """A folder of a read-only file system."""
    for place in ("/proc/arcompile/engine", "/sys/engine"):
        try:
            y.build(y.next(), Path(place))
        except ArcError as e:
            if "cannot write" not in e.what:
                return e.what
        else:
            return f"it wrote into {place}"
    return y.check()


FAULTS = {f.__name__: f for f in (kill, full, race, starved, interrupted, unwritable)}


def tries(y: Yard, fault: str, count: int, every: int = 20) -> list[str]:
    """What went wrong in so many tries; after every few, a build that nobody disturbs."""
    wrong = []
    for i in range(count):
        if said := FAULTS[fault](y):
            wrong.append(f"{fault} {i}: {said}")
        due = i % every == every - 1 or i == count - 1
        if due and (said := y.again()):
            wrong.append(f"after {fault} {i}: {said}")
    return wrong


