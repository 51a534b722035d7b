"""What else people run such models with, one step of the loop each: `arcompile bench peers`.

Each runs a family's decode step (two rows: an image and its unconditional twin) on random weights
of the same shapes, as its own documentation advises. What a peer needs is made once and
kept in the cache; a peer that is not installed, or fails, is named with the reason.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from arcompile.errors import ArcError

ROWS = 2  # of the network: an image and its twin


class Peer(Protocol):
    def turn(self, steps: int) -> list[float]:
        """Begin an image anew: seconds of each of its first steps, less where it has less. A
        step is transformer and logits; guidance and sampling where the peer has them."""


class Stepped:
    """A peer that is called once a step."""

    def begin(self) -> None:
        """Be ready for the first step of an image."""
        raise NotImplementedError

    def step(self) -> None:
        raise NotImplementedError

    def turn(self, steps: int) -> list[float]:
        self.begin()
        spent = []
        for _ in range(steps):
            start = time.perf_counter()
            self.step()
            spent.append(time.perf_counter() - start)
        return spent


@dataclass(frozen=True)
class Kind:
    """make: (suite, folder for what is kept) -> Peer. exact: computes in f32 what the engine does.

    says: what a reader must know of how it is run. family: whose step it runs.
    """

    name: str
    make: Callable[[Any, Path], Peer]
    exact: bool
    says: str
    family: str = "llamagen"


# What cannot run these models at all, and why: named, so that its absence is no oversight.
UNABLE = {
    "llamagen": {
        "transformers generate": "has no LlamaGen (huggingface/transformers#33905); its Janus is "
                                 "in the other table",
        "vLLM": "its LlamaGen is a fork pinned to 0.4.1, for CUDA only",
        "TensorRT": "needs an NVIDIA GPU",
    },
    "janus": {
        "onnxruntime-genai": "its builder knows no Janus, and its search no pairs of guidance",
        "OpenVINO GenAI": "has no pipeline for Janus; its notebooks convert the parts by hand",
    },
}


def kinds() -> Iterator[Kind]:
    from arcompile.bench import peers_onnx, peers_openvino, peers_torch, peers_transformers

    for module in (peers_torch, peers_onnx, peers_openvino, peers_transformers):
        yield from module.KINDS


def find(names: str) -> list[Kind]:
    """Peers by name, with commas; "all" is every one. Raises ArcError."""
    known = {k.name: k for k in kinds()}
    wanted = list(known) if names == "all" else [n.strip() for n in names.split(",")]
    if lost := [n for n in wanted if n not in known]:
        raise ArcError(f"no peer named {lost[0]!r}", hint=f"known: {', '.join(known)}")
    return [known[n] for n in wanted]


def ready(kind: Kind, suite: Any, home: Path) -> tuple[Peer | None, str]:
    """The peer, or None and why it is not there."""
    folder = home / kind.name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        peer = kind.make(suite, folder)
        peer.turn(3)  # compilers wait for the first call
    except ImportError as e:
        return None, f"{e.name or e} is not installed"
    except Exception as e:  # of whatever kind: a peer's failure is a result
        with contextlib.suppress(Exception):
            first = str(e).strip().splitlines()[0][:160]
            return None, f"{type(e).__name__}: {first}"
        return None, type(e).__name__
    return peer, ""
