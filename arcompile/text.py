"""Textual IR: `parse_graph(show_graph(g))` prints as `g` prints."""

from __future__ import annotations

import ast
import math
import re
from typing import Any

from arcompile.dims import Dim
from arcompile.errors import IRError
from arcompile.ir import Graph, Node, Type, Value

MAX_TEXT = 64 << 20  # bytes of IR text we agree to parse


def show_node(n: Node) -> str:
    outs = ", ".join(map(str, n.outs))
    args = ", ".join(map(str, n.args))
    attrs = ", ".join(f"{k}={literal(v)}" for k, v in sorted(n.attrs.items()))
    types = ", ".join(str(v.type) for v in n.outs)
    return f"{outs} = {n.op}({args}){' {' + attrs + '}' if attrs else ''} : {types}"


def literal(v: Any) -> str:
    """A Python literal that reads back as `v`; infinity is a number too large to hold."""
    if isinstance(v, float) and math.isinf(v):
        return "1e999" if v > 0 else "-1e999"
    if isinstance(v, tuple | list):
        body = ", ".join(map(literal, v)) + ("," if isinstance(v, tuple) and len(v) == 1 else "")
        return f"({body})" if isinstance(v, tuple) else f"[{body}]"
    return repr(v)


def show_graph(g: Graph, mark: Node | None = None, why: str = "", origins: bool = False) -> str:
    """One node a line. origins: with what each came from (`Node.origin`), which reads back too."""
    params = ", ".join(f"%{v.name}: {v.type}" for v in g.params)
    lines = [f"graph {g.name}({params}) {{"]
    lines += [f"  {w.name} : {w.type}" for w in g.weights]
    for n in g.nodes:
        came = f"  # {' '.join(n.origin.split())}" if origins and n.origin else ""
        lines.append(f"  {show_node(n)}{came}")
        if n is mark:
            lines.append(f"  ^ {why}")
    results = ", ".join(f"{name}={v}" for name, v in g.results)
    return "\n".join([*lines, f"  return {results}", "}"])


_HEAD = re.compile(r"graph ([\w.-]+)\((.*)\) \{")
_NODE = re.compile(
    r"(?P<outs>%[^=]+?) = (?P<op>[\w.]+)\((?P<args>[^)]*)\)(?: \{(?P<attrs>.*)\})? : "
    r"(?P<types>[^#]+?)(?:  # (?P<origin>.*))?"
)
_WEIGHT = re.compile(r"(@\S+) : (\S+)")


def parse_graph(text: str, first: int = 1) -> Graph:
    """Read one graph. Raises IRError with the line number; never executes anything.

    first: the number of the text's first line in the file it comes from.
    """
    if len(text) > MAX_TEXT:
        raise IRError(f"IR text of {len(text)} bytes is over the limit of {MAX_TEXT}")
    lines = [(i, line.strip()) for i, line in enumerate(text.splitlines(), first)]
    lines = [(i, s) for i, s in lines if s and not s.startswith("#")]
    if not lines or not (head := _HEAD.fullmatch(lines[0][1])):
        at = lines[0][0] if lines else first
        raise IRError(f"line {at}: expected `graph name(params) {{`")
    return _Parser().read(head, lines)


class _Parser:
    def __init__(self) -> None:
        self.env: dict[str, Value] = {}

    def read(self, head: re.Match[str], lines: list[tuple[int, str]]) -> Graph:
        params: list[Value] = []
        weights: list[Value] = []
        nodes: list[Node] = []
        results: tuple[tuple[str, Value], ...] = ()
        for i, line in lines:
            try:
                if line == head[0]:
                    params += [self._param(p) for p in split(head[2])]
                elif line.split(" ")[0] == "return":
                    results = tuple(self._result(r) for r in split(line.removeprefix("return")))
                elif m := _WEIGHT.fullmatch(line):
                    weights.append(self._define(m[1], m[2]))
                elif m := _NODE.fullmatch(line):
                    nodes.append(self._node(m))
                elif line != "}":
                    raise IRError(f"not a node: {line[:80]!r}",
                                  hint="write `%out = op(%a) {k=v} : type`")
            except IRError as e:
                raise IRError(f"line {i}: {e.what}", hint=e.hint) from None
        return Graph(head[1], tuple(params), tuple(nodes), results, tuple(weights))

    def _define(self, name: str, type: str) -> Value:
        if name in self.env:
            raise IRError(f"{name} is defined twice")
        return self.env.setdefault(name, Value(name.removeprefix("%"), Type.parse(type)))

    def _param(self, text: str) -> Value:
        name, sep, type = text.partition(": ")
        if not sep or not name.startswith("%"):
            raise IRError(f"not a parameter: {text[:80]!r}", hint="write `%x: f32[b,4]`")
        return self._define(name, type)

    def _use(self, name: str) -> Value:
        if name not in self.env:
            raise IRError(f"{name} is not defined")
        return self.env[name]

    def _result(self, text: str) -> tuple[str, Value]:
        name, sep, value = text.partition("=")
        if not sep:
            raise IRError(f"not a result: {text[:80]!r}", hint="write `return name=%value`")
        return name, self._use(value)

    def _node(self, m: re.Match[str]) -> Node:
        args = tuple(self._use(a) for a in split(m["args"]))
        names, types = split(m["outs"]), split(m["types"])
        if len(names) != len(types):
            raise IRError(f"{len(names)} results but {len(types)} types")
        outs = tuple(self._define(o, t) for o, t in zip(names, types, strict=True))
        return Node(m["op"], args, outs, parse_attrs(m["attrs"] or ""), m["origin"] or "")


def parse_attrs(text: str) -> dict[str, Any]:
    """`k=v, k=v` with Python literals for values. Raises IRError."""
    found: dict[str, Any] = {}
    for part in split(text):
        key, sep, raw = part.partition("=")
        try:
            if not sep or not key.strip().isidentifier():
                raise ValueError
            found[key.strip()] = ast.literal_eval(raw.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise IRError(f"not an attribute: {part[:80]!r}", hint="write k=literal") from None
    return found


def split(text: str) -> list[str]:
    """Split on the commas outside brackets and quotes."""
    parts, depth, start, quote, escaped = [], 0, 0, "", False
    for i, c in enumerate(text):
        if quote:
            quote = "" if c == quote and not escaped else quote
            escaped = c == "\\" and not escaped
        elif c in "'\"":
            quote = c
        elif c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
        else:
            depth += (c in "[({") - (c in "])}")
    return [*parts, text[start:].strip()] if text.strip() else []


def shape_text(shape: tuple[Dim, ...]) -> str:
    return "x".join(map(str, shape))
