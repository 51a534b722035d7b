"""A program that denoises two cells, one after the other: what MAR is, at its smallest."""

from __future__ import annotations

import numpy as np

from arcompile.program_text import parse_program

# Two cells of one number each; the second one depends on the first, and deviations do on both.
TEXT = """\
program walk positions=2 mask=full accept=all
  cache full
  input cond: i64[b]
  state latents: f32[b,2,1]
  draw orders: order x 1 per start
  draw initial_noise: normal x 1 per start
  draw noise: normal x 1 per loop
  table turns.turn = [{turns}]
  prompt prompt
  steps 1 x 2>1 : step head*turns place ; set.fresh=(0,)
  steps 1 x [1] : step head*turns place ; set.fresh=(1,)
graph prompt(%cond: i64[b]) {{
  %0 = arange() {{dtype='i64', shape=(1,)}} : i64[1]
  %1 = reshape(%0) {{shape=(1, 1)}} : i64[1,1]
  %2 = expand(%1) {{shape=('b', 1)}} : i64[b,1]
  return seen=%2
}}
graph step(%latents: f32[b,2,1], %seen: i64[b,v], %orders: i64[b,2], %fresh: i64[c], %initial_noise: f32[b,2,1]) {{
  %0 = const() {{dtype='i64', value=1}} : i64[]
  %1 = sub(%0, %fresh) : i64[c]
  %2 = gather(%orders, %1) {{axis=1}} : i64[b,c]
  %3 = full() {{dtype='f32', shape=('b', 1, 1), value=0.0}} : f32[b,1,1]
  %4 = concat(%3, %latents) {{axis=1}} : f32[b,3,1]
  %5 = reshape(%seen) {{shape=('b', 'v', 1)}} : i64[b,v,1]
  %6 = take_along(%4, %5) {{axis=1}} : f32[b,v,1]
  %7 = sum(%6) {{axes=(1,), keepdims=True}} : f32[b,1,1]
  %8 = reshape(%2) {{shape=('b', 'c', 1)}} : i64[b,c,1]
  %9 = take_along(%initial_noise, %8) {{axis=1}} : f32[b,c,1]
  return z=%7, x=%9, cells=%2
}}
graph head(%x: f32[b,c,1], %z: f32[b,1,1], %turn: i64[], %noise: f32[b,c,1], %temperature: f32[b]) {{
  @a : f32[3]
  @spread : f32[2]
  %0 = slice(@a) {{axis=0, start=0, stop=1}} : f32[1]
  %1 = slice(@a) {{axis=0, start=1, stop=2}} : f32[1]
  %2 = slice(@a) {{axis=0, start=2, stop=3}} : f32[1]
  %3 = mul(%z, %1) : f32[b,1,1]
  %4 = mul(%x, %2) : f32[b,c,1]
  %5 = add(%4, %3) : f32[b,c,1]
  %6 = add(%5, %0) : f32[b,c,1]
  %7 = slice(@spread) {{axis=0, start=0, stop=1}} : f32[1]
  %8 = slice(@spread) {{axis=0, start=1, stop=2}} : f32[1]
  %9 = tanh(%5) : f32[b,c,1]
  %10 = mul(%9, %8) : f32[b,c,1]
  %11 = add(%10, %7) : f32[b,c,1]
  %12 = exp(%11) : f32[b,c,1]
  %13 = reshape(%temperature) {{shape=('b', 1, 1)}} : f32[b,1,1]
  %14 = mul(%12, %noise) : f32[b,c,1]
  %15 = mul(%14, %13) : f32[b,c,1]
  %16 = add(%6, %15) : f32[b,c,1]
  return x=%16
}}
graph place(%latents: f32[b,2,1], %x: f32[b,c,1], %cells: i64[b,c], %seen: i64[b,v]) {{
  %0 = reshape(%cells) {{shape=('b', 'c', 1)}} : i64[b,c,1]
  %1 = put_along(%latents, %0, %x) {{axis=1}} : f32[b,2,1]
  %2 = const() {{dtype='i64', value=1}} : i64[]
  %3 = add(%cells, %2) : i64[b,c]
  %4 = concat(%seen, %3) {{axis=1}} : i64[b,c+v]
  return latents=%1, seen=%4
}}
"""  # noqa: E501
LARGE = {"@a": np.array([0.3, 0.8, 0.2]), "@spread": np.array([-0.5, 0.3])}
SMALL = {"@small.a": np.array([-0.4, 0.5, 0.3]), "@small.spread": np.array([-0.3, -0.2])}
WEIGHTS = {k: v.astype(np.float32) for k, v in {**LARGE, **SMALL}.items()}


def walk(turns=1):
    return parse_program(TEXT.format(turns=", ".join(map(str, range(turns)))))
