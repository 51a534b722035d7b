"""The import arrow of the design: each layer knows the ones before it, and nothing after it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("arcompile", "passes", "kernels", "models", "bench")
# Left to right; a module may import its own layer and those before it. Others come last.
LAYERS = (
    ("errors", "debug", "cache"),
    ("dims", "ir", "ops", "text"),
    ("program", "program_text", "weights", "sampling", "raster", "speculation", "drafting",
     "safetensors", "walk"),
    ("rewrite",),
    ("registry", "pipeline", "cost", "liveness", "plan", "analysis", "bisect", "checkpoint",
     "torch_file", "digest"),
    ("target", "family", "kernel"),
    ("nn", "export", "runtime"),
    ("partner",),
    ("passes", "kernels", "models", "targets"),
    ("choose", "quality", "ceilings", "auto", "glance"),
    ("compile",),
    ("calibrate",),
)
RANK = {name: i for i, layer in enumerate(LAYERS) for name in layer}
HEAVY = {"torch", "onnx", "onnxruntime", "onnx_ir", "onnxscript", "triton", "tensorrt",
         "matplotlib", "networkx"}
MAY = {"models": {"torch"}, "nn": {"torch"}, "export": {"torch"}, "analysis": {"networkx"},
       "bench": {"torch"}}
NEVER = {"passes": HEAVY}  # not even inside a function


def modules() -> dict[str, Path]:
    """Dotted name -> file, whatever folder it is mapped from."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "examples" in path.parts:
                continue
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if folder == "arcompile" else ("arcompile", *parts)
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path, deep: bool = False) -> Iterator[str]:
    """What a file imports at import time, or anywhere when deep; types alone do not count."""
    todo: list[ast.AST] = [tree(path)]
    while todo:
        n = todo.pop()
        if isinstance(n, ast.Import):
            yield from (a.name for a in n.names)
        elif isinstance(n, ast.ImportFrom):
            assert not n.level, f"{path}: relative import"
            yield from (f"{n.module}.{a.name}" for a in n.names)
        typing = isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"
        if not typing and (deep or not isinstance(n, ast.FunctionDef)):
            todo += ast.iter_child_nodes(n)


def part(module: str) -> str:
    """`arcompile.ops.nn` -> `ops`."""
    return [*module.split("."), ""][1]


def against_the_arrow(name: str) -> Iterator[str]:
    here = part(name)
    rank = RANK.get(here, len(LAYERS))
    for target in imports(MODULES[name]):
        there = part(target)
        if target.split(".")[0] != "arcompile" or there not in RANK or here == there:
            continue
        siblings = RANK[there] == rank == RANK["passes"] and (here, there) != ("targets", "kernels")
        if RANK[there] > rank or siblings:
            yield f"{name} imports {target}"


def test_the_arrow():
    assert not [bad for name in MODULES for bad in against_the_arrow(name)]


def test_the_arrow_is_checked():
    """A made-up module that looks right is caught."""
    MODULES["arcompile.dims_"] = MODULES["arcompile.compile"]
    RANK["dims_"] = 1
    try:
        assert "arcompile.dims_ imports arcompile.pipeline.Pass" in [*against_the_arrow(
            "arcompile.dims_")]
    finally:
        del MODULES["arcompile.dims_"], RANK["dims_"]


def test_heavy_packages_come_late():
    """At import time only where they are needed; in passes, which speak IR alone, never."""
    for name, path in MODULES.items():
        banned = NEVER.get(part(name), set())
        assert not banned & {m.split(".")[0] for m in imports(path, deep=True)}, name
        top = {m.split(".")[0] for m in imports(path)}
        assert top & HEAVY <= MAY.get(part(name), set()), name


def test_passes_know_no_target_and_no_model():
    for name, path in MODULES.items():
        if part(name) == "passes":
            parts = {part(m) for m in imports(path, deep=True) if m.startswith("arcompile.")}
            assert not parts & {"targets", "models", "export", "nn", "runtime"}, name


def test_folders_are_imported_by_their_mapped_name():
    for name, path in MODULES.items():
        tops = {m.split(".")[0] for m in imports(path, deep=True)}
        assert not tops & set(FOLDERS[1:]), name


def test_imports_with_nothing_installed():
    """Every module but those of MAY imports where the heavy packages are missing."""
    names = [n for n in MODULES if part(n) not in MAY and not n.endswith("__main__")]
    code = (f"import importlib, sys\nsys.modules.update(dict.fromkeys({sorted(HEAVY)!r}))\n"
            f"for name in {names!r}:\n    importlib.import_module(name)\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_checkout_imports_uninstalled():
    """-S: without the hooks of an installed arcompile."""
    code = "import arcompile\n" + "".join(f"import arcompile.{f}\n" for f in FOLDERS[1:])
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True,
                          cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


def test_import_is_quick():
    """`import arcompile` loads no heavy package, not even numpy."""
    code = f"import arcompile, sys; print(sorted(set(sys.modules) & {HEAVY | {'numpy'}!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_targets_are_told_apart_without_heavy_packages():
    """To open an engine all targets are looked at: those that it does not use cost nothing."""
    code = ("import sys\nfrom arcompile.target import TARGETS\nTARGETS.all()\n"
            f"print(sorted(set(sys.modules) & {HEAVY!r}))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
