"""The generic door: docs/row_model.py builds from a file of its own, and draws what torch draws."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import arcompile

FILE = Path(__file__).parent.parent / "docs" / "row_model.py"


@pytest.fixture(scope="module")
def own():
    spec = importlib.util.spec_from_file_location("row_model", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def engine(own, tmp_path_factory):
    return own.main(tmp_path_factory.mktemp("rows"))


@torch.no_grad()
def by_hand(own, net, label, guidance):
    """Greedy rows, without a cache: the whole prefix again for every row."""
    rows, heads = [], own.HEADS
    inputs = [net.label.weight[[label, own.CLASSES]][:, None] + net.place[0]]
    for i in range(own.SIDE):
        x = torch.cat(inputs, 1)
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2)
                   for t in net.qkv(net.norm(x)).chunk(3, -1))
        at = torch.arange(x.shape[1]) // own.SIDE
        seen = torch.nn.functional.scaled_dot_product_attention(q, k, v, at[:, None] >= at)
        cond, null = net.head(x + net.out(seen.transpose(1, 2).flatten(2)))[:, -own.SIDE :]
        rows.append((null + guidance * (cond - null)).argmax(-1))
        if i + 1 < own.SIDE:
            inputs.append((net.code(rows[-1]) + net.place[i + 1])[None].expand(2, -1, -1))
    return torch.cat(rows).numpy()


def test_it_draws_what_torch_draws(own, engine):
    net = own.RowModel()
    net.load_state_dict(torch.load(engine.folder.parent / "rows.pt", weights_only=True))
    out = engine.generate([1, 4], guidance=2.5, temperature=0)
    for label, tokens in zip((1, 4), out.tokens, strict=True):
        assert (tokens == by_hand(own, net, label, 2.5)).all()
    assert len(np.unique(out.tokens)) > 5


def test_it_is_recognised_by_its_tensors(own, engine, tmp_path):
    found = arcompile.build(engine.folder.parent / "rows.pt", out=tmp_path / "e")
    assert found.manifest["family"] == "rows"
    assert (found.generate(3, seed=4).tokens == engine.generate(3, seed=4).tokens).all()
