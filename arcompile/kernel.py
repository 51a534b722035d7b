"""What a GPU kernel is: versions of one operation, each checked against its numpy meaning.

A file in kernels/ declares a Kernel (inputs, meaning, shapes, cost) and its versions, each a
function of torch tensors with the decorator `@kernel("name")`. Tests, timing and targets walk the
registry; nothing else knows a kernel's name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from arcompile.errors import MACHINE, ArcError
from arcompile.registry import Registry

DTYPES = ("f32", "f16", "bf16")


@dataclass(frozen=True)
class Case:
    """One problem: sizes and options by name, and the dtype of the large tensors."""

    sizes: Mapping[str, Any]
    dtype: str = "f32"

    def __getattr__(self, name: str) -> Any:
        try:
            return self.sizes[name]
        except KeyError:
            raise AttributeError(name) from None

    def __str__(self) -> str:
        return f"{self.dtype} " + " ".join(f"{k}={v}" for k, v in self.sizes.items())


def case(dtype: str = "f32", **sizes: Any) -> Case:
    return Case(MappingProxyType(sizes), dtype)


@dataclass(frozen=True)
class Version:
    """One rung of a kernel's ladder.

    run takes the tensors and options of the meaning, by name, and returns its results in order.
    needs: packages. arch: compute capabilities it is compiled for, at least. takes: "" or the
    reason it cannot do a case. tune: further options of `run` worth trying, such as block sizes.
    """

    name: str
    run: Callable[..., Any]
    needs: tuple[str, ...]
    arch: tuple[int, ...]
    dtypes: tuple[str, ...]
    takes: Callable[[Case], str]
    tune: tuple[Mapping[str, Any], ...] = ({},)

    @property
    def idea(self) -> str:
        return (inspect.getdoc(self.run) or "").partition("\n")[0]

    def refusal(self, c: Case) -> str:
        """"" when it takes this case, else the reason why not, in one line."""
        if c.dtype not in self.dtypes:
            return f"it takes {', '.join(self.dtypes)}, not {c.dtype}"
        return self.takes(c)


@dataclass
class Kernel:
    """An operation with versions.

    about: one line. inputs(case, rng) makes its arguments by name: numpy arrays, and options as
    plain values. reference(**arguments) is the numpy meaning, from the op table, in f32.
    shapes: cases that are checked and timed; the first few are small enough for the Triton
    interpreter. random(rng) makes one more. cost(case) is (flops, bytes moved) at the least.
    exact: arguments that are f32 whatever the case's dtype. large: real shapes, for a GPU.
    tolerance: by dtype, where the common one is not right. peer: the same by torch's own kernels,
    for real shapes that the numpy meaning takes too long for, and to time against; None where torch
    has nothing like it.
    rivals: of a case, others to time against on a GPU, with the same arguments, which need not
    compute the same: a dense kernel, a plain read.
    """

    name: str
    about: str
    inputs: Callable[..., dict[str, Any]]
    reference: Callable[..., Any]
    shapes: Sequence[Case]
    random: Callable[..., Case]
    cost: Callable[[Case], tuple[float, float]]
    exact: Sequence[str] = ()
    large: Sequence[Case] = ()
    tolerance: Mapping[str, float] = field(default_factory=dict)
    peer: Callable[..., Any] | None = None
    rivals: Callable[[Case], dict[str, Callable[..., Any]]] = lambda c: {}
    versions: dict[str, Version] = field(default_factory=dict)

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        return self.about

    def best(self, c: Case, absent: Callable[[Version], str] = lambda v: "") -> Version:
        """The last version of the ladder that takes the case, of those that are not absent (""
        or the reason why this machine cannot run it). Raises ArcError with the reasons."""
        reasons = []
        for v in reversed(self.versions.values()):
            reason = v.refusal(c) or absent(v)
            if not reason:
                return v
            reasons.append(f"{v.name}: {reason}")
        raise ArcError(f"kernel {self.name} takes no {c}", code=MACHINE, hint="; ".join(reasons))


KERNELS: Registry[Kernel] = Registry("kernel", "arcompile.kernels")


def declare(name: str, **how: Any) -> Kernel:
    """Declare a kernel; `how` are the fields of Kernel.

    A file that runs as a program (`python -m`) is imported a second time by its real name: that
    one is registered.
    """
    made = Kernel(name, **how)
    return made if _is_main(how["inputs"]) else KERNELS.add(name, made)


def kernel(name: str, *, needs: Sequence[str] = ("triton",), arch: Sequence[int] = (80, 90),
           dtypes: Sequence[str] = DTYPES,
           takes: Callable[[Case], str] = lambda c: "",
           tune: Sequence[Mapping[str, Any]] = ({},)) -> Callable[[Any], Any]:
    """Declare a version of kernel `name`; the function's name is the version's."""

    def add(fn: Callable[..., Any]) -> Callable[..., Any]:
        if not _is_main(fn):
            made = Version(fn.__name__, fn, tuple(needs), tuple(arch), tuple(dtypes), takes,
                           tuple(tune))
            KERNELS[name].versions[made.name] = made
        return fn

    return add


def _is_main(fn: Callable[..., Any]) -> bool:
    return fn.__module__ == "__main__"
