import pytest
from tiny import of, same

from arcompile.passes.residual_norm import ResidualNorm
from arcompile.pipeline import run

G = """graph g(%x: f32[b,4], %y: f32[b,4]) {{
  @w : f32[4]
  %0 = add(%x, %y) : f32[b,4]
  {}
  %1 = rms_norm(%0, @w) {{eps=1e-05}} : f32[b,4]
  {}
}}"""


def test_the_sum_is_the_second_result(golden):
    p = of("""graph g(%x: f32[b,4], %y: f32[b,4]) {
  @w : f32[4]
  @v : f32[4]
  %0 = add(%x, %y) : f32[b,4]
  %1 = rms_norm(%0, @w) {eps=1e-05} : f32[b,4]
  %2 = silu(%1) : f32[b,4]
  %3 = add(%0, %2) : f32[b,4]
  %4 = rms_norm(%3, @v) {eps=1e-06} : f32[b,4]
  %5 = mul(%4, %3) : f32[b,4]
  return y=%5
}""")
    new = run(p, [ResidualNorm()])
    same(p, new)
    assert str(new.graph("g")) == golden
    assert run(new, [ResidualNorm()]) is new


def test_a_result_reads_the_sum():
    p = of(G.format("", "return y=%1, x=%0"))
    new = run(p, [ResidualNorm()])
    same(p, new)
    assert "return y=%1, x=%0" in str(new)
    assert "%1, %0 = residual_norm(%x, %y, @w)" in str(new)


@pytest.mark.parametrize(
    ("before", "after", "shape", "why"),
    [
        ("%2 = neg(%0) : f32[b,4]", "return y=%1, z=%2", "b,4", "%2 reads the sum before the norm"),
        ("", "return y=%1", "b,4", "nobody else reads the sum"),
        ("", "return y=%1, z=%0", "1,4", "the sum broadcasts f32[b,4] and f32[1,4]"),
    ],
)
def test_refuses(before, after, shape, why, capsys, monkeypatch):
    monkeypatch.setenv("ARC_DEBUG", "4")
    p = of(G.format(before, after).replace("%y: f32[b,4]", f"%y: f32[{shape}]"))
    assert run(p, [ResidualNorm()]) is p
    assert f"miss residual-norm at %1: {why}" in capsys.readouterr().err
