"""Folders with one file of a stranger in them: an engine, and a Hugging Face model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import engines
import numpy as np
import tiny
from safetensors.numpy import save_file

from arcompile.checkpoint import open_checkpoint
from arcompile.compile import read
from arcompile.errors import ArcError
from arcompile.runtime.engine import load

FILES = ("manifest.json", "program.json", "prompt.arc", "step.arc", "labels.json",
         "weights.safetensors")
TARGETS = ("reference", "ort-cpu")


@cache
def plain(target: str = "reference") -> Path:
    """An engine of a few kilobytes. Kept for the run."""
    p = replace(tiny.llama(1), finish=()) if target == "reference" else engines.mixed()
    folder, held = Path(mkdtemp(prefix="fuzz-engine")), tiny.weights(p)
    made = engines.write(folder / "e", p, held, 16, target, info={"classes": 3})
    (made / "labels.json").write_text('["a", "b", "c"]')
    engines.signed(made)
    return made


def engine(folder: Path, name: str, body: bytes) -> None:
    """Load it, and draw one picture where it loads."""
    target, _, name = name.rpartition(" ")
    made = folder / "e"
    shutil.copytree(plain(target if target in TARGETS else "reference"), made)
    if name in FILES:
        (made / name).write_bytes(body)
        if name != "manifest.json":
            engines.signed(made)
    e = load(made)
    e.defaults  # noqa: B018
    repr(e)
    cond = 1 if target != "ort-cpu" else {"cond": [1], "extra": np.ones((1, 2), np.float32)}
    for job in (lambda: e.plan(), lambda: e.generate(cond, seed=1)):
        try:
            job()
        except ArcError as x:
            if "\n" in x.what:
                raise ValueError(f"more than a line: {x.what!r}") from x


def hugging_face(folder: Path, said: bytes) -> None:
    """An index of two shards, and a config; the folder is opened and recognised."""
    one = {"a": np.ones((2, 2), np.float32), "b": np.zeros(3, np.float32)}
    save_file(one, folder / "model-1.safetensors")
    save_file({"c": np.ones(2, np.float32)}, folder / "model-2.safetensors")
    first, _, second = said.partition(b"\n\n")
    (folder / "model.safetensors.index.json").write_bytes(first)
    (folder / "config.json").write_bytes(second)
    held = open_checkpoint(folder)
    for name in (w := held.weights()):
        w.load(name)
    read(folder)


def corpus(at: Path) -> None:
    """The files that fuzzing starts from, written anew (`python -m fuzz corpus`)."""
    import torch

    def put(target: str, name: str, data: bytes | str) -> None:
        path = at / target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    p = tiny.llama(1)
    small = {"w": torch.ones(2, 3), "b": torch.zeros(2, dtype=torch.bfloat16)}
    scratch = Path(mkdtemp())
    torch.save({"model": small, "epoch": 3}, scratch / "new.pt")
    torch.save(small, scratch / "old.pt", _use_new_zipfile_serialization=False)
    save_file({"w": np.ones((2, 3), np.float32), "n": np.arange(3)}, scratch / "w.safetensors",
              {"format": "pt"})
    for target, names in {"checkpoint": ("new.pt", "old.pt", "w.safetensors"),
                          "safetensors": ("w.safetensors",)}.items():
        for name in names:
            put(target, name, (scratch / name).read_bytes())
    put("text", "graph.arc", str(p.graph("step")))
    put("text", "program.arc", str(p))
    put("text", "mixed.arc", engines.MIXED)
    put("program", "mixed.json", json.dumps(engines.to_data(engines.mixed())))
    put("program", "llama.json", json.dumps(engines.to_data(p)))
    for i, said in enumerate(("fold, qkv{gate=True}, int4{block=32,only='*'}", "n_head=4 kind=c2i",
                              "4GiB", "f32[r,2*b+1,768]", "past+s-1")):
        put("options", f"{i}.txt", said)
    for name in FILES:
        put("manifest", name, f"reference {name}\n".encode() + (plain() / name).read_bytes())
    for name in ("manifest.json", "program.json", "weights.safetensors"):
        body = (plain("ort-cpu") / name).read_bytes()
        put("manifest", f"ort-{name}", f"ort-cpu {name}\n".encode() + body)
    where = {"weight_map": {"a": "model-1.safetensors", "c": "model-2.safetensors"}}
    put("index", "two.json", json.dumps(where) + "\n\n" + json.dumps({"model_type": "janus"}))
