"""Lower bounds with reasons, a bill of materials, and engines signed by their makers."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import tomllib
from pathlib import Path

import pytest
from fuzz.folder import plain

from arcompile.cli import run as cli
from arcompile.errors import ArcError
from arcompile.runtime import bundle
from arcompile.runtime.engine import load

ROOT = Path(__file__).parents[1]
# What is needed at least, because of holes that are known in what came before.
FIXED = {"onnx": "1.21", "Pillow": "10.3", "torch": "2.6", "cryptography": "44.0.1"}


def bounds() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"],
              *(d for extra in project["optional-dependencies"].values() for d in extra)]
    found = [re.match(r"([\w.-]+)(?:\[.*\])?(?:>=|==)([\w.]+)", d) for d in wanted]
    assert all(found), wanted  # no dependency without a bound
    return {m[1]: m[2] for m in found if m}


def version(text: str) -> tuple[int, ...]:
    return tuple(int(x) for x in re.findall(r"\d+", text))


def test_lower_bounds_leave_known_holes_out():
    for name, least in FIXED.items():
        assert version(bounds()[name]) >= version(least), name


def test_pins_keep_to_the_bounds():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()
                if "==" in line)
    low = {k.lower(): v for k, v in bounds().items()}
    assert not [k for k, v in pins.items() if version(v) < version(low.get(k.lower(), "0"))]


def test_bill_of_materials():
    bill = runpy.run_path(str(ROOT / ".ci" / "sbom.py"))["bill"]()
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    names = {c["name"] for c in bill["components"]}
    assert {"numpy", "onnxruntime", "torch", "onnx", "pillow"} <= names
    assert all(c["purl"].endswith(f"@{c['version']}") for c in bill["components"])
    assert bill["dependencies"][0]["dependsOn"] == [c["bom-ref"] for c in bill["components"]]
    json.dumps(bill)


# --- signatures ----------------------------------------------------------------------------------


@pytest.fixture
def engine(tmp_path):
    return Path(shutil.copytree(plain(), tmp_path / "engine"))


@pytest.fixture
def keys(tmp_path):
    """(secret, public) of two people."""
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    def pair(name):
        key = Ed25519PrivateKey.generate()
        secret, public = tmp_path / f"{name}.key", tmp_path / f"{name}.pub"
        secret.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8,
                                             s.NoEncryption()))
        public.write_bytes(key.public_key().public_bytes(s.Encoding.PEM,
                                                         s.PublicFormat.SubjectPublicKeyInfo))
        return secret, public

    return pair("mine"), pair("theirs")


def test_signed_and_checked(engine, keys, capsys):
    (secret, public), (_, other) = keys
    with pytest.raises(ArcError, match="is not signed"):
        load(engine, signed_by=public)
    assert cli(["sign", str(engine), "--key", str(secret)]) == 0
    assert load(engine, signed_by=public).generate(1).tokens.shape == (1, 4)
    assert cli(["verify", str(engine), "--key", str(public), "--json"]) == 0
    assert cli(["verify", str(engine)]) == 0
    capsys.readouterr()
    assert cli(["verify", str(engine), "--key", str(other)]) == 1
    assert "is not signed by the key" in capsys.readouterr().err
    with pytest.raises(ArcError, match="is not signed by the key"):
        load(engine, signed_by=other)


def test_a_change_that_is_hashed_anew_is_seen(engine, keys):
    import engines

    (secret, public), _ = keys
    cli(["sign", str(engine), "--key", str(secret)])
    (engine / "labels.json").write_text('["x", "y", "z"]')
    engines.signed(engine)  # of its hashes: whoever changes a file can do that
    assert load(engine).labels == ["x", "y", "z"]
    with pytest.raises(ArcError, match="is not signed by the key"):
        load(engine, signed_by=public)


def test_the_key_in_the_signature_is_not_believed(engine, keys):
    """An attacker signs anew, and says so with the owner's public key."""
    (mine, public), (theirs, _) = keys
    cli(["sign", str(engine), "--key", str(mine)])
    named = json.loads((engine / "manifest.sig").read_text())["key"]
    cli(["sign", str(engine), "--key", str(theirs)])
    said = json.loads((engine / "manifest.sig").read_text())
    (engine / "manifest.sig").write_text(json.dumps({**said, "key": named}))
    with pytest.raises(ArcError, match="is not signed by the key"):
        load(engine, signed_by=public)


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"signature": 3}', '{"signature": "!"}',
                                  '{"signature": ""}', "[" * 10_000, "x" * 100_000])
def test_signatures_that_are_none(body, engine, keys):
    (_, public), _ = keys
    (engine / "manifest.sig").write_text(body)
    with pytest.raises(ArcError):
        load(engine, signed_by=public)


def test_keys_that_are_none(engine, keys, tmp_path):
    (secret, public), _ = keys
    (tmp_path / "text").write_text("not a key")
    for key in (secret, tmp_path / "text", tmp_path / "absent", Path("/dev/zero")):
        with pytest.raises(ArcError):
            load(engine, signed_by=key)
    assert cli(["sign", str(engine), "--key", str(public)]) == 1


def test_a_graph_that_nobody_listed(engine):
    """It would be run in place of one that is hashed."""
    (engine / "zz.arc").write_text((engine / "step.arc").read_text())
    with pytest.raises(ArcError, match=r"zz\.arc is in"):
        load(engine)
    (engine / "zz.arc").unlink()
    (engine / "picture.png").write_bytes(b"")
    assert bundle.read_manifest(load(engine).folder)


def test_signing_needs_its_package(engine, tmp_path, monkeypatch):
    import sys

    for name in [m for m in sys.modules if m.startswith("cryptography")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ArcError, match="need cryptography"):
        load(engine, signed_by=tmp_path / "k")
