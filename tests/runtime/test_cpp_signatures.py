"""Signed engines in libarcompile: what Python believes, and Python's words for what it does not."""

from __future__ import annotations

import base64
import json
import shutil

import engines
import pytest

import arcompile
from arcompile.errors import MACHINE, ArcError
from arcompile.runtime import signature

pytestmark = pytest.mark.ort


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Files: what a key may be, and what none is."""
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    folder = tmp_path_factory.mktemp("keys")
    pem, public = s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo
    for name in ("mine", "theirs"):
        key = ed25519.Ed25519PrivateKey.generate()
        (folder / name).write_bytes(
            key.private_bytes(pem, s.PrivateFormat.PKCS8, s.NoEncryption()))
        (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(pem, public))
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    (folder / "ec.pub").write_bytes(other.public_bytes(pem, public))
    (folder / "text.pub").write_text("no key")
    (folder / "empty.pub").write_text("")
    (folder / "large.pub").write_text("x" * (signature.MAX_KEY + 1))
    (folder / "folder.pub").mkdir()
    shutil.copy(folder / "mine", folder / "secret.pub")
    return folder


@pytest.fixture
def engine(folders, keys, tmp_path):
    folder = shutil.copytree(folders(""), tmp_path / "engine")
    signature.sign(folder, keys / "mine")
    return folder


def refusals(lib, engine, key):
    """What both runtimes say."""
    said = []
    for load in (lib.open, arcompile.load):
        with pytest.raises(ArcError) as e:
            load(engine, signed_by=key)
        said.append((e.value.what, e.value.hint))
    return said


def test_a_signed_engine_opens(lib, engine, keys):
    drawn = lib.open(engine, signed_by=keys / "mine.pub").generate([1], seed=2)
    assert (drawn.tokens == arcompile.load(engine).generate(1, seed=2).tokens).all()
    assert lib.open(engine).generate([1], seed=2).tokens.tobytes() == drawn.tokens.tobytes()


@pytest.mark.parametrize("key", ["theirs", "ec", "text", "empty", "large", "folder", "secret",
                                 "absent"])
def test_other_keys_and_none(lib, engine, keys, key):
    mine, theirs = refusals(lib, engine, keys / f"{key}.pub")
    assert mine == theirs
    assert f"{key}.pub" in mine[0]


def _said(text):
    return lambda f: (f / "manifest.sig").write_text(text)


def _signature(change):
    def to(folder):
        said = json.loads((folder / "manifest.sig").read_text())
        raw = change(bytearray(base64.b64decode(said["signature"])))
        said["signature"] = base64.b64encode(raw).decode()
        (folder / "manifest.sig").write_text(json.dumps(said))
    return to


def _rehashed(folder):
    (folder / "labels.json").write_text('["x", "y", "z"]')
    engines.signed(folder)  # of its hashes: whoever changes a file can do that


FORGED = {
    "rehashed": _rehashed,
    "space": lambda f: (f / "manifest.json").write_text((f / "manifest.json").read_text() + " "),
    "bit": _signature(lambda raw: bytes([raw[0] ^ 1]) + raw[1:]),
    "short": _signature(lambda raw: raw[:63]),
    "long": _signature(lambda raw: raw + b"\0"),
    "none": lambda f: (f / "manifest.sig").unlink(),
    "large": _said("x" * 100_000),
    "deep": _said("[" * 10_000),
    **{text or "nothing": _said(text) for text in (
        "", "[]", "{}", "3", '{"signature": 3}', '{"signature": "!"}', '{"signature": ""}',
        '{"signature": "QQ="}', '{"signature": "QQ=="}', '{"signature": "Q==="}',
        '{"signature": "QUFB\\n"}', '{"signature": "é"}', '{"signature": "=QQ="}')},
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_in_the_same_words(lib, engine, keys, name):
    FORGED[name](engine)
    mine, theirs = refusals(lib, engine, keys / "mine.pub")
    assert mine == theirs
    assert "sign" in mine[0]


def test_without_libcrypto_nothing_is_believed(lib, engine, keys, monkeypatch):
    monkeypatch.setenv("ARC_CRYPTO_LIBRARY", "/none.so")
    with pytest.raises(ArcError, match="signatures need libcrypto, which is not found") as e:
        lib.open(engine, signed_by=keys / "mine.pub")
    assert e.value.code == MACHINE
    assert "ARC_CRYPTO_LIBRARY" in e.value.hint
    monkeypatch.setenv("ARC_CRYPTO_LIBRARY", "libm.so.6")  # a library, but another
    with pytest.raises(ArcError, match="signatures need libcrypto"):
        lib.open(engine, signed_by=keys / "mine.pub")


@pytest.mark.parametrize("name", ["zz.onnx", "aa.arc"])
def test_a_graph_that_nobody_listed(lib, engine, name):
    shutil.copy(engine / "step.onnx", engine / "zzz.onnx")
    (engine / name).write_bytes(b"x")
    said = []
    for load in (lib.open, arcompile.load):
        with pytest.raises(ArcError) as e:
            load(engine)
        said.append((e.value.what, e.value.hint))
    assert said[0] == said[1]
    assert said[0][0].startswith(f"{name} is in ")


def test_pictures_beside_an_engine_do_not_matter(lib, engine):
    (engine / "picture.png").write_bytes(b"")
    (engine / ".onnx").write_bytes(b"")  # a name, not a kind
    assert (lib.open(engine).generate([0]).tokens
            == arcompile.load(engine).generate(0).tokens).all()
