"""Symbolic sizes: a dim is an int or a canonical polynomial like `2*b` or `past+s`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache, reduce

from arcompile.errors import IRError

Dim = int | str
_Poly = dict[tuple[str, ...], int]  # sorted symbols of a monomial -> coefficient
_FACTOR = r"(?:[0-9]{1,18}|[A-Za-z_]\w*)"
_TERM = rf"{_FACTOR}(?:\*{_FACTOR})*"
_SUM = re.compile(rf"[+-]?{_TERM}(?:[+-]{_TERM})*", re.ASCII)


@lru_cache(4096)
def _terms(d: Dim) -> tuple[tuple[tuple[str, ...], int], ...]:
    if isinstance(d, int):
        return (((), d),) if d else ()
    poly: _Poly = {}
    if not _SUM.fullmatch(d):
        raise IRError(f"not a size: {d[:80]!r}", hint="write a size like 4, b or 2*b+1")
    for sign, term in re.findall(r"([+-]?)([^+-]+)", d):
        coef, symbols = (-1 if sign == "-" else 1), []
        for factor in term.split("*"):
            if factor.isdigit():
                coef *= int(factor)
            else:
                symbols.append(factor)
        key = tuple(sorted(symbols))
        poly[key] = poly.get(key, 0) + coef
    return tuple(sorted((k, c) for k, c in poly.items() if c))


def _dim(poly: Mapping[tuple[str, ...], int]) -> Dim:
    """The canonical form: monomials with symbols first, the constant last."""
    items = sorted(((k, c) for k, c in poly.items() if c), key=lambda kc: (not kc[0], kc[0]))
    if not items:
        return 0
    if len(items) == 1 and not items[0][0]:
        return items[0][1]
    text = ""
    for symbols, c in items:
        body = "*".join(([str(abs(c))] if abs(c) != 1 or not symbols else []) + list(symbols))
        text += ("-" if c < 0 else "+" if text else "") + body
    return text


def parse_dim(text: str) -> Dim:
    return _dim(dict(_terms(text)))


def add(a: Dim, b: Dim, sign: int = 1) -> Dim:
    poly = dict(_terms(a))
    for k, c in _terms(b):
        poly[k] = poly.get(k, 0) + sign * c
    return _dim(poly)


def mul(a: Dim, b: Dim) -> Dim:
    poly: _Poly = {}
    for ka, ca in _terms(a):
        for kb, cb in _terms(b):
            key = tuple(sorted(ka + kb))
            poly[key] = poly.get(key, 0) + ca * cb
    return _dim(poly)


def product(dims: Iterable[Dim]) -> Dim:
    one: Dim = 1
    return reduce(mul, dims, one)


def divide(a: Dim, b: Dim) -> Dim | None:
    """a / b when b is one monomial that divides every term of a, else None."""
    if len(_terms(b)) != 1:
        return 1 if a == b else None
    (symbols, coef), poly = _terms(b)[0], {}
    for k, c in _terms(a):
        left = list(k)
        for s in symbols:
            if s not in left:
                return None
            left.remove(s)
        if c % coef:
            return None
        poly[tuple(left)] = c // coef
    return _dim(poly)


def symbols(d: Dim) -> set[str]:
    return {s for k, _ in _terms(d) for s in k}


def root(d: Dim, symbol: str, limit: int) -> int:
    """The largest number for `symbol`, up to a limit, at which `d` is not negative: a size of that
    symbol alone, to the first power."""
    none, one = (value(d, {symbol: n}) for n in (0, 1))
    return min(limit, none // (none - one)) if one < none else limit


def value(d: Dim, sizes: Mapping[str, int]) -> int:
    """The number a dim stands for, given a number for each symbol."""
    total = 0
    for names, c in _terms(d):
        for n in names:
            if n not in sizes:
                raise IRError(f"size {n!r} is not bound", hint=f"bound: {sorted(sizes)}")
            c *= sizes[n]
        total += c
    return total
