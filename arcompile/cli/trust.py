"""arcompile sign, verify: who made an engine, and is it as they made it?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from arcompile.cli.options import Json
from arcompile.cli.terminal import print_json

Folder = Annotated[Path, typer.Argument(metavar="ENGINE", help="An engine folder.")]


def sign(
    engine: Folder,
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="A secret Ed25519 key, as "
        "`openssl genpkey -algorithm ed25519` writes it.")],
    as_json: Json = False,
) -> None:
    """Sign an engine with your key. Its files are checked first."""
    from arcompile.runtime import bundle, signature

    bundle.verify(engine, bundle.read_manifest(engine))
    path = signature.sign(engine, key)
    print_json({"signature": str(path)}) if as_json else print(f"signed: {path}")


def verify(
    engine: Folder,
    key: Annotated[Path | None, typer.Option("--key", metavar="FILE", help="The public key of "
        "whoever must have signed it.")] = None,
    as_json: Json = False,
) -> None:
    """Check every file of an engine, and who signed it. Nothing of it is run."""
    from arcompile.runtime import bundle, signature

    manifest = bundle.read_manifest(engine)
    if key is not None:
        signature.check(engine, key, manifest)
    bundle.verify(engine, manifest)
    told = {"files": len(manifest["files"]), "signed_by": str(key) if key else None,
            "bytes": sum(x["bytes"] for x in manifest["files"].values())}
    who = f", signed by {key}" if key else "; no signature was asked for (--key)"
    print_json(told) if as_json else print(f"{told['files']} files are as they were written{who}")
