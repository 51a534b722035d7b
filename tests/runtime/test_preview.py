"""Looking at a picture while it is drawn changes nothing of it."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import tiny

from arcompile.cli.preview import Preview, blocks
from arcompile.errors import ArcError
from arcompile.passes.scd import SCD
from arcompile.pipeline import run
from arcompile.runtime.loop import Loop, Request
from arcompile.runtime.preview import GREY, filled, greyed
from arcompile.targets.reference import models
from arcompile.weights import Store


def loop(p):
    q = Request({"cond": np.array([1, 2])}, np.arange(2, dtype=np.uint64), np.zeros(2, int),
                np.full(2, 2.0), np.ones(2, np.float32), np.zeros(2, int), np.ones(2, np.float32))
    return Loop(p, models(p, Store(tiny.weights(p), p.fold)).runner(), q, 16)


@pytest.mark.parametrize("passes", [[], [SCD(window=2)]], ids=["plain", "scd"])
def test_the_same_picture_with_previews(passes):
    p, seen = run(tiny.llama(1), passes), []
    plain = loop(p).run()
    looked = loop(p).run(lambda s: seen.append((s.tokens, s.pixels())))
    assert (plain.tokens == looked.tokens).all()
    assert (plain.env["pixels"] == looked.env["pixels"]).all()
    assert (seen[-1][1] == plain.env["pixels"]).all()
    for tokens, pixels in seen:  # each frame is the finish on what is committed
        whole = loop(p)
        whole.env["tokens"] = filled(tokens)
        whole._call(p.finish[0], None)
        assert (pixels == whole.env["pixels"]).all()


def test_false_stops():
    p = tiny.llama(1)
    whole, part = loop(p).run(), loop(p).run(lambda s: s.step < 2)
    assert (part.tokens[:, :2] == whole.tokens[:, :2]).all()
    assert (part.tokens[:, 2:] == -1).all()
    assert len(part.timings["steps"]) == 2
    assert part.env["pixels"].shape == whole.env["pixels"].shape


def test_missing_tokens_repeat_the_last():
    tokens = np.array([[3, -1, 5, -1], [-1, 2, -1, -1]])
    assert filled(tokens).tolist() == [[3, 3, 5, 5], [0, 2, 2, 2]]


def test_missing_cells_are_grey():
    pixels = np.zeros((1, 3, 4, 4), np.float32)
    out = greyed(pixels, np.array([[1, 1, 1, -1]]))
    assert (out[0, :, 2:, 2:] == np.float32(GREY)).all()
    assert not out[0, :, :2].any()
    assert greyed(pixels, np.array([[1, 1, -1]])) is pixels  # no square grid


def test_no_decoder_no_preview():
    from dataclasses import replace

    p = replace(tiny.llama(1), finish=())
    with pytest.raises(ArcError, match="draws tokens only"):
        loop(p).run(lambda s: s.pixels())


class Frames:
    """A Progress with a picture of one colour."""

    tokens = None

    def __init__(self, step, steps=32):
        self.step, self.steps = step, steps

    def pixels(self):
        return np.full((1, 3, 8, 8), self.step / self.steps * 2 - 1, np.float32)


def test_files(tmp_path):
    from PIL import Image

    for name, every, frames in (("a.gif", 0, 16), ("b.gif", 8, 4), ("c.png", 4, 1)):
        show = Preview(str(tmp_path / name), every)
        for i in range(1, 33):
            show(Frames(i))
        show.close()
        with Image.open(tmp_path / name) as made:
            assert getattr(made, "n_frames", 1) == frames
            made.seek(frames - 1)
            assert made.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.gif", "b.gif", "c.png"]


def test_a_window_may_jump_over_frames(tmp_path):
    show = Preview(str(tmp_path / "a.gif"))
    for i in (1, 7, 7, 30, 32):
        show(Frames(i))
    assert len(show.frames) == 3


@pytest.mark.parametrize(("where", "every", "why"), [
    ("a.jpg", 0, "a .png or .gif file or 'terminal', not 'a.jpg'"),
    ("a.gif", -1, "a frame every -1 steps"),
    ("terminal", 0, "stderr is not a terminal")])
def test_refuses(where, every, why):
    with pytest.raises(ArcError, match=why):
        Preview(where, every)


def test_a_terminal_has_two_pixels_a_character():
    text = blocks(np.zeros((8, 200, 3), np.uint8))
    assert text.count("\n") == 1  # every fourth row and column
    assert text.count("\u2580") == 50


def test_a_terminal_shows_a_frame_over_the_one_before(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stderr", Terminal())
    show = Preview("terminal", 16)
    for step in (16, 32):
        show(Frames(step))
    show.close()
    first, second = sys.stderr.getvalue().split("\x1b[4A")  # up by its lines
    assert first.count("\n") == second.count("\n") == 4
    assert "255;255;255" not in first
    assert "255;255;255" in second
