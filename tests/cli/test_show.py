"""arcompile show, arcompile bisect."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from shell import SIZES, Ran, refused

from arcompile.pipeline import PASSES, Pass
from arcompile.rewrite import Rule


def test_show_an_engine(built: Ran, run: Any) -> None:
    text = run("show", built.folder).out
    assert text.startswith("program llamagen positions=64 mask=causal accept=all\n")
    assert "  state k0, v0, k1, v1: 4 x f32[r,4,65,32]\n" in text
    assert "  steps 63 x 1 : step feed ; append=1\n" in text
    assert "  built with fold, simplify, cse, qkv" in text
    assert "  exact: the tokens of the model as it is\n" in text
    told = run("show", built.folder, "--json").json
    assert (told["kind"], told["program"]["positions"], told["passes"]) == ("engine", 64, [])
    assert {g["graph"] for g in told["graphs"]} >= {"prompt", "step", "feed", "decode", "encode"}


def test_show_what_auto_chose_from(tmp_path: Path, run: Any, monkeypatch: Any) -> None:
    """A real build. Here a forward takes a second, and a round of drafts is as quick as a step."""
    pytest.importorskip("torch")
    from arcompile import auto, ceilings
    from arcompile.compile import write
    from arcompile.family import FAMILIES
    from arcompile.pipeline import parse_pipeline
    from arcompile.runtime.engine import load

    def timed(e: Any, *how: int) -> Any:
        found = ceilings.drawn(e, *how)
        return dataclasses.replace(found, seconds=float(found.rounds))

    monkeypatch.setattr(auto, "drawn", timed)
    for few in ("SETS", "TURNS"):
        monkeypatch.setattr(ceilings, few, 1)
    monkeypatch.setattr(ceilings, "PAUSE", 0)
    f, folder = FAMILIES["llamagen"], tmp_path / "e"
    folder.mkdir()
    write(folder, "llamagen", f.model(f.random("tiny"), {}), "reference", "f32",
          parse_pipeline("auto"))
    engine = load(folder)
    found = engine.manifest["auto"]
    assert found["chosen"] in engine.manifest["passes"]
    assert engine.manifest["contract"]["by"] == [found["chosen"]]
    assert engine.generate(1).rounds is not None
    assert run("show", folder, "--json").json["auto"] == found
    lines = run("show", folder).out.splitlines()
    assert [s for s in lines if s.split()[:2] == [found["chosen"], "*"]]
    assert "not tried: scd: a window of 32 positions in an image of 16" in lines
    assert f"| {found['chosen']} | * |" in (folder / "README.md").read_text()


def test_show_a_graph_its_dot_and_the_cost(built: Ran, run: Any) -> None:
    feed = run("show", built.folder, "--graph", "feed").out
    assert feed.startswith("graph feed(%token: i64[b,c], %image: i64[r]) {\n")
    pytest.importorskip("networkx")
    dot = run("show", built.folder, "--graph", "feed", "--dot").out
    assert dot.startswith('digraph "feed" {')
    assert run("show", built.folder, "--dot").out.count("digraph") >= 5
    titles, *rows = run("show", built.folder, "--cost").out.splitlines()
    assert titles.split()[:2] == ["steps", "calls"]
    assert rows[-1].split()[0] == "all"
    assert run("show", built.folder, "--cost", "--json").json["total"]["flops"] > 1e6
    refused(run("show", built.folder, "--graph", "fed"), "no graph named 'fed'", "mean 'feed'?")
    refused(run("show", built.folder, "--after", "qkv"), "no pass 'qkv' runs here", "--passes")


def test_show_a_changed_engine(engine: Path, run: Any) -> None:
    (engine / "program.arc").write_text("program evil positions=1 mask=causal accept=all")
    refused(run("show", engine), "engine file program.arc has", "hint: rebuild the engine")


REPORTS = {
    "passes": ["fold", "int8"],
    "contract": {"keeps": "distribution", "means": "exact", "by": ["scd"]},
    "auto": {"chosen": "none", "tried": [
        {"method": "none", "keeps": "values", "forwards": 64.0, "seconds": 1.0, "beside": 1.0,
         "gain": 1.0, "predicted": None, "score": 0.9},
        {"method": "scd{window=4}", "refused": "pass scd takes rasters"}]},
    "drafts": {"images": 2, "forwards": 22.0, "positions": 64, "committed": 2.9, "held": 0.5},
    "quality": {"base": {"weights": 1000, "seconds": 1.0}, "passes": {"int8": {
        "kl": 0.1, "agreement": 0.9, "psnr": 30.0, "interval": [0.8, 0.9], "n": 4,
        "difference": [0.1, -1.0, 1.0], "weights": 500, "left": {"@l0.q": "too narrow"}}}},
}
WRONG = (None, 5, -1e300, True, "\x1b[31mred", [], [[1]], {}, {"a": {"b": 1}})


def damaged(x: Any) -> Iterator[Any]:
    """Every value of a tree replaced by each wrong one, and every key and item left out."""
    yield from WRONG
    for key in x if isinstance(x, dict) else range(len(x)) if isinstance(x, list) else ():
        for y in damaged(x[key]):
            made = copy.copy(x)
            made[key] = y
            yield made
        made = copy.copy(x)
        del made[key]
        yield made


@pytest.mark.parametrize("name", REPORTS)
def test_show_reports_that_lie(name: str, engine: Path) -> None:
    """One line that names the field, or what is left of it; never a crash, never a colour."""
    from arcompile import show as see
    from arcompile.cli import look
    from arcompile.errors import ArcError

    opened = see.open_shown(str(engine), lambda: pytest.fail("built"))

    def shown(value: Any) -> str:
        told = {**REPORTS, name: value}
        lie = dataclasses.replace(opened, built=told.pop("passes"), **told)
        try:
            return "\n".join(look._reports(lie))
        except ArcError as e:
            return f"refused: {e.what}"

    assert "int8" in shown(REPORTS[name])
    said = [shown(value) for value in damaged(REPORTS[name])]
    refusals = {s for s in said if s.startswith("refused")}
    assert refusals == {f"refused: the engine's manifest has no valid {name!r}"}
    assert not [s for s in said if "\x1b" in s]


def test_show_a_report_that_lies(engine: Path, run: Any) -> None:
    manifest = json.loads((engine / "manifest.json").read_text())
    (engine / "manifest.json").write_text(json.dumps({**manifest, "auto": {"tried": 5}}))
    refused(run("show", engine), "manifest has no valid 'auto'", "hint: rebuild the engine")
    (engine / "manifest.json").write_text(json.dumps({**manifest, "quality": "good"}))
    said = run("show", engine, "--json")
    assert (said.code, said.json["error"]) == (1, "the engine's manifest has no valid 'quality'")


def test_show_passes_on_text(arc: Path, run: Any) -> None:
    assert run("show", arc, "--before", "swiglu", "--passes", "swiglu").out == f"{tiny.llama()}\n"
    after = run("show", arc, "--passes", "swiglu", "--after", "swiglu", "--graph", "step").out
    assert "swiglu(" in after
    diff = run("show", arc, "--passes", "swiglu", "--diff", "--after", "swiglu").out.splitlines()
    assert diff[:2] == ["--- before", "+++ after"]
    assert sum(s.startswith("+  %") and "swiglu(" in s for s in diff) == 2
    same = run("show", arc, "--passes", "cse, simplify", "--diff", "--after", "cse").out
    assert same == "no change\n"
    both = run("show", arc, "--target", "ort-cpu", "--diff", "--before", "fold", "--after", "qkv")
    assert "swiglu" not in both.out
    assert "@l0.q.concat" in both.out
    rows = run("show", arc, "--passes", "swiglu").out.splitlines()
    assert rows[-1].split()[0] == "swiglu"
    assert run("show", arc, "--passes", "swiglu", "--diff", "--json").json["diff"].count("@@") > 1
    refused(run("show", arc, "--passes", "swiglu", "--after", "swigul"), "did you mean 'swiglu'?")


def test_show_one_graph_of_text(tmp_path: Path, run: Any) -> None:
    path = tmp_path / "g.txt"
    path.write_text("# a comment\ngraph g(%x: f32[b,4]) {\n  %0 = silu(%x) : f32[b,4]\n"
                    "  return y=%0\n}\n")
    assert run("show", path).out.splitlines()[-1].split()[:3] == ["g", "0", "1"]
    path.write_text("graph g(%x: f32[b,4]) {\n  %0 = silu(%x) : f32[b,5]\n  return y=%0\n}\n")
    refused(run("show", path), "%0 is f32[b,5] but silu infers f32[b,4]", "  ^ %0 is")
    path.write_text("graph g(%x: f32[b,4]) {\n  nonsense\n}\n")
    refused(run("show", path), "line 2: not a node")
    path.with_suffix(".arc").write_bytes(b"\xff\xfe")
    refused(run("show", path.with_suffix(".arc")), "is not text")


def test_show_a_checkpoint(files: tuple[Path, Path], run: Any) -> None:
    diff = run("show", files[0], *SIZES, "--after", "swiglu", "--diff", "--graph", "step").out
    assert sum(s.startswith("+  %") and "swiglu(" in s for s in diff.splitlines()) == 2
    refused(run("show", files[0]), "the number of heads", "--option n_head=N")
    refused(run("show", files[0].with_name("gone.pt")), "cannot read", "No such file")


# --- bisect --------------------------------------------------------------------------------------


class ToRelu(Rule):
    """Wrong on purpose."""

    def pattern(self, op: Any, x: Any) -> Any:
        return op.silu(x)

    def replace(self, op: Any, x: Any) -> Any:
        return op.relu(x)


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True, repr=False)
    class Wrong(Pass):
        """A pass that breaks its promise."""

        name = "wrong"
        rules = (ToRelu(),)

    PASSES.all()
    monkeypatch.setitem(PASSES._found, "wrong", Wrong)


def test_bisect_finds_nothing(arc: Path, run: Any) -> None:
    ran = run("bisect", arc, "--target", "ort-cpu")
    assert ran.code == 0
    assert "rewrites keep the values: " in ran.out
    assert "logits" in ran.out
    assert "encode.tokens" in ran.out


@pytest.mark.usefixtures("wrong")
def test_bisect_finds_the_guilty(arc: Path, run: Any) -> None:
    ran = run("bisect", arc, "--passes", "simplify, wrong, swiglu", "--json")
    assert ran.code == 1
    assert ran.json["guilty"].endswith(": ToRelu at %act0")
    assert ran.json["errors"]["logits"] > 1e-4
    ran = run("bisect", arc, "--passes", "wrong")
    assert ran.out.startswith("guilty: rewrite 1 of 2: ToRelu at %act0\n")
    assert run("bisect", arc, "--passes", "wrong", "--good", "max-error=10").code == 0


def test_bisect_refuses(arc: Path, run: Any) -> None:
    refused(run("bisect", arc), "no passes to search", "--passes")
    for rule in ("psnr>40", "max-error=x", "max-error=-1", "max-error=nan"):
        refused(run("bisect", arc, "--passes", "swiglu", "--good", rule), "not a rule")
