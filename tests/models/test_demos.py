"""The shipped demos, each built by name: they draw what is asked, and the judge says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import arcompile
from arcompile.models.demo import DEMOS, FOLDER, drawings
from arcompile.models.demo.judge import FILE, score
from arcompile.models.demo.nets_var import PATCH_NUMS, STARTS, VAR, Tokenizer
from arcompile.models.demo.train_var import words

LABELS = list(range(36))  # one of each class
OTHERS = tuple(name for name in DEMOS if name != "demo")


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    made, root = {}, tmp_path_factory.mktemp("demos")

    def get(name: str):
        if name not in made:
            made[name] = arcompile.build(name, out=root / name)
        return made[name]

    return get


@pytest.mark.parametrize("name", OTHERS)
def test_pictures_are_judged_right(engines, name):
    """Far below the card's score and far above what a broken loop draws: 36 pictures are few."""
    engine = engines(name)
    out = engine.generate(LABELS, seed=7, **engine.defaults)
    assert out.images.shape == (36, 64, 64, 3)
    assert score(out.images, np.array(LABELS))["both"] >= 0.75
    assert score(out.images, (np.array(LABELS) + 7) % 36)["both"] <= 0.1


@pytest.mark.parametrize("name", OTHERS)
def test_a_seed_repeats_and_another_differs(engines, name):
    engine = engines(name)
    first, again, other = (engine.generate("green star", seed=s, **engine.defaults).images
                           for s in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("name", DEMOS)
def test_a_demo_is_small(name):
    assert sum((FOLDER / f).stat().st_size for f in DEMOS[name]) <= 8_000_000


def test_every_shipped_file_belongs_to_a_demo_or_is_the_judge():
    assert {*FOLDER.glob("*.safetensors")} == {
        FILE, *(FOLDER / f for files in DEMOS.values() for f in files)}


def test_headers_name_the_classes_and_the_schedule(engines):
    for name in OTHERS:
        assert tuple(engines(name).labels) == drawings.CLASS_NAMES
    told = engines("demo-var").manifest
    assert (told["family"], told["info"]["patch_nums"]) == ("var", [*PATCH_NUMS])


def test_next_scale_logits_are_those_it_was_trained_with(engines):
    """The training module is an independent transcription of VAR."""
    model, vq = VAR(), Tokenizer()
    model.load_state_dict(load_file(FOLDER / DEMOS["demo-var"][0]))
    stored = load_file(FOLDER / DEMOS["demo-var"][1])
    vq.quantize.load_state_dict({k.removeprefix("quantize."): v for k, v in stored.items()
                                 if k.startswith("quantize.")})
    f = torch.nn.functional.normalize(
        torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    with torch.no_grad():
        _, codes, maps = vq.quantize(f)
        expected = [model(label, words(vq, maps)) for label in
                    (torch.tensor([3, 35]), torch.tensor([36, 36]))]
    got = engines("demo-var").logits([3, 35], torch.cat(codes, 1).numpy())
    assert got[0].shape == (2, STARTS[-1], 512)
    for ours, theirs in zip(got, expected, strict=True):
        assert np.abs(ours - theirs.numpy()).max() < 1e-3
