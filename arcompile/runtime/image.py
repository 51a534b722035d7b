"""PNG files and contact sheets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from arcompile.errors import ArcError

Array = np.ndarray[Any, Any]


def to_uint8(pixels: Array) -> Array:
    """[B,3,H,W] in [-1,1] -> uint8 [B,H,W,3]. Raises ArcError where that is not its shape."""
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.dtype.kind != "f":
        raise ArcError(f"the decoder made {pixels.dtype}{list(pixels.shape)}, not [B,3,H,W]",
                       hint="rebuild the engine")
    scaled = np.clip((pixels.transpose(0, 2, 3, 1) + 1) * 127.5, 0, 255)
    return np.rint(scaled).astype(np.uint8)


def sheet(images: Array, gap: int = 2) -> Array:
    """uint8 [B,H,W,3] -> one uint8 picture [h,w,3], in rows of about sqrt(B)."""
    b, h, w, _ = images.shape
    columns = math.ceil(math.sqrt(b))
    rows = math.ceil(b / columns)
    out = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = divmod(i, columns)
        out[y * (h + gap) : y * (h + gap) + h, x * (w + gap) : x * (w + gap) + w] = image
    return out


def save(images: Array, path: Path, text: Mapping[str, str] | None = None) -> None:
    """Write one PNG: the picture, or a contact sheet of several. Raises ArcError.

    text: what to keep in the file's text chunks, by keyword.
    """
    from PIL import Image, PngImagePlugin

    picture = images[0] if len(images) == 1 else sheet(images)
    made, chunks = path.with_name(f".{path.name}.part"), PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        chunks.add_text(key, value)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(made, "PNG", pnginfo=chunks)
        made.replace(path)
    except OSError as e:
        made.unlink(missing_ok=True)
        raise ArcError(f"cannot write {path}: {e.strerror or e}") from None
