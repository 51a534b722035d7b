"""What a picture looks like so far: the program's preview, or its finish run early, with nothing
left behind."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from arcompile.errors import ArcError

if TYPE_CHECKING:
    from arcompile.runtime.loop import Array, Loop

GREY = 0.6  # of pixels that no token stands for yet; white is 1


def partial(loop: Loop) -> Array:
    """Pixels f32 [b,3,H,W] of what is committed. Draws no noise and changes no state.

    Where a decoder reads tokens, those that are missing repeat the one before, and their cells are
    grey. When all is drawn it is the picture itself, and the finish is done. Raises ArcError when
    there is no decoder.
    """
    if not loop.p.finish:
        raise ArcError("this engine draws tokens only", hint="build it with --decoder")
    if loop.whole:
        loop.end()
        return np.array(loop.runner.numpy(loop.env["pixels"]))
    calls = loop.p.preview or loop.p.finish
    env, loop.env = loop.env, {**loop.env, "tokens": filled(loop.tokens)}
    try:
        for call in calls:
            loop._call(call, None)
        pixels = np.array(loop.runner.numpy(loop.env["pixels"]))
    finally:
        loop.env = env
    reads = {name for c in calls for name in loop.runner.inputs(c.graph)}
    return greyed(pixels, loop.tokens) if "tokens" in reads else pixels


def filled(tokens: Array) -> Array:
    """Tokens [b,N], where those that are missing (-1) are the last one before, or 0."""
    last = np.maximum.accumulate(np.where(tokens >= 0, np.arange(tokens.shape[1]), -1), 1)
    return np.where(last >= 0, np.take_along_axis(tokens, np.maximum(last, 0), 1), 0)


def greyed(pixels: Array, tokens: Array) -> Array:
    """The cells of a square grid of tokens that are missing, painted over."""
    side, (height, width) = math.isqrt(tokens.shape[1]), pixels.shape[-2:]
    if pixels.ndim != 4 or side**2 != tokens.shape[1] or height % side or width % side:
        return pixels
    missing = (tokens < 0).reshape(-1, 1, side, side)
    missing = missing.repeat(height // side, 2).repeat(width // side, 3)
    return np.where(missing, np.float32(GREY), pixels)
