"""Thousands of pictures by one engine: memory stays flat, and a picture stays what it was.

Batches are of any size and mix; what was drawn before is drawn again in other company.
"""

from __future__ import annotations

import hashlib
import json
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np

import arcompile

CLASSES = 36
SIZES = (1, 2, 3, 8, 16, 32, 64)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def drawn(engine, asked) -> list[str]:
    """A checksum for each (label, seed), of tokens and picture."""
    labels, seeds = zip(*asked, strict=True)
    out = engine.generate(list(labels), seed=list(seeds))
    pictures = out.images if out.images is not None else out.tokens
    return [hashlib.sha256(t.tobytes() + p.tobytes()).hexdigest()[:16]
            for t, p in zip(out.tokens, pictures, strict=True)]


def soak(engine, count: int, log: Path, random: Random, classes: int = CLASSES) -> dict:
    """Draw so many, resuming where `log` ends. Returns the figures."""
    known: dict[str, str] = {}
    rows = [json.loads(s) for s in log.read_text().splitlines()] if log.exists() else []
    done = rows[-1]["done"] if rows else 0
    told = {"again": rows[-1]["again"] if rows else 0, "differ": rows[-1]["differ"] if rows else 0}
    while done < count:
        asked = [(random.randrange(classes), random.randrange(1 << 16))
                 for _ in range(random.choice(SIZES))]
        asked += [tuple(map(int, k.split("."))) for k in random.sample(
            sorted(known), min(len(known), random.randint(0, 4)))]
        random.shuffle(asked)
        for (label, seed), found in zip(asked, drawn(engine, asked), strict=True):
            was = known.setdefault(f"{label}.{seed}", found)
            told["again"] += was is not found
            told["differ"] += was != found
        done += len(asked)
        rows.append({"done": done, "resident": resident(), "time": time.time(), **told})
        with log.open("a") as f:
            f.write(json.dumps(rows[-1]) + "\n")
    sizes = [r["resident"] for r in rows if r["time"] >= rows[len(rows) // 4]["time"]]
    half = len(sizes) // 2
    return {**told, "pictures": done, "early": int(np.median(sizes[:half])),
            "late": int(np.median(sizes[half:])), "most": max(r["resident"] for r in rows)}


def threads(folder: Path, many: int = 8, each: int = 3, classes: int = CLASSES) -> int:
    """Threads that share one engine, against one thread that has it alone: how many differ."""
    engine = arcompile.load(folder)
    asked = [[(i % classes, 100 * i + j) for j in range(1 + i % 4)] for i in range(many * each)]
    alone = [drawn(engine, a) for a in asked]
    with ThreadPoolExecutor(many) as pool:
        together = list(pool.map(lambda a: drawn(engine, a), asked))
    return sum(a != b for a, b in zip(alone, together, strict=True))


def cores(folder: Path, classes: int = CLASSES) -> int:
    """One thread of computing, two, and four: how many pictures differ in their tokens."""
    asked = [(i % classes, i) for i in range(24)]
    found = []
    for n in (1, 2, 4):
        labels, seeds = zip(*asked, strict=True)
        found.append(arcompile.load(folder, threads=n).generate(
            list(labels), seed=list(seeds)).tokens)
    return int((found[0] != found[1]).any(1).sum() + (found[0] != found[2]).any(1).sum())
