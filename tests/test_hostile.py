"""What strangers hand us: engines, IR text, options and folders that lie. One ArcError, or fine.

Checkpoints have tests of their own (test_checkpoint_lies.py). A short run of every fuzz target by
default, a long one by `--nightly`.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import engines
import numpy as np
import pytest
import tiny
from fuzz.folder import plain
from fuzz.hostile import CORPUS, TARGETS, attack, changed, seeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arcompile import safetensors
from arcompile.errors import ArcError
from arcompile.runtime import bundle
from arcompile.runtime.engine import load
from arcompile.weights import used


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_taken_or_refused(name):
    assert seeds(name)
    assert not [said for data in seeds(name) if (said := attack(name, data))]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # weights that are no numbers
def test_changed(name, request):
    many = request.config.getoption("--nightly")

    @settings(max_examples=2000 if many else 25, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(seeds(name)), st.integers(0, 1 << 40))
    def one(data, seed):
        assert not attack(name, changed(data, Random(seed)))

    one()


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda b: b.decode(errors="replace")))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_any_text(said):
    for name in ("text", "options", "program"):
        assert not attack(name, said.encode(errors="replace"))


NASTY = (None, True, -1, 1 << 70, 1e400, "", "\0", "../../etc/passwd", [], {}, [[]] * 3,
         {"a": {"b": {}}}, [None], {"program.json": None}, {"../x": {"bytes": 1, "sha256": ""}})


@pytest.fixture
def copy(tmp_path):
    import shutil

    return Path(shutil.copytree(plain(), tmp_path / "engine"))


def said(folder: Path) -> dict:
    return json.loads((folder / bundle.MANIFEST).read_text())


def drawn_or_refused(folder: Path) -> None:
    try:
        e = load(folder)
        repr(e)
        e.generate(1, seed=1)
    except ArcError as x:
        if "\n" in x.what:
            raise ValueError(f"more than a line: {x.what!r}") from x


@pytest.mark.parametrize("field", [*json.loads((plain() / bundle.MANIFEST).read_text()), "plan"])
def test_every_field_of_a_manifest(field, copy):
    was = said(copy)
    for value in NASTY:
        (copy / bundle.MANIFEST).write_text(json.dumps({**was, field: value}))
        drawn_or_refused(copy)
    (copy / bundle.MANIFEST).write_text(json.dumps({k: v for k, v in was.items() if k != field}))
    drawn_or_refused(copy)


def test_every_field_of_a_program(copy):
    was = json.loads((copy / "program.json").read_text())
    for field in was:
        for value in NASTY:
            (copy / "program.json").write_text(json.dumps({**was, field: value}))
            engines.signed(copy)
            drawn_or_refused(copy)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "1" * 100_000, "\x00", "nul",
                                  '{"format": 1e999}', '{"format": NaN}', "[]", '""'])
def test_json_that_is_none(text, copy):
    (copy / bundle.MANIFEST).write_text(text)
    with pytest.raises(ArcError):
        load(copy)


def test_files_that_changed(copy):
    """Longer, shorter, another of the same length, swapped with a neighbour, gone, or a link."""
    names = sorted(said(copy)["files"])
    for i, name in enumerate(names):
        path, other = copy / name, copy / names[i - 1]
        was = path.read_bytes()
        turned = bytes([was[0] ^ 1]) + was[1:]
        for body in (was + b"\0", was[:-1], turned, b"", other.read_bytes()):
            if body != was:
                path.write_bytes(body)
                with pytest.raises(ArcError):
                    load(copy)
        path.unlink()
        for make in (lambda: None, lambda p=path, o=other: p.symlink_to(o),
                     lambda p=path: p.symlink_to("/etc/hostname"), path.mkdir):
            make()
            with pytest.raises(ArcError, match="missing"):
                load(copy)
            if path.is_symlink():
                path.unlink()
        path.rmdir()
        path.write_bytes(was)
    drawn_or_refused(copy)


@pytest.mark.ort
@pytest.mark.parametrize("where", ["../secret", "/etc/hostname", "link"])
def test_weights_outside_the_engine_are_not_read(where, tmp_path):
    """A graph that asks for bytes of another file: ONNX Runtime refuses, and so do we."""
    import onnx

    folder = engines.write(tmp_path / "e", p := tiny.llama(1), tiny.weights(p), 16)
    (tmp_path / "secret").write_bytes(b"x" * (1 << 20))
    if where == "link":
        (folder / "link").symlink_to(tmp_path / "secret")
    model = onnx.load(folder / "step.onnx", load_external_data=False)
    for t in model.graph.initializer:
        for pair in t.external_data:
            pair.value = where if pair.key == "location" else pair.value
    onnx.save(model, folder / "step.onnx")
    manifest = said(folder)
    manifest["files"]["step.onnx"] = bundle.entry(folder / "step.onnx")
    (folder / bundle.MANIFEST).write_text(json.dumps(manifest))
    e = load(folder)
    with pytest.raises(ArcError):
        e.generate(1, seed=1)


def test_weights_that_lie(copy):
    """Another shape, another dtype, none at all: no graph runs on them."""
    path = copy / "weights.safetensors"
    held = safetensors.mapped(path)
    types = {k: v.type for k, v in used(tiny.llama(1).graphs).items()}
    lies = {"lacks": {k: t for k, t in types.items() if k != "@head"},
            "bent": {**types, "@head": type(types["@head"])("f32", (8, 16))},
            "wide": {**types, "@head": type(types["@head"])("f64", (16, 8))}}
    arrays = {k: np.array(v) for k, v in held.items()}
    for lie in lies.values():
        safetensors.write(path, lie, lambda k, t=lie: arrays[k].reshape(t[k].shape).astype(
            "f8" if t[k].dtype == "f64" else "f4"))
        engines.signed(copy)
        with pytest.raises(ArcError, match="has no @head"):
            load(copy)


def test_the_corpus_is_kept():
    assert {p.name for p in CORPUS.iterdir()} == {*TARGETS}
