"""Passes and the one loop that runs them: verify, time, dump, blame."""

from __future__ import annotations

import ast
import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, dataclass_transform

from arcompile import debug
from arcompile.errors import ArcError, PassError, did_you_mean
from arcompile.ir import dce
from arcompile.program import Program
from arcompile.program_text import parse_program
from arcompile.registry import Registry
from arcompile.rewrite import Rule, rewrite
from arcompile.text import split
from arcompile.weights import Weights

Keeps = Literal["values", "distribution", "bound", "quality"]
CONTRACTS: dict[Keeps, str] = {  # from the strongest promise to the weakest
    "values": "exact: the tokens of the model as it is",
    "distribution": "exact in law: images are distributed as the model's own",
    "bound": "bounded: each token's law moves by no more than its pass says",
    "quality": "measured: the law of images changes, and the report says what it costs",
}


@dataclasses.dataclass(frozen=True, repr=False)
class Pass:
    """Program in, program out. Fields are the pass's options.

    `keeps` is its promise, and picks the tests it gets for free: the same values, the same
    sampling distribution, a bounded change, or measured quality.
    """

    name: ClassVar[str] = ""
    keeps: ClassVar[Keeps] = "values"
    rules: ClassVar[Sequence[Rule]] = ()
    tries: ClassVar[Sequence[Mapping[str, Any]]] = ()  # options of `worth`

    @classmethod
    def worth(cls, p: Program) -> Iterable[Pass]:
        """What `auto` tries on this program. Those that do not fit may refuse it."""
        return (cls(**options) for options in cls.tries)

    def __call__(self, p: Program) -> Program:
        return p.on_graphs(lambda g: rewrite(g, self.rules, self.name))

    def brings(self) -> Weights:
        """Weights that are not the checkpoint's, for passes that read files. Raises ArcError."""
        return Weights({})

    def reads(self) -> tuple[str, ...]:
        """What tells apart the files that the options name: two builds of equal ones are equal."""
        return ()

    def prepared(self, p: Program, source: Weights) -> Pass:
        """The pass with what it chooses by the weights' values written into its options.

        Then the same choice can be read, printed, and made again without the weights.
        """
        return self

    def drafter(self) -> Sequence[Pass] | None:
        """The passes that make the model that drafts; None where no second model does."""
        return None

    def left(self, p: Program) -> Mapping[str, str]:
        """Weights of the kind it is about that it leaves as they are, and why."""
        return {}

    def __str__(self) -> str:
        given = [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)]
        default = {f.name: f.default for f in dataclasses.fields(self)}
        text = ",".join(f"{k}={v!r}" for k, v in given if v != default[k])
        return self.name + (f"{{{text}}}" if text else "")


PASSES: Registry[type[Pass]] = Registry("pass", "arcompile.passes")


@dataclass_transform(frozen_default=True)
def register(name: str) -> Callable[[type[Pass]], type[Pass]]:
    """Declare a pass: one file, this decorator, nothing else."""

    def declare(cls: type[Pass]) -> type[Pass]:
        cls.name = name
        made = dataclasses.dataclass(frozen=True, repr=False)(cls)
        return PASSES.add(name, made)

    return declare


def contract(passes: Sequence[Pass]) -> dict[str, Any]:
    """What all passes together keep: as much as the weakest of them, and which those are."""
    order = list(CONTRACTS)
    weakest: Keeps = max((p.keeps for p in passes), key=order.index, default="values")
    by = [] if weakest == "values" else [str(p) for p in passes if p.keeps == weakest]
    return {"keeps": weakest, "means": CONTRACTS[weakest], "by": by}


def said(contract: Mapping[str, Any]) -> str:
    """A contract in words."""
    return contract["means"] + (f" (by {', '.join(contract['by'])})" if contract["by"] else "")


_ITEM = re.compile(r"([\w-]+)\s*(?:\{(.*)\})?", re.DOTALL)


def parse_pipeline(text: str) -> list[Pass]:
    """`"swiglu, token-shuffle{window=2}"` -> passes. Raises ArcError; evaluates literals only."""
    found = []
    for item in split(text):
        if not (m := _ITEM.fullmatch(item)):
            raise ArcError(f"not a pass list: {item[:60]!r}",
                           hint="write name, name{option=value}")
        found.append(_make(m[1], m[2] or ""))
    return found


def _make(name: str, options: str) -> Pass:
    cls = PASSES[name]
    fields = {f.name: f for f in dataclasses.fields(cls)}
    given: dict[str, Any] = {}
    for part in filter(None, split(options)):
        key, sep, raw = (s.strip() for s in part.partition("="))
        if not sep or key not in fields:
            raise ArcError(f"pass {name} has no option {key!r}", hint=did_you_mean(key, fields))
        given[key] = _literal(name, key, raw, fields[key].default)
    return cls(**given)


def _literal(name: str, key: str, raw: str, default: Any) -> Any:
    """The option's value, of the type of its default."""
    try:
        value = ast.literal_eval(raw)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = raw if isinstance(default, str) else None  # a bare word where text is wanted
    if isinstance(default, str) and not isinstance(value, str):
        value = raw  # such as 0.98 where a word may stand too
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(default):
        raise ArcError(f"option {key} of pass {name} takes {type(default).__name__}, got {raw!r}",
                       hint=f"the default is {default!r}")
    return value


def run(p: Program, passes: Sequence[Pass], source: Weights | None = None,
        done: list[Pass] | None = None) -> Program:
    """Run the passes in order, verifying around each. Raises PassError naming the guilty one.

    source: the checkpoint's weights, for passes that choose by them; `done` gets the passes as
    they ran.
    """
    p.verify()
    debug.dump(0, "input", str(p)) if debug.os.getenv("ARC_DUMP") else None
    for i, each in enumerate(passes, 1):
        start = time.perf_counter()
        try:
            each = each if source is None else each.prepared(p, source)
            new = _apply(each, p)
            new.verify()
            if debug.paranoid() and new is not p:
                _round_trip(new)
        except Exception as e:
            before = ", ".join(map(str, passes[: i - 1])) or "none"
            e.add_note(f"in pass {i} ({each}), after: {before}")
            raise
        _report(i, each, p, new, time.perf_counter() - start)
        if done is not None:
            done.append(each)
        p = new
    return p


def _apply(each: Pass, p: Program) -> Program:
    """One pass. A pass without rules counts as one rewrite, so that bisect can blame it."""
    if not each.rules and not debug.allow(str(each)):
        return p
    return each(p).on_graphs(dce)


def _round_trip(p: Program) -> None:
    text = str(p)
    if str(parse_program(text)) != text:
        raise PassError("the program does not survive printing and parsing")


def _report(i: int, each: Pass, old: Program, new: Program, seconds: float) -> None:
    before, after = (sum(len(g.nodes) for g in p.graphs) for p in (old, new))
    debug.log(1, f"{i:02d} {each}  {seconds * 1e3:.1f} ms  {before} -> {after} nodes"
                 f"{'' if new is not old else '  (unchanged)'}")
    if new is not old:
        if debug.level() >= 2:
            debug.log(2, str(new))
        if debug.os.getenv("ARC_DUMP"):
            debug.dump(i, each.name, str(new))
