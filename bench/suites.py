"""What is measured, as data: one line per suite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from arcompile.errors import ArcError, did_you_mean

if TYPE_CHECKING:
    from arcompile.family import Source


@dataclass(frozen=True)
class Suite:
    """One model, one way to build it and one way to run it.

    size: of the family's random weights; or checkpoint: the name of a shipped demo; or engine: a
    folder, which has no eager loop to compare with. limits: the figure that must be met, by the
    names of runner.TARGETS.
    """

    name: str
    family: str = ""
    size: str = ""
    checkpoint: str = ""
    engine: str = ""
    target: str = "ort-cpu"
    dtype: str = "f32"
    passes: str = ""
    batch: int = 1
    guidance: float = 4.0
    top_k: int = 2000  # of the sampled run
    limits: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    alone: bool = False


VERTICAL = {"step_vs_floor": 1.10, "eager_vs_step": 1.8, "image_vs_parts": 1.05,
            "run_rss_vs_weights_kv": 1.3, "build_s": 60.0, "build_rss_vs_weights": 3.5,
            "first_step_beyond_read_s": 1.0, "import_s": 0.3}

SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 24)  # FlexVAR's, up to 384 px

SUITES = {s.name: s for s in (
    Suite("llamagen-tiny", "llamagen", "tiny", top_k=20),
    Suite("llamagen-B", "llamagen", "B", limits=VERTICAL),
    Suite("llamagen-tiny-int8", "llamagen", "tiny", passes="int8", top_k=20),
    Suite("llamagen-B-int8", "llamagen", "B", passes="int8"),
    Suite("llamagen-B-int4", "llamagen", "B", passes="int4"),
    Suite("llamagen-B-batch4", "llamagen", "B", batch=4),
    Suite("llamagen-L", "llamagen", "L"),
    Suite("llamagen-XL", "llamagen", "XL"),
    Suite("var-tiny", "var", "tiny", guidance=1.5, top_k=20),
    Suite("var-d16", "var", "d16", guidance=1.5, top_k=900,
          limits={"eager_vs_image": 1.05}),
    Suite("var-d16-int8", "var", "d16", guidance=1.5, top_k=900,
          passes="int8, int8-tiles, bf16-conv", limits={"eager_vs_image": 3.0}),
    Suite("var-d16-hack50", "var", "d16", guidance=1.5, top_k=900,
          passes="kv-hack{ratio=0.5}"),
    *(Suite(f"var-d16-{k}batch4", "var", "d16", guidance=1.5, top_k=900, batch=4,
            passes=v, alone=True) for k, v in (("", ""), ("hack50-", "kv-hack{ratio=0.5}"))),
    Suite("mar-base", "mar", "base", guidance=2.9, top_k=0,
          limits={"eager_vs_step": 1.15}),
    Suite("mar-base-int8", "mar", "base", guidance=2.9, top_k=0,
          passes="int8, int8-tiles, bf16-conv", limits={"eager_vs_image": 2.5}),
    *(Suite(f"mar-base-{k}", "mar", "base", guidance=2.9, top_k=0, options=v) for k, v in (
        ("50", {"diffusion_steps": 50}),
        ("disa", {"diffusion_steps": 50, "diffusion_least": 5}))),
    Suite("mar-tiny", "mar", "tiny", guidance=2.9, top_k=0),
    Suite("xar-tiny", "xar", "tiny", guidance=2.7, top_k=0),
    *(Suite(name, "xar", "B", guidance=2.7, top_k=0, facts={"flow_steps": steps},
            limits={"eager_vs_image": 1.05}) for name, steps in (("xar-B", "40"),
                                                                 ("xar-B-20", "20"))),
    Suite("hmar-tiny", "hmar", "tiny", guidance=1.7, top_k=20),
    Suite("hmar-d16", "hmar", "d16", guidance=1.7, top_k=1000,
          limits={"eager_vs_image": 1.05}),
    Suite("janus-tiny", "janus", "tiny", guidance=5.0, top_k=0),
    Suite("janus-small", "janus", "small", guidance=5.0, top_k=0),
    Suite("janus-Pro-1B", "janus", "Pro-1B", guidance=5.0, top_k=0, alone=True,
          limits={"step_vs_floor": 1.15, "build_s": 240.0}),  # an eager image takes minutes
    Suite("demo", "llamagen", checkpoint="demo", top_k=0),
    Suite("demo-var", "var", checkpoint="demo-var", top_k=0),
    *(Suite(f"demo-{k}", "llamagen", checkpoint="demo", top_k=0, passes=v, alone=True)
      for k, v in (("int8", "int8"), ("int4", "int4"), ("scd", "scd{window=16}"),
                   ("gsd", "gsd{window=16}"),
                   *((f"scd{n}", f"scd{{window={n}}}") for n in (2, 4, 8, 16)),
                   *((f"int8-scd{n}", f"int8, scd{{window={n}}}") for n in (2, 4, 8, 16)),
                   ("draft4", "draft{window=4,by='int4'}"))),
    *(Suite(f"llamagen-B-{k}", "llamagen", "B", passes=v, alone=True) for k, v in (
        *((f"scd{n}", f"scd{{window={n}}}") for n in (4, 8, 16)),
        *((f"int8-scd{n}", f"int8, scd{{window={n}}}") for n in (2, 4, 8, 16)),
        *((f"int8-{k}{n}", f"int8, {k}{{window={n}}}") for k in ("sjd", "jacobi") for n in (2, 4)),
        ("draft4", "draft{window=4,by='int4'}"), ("jacobi16", "jacobi{window=16}"),
        ("int8-jacobi16", "int8, jacobi{window=16}"))),
    *(Suite(f"llamagen-B-grid{n}", "llamagen", "B", options={"grid": n}) for n in (8, 16, 24)),
    *(Suite(f"flexvar-d16-grid{n}", "flexvar", "d16", guidance=2.5, top_k=900,
            options={"patch_nums": ",".join(map(str, (*SIDES[: SIDES.index(n)], n)))})
      for n in (8, 16, 24)),
    *(Suite(f"infinity-layer12-{n}", "infinity", "layer12", guidance=3.0, top_k=900,
            options={"pn": n}) for n in ("0.06M", "0.25M", "0.60M")),
)}

# `arcompile bench all`: what README's tables show
# in less than half an hour on two cores; of Janus the race with transformers' own is in it
ALL = ("demo", "llamagen-B", "llamagen-B-int8", "llamagen-B-int4", "var-d16", "var-d16-int8",
       "hmar-d16")
ALL_SWEEPS = ("sweep-demo-batch", "sweep-llamagen-batch", "sweep-var-batch")


PROMPT = 32  # ids of a prompt


def find(what: str) -> Suite:
    """A suite by its name, or one around an engine folder. Raises ArcError."""
    if what in SUITES:
        return SUITES[what]
    path = Path(what)
    if (path / "manifest.json").is_file():
        return Suite(path.resolve().name, engine=str(path))
    if path.exists():
        raise ArcError(f"{what} is not an engine folder", hint="arcompile bench list")
    raise ArcError(f"no suite or engine named {what!r}", hint=did_you_mean(what, SUITES))


def describe(s: Suite) -> dict[str, Any]:
    return {**asdict(s), "limits": dict(s.limits), "facts": dict(s.facts),
            "options": dict(s.options)}


def source(s: Suite) -> Source:
    """The weights the suite's engine is built from. Raises ArcError."""
    from arcompile.checkpoint import open_checkpoint
    from arcompile.family import FAMILIES, Source
    from arcompile.models.demo import DEMOS, FOLDER

    family = FAMILIES[s.family]
    if not s.checkpoint:
        made = family.random(s.size)
        return replace(made, metadata={**made.metadata, **s.facts}) if s.facts else made
    first, second = (FOLDER / name for name in DEMOS[s.checkpoint])
    held = open_checkpoint(first)
    decoder = open_checkpoint(second).weights(*family.decoder_containers)
    return Source(held.weights(*family.containers), decoder, (first.name, second.name),
                  held.metadata)


def condition(info: Mapping[str, Any], batch: int) -> Any:
    """Some condition for each image of a batch: classes, or caption features."""
    if "classes" in info:
        return [(1 + 207 * i) % info["classes"] for i in range(batch)]
    if "caption" in info:
        shape = (batch, *info["caption"])
        return {"features": np.random.default_rng(0).standard_normal(shape, np.float32)}
    if "max_prompt" in info:
        draw = np.random.default_rng(0)
        length = min(PROMPT, info["max_prompt"])
        return [draw.integers(1, 40, length).tolist() for _ in range(batch)]
    raise ArcError("this engine's condition is of a kind that bench cannot make up")
