"""arcompile export: what an application needs to embed an engine."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arcompile.errors import ArcError

if TYPE_CHECKING:
    from arcompile.runtime.engine import Engine


def export(
    engine: Annotated[str, typer.Argument(metavar="ENGINE", help="An engine folder.")],
    out: Annotated[str, typer.Argument(metavar="DIR", help="A folder that is not there yet.")],
    cpp_example: Annotated[bool, typer.Option(
        "--cpp-example", help="A CMake project that draws with the engine, by libarcompile.")]
    = False,
) -> None:
    """Write what an application needs to embed an engine."""
    import arcompile

    if not cpp_example:
        raise ArcError("export what?", hint="arcompile export --cpp-example ENGINE DIR")
    loaded, folder = arcompile.load(engine, check=False), Path(out)
    write_example(loaded, folder)
    print(f"wrote {folder}; its README.md says how to build it")


def write_example(engine: Engine, folder: Path) -> None:
    """The consumer example with the engine beside it. Raises ArcError."""
    if folder.exists():
        raise ArcError(f"{folder} exists already", hint="name a new folder")
    example = files("arcompile.runtime") / "cpp" / "examples" / "consumer"
    if not example.is_dir():
        raise ArcError("this installation has no C++ sources", hint="install it from the sources")
    try:
        folder.mkdir(parents=True)
        for name in ("CMakeLists.txt", "draw.cpp"):
            (folder / name).write_text((example / name).read_text())
        shutil.copytree(engine.folder, folder / "engine")
        (folder / "README.md").write_text(_readme(engine))
    except OSError as e:
        raise ArcError(f"cannot write {folder}: {e.strerror}", hint="name another folder") from None


def _readme(engine: Engine) -> str:
    types = ", ".join(f"{k}: {t}" for k, t in engine.program.inputs)
    return f"""# Draws with {engine.manifest['family']}, in C++

    cmake -S . -B build -DCMAKE_PREFIX_PATH=<where libarcompile is installed>
    cmake --build build
    ARC_ORT_LIBRARY=<libonnxruntime.so> build/draw engine 1 picture.ppm {condition(engine)}

The program takes {types}. `draw.cpp` is all there is; change it as you like.
"""


def condition(engine: Engine) -> str:
    """What an engine is asked with, as words of draw.cpp's command line."""
    wanted = dict(engine.program.inputs)
    if set(wanted) == {"cond"}:
        return "0"
    if "prompt" in engine.manifest:
        return "12 34 56"
    sizes = {k: "x".join("1" if i == 0 else str(d) for i, d in enumerate(t.shape))
             for k, t in wanted.items()}
    return " ".join(f"{k}={t.dtype}:{sizes[k]}:{k}.bin" for k, t in wanted.items())
