"""Tables filled by import; adding an entry is one file with one decorator."""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from typing import Generic, TypeVar

from arcompile.errors import ArcError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to things of one kind, found by importing every module of one package.

    Other people's modules join through the entry point group `arcompile.plugins`.
    """

    def __init__(self, kind: str, package: str):
        self.kind, self.package = kind, package
        self._found: dict[str, T] = {}
        self._loaded = False

    def add(self, name: str, item: T) -> T:
        if name in self._found:
            raise ArcError(
                f"{self.kind} {name!r} is registered twice",
                hint="import it as arcompile.<folder>.<file>, never as <folder>.<file>",
            )
        self._found[name] = item
        return item

    def __getitem__(self, name: str) -> T:
        if name not in self._found and name not in self.all():
            raise ArcError(f"no {self.kind} named {name!r}", hint=did_you_mean(name, self._found))
        return self._found[name]

    def all(self) -> dict[str, T]:
        if not self._loaded:
            self._loaded = True
            self._import()
        return dict(sorted(self._found.items()))

    def _import(self) -> None:
        try:
            package = importlib.import_module(self.package)
        except ModuleNotFoundError as e:
            if e.name != self.package:
                raise
            raise ArcError(f"{self.package} is not installed", hint="pip install -e .") from None
        for m in pkgutil.iter_modules(package.__path__, self.package + "."):
            importlib.import_module(m.name)
        for plugin in importlib.metadata.entry_points(group="arcompile.plugins"):
            plugin.load()
