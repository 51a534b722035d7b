"""Signed engines: an Ed25519 signature of the manifest, which holds the hash of every file.

Hashes tell that an engine is as it was written; a signature tells who wrote it. Keys are PEM files
such as openssl makes. Needs the package cryptography, and only here.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arcompile.errors import MACHINE, ArcError, quoted
from arcompile.runtime.bundle import MANIFEST, MAX_MANIFEST

FILE = "manifest.sig"  # JSON: {"algorithm": "ed25519", "key": ..., "signature": ...}, in base64
MAX_KEY = 1 << 14  # bytes of a file that may be a key
MAKE = ("openssl genpkey -algorithm ed25519 -out my.key; "
        "openssl pkey -in my.key -pubout -out my.pub")


def _package() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise ArcError("signatures need cryptography, which is not installed", code=MACHINE,
                       hint="pip install 'arcompile[sign]'") from None
    return serialization, ed25519


def _read(path: Path, what: str, most: int) -> bytes:
    try:
        with path.open("rb") as f:
            found = f.read(most + 1)
    except OSError as e:
        raise ArcError(f"cannot read {what} {path}: {e.strerror}") from None
    if len(found) > most:
        raise ArcError(f"{what} {path} is larger than {most} bytes")
    return found


def _key(path: Path, secret: bool) -> Any:
    """The secret or public key in a PEM file. Raises ArcError."""
    serialization, ed25519 = _package()
    raw = _read(path, "key", MAX_KEY)
    try:
        if secret:
            key = serialization.load_pem_private_key(raw, None)
        else:
            key = serialization.load_pem_public_key(raw)
    except (ValueError, TypeError) as e:
        what = f"a secret key: {quoted(e, 80)}" if secret else "a public key"
        raise ArcError(f"{path} is not {what}", hint=MAKE) from None
    kinds = (ed25519.Ed25519PrivateKey, ed25519.Ed25519PublicKey)
    if not isinstance(key, kinds):
        raise ArcError(f"{path} is not an Ed25519 key", hint=MAKE)
    return key


def sign(folder: Path, key: Path) -> Path:
    """Write the signature of an engine's manifest beside it; its path. Raises ArcError."""
    made = _key(key, secret=True)
    manifest = _read(folder / MANIFEST, "engine manifest", MAX_MANIFEST)
    said = {"algorithm": "ed25519", "key": _text(made.public_key().public_bytes_raw()),
            "signature": _text(made.sign(manifest))}
    path = folder / FILE
    try:
        path.write_text(json.dumps(said) + "\n")
    except OSError as e:
        raise ArcError(f"cannot write {path}: {e.strerror}") from None
    return path


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def check(folder: Path, key: Path, manifest: Mapping[str, Any]) -> None:
    """Raise ArcError unless the owner of the public `key` signed this very manifest.

    What the signature file says of keys is for people; only `key` is believed.
    """
    pinned = _key(key, secret=False)
    try:
        said = json.loads(_read(folder / FILE, "signature", MAX_KEY))
        signature = base64.b64decode(said["signature"], validate=True)
    except ArcError:
        raise ArcError(f"{folder} is not signed",
                       hint="arcompile sign ENGINE --key my.key") from None
    except (ValueError, LookupError, TypeError, RecursionError, binascii.Error):
        raise ArcError(f"the signature of {folder} cannot be read") from None
    signed = _read(folder / MANIFEST, "engine manifest", MAX_MANIFEST)
    from cryptography.exceptions import InvalidSignature

    try:
        pinned.verify(signature, signed)
    except InvalidSignature:
        raise ArcError(f"{folder} is not signed by the key {key}",
                       hint="it was changed, or somebody else built it") from None
    if json.loads(signed) != manifest:  # it was exchanged since it was read
        raise ArcError(f"the manifest of {folder} changed while it was checked")
