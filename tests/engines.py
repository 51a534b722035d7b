"""Engine folders of hand-written programs, without torch: a little text, and random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from arcompile.pipeline import parse_pipeline, run
from arcompile.program import Program
from arcompile.program_text import parse_program, to_data
from arcompile.runtime import bundle
from arcompile.target import TARGETS
from arcompile.weights import Store, Weights, of_arrays

# Everything the loop knows that a raster does not use: noise of every kind and time, a table, sets,
# a loop over turns, an order, positions committed twice, one image at a time, a state written from
# a constant of the step.
MIXED = """\
program mixed positions=6 mask=none accept=confident
  cache full
  input cond: i64[b]
  input extra: f32[b,e]
  state acc: f32[b,2]
  state seen: i64[b]
  draw first: normal x 3 per start
  draw where: order x 1 per start
  draw kick: normal x 2 per loop
  draw bump: gumbel x 1 per place
  draw noise: uniform x 2 per step
  table time.t = [0.5, 0.25, 2.0]
  table time.n = [1, 2, 3]
  prompt prompt
  steps 1 x [0,1,2,3,4,5]>[4,5] : move*time commit ; guide=(1.0,0.5) set.gain=2.0 set.bias=(0.25,-1.0)
  steps 1 x [0,1,2,3,4,5]>[4,2] : move*time commit ; set.gain=10.0 set.bias=(1.0,3.0)
  steps 1 x [0,1,2,3,4,5]>[3] : place ; set.gain=1.5
  steps 1 x [0,1]>[0,1] : move*time commit ; append='e' set.gain=0.5
  finish paint/each
graph prompt(%cond: i64[b], %extra: f32[b,e], %image: i64[r], %is_null: bool[r]) {
  %0 = gather(%cond, %image) {axis=0} : i64[r]
  %1 = const() {dtype='i64', value=7} : i64[]
  %2 = where(%is_null, %1, %0) : i64[r]
  %3 = sum(%extra) {axes=(1,), keepdims=False} : f32[b]
  return label=%2, whole=%3
}
graph move(%acc: f32[b,2], %kick: f32[b,c,2], %t: f32[], %n: i64[], %seen: i64[b], %gain: f32[], %bias: f32[2], %scale: f32[b], %temperature: f32[b], %past: i32[r], %row: i64[b]) {
  %0 = slice(%kick) {axis=1, start=0, stop=1} : f32[b,1,2]
  %1 = reshape(%0) {shape=('b', 2)} : f32[b,2]
  %2 = mul(%t, %gain) : f32[]
  %3 = mul(%1, %2) : f32[b,2]
  %4 = add(%acc, %3) : f32[b,2]
  %5 = mul(%scale, %temperature) : f32[b]
  %6 = reshape(%5) {shape=('b', 1)} : f32[b,1]
  %7 = mul(%bias, %6) : f32[b,2]
  %8 = add(%4, %7) : f32[b,2]
  %9 = gather(%past, %row) {axis=0} : i32[b]
  %10 = cast(%9) {dtype='i64'} : i64[b]
  %11 = add(%seen, %n) : i64[b]
  %12 = add(%11, %10) : i64[b]
  return acc=%8, seen=%12
}
graph commit(%seen: i64[b], %noise: f32[b,c,2]) {
  %0 = slice(%noise) {axis=2, start=0, stop=1} : f32[b,c,1]
  %1 = reshape(%0) {shape=('b', 'c')} : f32[b,c]
  %2 = const() {dtype='f32', value=1000.0} : f32[]
  %3 = mul(%1, %2) : f32[b,c]
  %4 = cast(%3) {dtype='i64'} : i64[b,c]
  %5 = reshape(%seen) {shape=('b', 1)} : i64[b,1]
  %6 = add(%4, %5) : i64[b,c]
  return token=%6
}
graph place(%where: i64[b,N], %bump: f32[b,c,1], %gain: f32[], %label: i64[r], %row: i64[b], %tokens: i64[b,N]) {
  %0 = slice(%where) {axis=1, start=2, stop=3} : i64[b,1]
  %1 = reshape(%bump) {shape=('b', 'c')} : f32[b,c]
  %2 = mul(%1, %gain) : f32[b,c]
  %3 = cast(%2) {dtype='i64'} : i64[b,c]
  %4 = add(%3, %0) : i64[b,c]
  %5 = gather(%label, %row) {axis=0} : i64[b]
  %6 = reshape(%5) {shape=('b', 1)} : i64[b,1]
  %7 = slice(%tokens) {axis=1, start=4, stop=5} : i64[b,1]
  %8 = add(%6, %7) : i64[b,1]
  %9 = add(%4, %8) : i64[b,c]
  return token=%9
}
graph paint(%tokens: i64[b,6], %acc: f32[b,2], %first: f32[b,N,3], %whole: f32[b]) {
  %0 = cast(%tokens) {dtype='f32'} : f32[b,6]
  %1 = const() {dtype='f32', value=0.001} : f32[]
  %2 = mul(%0, %1) : f32[b,6]
  %3 = slice(%first) {axis=1, start=0, stop=1} : f32[b,1,3]
  %4 = reshape(%3) {shape=('b', 3)} : f32[b,3]
  %5 = reshape(%whole) {shape=('b', 1)} : f32[b,1]
  %6 = concat(%2, %acc, %4, %5) {axis=1} : f32[b,12]
  %7 = reshape(%6) {shape=('b', 3, 2, 2)} : f32[b,3,2,2]
  return pixels=%7
}"""  # noqa: E501


# A table within a loop of steps, several positions a step, an order, and pixels.
TURNS = """\
program turns positions=6 mask=none accept=all
  cache full
  input cond: i64[b]
  state acc: f32[b,2]
  draw kick: normal x 2 per loop
  draw place: order x 1 per start
  table time.t = [0.5, 0.25, 2.0]
  table time.n = [1, 2, 3]
  prompt begin
  steps 2 x 2 : move*time commit ; append=2 set.gain=2.0
  steps 1 x 2 : move*time commit ; append=2 set.gain=10.0
  finish paint/each
graph begin(%cond: i64[b]) {
  return seen=%cond
}
graph move(%acc: f32[b,2], %kick: f32[b,c,2], %t: f32[], %n: i64[], %seen: i64[b], %gain: f32[]) {
  %0 = slice(%kick) {axis=1, start=0, stop=1} : f32[b,1,2]
  %1 = reshape(%0) {shape=('b', 2)} : f32[b,2]
  %2 = mul(%t, %gain) : f32[]
  %3 = mul(%1, %2) : f32[b,2]
  %4 = add(%acc, %3) : f32[b,2]
  %5 = add(%seen, %n) : i64[b]
  return acc=%4, seen=%5
}
graph commit(%seen: i64[b], %place: i64[b,N], %past: i32[r]) {
  %0 = cast(%past) {dtype='i64'} : i64[r]
  %1 = reshape(%seen) {shape=('b', 1)} : i64[b,1]
  %2 = slice(%place) {axis=1, start=0, stop=2} : i64[b,2]
  %3 = add(%1, %2) : i64[b,2]
  %4 = slice(%0) {axis=0, start=0, stop=1} : i64[1]
  %5 = add(%3, %4) : i64[b,2]
  return token=%5
}
graph paint(%tokens: i64[b,6], %acc: f32[b,2]) {
  %0 = cast(%tokens) {dtype='f32'} : f32[b,6]
  %1 = const() {dtype='f32', value=0.01} : f32[]
  %2 = mul(%0, %1) : f32[b,6]
  %3 = slice(%acc) {axis=1, start=0, stop=1} : f32[b,1]
  %4 = slice(%acc) {axis=1, start=1, stop=2} : f32[b,1]
  %5 = concat(%3, %4, %2, %3, %4, %3, %4) {axis=1} : f32[b,12]
  %6 = reshape(%5) {shape=('b', 3, 2, 2)} : f32[b,3,2,2]
  return pixels=%6
}"""


def mixed() -> Program:
    return _verified(MIXED)


def turns() -> Program:
    return _verified(TURNS)


def _verified(text: str) -> Program:
    p = parse_program(text)
    p.verify()
    return p


def write(folder: Path, program: Program, weights: Weights, vocabulary: int = 0,
          target: str = "ort-cpu", passes: str = "", **manifest: object) -> Path:
    """An engine folder of a program as it is, or after passes."""
    program = run(program, parse_pipeline(passes), weights)
    folder.mkdir(parents=True, exist_ok=True)
    TARGETS[target].lower(program, Store(weights, program.fold), folder, lambda s, f: None)
    (folder / "program.json").write_text(json.dumps(to_data(program)))
    said = {"format": bundle.FORMAT, "family": program.name, "target": target, "dtype": "f32",
            "passes": [], "key": "", "vocabulary": vocabulary, "info": {}, "defaults": {},
            "tools": {}, "graphs": [g.name for g in program.graphs], **manifest}
    listed = {f.name: bundle.entry(f) for f in sorted(folder.iterdir())
              if f.name != bundle.MANIFEST}
    (folder / bundle.MANIFEST).write_text(json.dumps({**said, "files": listed}))
    return folder


def none() -> Weights:
    """A weight that no graph reads."""
    return of_arrays({"unused": np.zeros(1, np.float32)})


def resigned(folder: Path, **changed: object) -> None:
    """Change fields of program.json, and sign the folder again."""
    path = folder / "program.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    signed(folder)


def signed(folder: Path) -> None:
    said = json.loads((folder / bundle.MANIFEST).read_text())
    said["files"] = {f.name: bundle.entry(f) for f in sorted(folder.iterdir())
                     if f.name != bundle.MANIFEST}
    (folder / bundle.MANIFEST).write_text(json.dumps(said))
