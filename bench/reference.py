"""How near an engine's pictures are to a folder of real ones: `arcompile bench ENGINE --reference
DIR [--inception FILE]`.

With an Inception checkpoint of the user's: FID and IS by the standard formulas. Without one: the
same distance on features of the small network that judges the demo, which compares engines of one
set of pictures with each other and with nothing else. Engines with an encoder also say what of the
reference survives becoming tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from arcompile.bench import pictures, suites
from arcompile.bench.spread import figure
from arcompile.errors import ArcError
from arcompile.quality import settings
from arcompile.runtime.engine import Engine

Array = np.ndarray[Any, Any]
Network = Callable[[Array], tuple[Array, Array | None]]  # uint8 [b,h,w,3] -> features, law
KINDS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
SMALL, LARGE, AT_ONCE = 64, 299, 20  # pixels a side; pictures at once
MOST_PIXELS = 1 << 26  # of one picture: more is refused before it is unpacked
FEW = 2048  # below so many pictures a 2048-wide covariance is not of full rank


def files(folder: Path) -> list[Path]:
    """The pictures of a folder and of those in it, by name. Raises ArcError."""
    if not folder.is_dir():
        raise ArcError(f"{folder} is not a folder", hint="give a folder of reference pictures")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in KINDS and p.is_file())
    if len(found) < 2:
        raise ArcError(f"{folder} holds {len(found)} pictures", hint=f"two or more of "
                       f"{', '.join(sorted(KINDS))}")
    return found


def read(path: Path, side: int) -> Array:
    """uint8 [side,side,3]: the middle square, resized. Raises ArcError."""
    try:
        with Image.open(path) as held:
            if held.width * held.height > MOST_PIXELS:
                raise ArcError(f"{path.name} has {held.width} x {held.height} pixels",
                               hint=f"at most {MOST_PIXELS} are read")
            x = held.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise ArcError(f"{path.name} cannot be read: {e}", hint="is it a picture?") from None
    edge = min(x.size)
    left, top = (x.width - edge) // 2, (x.height - edge) // 2
    square = x.crop((left, top, left + edge, top + edge))
    return np.asarray(square.resize((side, side), Image.Resampling.BICUBIC))


def resized(images: Array, side: int) -> Array:
    if images.shape[1:3] == (side, side):
        return images
    return np.stack([np.asarray(Image.fromarray(x).resize((side, side), Image.Resampling.BICUBIC))
                     for x in images])


def small(images: Array) -> tuple[Array, None]:
    """Features of the demo's judge."""
    return pictures.features(resized(images, SMALL)), None


def network(path: Path) -> Network:
    """The user's Inception, as TorchScript (`inception-2015-12-05.pt`: features with
    return_features=True, probabilities without) or as ONNX (input f32 [n,3,299,299] in [-1,1];
    results features [n,d] and, if there, probabilities [n,k]). Raises ArcError."""
    if not path.is_file():
        raise ArcError(f"{path} is not a file", hint="give an Inception checkpoint, .pt or .onnx")
    return _onnx(path) if path.suffix == ".onnx" else _script(path)


def _script(path: Path) -> Network:
    import torch

    try:
        net = torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError) as e:
        raise ArcError(f"{path.name} is not TorchScript: {str(e).splitlines()[0][:120]}",
                       hint="give inception-2015-12-05.pt, or an .onnx file") from None

    def run(images: Array) -> tuple[Array, Array]:
        x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        with torch.inference_mode():
            return net(x, return_features=True).numpy(), net(x).numpy()

    return run


def _onnx(path: Path) -> Network:
    import onnxruntime

    try:
        net = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as e:  # its exceptions have no common class
        raise ArcError(f"{path.name} cannot be opened: {str(e).splitlines()[0][:120]}",
                       hint="give an ONNX file of the network") from None
    (name,) = (i.name for i in net.get_inputs())

    def run(images: Array) -> tuple[Array, Array | None]:
        x = resized(images, LARGE).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
        found = net.run(None, {name: np.ascontiguousarray(x)})
        return found[0], found[1] if len(found) > 1 else None

    return run


def of_all(run: Network, images: Callable[[int], Array], count: int) -> tuple[Array, Array | None]:
    """Features and probabilities of `count` pictures, a few at once; images(i): the i-th."""
    features, laws = [], []
    for at in range(0, count, AT_ONCE):
        f, p = run(np.stack([images(i) for i in range(at, min(at + AT_ONCE, count))]))
        features.append(f)
        if p is not None:
            laws.append(p)
    return np.concatenate(features), np.concatenate(laws) if laws else None


def drawn(e: Engine, count: int) -> Array:
    """uint8 [count,h,w,3] at the engine's own settings, conditions in turn."""
    made: list[Array] = []
    conds = suites.condition(e.manifest["info"], count)
    for at in range(0, count, AT_ONCE):
        here = range(at, min(at + AT_ONCE, count))
        part = ({k: v[here.start : here.stop] for k, v in conds.items()}
                if isinstance(conds, dict) else conds[here.start : here.stop])
        out = e.generate(part, seed=list(here), **settings(e))
        if out.images is None:
            raise ArcError("this engine draws no pictures", hint="build it with a decoder")
        made.append(out.images)
    return np.concatenate(made)


def scores(e: Engine, folder: Path, inception: Path | None = None,
           count: int = 0) -> dict[str, Any]:
    """Distance, score and what the tokenizer keeps; count: pictures drawn, 0 as many as there are
    references. Raises ArcError."""
    held = files(folder)
    run, count = small if inception is None else network(inception), count or len(held)
    side = SMALL if inception is None else LARGE
    real, _ = of_all(run, lambda i: read(held[i], side), len(held))
    made = drawn(e, count)
    ours, law = of_all(run, lambda i: made[i], count)
    found: dict[str, Any] = {
        "pictures": count, "references": len(held),
        "network": "the demo's judge, 64 px" if inception is None else inception.name,
        "fid" if inception is not None else "frechet": figure(pictures.frechet(ours, real)),
        # what two halves of the references are apart: a perfect engine of half as many gets this
        "floor": figure(pictures.frechet(real[0::2], real[1::2])),
    }
    if law is not None:
        found["inception_score"] = figure(pictures.inception_score(law))
    if inception is not None and min(count, len(held)) < FEW:
        found["note"] = f"of fewer than {FEW} pictures: compare with nothing published"
    if "encode" in e.manifest.get("graphs", ()):
        pixels = np.stack([read(p, made.shape[1]) for p in held[:12]])
        found["tokenizer"] = pictures.tokenizer(
            e, pixels.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)
    return found
