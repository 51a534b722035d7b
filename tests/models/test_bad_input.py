"""What no family takes, whichever it is: one clear line each, and a hint."""

import dataclasses
import itertools

import pytest

from arcompile.errors import ArcError
from arcompile.family import FAMILIES

TINY = {name: f.random("tiny") for name, f in FAMILIES.all().items()}
SMALL = {"infinity": {"pn": "0.06M"}}  # its usual schedule is long

# Families whose tiny tokenizers are of one kind and size: nothing tells them apart.
ALIKE = ({"llamagen", "nar", "par", "flexvar", "token-shuffle"}, {"var", "hmar"}, {"mar", "xar"})
PAIRS = [(a, b) for a, b in itertools.permutations(TINY, 2)
         if not any({a, b} <= same for same in ALIKE)]


def model(family, source=None, **options):
    def make():
        FAMILIES[family].check_options(options)
        FAMILIES[family].model(source or TINY[family], {**SMALL.get(family, {}), **options})

    return make


def error(make):
    try:
        make()
    except ArcError as e:
        return e


def refuses(said, make):
    e = error(make)
    assert e is not None
    assert said in e.what
    assert e.hint, e.what
    assert "\n" not in e.what
    return e.what


@pytest.mark.parametrize(("family", "other"), PAIRS)
def test_a_decoder_of_another_family(family, other):
    decoder = TINY[other].decoder or TINY[other].tensors
    said = refuses("", model(family, dataclasses.replace(TINY[family], decoder=decoder)))
    assert any(word in said for word in ("decoder", "tokenizer")), said


@pytest.mark.parametrize("family", TINY)
def test_a_transformer_of_another_family(family):
    for other in TINY:
        if other != family:
            source = dataclasses.replace(TINY[family], tensors=TINY[other].tensors)
            refuses("", model(family, source))


@pytest.mark.parametrize(("family", "key"), [
    (name, key) for name, f in FAMILIES.all().items() for key in f.options])
def test_options_of_the_wrong_kind(family, key):
    """Whatever the option: nothing but a clear refusal, or a model."""
    for value in (-1, 10**9, float("nan"), "x", [], [[]]):
        e = error(model(family, **{key: value}))
        assert e is None or (e.hint and "\n" not in e.what), (value, e)


HEADS = {"n_head": ("flexvar", "hmar", "infinity", "llamagen", "nar", "par", "token-shuffle",
                    "var"),
         "num_heads": ("mar", "xar")}  # Janus has them in its config.json, RAR in its tensors


@pytest.mark.parametrize(("key", "family"), [(k, f) for k, names in HEADS.items() for f in names])
def test_heads_that_do_not_divide(key, family):
    refuses("heads=7" if key == "num_heads" else "n_head=7", model(family, **{key: 7}))


@pytest.mark.parametrize(("family", "says", "options"), [
    ("var", "makes 2 scales and 5 positions", {"patch_nums": [1, 2]}),
    ("var", "must not shrink", {"patch_nums": [1, 3, 2]}),
    ("hmar", "makes 4 scales and 30 positions", {"patch_nums": [1, 2, 3, 4]}),
    ("hmar", "add up to 1, 4, 9 cells", {"mask_schedule": [[1], [3], [9]]}),
    ("flexvar", "starts with 2x2 cells", {"patch_nums": [2, 3]}),
    ("infinity", "must grow from [1, 1]", {"scales": [[2, 2], [4, 4]]}),
    ("infinity", "must grow from [1, 1]", {"scales": [[1, 1], [4, 4], [4, 2]]}),
    ("infinity", "there is no schedule for h_div_w=7", {"h_div_w": 7}),
    ("infinity", "there is no schedule for h_div_w=0.2", {"h_div_w": 0.2}),
    ("mar", "num_iter=17 is more than the 16 tokens", {"num_iter": 17}),
    ("par", "a grid of 5 does not divide into 2 x 2 regions", {"grid": 5}),
    ("janus", "7 x 7 tokens leave no room for a prompt", {"grid": 7}),
    ("llamagen", "grid=4096 is more than 256", {"grid": 4096}),
    ("nar", "grid=4096 is more than 256", {"grid": 4096}),
])
def test_schedules_that_do_not_cover(family, says, options):
    refuses(says, model(family, **options))
