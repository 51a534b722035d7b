"""The authors' loops that engines are compared with draw what the engines draw, at tiny size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import plain
import pytest
import torch

from arcompile.bench import eager, suites
from arcompile.family import FAMILIES

pytestmark = pytest.mark.ort


def both(name: str, folder, **options):
    source = FAMILIES[name].random("tiny")
    decoder = plain.shaken(source.decoder) if source.decoder is not None else None
    source = replace(source, tensors=plain.shaken(source.tensors, scale=0.15), decoder=decoder)
    return plain.engine(name, source, folder, **options), eager.load(name, source)


def test_janus(tmp_path):
    engine, loop = both("janus", tmp_path)
    prompts = suites.condition(engine.manifest["info"], 2)
    loop.begin(prompts, 3.0, 0.0, 0)
    tokens = torch.cat([loop.step() for _ in engine.program.steps], 1)
    out = engine.generate(prompts, guidance=3.0, temperature=0)
    assert (tokens.numpy() == out.tokens).all()
    assert len(set(tokens.ravel().tolist())) > 3
    plain.near(out.pixels, loop.finish(tokens), 1e-4)


def test_hmar(tmp_path):
    engine, loop = both("hmar", tmp_path)
    loop.begin([1, 3], 2.0, 0.0, 0)
    tokens = torch.cat([loop.step() for _ in engine.program.steps], 1)
    out = engine.generate([1, 3], guidance=2.0, temperature=0, top_k=0)
    assert (tokens.numpy() == out.tokens).all()
    assert len(set(tokens.ravel().tolist())) > 3
    plain.near(out.pixels, loop.finish(tokens), 1e-4)


def test_xar(tmp_path):
    engine, loop = both("xar", tmp_path)
    loop.begin([1, 3], 2.0, 1.0, 0)
    for _ in engine.program.steps:
        loop.step()
    noise = np.zeros((len(loop.noise) + 1, *loop.noise[0].shape), np.float32)
    noise[:-1, :, loop.order.numpy()] = loop.noise.numpy()  # the clean pass after them uses none
    out = engine.generate([1, 3], guidance=2.0, temperature=1.0, initial_noise=noise[0],
                          noise=noise[1:].transpose(1, 2, 0, 3))
    plain.near(out.latents, loop.latents, 1e-5)
    plain.near(out.pixels, loop.finish(None), 1e-4)
