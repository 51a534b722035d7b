"""The pass list as text, and the driver: it verifies, dumps and blames."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arcompile import pipeline
from arcompile.errors import ArcError
from arcompile.ir import Type, Value
from arcompile.pipeline import PASSES, Pass, parse_pipeline, register, run
from arcompile.program import Program, raster
from arcompile.program_text import parse_program
from arcompile.rewrite import Rule
from arcompile.text import parse_graph


class Fuse(Rule):
    def pattern(self, op, gate, x):
        return op.mul(op.silu(gate), x)

    def replace(self, op, gate, x):
        return op.swiglu(gate, x)


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    """No knobs, and a registry of our own that looks for nothing else."""
    for knob in ("ARC_OPT_LIMIT", "ARC_DEBUG", "ARC_DUMP", "ARC_VERIFY"):
        monkeypatch.delenv(knob, raising=False)
    monkeypatch.setattr(PASSES, "_found", {})
    monkeypatch.setattr(PASSES, "_loaded", True)

    @register("test-fuse")
    class FusePass(Pass):
        """Fuse the gated activation."""

        rules = (Fuse(),)

    @register("test-shuffle")
    class Shuffle(Pass):
        """Takes an option of every kind."""

        window: int = 2
        rate: float = 0.5
        on: bool = True
        where: str = "early"
        layers: tuple[int, ...] = (1, 2)

        def __call__(self, p):
            return replace(p, cache=f"window({self.window})")


def made(name: str, **options) -> Pass:
    return PASSES[name](**options)


@pytest.mark.parametrize("text", [
    "test-fuse", "test-shuffle", "test-shuffle{window=4}", "test-shuffle{rate=1.0,on=False}",
    "test-shuffle{where='a, {b}'}", "test-shuffle{layers=(3, 4, 5)}", "test-shuffle{layers=()}",
])
def test_str_is_the_syntax(text):
    (one,) = parse_pipeline(text)
    assert str(one) == text
    assert parse_pipeline(f" {text} ,{text}") == [one, one]


def test_parse():
    found = parse_pipeline("test-fuse, test-shuffle{ window = 4 , rate=1, where=late }")
    assert found == [made("test-fuse"), made("test-shuffle", window=4, rate=1.0, where="late")]
    assert str(found[1]) == "test-shuffle{window=4,rate=1.0,where='late'}"
    assert parse_pipeline("") == []


@pytest.mark.parametrize(("text", "what", "hint"), [
    ("test-fus", "no pass named 'test-fus'", "did you mean 'test-fuse'?"),
    ("test-shuffle{widow=4}", "pass test-shuffle has no option 'widow'", "did you mean 'window'?"),
    ("test-fuse{window=4}", "pass test-fuse has no option 'window'", "known: none"),
    ("test-shuffle{window}", "pass test-shuffle has no option 'window'", None),
    ("test-shuffle{window=4.5}", "option window of pass test-shuffle takes int, got '4.5'",
     "the default is 2"),
    ("test-shuffle{window=True}", "option window of pass test-shuffle takes int, got 'True'", None),
    ("test-shuffle{on=1}", "option on of pass test-shuffle takes bool, got '1'", None),
    ("test-shuffle{rate=True}", "option rate of pass test-shuffle takes float, got 'True'", None),
    ("test-shuffle{window=f()}", "option window of pass test-shuffle takes int", None),
    ("test-shuffle{layers={[]: 1}}", "option layers of pass test-shuffle takes tuple", None),
    ("test-shuffle{window={1}}", "option window of pass test-shuffle takes int, got '{1}'", None),
    ("test-fuse,,test-fuse", "not a pass list: ''", "write name, name{option=value}"),
    ("test-fuse test-fuse", "not a pass list", None),
    ("test-fuse{", "not a pass list: 'test-fuse{'", None),
    ("test-fuse}", "not a pass list", None),
    ("{window=4}", "not a pass list", None),
])
def test_refusals(text, what, hint):
    with pytest.raises(ArcError) as e:
        parse_pipeline(text)
    assert e.value.what.startswith(what)
    assert hint is None or e.value.hint == hint


def test_a_name_is_registered_once():
    with pytest.raises(ArcError, match="pass 'test-fuse' is registered twice"):

        @register("test-fuse")
        class Other(Pass):
            """Bears the name of another."""


STEP = """\
graph step(%x: f32[4], %y: f32[4]) {
  %0 = silu(%x) : f32[4]
  %1 = mul(%0, %y) : f32[4]
  return x=%1
}"""


def program() -> Program:
    t = Type.parse("f32[4]")
    return Program("p", 2, raster(2), graphs=(parse_graph(STEP),), inputs=(("y", t),),
                   state=(("x", t),))


class Breaks(Pass):
    """Leaves a graph that uses a value nobody defines."""

    name = "breaks"

    def __call__(self, p):
        ghost = Value("9", Type.parse("f32[4]"))
        return p.on_graphs(lambda g: replace(g, results=(("x", ghost),)))


class Crashes(Pass):
    name = "crashes"

    def __call__(self, p):
        raise ZeroDivisionError("oh")


def test_run_changes_and_cleans():
    p = program()
    new = run(p, parse_pipeline("test-fuse, test-shuffle"))
    assert [n.op for n in new.graphs[0].nodes] == ["swiglu"]
    assert new.cache == "window(2)"
    assert run(new, parse_pipeline("test-fuse")) is new


@pytest.mark.parametrize("guilty", [Breaks(), Crashes()], ids=str)
def test_blame(guilty):
    error = ZeroDivisionError if guilty.name == "crashes" else ArcError
    with pytest.raises(error) as e:
        run(program(), [made("test-fuse"), made("test-shuffle", window=3), guilty])
    note = f"in pass 3 ({guilty}), after: test-fuse, test-shuffle{{window=3}}"
    assert note in e.value.__notes__
    with pytest.raises(error) as e:
        run(program(), [guilty])
    assert f"in pass 1 ({guilty}), after: none" in e.value.__notes__


def test_a_bad_input_is_nobodys_fault():
    p = replace(program(), steps=())
    with pytest.raises(ArcError, match="never committed") as e:
        run(p, [made("test-fuse")])
    assert not any("in pass" in n for n in e.value.__notes__)


def test_dump_writes_numbered_files(monkeypatch, tmp_path):
    monkeypatch.setenv("ARC_DUMP", str(tmp_path / "out"))
    fuse = made("test-fuse")
    new = run(program(), [fuse, fuse, made("test-shuffle")])
    names = sorted(f.name for f in (tmp_path / "out").iterdir())
    assert names == ["000_input.arc", "001_test-fuse.arc", "003_test-shuffle.arc"]
    last = (tmp_path / "out" / names[-1]).read_text()
    assert str(parse_program(last)) == str(new)


def test_debug_levels(monkeypatch, capsys):
    def err(level: str) -> str:
        monkeypatch.setenv("ARC_DEBUG", level)
        run(program(), [made("test-fuse"), made("test-fuse")])
        return capsys.readouterr().err

    assert err("0") == ""
    lines = err("1").splitlines()
    assert lines[0].startswith("01 test-fuse  ")
    assert lines[0].endswith("2 -> 1 nodes")
    assert lines[1].endswith("1 -> 1 nodes  (unchanged)")
    assert "swiglu(%x, %y)" in err("2")
    assert "] Fuse at %1" in err("3")


def test_verify_2_reads_every_program_back(monkeypatch):
    monkeypatch.setenv("ARC_VERIFY", "2")
    seen = []
    monkeypatch.setattr(pipeline, "parse_program", lambda t: seen.append(t) or parse_program(t))
    new = run(program(), [made("test-fuse"), made("test-fuse"), made("test-shuffle")])
    assert len(seen) == 2  # not after the pass that changed nothing
    assert seen[-1] == str(new)

    class Unprintable(Pass):
        name = "unprintable"

        def __call__(self, p):
            return replace(p, cache="two\nlines")

    with pytest.raises(ArcError) as e:
        run(program(), [Unprintable()])
    assert "in pass 1 (unprintable), after: none" in e.value.__notes__


def test_opt_limit_stops(monkeypatch):
    from arcompile import debug

    monkeypatch.setattr(debug, "fired", [])
    monkeypatch.setenv("ARC_OPT_LIMIT", "1")
    new = run(program(), parse_pipeline("test-fuse, test-shuffle"))
    assert [n.op for n in new.graphs[0].nodes] == ["swiglu"]
    assert new.cache == "full"
    assert debug.fired == ["Fuse at %1"]
