"""One trace for all tests of a run: tracing our modules with torch is most of what a build takes.

Many tests build the same tiny model, in several processes. A trace depends on the module's
classes, its plain attributes, and the shapes of its weights, never on their values; what says
otherwise (a class of a test's own, an attribute that is no plain value) is traced as always.
"""

from __future__ import annotations

import enum
import fcntl
import hashlib
import pickle
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

from arcompile import compile

PLAIN = (str, bytes, int, float, complex, bool, type(None), enum.Enum)
BOOKS = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}  # of every module
OURS = ("arcompile.", "torch.nn.")


class Unknown(Exception):
    """Something that does not say by its text what it is."""


def install() -> None:
    """From now on `arcompile.compile` traces once. torch is imported when it is used."""
    untold = compile.exported

    def exported(model, *more):
        from arcompile import export

        if not isinstance(export.call, Once):
            export.call = Once(export.call)
        return untold(model, *more)

    compile.exported = exported


class Once:
    """`export.call` that looks first whether anybody has traced the same."""

    folder: Path | None = None  # of this run, the same for all its processes

    def __init__(self, trace):
        self.trace = trace

    def __call__(self, module, entry):
        try:
            text = "\n".join(described(module, entry))
        except Unknown:
            return self.trace(module, entry)
        assert self.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / hashlib.sha256(text.encode()).hexdigest()[:32]
        with open(path, "a+b") as f:
            fcntl.flock(f, fcntl.LOCK_EX)  # another process may be tracing it now
            f.seek(0)
            if held := f.read():
                return pickle.loads(held)
            made = self.trace(module, entry)
            f.write(pickle.dumps(made))
        return made


def described(module, entry) -> Iterator[str]:
    """What a trace depends on, as text."""
    owner = entry.method.__self__
    path = next((name for name, m in module.named_modules() if m is owner), None)
    yield f"{path} {entry.name} {entry.method.__qualname__} {dict(entry.inputs)}"
    seen: dict[int, int] = {}  # a weight may have two names
    for name, m in owner.named_modules():
        if not f"{type(m).__module__}.".startswith(OURS):
            raise Unknown
        own = {k: plain(v) for k, v in sorted(vars(m).items())
               if k not in BOOKS and not k.endswith(("_hooks", "_kwargs", "_always_called"))}
        yield f"{name} {type(m).__module__}.{type(m).__qualname__} {own}"
        for kind in (m._parameters, m._buffers):
            for k, v in kind.items():
                at = seen.setdefault(id(v), len(seen))
                yield f"{k} {at} {v if v is None else (v.dtype, tuple(v.shape))}"


def plain(x: object) -> str:
    if isinstance(x, PLAIN):
        return repr(x)
    if isinstance(x, list | tuple):
        return f"{type(x).__name__}({', '.join(map(plain, x))})"
    if isinstance(x, set | frozenset):
        return f"set({', '.join(sorted(map(plain, x)))})"
    if isinstance(x, dict):
        return f"dict({', '.join(f'{plain(k)}: {plain(v)}' for k, v in x.items())})"
    if is_dataclass(x) and not isinstance(x, type):
        return f"{type(x).__qualname__}({', '.join(plain(getattr(x, f.name)) for f in fields(x))})"
    raise Unknown
