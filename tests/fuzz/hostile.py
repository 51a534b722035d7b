"""Bytes of strangers, given to everything that reads a file or an option: each must be taken, or
refused by one ArcError of one line, within a second or two and without much memory.

`TARGETS` are functions of bytes, for hypothesis, for `python -m fuzz hostile` and, where atheris is
installed, for `python -m fuzz coverage`. What a finding needs is kept in tests/fuzz/corpus.
"""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

from fuzz.folder import engine, hugging_face

from arcompile import dims
from arcompile.checkpoint import open_checkpoint
from arcompile.cli.options import parse_options
from arcompile.errors import ArcError
from arcompile.ir import Type, verify
from arcompile.pipeline import parse_pipeline
from arcompile.plan import read_bytes
from arcompile.program_text import from_data, parse_program
from arcompile.text import parse_graph

CORPUS = Path(__file__).parent / "corpus"
SECONDS = 10  # of a processor for one input: far more than any needs
LONGEST = 300  # seconds by the clock, which a busy or frozen machine stretches
LARGEST = 1 << 22  # numbers of a tensor that is worth loading here

Target = Callable[[bytes, Path], None]
TARGETS: dict[str, Target] = {}


def target(fn: Target) -> Target:
    TARGETS[fn.__name__] = fn
    return fn


@target
def checkpoint(data: bytes, folder: Path) -> None:
    """A file in any of the formats, told by its content."""
    path = folder / "x.pt"
    path.write_bytes(data)
    _load_all(path)


@target
def safetensors(data: bytes, folder: Path) -> None:
    path = folder / "x.safetensors"
    path.write_bytes(data)
    _load_all(path)


def _load_all(path: Path) -> None:
    held = open_checkpoint(path)
    weights = held.weights("", "model", "state_dict")
    for name in weights:
        if sum(weights.shape(name)) < LARGEST:
            weights.load(name)


@target
def text(data: bytes, folder: Path) -> None:
    """IR text: a graph or a program."""
    said = data.decode(errors="surrogateescape")
    if said.lstrip().startswith("program"):
        p = parse_program(said)
        p.verify()
        str(p)
    else:
        g = parse_graph(said)
        verify(g)
        str(g)


@target
def program(data: bytes, folder: Path) -> None:
    """program.json"""
    with suppress(ValueError, RecursionError):  # of json: bundle.read_json has its own test
        from_data(json.loads(data)).check()


@target
def options(data: bytes, folder: Path) -> None:
    """What stands on a command line."""
    said = data.decode(errors="surrogateescape")
    for read in (parse_pipeline, lambda x: parse_options(x.split()), read_bytes, Type.parse,
                 dims.parse_dim):
        with suppress(ArcError):
            read(said)


@target
def manifest(data: bytes, folder: Path) -> None:
    """An engine whose JSON file of that name is replaced, signed anew by its author."""
    name, _, body = data.partition(b"\n")
    engine(folder, name.decode(errors="replace"), body)


@target
def index(data: bytes, folder: Path) -> None:
    """A Hugging Face folder with that index."""
    hugging_face(folder, data)


class Slow(Exception):
    """It took too long."""


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    def ring(*_):
        raise Slow(f"over {seconds} s")

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, seconds),
              signal.SIGALRM: (signal.ITIMER_REAL, LONGEST)}
    before = {s: signal.signal(s, ring) for s in timers}
    for which, most in timers.values():
        signal.setitimer(which, most)
    try:
        yield
    finally:
        for which, _ in timers.values():
            signal.setitimer(which, 0)
        for s, old in before.items():
            signal.signal(s, old)


def attack(name: str, data: bytes) -> str:
    """What is wrong with how `data` was met; "" when it was taken, or refused as it should be."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with alarm(SECONDS):
                TARGETS[name](data, Path(folder))
        except ArcError as e:
            return f"more than a line: {e.what!r}" if "\n" in e.what else ""
        except RecursionError as e:
            return f"RecursionError: {e}"
        except Exception as e:
            return f"{type(e).__name__}: {e}"
    return ""


def seeds(name: str) -> list[bytes]:
    return [p.read_bytes() for p in sorted((CORPUS / name).iterdir())]


# --- changes -------------------------------------------------------------------------------------

NUMBERS = ("0", "-1", "1", "2", "127", "128", "255", "65536", "2147483647", "4294967295",
           "9223372036854775807", "-9223372036854775808", "18446744073709551616", "1e308", "1e999",
           "NaN", "0.5", "1" + "0" * 400)
WORDS = ("null", "true", "[]", "{}", '""', "[" * 2000, "{" * 2000, '{"a":' * 500, "(" * 300, "%0",
         "@w", "f32[b,4]", "..", "/etc/passwd", "\0", "\n", "é", "\ud800", "=", ",", "b" * 5000,
         "b*b*b*b*b*b*b*b", "2*b+1", "-", "'", '"', "\\", "#", "{x=", "__class__", "graph ")


def changed(data: bytes, random: Random) -> bytes:
    """The bytes after one to four changes: bits, numbers, words, pieces gone, doubled or moved."""
    for _ in range(random.randint(1, 4)):
        data = random.choice(CHANGES)(data, random)
    return data[: 1 << 20]


def _bit(data: bytes, random: Random) -> bytes:
    if not data:
        return b"\0"
    i = random.randrange(len(data))
    return data[:i] + bytes([data[i] ^ 1 << random.randrange(8)]) + data[i + 1 :]


def _byte(data: bytes, random: Random) -> bytes:
    i = random.randint(0, len(data))
    return data[:i] + bytes([random.randrange(256)]) + data[i + random.randint(0, 1) :]


def _span(data: bytes, random: Random) -> tuple[int, int]:
    a = random.randint(0, len(data))
    return a, min(len(data), a + random.choice((1, 2, 4, 8, 30, 200)))


def _cut(data: bytes, random: Random) -> bytes:
    a, b = _span(data, random)
    return data[:a] if random.random() < 0.1 else data[:a] + data[b:]


def _double(data: bytes, random: Random) -> bytes:
    a, b = _span(data, random)
    return data[:b] + data[a:b] * random.choice((1, 2, 50)) + data[b:]


def _move(data: bytes, random: Random) -> bytes:
    (a, b), at = _span(data, random), random.randint(0, len(data))
    return data[:at] + data[a:b] + data[at:]


def _word(data: bytes, random: Random) -> bytes:
    a, b = _span(data, random)
    said = random.choice(random.choice((NUMBERS, WORDS))).encode(errors="surrogatepass")
    return data[:a] + said + data[random.choice((a, b)) :]


def _number(data: bytes, random: Random) -> bytes:
    """One of the numbers in it becomes another: sizes, offsets, counts."""
    import re

    found = list(re.finditer(rb"\d+", data))
    if not found:
        return _word(data, random)
    m = random.choice(found)
    return data[: m.start()] + random.choice(NUMBERS).encode() + data[m.end() :]


def _little(data: bytes, random: Random) -> bytes:
    """A length of 8, 4 or 2 bytes becomes a large one."""
    n, i = random.choice((8, 4, 2)), random.randint(0, len(data))
    value = random.choice((0, 1, 1 << 8 * n - 1, (1 << 8 * n) - 1, len(data)))
    return data[:i] + (value & (1 << 8 * n) - 1).to_bytes(n, "little") + data[i + n :]


CHANGES = (_bit, _byte, _cut, _double, _move, _word, _number, _number, _little)
