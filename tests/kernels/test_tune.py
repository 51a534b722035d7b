"""The search for block sizes, with a timer that is not a clock."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import arcompile
from arcompile.errors import ArcError
from arcompile.kernel import KERNELS, case
from arcompile.kernels import lang, tune

pytestmark = pytest.mark.skipif(not lang.interpreting(), reason="times nothing on a GPU")
FLASH = KERNELS["flash_decode"]
CASE = case("f16", r=1, h=1, e=16, slots=70)


def timer(times):
    """Of the options a run would get: seconds by version and options; nothing runs."""
    asked = []

    def spent(run):
        options = {k: run.keywords[k] for k in ("splits", "block", "warps") if k in run.keywords}
        name = next(v.name for v in FLASH.versions.values() if v.run is run.func)
        asked.append((name, options))
        return times(name, options)

    spent.asked = asked
    return spent


def likes_16(name, options):
    if name == "v1":
        raise ArcError("too much shared memory")
    return 1.0 if options.get("splits") == 16 and options.get("block") == 32 else 2.0


def test_the_fastest_is_found():
    clock = timer(likes_16)
    choice, seconds = tune.fastest(FLASH, CASE, clock, "cpu")
    assert choice == ("v2", {"splits": 16, "block": 32, "warps": 2})
    assert seconds == 1.0
    assert len(clock.asked) == sum(len(v.tune) for v in FLASH.versions.values())


def test_kept_on_disk_and_not_searched_again(tmp_path):
    path = tmp_path / "made" / "tuned.json"
    first = tune.Choices("GPU A")
    first.pick(FLASH, CASE)
    assert first.search(timer(likes_16), "cpu") == 1
    first.write(path)
    again = tune.Choices("GPU A")
    assert again.read(path) == ""
    run = again.pick(FLASH, CASE)
    assert run.keywords == {"splits": 16, "block": 32, "warps": 2}
    assert again.search(timer(likes_16), "cpu") == 0
    other = tune.Choices("GPU B")  # another device knows nothing of it, and keeps what is there
    other.read(path)
    assert not other.known
    other.pick(FLASH, CASE)
    other.search(timer(likes_16), "cpu")
    other.write(path)
    assert json.loads(path.read_text()).keys() == {"GPU A", "GPU B"}


def test_what_was_chosen_computes_the_same():
    choices = tune.Choices("x", {tune.key(FLASH, CASE): ("v2", {"splits": 2, "block": 32})})
    arguments = FLASH.inputs(CASE, np.random.default_rng(0))
    want = FLASH.reference(**arguments)[0]
    got = choices.pick(FLASH, CASE)(**tune.tensors(FLASH, arguments, "f16", "cpu"))[0]
    assert np.abs(got.float().numpy() - want).max() <= 5e-3 * np.abs(want).max()


@pytest.mark.parametrize("text", ["", "[]", '{"x": 3}', '{"x": {"a": {}}}'])
def test_a_broken_file_is_told_and_ignored(tmp_path, text):
    path = tmp_path / "tuned.json"
    path.write_text(text)
    choices = tune.Choices("x")
    assert "not a file of choices" in choices.read(path)
    assert choices.pick(FLASH, CASE) is FLASH.best(CASE, tune.absent).run
    assert choices.read(tmp_path / "none.json") == ""


def test_choices_that_no_longer_hold_are_left():
    """A version that is gone, and one that does not take the case."""
    name = tune.key(KERNELS["add_norm"], case(n=1, d=4096))
    for version in ("v9", "v2"):
        choices = tune.Choices("x", {name: (version, {})})
        assert choices.pick(KERNELS["add_norm"], case(n=1, d=4096)) in {
            KERNELS["add_norm"].versions[v].run for v in ("v1", "v3")}
    with pytest.raises(ArcError, match="takes no"):
        choices.pick(FLASH, case("f64", r=1, h=1, e=16, slots=7))


def test_an_engine_is_searched_and_keeps_what_was_found(tmp_path, monkeypatch):
    """The command: one picture, every case it met, and the choices in the engine's manifest."""
    import engines
    import tiny

    from arcompile.kernels import timing
    from arcompile.runtime import bundle
    from arcompile.target import TARGETS
    from arcompile.targets import torch_cuda, torch_kernels

    def opened(self, program, folder, threads):
        torch_kernels.choose("GPU A", tune.kept(), folder / tune.FILE)
        return torch_cuda.Models(folder, program, "cpu", kernels=True, capture=False)

    monkeypatch.setenv("ARC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch_cuda.TorchCuda, "open", opened)
    monkeypatch.setattr(timing, "measure", lambda run: 1.0)
    monkeypatch.setattr(torch_kernels, "CHOICES", {})
    p = replace(tiny.llama(), finish=())
    folder = engines.write(tmp_path / "e", p, tiny.weights(p), 16, "torch-cuda",
                           TARGETS["torch-cuda"].passes, info={"classes": 3})
    assert tune.main([str(folder)]) == 0
    held = json.loads((folder / tune.FILE).read_text())["GPU A"]
    assert {k.split()[0] for k in held} >= {"flash_decode", "logits_chain"}
    manifest = json.loads((folder / bundle.MANIFEST).read_text())
    assert manifest["files"][tune.FILE] == bundle.entry(folder / tune.FILE)
    arcompile.load(folder)  # what it holds is listed, and as listed
    again = tune.Choices("GPU A")
    assert again.read(folder / tune.FILE) == ""
    assert again.known.keys() == held.keys()
