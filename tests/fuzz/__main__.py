"""Long runs, resumed by the same command: `PYTHONPATH=tests python -m fuzz graphs --out DIR`."""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from fuzz import check, check_program
from fuzz.check import Wrong
from fuzz.graphs import graph
from fuzz.programs import program
from fuzz.shrink import reduced


def failure(g: Any) -> str:
    """What is wrong with this graph, "" if nothing; the first words name the place."""
    return _failure(check.check, g)


def failure_of_program(p: Any) -> str:
    return _failure(check_program.check, p)


def _failure(run: Callable[[Any], None], x: Any) -> str:
    try:
        run(x)
    except Wrong as e:
        return str(e)
    except Exception as e:  # whatever it is: a crash is a finding
        where = traceback.extract_tb(e.__traceback__)[-1]
        return f"crash {type(e).__name__} in {Path(where.filename).name}: {e}"
    return ""


def hush() -> None:
    """What onnxruntime raises it also prints."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)


def long(what: str, count: int, out: Path, seed: int = 0) -> None:
    """Try so many, from where an earlier run stopped; failures, made small, go to `out`."""
    hush()
    out.mkdir(parents=True, exist_ok=True)
    log = out / f"{what}.json"
    told = json.loads(log.read_text()) if log.exists() else {"done": 0, "found": 0, "seconds": 0.0,
                                                             "ops": {}}
    start, before = time.monotonic(), told["seconds"]
    for i in range(told["done"], count):
        random = Random(f"{seed}.{i}")
        x: Any = graph(random) if what == "graphs" else program(random)
        for n in (n for g in getattr(x, "graphs", (x,)) for n in g.nodes):
            told["ops"][n.op] = told["ops"].get(n.op, 0) + 1
        if said := (failure if what == "graphs" else failure_of_program)(x):
            told["found"] += 1
            small = reduced(x, failure) if what == "graphs" else x
            (out / f"{what}-{i:06d}.arc").write_text(f"# {said[:300]!r}\n{small}\n")
            print(f"{i}: {said[:160]}", flush=True)
        told["done"] = i + 1
        if i % 50 == 49 or i + 1 == count:
            told["seconds"] = before + time.monotonic() - start
            log.write_text(json.dumps(told, indent=1))
    print(json.dumps({k: v for k, v in told.items() if k != "ops"}))


def hostile(name: str, count: int, out: Path, seed: int = 0) -> None:
    """Changed files of one target, or all; memory is limited to 4 GiB more than what is used."""
    from fuzz.hostile import TARGETS, attack, changed, seeds

    hush()
    out.mkdir(parents=True, exist_ok=True)
    for target in TARGETS if name == "all" else (name,):
        start, found, corpus = time.monotonic(), dict[str, int](), seeds(target)
        for i in range(count):
            random = Random(f"{target}.{seed}.{i}")
            data = changed(random.choice(corpus), random)
            if said := attack(target, data):
                found[said[:60]] = found.get(said[:60], 0) + 1
                if found[said[:60]] == 1:
                    (out / f"{target}-{seed}-{i}").write_bytes(data)
                    print(f"{target} {i}: {said[:200]}", flush=True)
        row = {"target": target, "tried": count, "found": sum(found.values()),
               "kinds": len(found), "seconds": round(time.monotonic() - start)}
        with (out / "hostile.jsonl").open("a") as f:
            f.write(json.dumps(row) + "\n")


def crash(name: str, count: int, out: Path, seed: int = 0) -> None:
    """Faults while an engine is built or used: see fuzz.crash."""
    import tempfile

    from fuzz.crash import FAULTS, Yard, tries

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        yard = Yard(Path(folder) / "yard", Random(seed))
        for fault in FAULTS if name == "all" else (name,):
            start = time.monotonic()
            wrong = tries(yard, fault, count)
            row = {"fault": fault, "tried": count, "wrong": wrong,
                   "seconds": round(time.monotonic() - start)}
            print(json.dumps(row), flush=True)
            with (out / "crash.jsonl").open("a") as f:
                f.write(json.dumps(row) + "\n")


def soak(count: int, out: Path, seed: int = 0) -> None:
    """The shipped demo, for long: see fuzz.soak."""
    from fuzz import soak as s

    import arcompile

    out.mkdir(parents=True, exist_ok=True)
    engine = arcompile.build("demo", out=out / "engine", report=False)
    told = s.soak(engine, count, out / "soak.jsonl", Random(seed))
    told |= {"threads_differ": s.threads(engine.folder), "cores_differ": s.cores(engine.folder)}
    (out / "soak.json").write_text(json.dumps(told))
    print(json.dumps(told))


def coverage(name: str, count: int) -> None:
    """The same led by coverage: needs atheris (`pip install -e '.[fuzz]'`)."""
    import sys

    import atheris

    with atheris.instrument_imports(include=["arcompile"]):
        from fuzz.hostile import CORPUS, attack

    def one(data: bytes) -> None:
        if said := attack(name, data):
            raise RuntimeError(said)

    atheris.Setup([sys.argv[0], f"-runs={count}", "-max_len=65536", "-rss_limit_mb=4096",
                   "-timeout=20", str(CORPUS / name)], one)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(prog="fuzz")
    parser.add_argument("what", choices=["graphs", "programs", "hostile", "coverage", "corpus",
                                         "crash", "soak"])
    parser.add_argument("--target", default="all", help="of hostile, coverage and crash")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"))
    given = parser.parse_args()
    if given.what == "corpus":
        from fuzz.folder import corpus
        from fuzz.hostile import CORPUS

        corpus(CORPUS)
    elif given.what == "coverage":
        coverage(given.target, given.count)
    elif given.what == "soak":
        soak(given.count, given.out, given.seed)
    elif given.what == "crash":
        crash(given.target, given.count, given.out, given.seed)
    elif given.what == "hostile":
        limit_memory()
        hostile(given.target, given.count, given.out, given.seed)
    else:
        long(given.what, given.count, given.out, given.seed)


def limit_memory(more: int = 4 << 30) -> None:
    import resource

    import torch  # noqa: F401  reserves much address space, uses little

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))


if __name__ == "__main__":
    main()
