"""The picture while it is drawn: a PNG that grows, a GIF of its frames, or cells of a terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arcompile.errors import ArcError

if TYPE_CHECKING:
    from arcompile.runtime.loop import Array, Progress

TERMINAL = "terminal"
MILLISECONDS = 120  # of a frame of a GIF
LAST = 1500
COLUMNS = 64


class Preview:
    """Call it with each Progress; `close` writes what needs all frames.

    where: a .png or .gif file, or "terminal". every: steps between two frames, 0: 16 in all.
    """

    def __init__(self, where: str, every: int = 0):
        self.kind = TERMINAL if where == TERMINAL else Path(where).suffix.lower()
        if self.kind not in (TERMINAL, ".png", ".gif"):
            raise ArcError(f"a preview is a .png or .gif file or {TERMINAL!r}, not {where!r}",
                           hint="--preview drawing.gif")
        if every < 0:
            raise ArcError(f"a frame every {every} steps", hint="0 makes 16 frames in all")
        if self.kind == TERMINAL and not sys.stderr.isatty():
            raise ArcError("stderr is not a terminal that can show a preview",
                           hint="--preview drawing.png")
        self.path, self.every, self.seen = Path(where), every, 0
        self.frames: list[Array] = []
        self.lines = 0

    def __call__(self, p: Progress) -> None:
        """A frame when it is time for one, and at the end."""
        every = self.every or max(1, p.steps // 16)
        if p.step < p.steps and p.step // every == self.seen // every:
            return
        self.seen = p.step
        from arcompile.runtime.image import save, sheet, to_uint8

        images = to_uint8(p.pixels())
        if self.kind == ".png":
            save(images, self.path)
        elif self.kind == ".gif":
            self.frames.append(images[0] if len(images) == 1 else sheet(images))
        else:
            self._show(images[0] if len(images) == 1 else sheet(images))

    def _show(self, picture: Array) -> None:
        """Two pixels a character, over what was shown before."""
        if self.lines:
            sys.stderr.write(f"\x1b[{self.lines}A")
        text = blocks(picture)
        self.lines = text.count("\n")
        sys.stderr.write(text)
        sys.stderr.flush()

    def close(self) -> None:
        if self.kind != ".gif" or not self.frames:
            return
        from PIL import Image

        first, *more = (Image.fromarray(f) for f in self.frames)
        made = self.path.with_name(f".{self.path.name}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            first.save(made, "GIF", save_all=True, append_images=more, loop=0,
                       duration=[*[MILLISECONDS] * len(more), LAST])
            made.replace(self.path)
        except OSError as e:
            made.unlink(missing_ok=True)
            raise ArcError(f"cannot write {self.path}: {e.strerror or e}") from None


def blocks(picture: Any) -> str:
    """uint8 [h,w,3] as half-block characters in true colour, at most COLUMNS wide."""
    step = max(1, -(-picture.shape[1] // COLUMNS))
    small = picture[::step, ::step]
    small = small[: len(small) // 2 * 2]
    lines = []
    for top, low in zip(small[::2], small[1::2], strict=True):
        cells = [f"\x1b[38;2;{';'.join(map(str, a))}m\x1b[48;2;{';'.join(map(str, b))}m\u2580"
                 for a, b in zip(top.tolist(), low.tolist(), strict=True)]
        lines.append("".join(cells) + "\x1b[0m\n")
    return "".join(lines)
