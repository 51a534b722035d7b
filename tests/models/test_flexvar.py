"""FlexVAR against what upstream computes: greedy tokens and pixels; its schedule; refusals."""

from __future__ import annotations

import numpy as np
import pytest

import arcompile
from arcompile.checkpoint import open_checkpoint
from arcompile.errors import ArcError
from arcompile.family import FAMILIES, Source
from arcompile.models.flexvar import FlexVar, config, program

TARGETS = ("ort-cpu", "reference")
OPTIONS = {"patch_nums": [1, 2, 3, 4, 6]}


@pytest.fixture(scope="module")
def engines(goldens, tmp_path_factory):
    made, root = {}, tmp_path_factory.mktemp("flexvar")

    def get(target: str = "ort-cpu"):
        if target not in made:
            folder = goldens / "flexvar"
            made[target] = arcompile.build(folder / "FlexVAR_tiny.pth", target=target,
                                           decoder=folder / "FlexVAE_tiny.pth", options=OPTIONS,
                                           out=root / target)
        return made[target]

    return get


@pytest.fixture(scope="module")
def expected(goldens):
    return np.load(goldens / "flexvar" / "expected.npz")


@pytest.fixture(scope="module")
def source(goldens):
    folder = goldens / "flexvar"
    return Source(open_checkpoint(folder / "FlexVAR_tiny.pth").weights(*FlexVar.containers),
                  open_checkpoint(folder / "FlexVAE_tiny.pth").weights("model"))


@pytest.mark.parametrize("target", TARGETS)
def test_greedy_tokens_and_pixels_are_upstreams(engines, expected, target):
    out = engines(target).generate(expected["cond"], guidance=2.5, temperature=0)
    assert (out.tokens == expected["greedy_tokens"]).all()
    far = np.linalg.norm(out.pixels - expected["image"]) / np.linalg.norm(expected["image"])
    assert far < 1e-4


def test_each_row_of_a_mixed_batch_equals_its_solo_run(engines, expected):
    mixed = {"seed": [5, 9], "guidance": [3.0, 0.0], "top_k": [0, 20], "top_p": [0.9, 1.0]}
    together = engines().generate(expected["cond"], **mixed)
    for i in range(2):
        alone = engines().generate(expected["cond"][i], **{k: v[i] for k, v in mixed.items()})
        assert (together.tokens[i] == alone.tokens[0]).all()
        assert (together.pixels[i] == alone.pixels[0]).all()


def test_encoding_covers_every_scale(engines, expected):
    """Every scale encodes the whole image."""
    tokens = engines().encode(np.clip(expected["image"], -1, 1))
    assert tokens.shape == (2, 66)


def test_only_flexvar_claims_its_tensors(source):
    assert [k for k, f in FAMILIES.all().items() if f.claims(source.tensors)] == ["flexvar"]


def steps(source, patch_nums, **more):
    options = {"patch_nums": patch_nums, **more}
    return program(config(source, options), options).steps


def test_guidance_grows_by_a_ninth_at_most(source):
    long = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 24, 32]
    assert [s.guide[1] for s in steps(source, long)] == [*(i / 9 for i in range(10)), 1.0, 1.0]
    assert [s.guide[1] for s in steps(source, [1, 2, 3, 4])] == [i / 3 for i in range(4)]
    flat = steps(source, [1, 2], guidance_form="llamagen")
    assert [s.guide for s in flat] == [(0.0, 1.0)] * 2


def test_sides_never_trained_on_are_greedy(source):
    drawn = [s.calls[1].graph for s in steps(source, [1, 3, 7, 16, 24])]
    assert drawn == ["sample", "sample", "greedy", "sample", "greedy"]
    drawn = [s.calls[1].graph for s in steps(source, [1, 24], max_pn=24)]
    assert drawn == ["sample", "sample"]


def test_upstreams_name_for_the_schedule_wins(source):
    options = {"patch_nums": [1, 2], "infer_patch_nums": "1,4"}
    assert config(source, options).patch_nums == (1, 4)


@pytest.mark.parametrize(("options", "message"), [
    ({"patch_nums": [2, 4]}, "starts with 2x2 cells, but the checkpoint with 1"),
    ({"patch_nums": []}, "must list grid sides"),
    ({**OPTIONS, "guidance_form": "x"}, "guidance_form must be var or llamagen"),
    ({**OPTIONS, "max_pn": 0}, "max_pn must be a positive integer"),
])
def test_impossible_options_are_refused(source, options, message):
    with pytest.raises(ArcError, match=message):
        FlexVar().model(source, options)


def test_a_strange_decoder_is_refused(source, goldens):
    with pytest.raises(ArcError, match="image tokenizer, and none is given"):
        FlexVar().model(Source(source.tensors), OPTIONS)
    other = open_checkpoint(goldens / "var" / "vae_tiny.pth").weights()
    with pytest.raises(ArcError, match="the decoder file"):
        FlexVar().model(Source(source.tensors, other), OPTIONS)
    other = open_checkpoint(goldens / "llamagen-c2i" / "vq_ds16_c2i_tiny.pt").weights("model")
    with pytest.raises(ArcError, match="codes of"):
        FlexVar().model(Source(source.tensors, other), OPTIONS)
