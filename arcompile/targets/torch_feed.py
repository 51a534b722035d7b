"""What a scale adds to the picture so far, as one kernel: the pattern of VAR's feed graphs."""

from __future__ import annotations

from typing import Any

from arcompile.ir import Graph, Node, Value

Parts = dict[str, Any]


def feed(g: Graph, n: Node) -> tuple[Parts, set[Node]] | None:
    """f_hat + (h * a + conv3x3(h) * b) with a + b = 1, h the looked-up codes, enlarged or not:
    the operands of kernel var_feed by name, and the nodes that are inside."""
    if n.op != "add":
        return None
    for state, added in (n.args, n.args[::-1]):
        total = g.producer.get(added)
        if total is None or total.op != "add" or state not in g.params:
            continue
        for first, second in (total.args, total.args[::-1]):
            found = _mixed(g, first, second)
            if found is None:
                continue
            parts, inside = found
            inside.add(total)
            results = {v for _, v in g.results}
            shut = all(v not in results and set(g.users[v]) <= inside | {n}
                       for p in inside for v in p.outs)
            if shut and len(g.users[state]) == 1:
                return {**parts, "f_hat": state}, inside
    return None


def _made(g: Graph, v: Value, op: str) -> Node | None:
    found = g.producer.get(v)
    return found if found is not None and found.op == op else None


def _scaled(g: Graph, v: Value) -> tuple[Value, float, Node] | None:
    """(x, factor, the product) where v is x times a constant."""
    product = _made(g, v, "mul")
    if product is None:
        return None
    for x, factor in (product.args, product.args[::-1]):
        const = _made(g, factor, "const")
        if const is not None and isinstance(const.attrs["value"], float):
            return x, const.attrs["value"], product
    return None


def _mixed(g: Graph, own: Value, mixed: Value) -> tuple[Parts, set[Node]] | None:
    a, b = _scaled(g, own), _scaled(g, mixed)
    if a is None or b is None or abs(a[1] + b[1] - 1) > 1e-6:
        return None
    conv = _made(g, b[0], "conv2d")
    if conv is None or conv.args[0] is not a[0] or len(conv.args) != 3:
        return None
    usual = {"stride": 1, "groups": 1, "pads": (1, 1, 1, 1)}
    if any(tuple(x) != usual[k] if isinstance(x, list | tuple) else x != usual[k]
           for k, x in {**usual, **conv.attrs}.items()) or conv.args[1].type.shape[2:] != (3, 3):
        return None
    found = _looked_up(g, a[0])
    if found is None:
        return None
    parts, inside = found
    return ({**parts, "weight": conv.args[1], "bias": conv.args[2], "share": b[1]},
            inside | {a[2], b[2], conv})


def _looked_up(g: Graph, h: Value) -> tuple[Parts, set[Node]] | None:
    """h = [resize](reshape(transpose(gather(codebook, token))))."""
    inside = set[Node]()
    if (resize := _made(g, h, "resize")) is not None:
        if resize.attrs["mode"] != "bicubic" or h.type.shape[2] != h.type.shape[3]:
            return None
        inside.add(resize)
        h = resize.args[0]
    shaped = _made(g, h, "reshape")
    turned = _made(g, shaped.args[0], "transpose") if shaped else None
    rows = _made(g, turned.args[0], "gather") if turned else None
    if shaped is None or turned is None or rows is None or turned.attrs["perm"] != (0, 2, 1):
        return None
    side = h.type.shape[2]
    if rows.attrs["axis"] != 0 or not rows.args[0].is_weight or side != h.type.shape[3]:
        return None
    return ({"codebook": rows.args[0], "token": rows.args[1], "side": side},
            inside | {shaped, turned, rows})
