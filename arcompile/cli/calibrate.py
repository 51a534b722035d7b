"""arcompile calibrate: the ranges that passes read: smooth, awq, int8-conv, kv-hack, kv-scale."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from arcompile.cli.options import Decoder, Family, Json, Option, parse_options
from arcompile.cli.terminal import Bars, print_json
from arcompile.errors import ArcError


def calibrate(
    checkpoint: Annotated[str, typer.Argument(
        metavar="CKPT", help="A published file or folder, or the name of a shipped demo.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE.safetensors",
                                      help="Where the ranges go.")],
    pictures: Annotated[int, typer.Option("--pictures", metavar="N",
                                          help="How many to draw and look at.")] = 8,
    decoder: Decoder = None,
    family: Family = None,
    option: Option = None,
    as_json: Json = False,
) -> None:
    """Draw some pictures, and write what products and convolutions met while they were drawn."""
    from arcompile.calibrate import calibrate as see
    from arcompile.compile import read
    from arcompile.passes.ranges import HEADS

    if out.suffix != ".safetensors" or out.is_dir() or not out.parent.is_dir():
        raise ArcError(f"cannot write ranges to {out}",
                       hint="name a .safetensors file in a folder that is there")
    with Bars() as bars:
        model = read(checkpoint, decoder, family, parse_options(option), bars)
        found = see(model, out, pictures, progress=bars)
    if as_json:
        print_json({"path": str(out), "ranges": len(found), "pictures": pictures})
        return
    print(f"{len(found)} ranges of {pictures} pictures in {out}")
    print(f'next: arcompile build {checkpoint} --passes "smooth{{ranges=\'{out}\'}}, int8"'
          " (or awq and int4)")
    if any(k.endswith(HEADS) for k in found):
        print(f'or: arcompile build {checkpoint} --passes "kv-hack{{ratio=0.5,ranges=\'{out}\'}}"'
              " (or kv-scale)")
