"""Programs as text (for people and goldens) and as JSON data (for engines); both read back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any

from arcompile.dims import Dim, parse_dim
from arcompile.errors import ArcError, IRError, quoted
from arcompile.ir import Type
from arcompile.program import Call, Draw, Program, Step
from arcompile.text import MAX_TEXT, literal, parse_attrs, parse_graph, show_graph

FORMAT = 1
FOLD = "weights"  # the name of the graph that computes weights from weights
MAX_POSITIONS = 1 << 20
MAX_QUERIES = 1 << 24  # over all steps


# --- runs of equal steps -------------------------------------------------------------------------


def _runs(steps: tuple[Step, ...]) -> Iterator[dict[str, Any]]:
    """Steps as plain data, equal neighbours merged. Consecutive positions become counts."""
    at, last = 0, None
    for s in steps:
        d = _step_data(s, at)
        at = max(s.commit, default=at - 1) + 1
        if last is not None and {**last, "times": 1} == d and isinstance(d["commit"], int):
            last["times"] += 1
            continue
        if last is not None:
            yield last
        last = d
    if last is not None:
        yield last


def _step_data(s: Step, at: int) -> dict[str, Any]:
    def run(xs: tuple[int, ...]) -> int | list[int]:
        return len(xs) if xs == tuple(range(at, at + len(xs))) else list(xs)

    commit = run(s.commit)
    query: Any = run(s.query)
    if isinstance(commit, list) and s.query == s.commit:
        query = commit
    return {"times": 1, "query": query, "commit": commit, "calls": [str(c) for c in s.calls],
            "guide": list(s.guide), "append": s.append, "set": dict(s.set),
            **({"window": s.window} if s.window else {})}


def _expand(runs: list[dict[str, Any]]) -> tuple[Step, ...]:
    steps: list[Step] = []
    at = total = 0
    for r in runs:
        if len(steps) + r["times"] > MAX_POSITIONS:
            raise ArcError(f"more than {MAX_POSITIONS} steps")
        total += r["times"] * max(_count(r["query"]), _count(r["commit"]))
        if total > MAX_QUERIES:
            raise ArcError(f"steps query {total} positions in all, over {MAX_QUERIES}")
        shared = _shared(r) if r["times"] > 0 else ()
        for _ in range(r["times"]):
            query, commit = (_positions(r[k], at) for k in ("query", "commit"))
            at = max(commit, default=at - 1) + 1
            steps.append(Step(query, commit, *shared))
    return tuple(steps)


def _shared(r: dict[str, Any]) -> tuple[Any, ...]:
    """What the steps of a run have in common, once: a run may be of a million."""
    return (tuple(map(Call.parse, r["calls"])), (float(r["guide"][0]), float(r["guide"][1])),
            _size(r["append"]), tuple((k, _numbers(_tuples(v))) for k, v in r["set"].items()),
            int(r.get("window", 0)))


def _size(x: int | str) -> Dim:
    if isinstance(x, int) and not 0 <= x <= MAX_POSITIONS:
        raise ArcError(f"a step that appends {x} slots")
    return x if isinstance(x, int) else parse_dim(x)


def _count(x: int | list[int]) -> int:
    return x if isinstance(x, int) else len(x)


def _positions(x: int | list[int], at: int) -> tuple[int, ...]:
    if isinstance(x, int):
        if not 0 <= x <= MAX_POSITIONS:
            raise ArcError(f"a step of {x} positions")
        return tuple(range(at, at + x))
    return tuple(int(i) for i in x)


def _tuples(v: Any) -> Any:
    return tuple(map(_tuples, v)) if isinstance(v, list | tuple) else v


def _numbers(v: Any) -> Any:
    """A float, an integer that i64 can hold, or tuples of them."""
    for x in v if isinstance(v, tuple) else ():
        _numbers(x)
    if not isinstance(v, tuple | float) and not (isinstance(v, int) and abs(v) < 1 << 63):
        raise ArcError(f"{quoted(repr(v), 60)} where a number is wanted")
    return v


def _draw(name: str, kind: Any, width: Any, when: Any) -> Draw:
    if type(width) is not int or not 1 <= width <= MAX_POSITIONS:
        raise ArcError(f"a draw of {quoted(repr(width), 60)} numbers a position")
    return Draw(name, kind, width, when)


# --- JSON ----------------------------------------------------------------------------------------


def to_data(p: Program) -> dict[str, Any]:
    """Everything but the graphs, as JSON-ready data: what `program.json` holds."""
    return {
        "format": FORMAT, "name": p.name, "positions": p.positions, "mask": p.mask,
        "accept": p.accept, "cache": p.cache,
        "inputs": {k: str(t) for k, t in p.inputs}, "state": {k: str(t) for k, t in p.state},
        "draws": [{"name": d.name, "kind": d.kind, "width": d.width, "when": d.when}
                  for d in p.draws],
        "tables": {k: {c: list(v) for c, v in t.items()} for k, t in p.tables.items()},
        "prompt": [str(c) for c in p.prompt], "steps": list(_runs(p.steps)),
        "finish": [str(c) for c in p.finish],
        **({"preview": [str(c) for c in p.preview]} if p.preview else {}),
    }


def from_data(data: Mapping[str, Any]) -> Program:
    """Read `program.json`. Raises ArcError when it is not one we understand."""
    try:
        if data["format"] > FORMAT:
            raise ArcError(f"program format {data['format']} is newer than {FORMAT}",
                           hint="upgrade arcompile")
        for word in ("name", "mask", "accept", "cache"):
            if not isinstance(data[word], str):
                raise ArcError(f"a program whose {word} is {quoted(repr(data[word]), 60)}")
        if type(data["positions"]) is not int or not 0 <= data["positions"] <= MAX_POSITIONS:
            raise ArcError(f"a program of {quoted(data['positions'], 60)} positions")
        return Program(
            data["name"], data["positions"], _expand(data["steps"]),
            prompt=tuple(map(Call.parse, data["prompt"])),
            finish=tuple(map(Call.parse, data["finish"])),
            preview=tuple(map(Call.parse, data.get("preview", ()))),
            inputs=tuple((k, Type.parse(t)) for k, t in data["inputs"].items()),
            state=tuple((k, Type.parse(t)) for k, t in data["state"].items()),
            draws=tuple(_draw(**d) for d in data["draws"]),
            tables={k: {c: _numbers(tuple(v)) for c, v in t.items()}
                    for k, t in data["tables"].items()},
            mask=data["mask"], accept=data["accept"], cache=data["cache"],
        )
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as e:
        raise ArcError(f"not a program: {type(e).__name__}: {e}",
                       hint="rebuild the engine") from None


# --- text ----------------------------------------------------------------------------------------


def show_program(p: Program) -> str:
    lines = [f"program {p.name} positions={p.positions} mask={p.mask} accept={p.accept}"]
    lines += [f"  cache {p.cache}"]
    lines += [f"  input {k}: {t}" for k, t in p.inputs]
    lines += [f"  state {k}: {t}" for k, t in p.state]
    lines += [f"  draw {d}" for d in p.draws]
    for name, columns in p.tables.items():
        lines += [f"  table {name}.{c} = {literal(list(v))}" for c, v in columns.items()]
    lines += [f"  prompt {' '.join(map(str, p.prompt))}"] if p.prompt else []
    lines += [f"  steps {_show_run(r)}" for r in _runs(p.steps)]
    lines += [f"  finish {' '.join(map(str, p.finish))}"] if p.finish else []
    lines += [f"  preview {' '.join(map(str, p.preview))}"] if p.preview else []
    graphs = [*p.graphs, *([p.fold] if p.fold else [])]
    return "\n".join([*lines, *map(show_graph, graphs)])


def _show_run(r: dict[str, Any]) -> str:
    a, b = r["guide"]
    extra = {"guide": (a, b)} if (a, b) != (0.0, 1.0) else {}
    extra |= {"append": r["append"]} if r["append"] else {}
    extra |= {"window": r["window"]} if r.get("window") else {}
    extra |= {f"set.{k}": v for k, v in r["set"].items()}
    tail = " ".join(f"{k}={literal(v)}".replace(" ", "") for k, v in extra.items())
    same = r["query"] == r["commit"]
    span = _span(r["query"]) + ("" if same else ">" + _span(r["commit"]))
    return f"{r['times']} x {span} : {' '.join(r['calls'])}" + (f" ; {tail}" if tail else "")


def _span(x: int | list[int]) -> str:
    return str(x) if isinstance(x, int) else str(x).replace(" ", "")


_RUN = re.compile(r"([0-9]{1,9}) x ([^ >]+)(?:>(\S+))? : ([^;]+?)(?: ; (.+))?")


def _parse_run(text: str) -> dict[str, Any]:
    if not (m := _RUN.fullmatch(text)):
        raise IRError(f"not steps: {text[:80]!r}", hint="write `4 x 1 : step sample feed`")
    spans = [parse_attrs(f"x={s}")["x"] for s in (m[2], m[3] or m[2])]
    r: dict[str, Any] = {"times": int(m[1]), "query": spans[0], "commit": spans[1],
                         "calls": m[4].split(), "guide": [0.0, 1.0], "append": 0,
                         "set": {}}
    for word in (m[5] or "").split():
        key, _, raw = word.partition("=")
        value = parse_attrs(f"x={raw}")["x"]
        if key.startswith("set."):
            r["set"][key[4:]] = value
        else:
            r[key] = list(value) if key == "guide" else value
    return r


_HEAD = re.compile(r"program (\S+) positions=([0-9]{1,9}) mask=(\w+) accept=(\w+)")
_DRAW = re.compile(r"(\w+): (\w+) x ([0-9]{1,9}) per (\w+)")


def parse_program(text: str) -> Program:
    """Read what `str(program)` wrote. Raises ArcError; never executes anything."""
    if len(text) > MAX_TEXT:
        raise IRError(f"program text of {len(text)} bytes is over the limit of {MAX_TEXT}")
    head, *graphs = re.split(r"(?m)^(?=graph )", text)
    lines = [(i, line.strip()) for i, line in enumerate(head.splitlines(), 1)]
    lines = [(i, s) for i, s in lines if s and not s.startswith("#")]
    if not lines or not (m := _HEAD.fullmatch(lines[0][1])):
        raise IRError("line 1: expected `program name positions=N mask=causal accept=all`")
    data: dict[str, Any] = {"format": FORMAT, "name": m[1], "positions": int(m[2]), "mask": m[3],
                            "accept": m[4], "cache": "full", "inputs": {}, "state": {},
                            "draws": [], "tables": {}, "prompt": [], "steps": [],
                            "finish": []}
    for i, line in lines[1:]:
        try:
            _read_line(line, data)
        except IRError as e:
            raise IRError(f"line {i}: {e.what}", hint=e.hint) from None
    starts = accumulate((g.count("\n") for g in [head, *graphs]), initial=1)
    read = [parse_graph(g, at) for g, at in zip(graphs, [*starts][1:], strict=False)]
    fold = next((g for g in read if g.name == FOLD), None)
    return replace(from_data(data), graphs=tuple(g for g in read if g is not fold), fold=fold)


def _read_line(line: str, data: dict[str, Any]) -> None:
    word, _, rest = line.partition(" ")
    match word:
        case "cache":
            data["cache"] = rest
        case "input" | "state":
            name, _, type = rest.partition(": ")
            data["inputs" if word == "input" else "state"][name] = type
        case "draw" if m := _DRAW.fullmatch(rest):
            data["draws"].append({"name": m[1], "kind": m[2], "width": int(m[3]), "when": m[4]})
        case "table":
            name, _, raw = rest.partition(" = ")
            table, _, column = name.partition(".")
            data["tables"].setdefault(table, {})[column] = parse_attrs(f"x={raw}")["x"]
        case "prompt" | "finish" | "preview":
            data[word] = rest.split()
        case "steps":
            data["steps"].append(_parse_run(rest))
        case _:
            raise IRError(f"not a program line: {line[:80]!r}")
