"""The judge: reads shape and colour back from pictures; a tiny convolutional net in plain numpy.

It was also shown what is not a drawing (noise, blobs, torn, smeared and mixed shapes), so a
picture has to be well made to be believed.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import numpy as np

from arcompile.models.demo.drawings import COLOURS, SHAPES

FILE = Path(__file__).with_name("demo_judge.safetensors")
NONE = -1  # the shape id of a picture that holds no clean shape
_CHUNK = 64


@cache
def _weights() -> dict[str, np.ndarray]:
    """The tensors of the judge's file, widened from f16 to f32."""
    raw = FILE.read_bytes()
    body = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:body])
    header.pop("__metadata__", None)
    return {name: np.frombuffer(raw[body + t["data_offsets"][0]:body + t["data_offsets"][1]], "<f2")
            .reshape(t["shape"]).astype(np.float32) for name, t in header.items()}


def _conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Stride-2 convolution and ReLU; x [b, h, w, c], weight [out, c, k, k]."""
    k = weight.shape[-1]
    x = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), (1, 2))[:, ::2, ::2]
    return np.maximum(np.tensordot(windows, weight, ((3, 4, 5), (1, 2, 3))) + bias, 0)


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _read(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [b, 64, 64, 3] -> probabilities of shapes and "none" [b, 7], of colours [b, 6]."""
    w = _weights()
    x = images.astype(np.float32) / 127.5 - 1
    for i in range(4):
        x = _conv(x, w[f"conv.{i}.weight"], w[f"conv.{i}.bias"])
    x = x.reshape(len(x), -1)  # row, column, channel
    x = np.maximum(x @ w["hidden.weight"].T + w["hidden.bias"], 0)
    x = x @ w["head.weight"].T + w["head.bias"]
    return _softmax(x[:, :len(SHAPES) + 1]), _softmax(x[:, len(SHAPES) + 1:])


def judge(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uint8 [b, 64, 64, 3] -> shape ids [b] (NONE where there is none), colour ids, confidence.

    Confidence is the probability of the best shape times that of the best colour.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (64, 64, 3):
        raise ValueError(f"the judge reads uint8 [b, 64, 64, 3], not {images.dtype} {images.shape}")
    if len(images) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    parts = [_read(images[i:i + _CHUNK]) for i in range(0, len(images), _CHUNK)]
    shapes, colours = (np.concatenate(p) for p in zip(*parts, strict=True))
    real = shapes[:, :-1]
    shape = np.where(shapes.argmax(-1) < len(SHAPES), real.argmax(-1), NONE)
    return shape, colours.argmax(-1), real.max(-1) * colours.max(-1)


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share, after Wilson."""
    if n == 0:
        return 0.0, 1.0
    p, slack = right / n, z * z / n
    middle = p + slack / 2
    half = z * math.sqrt(p * (1 - p) / n + slack / n / 4)
    low, high = (middle - half) / (1 + slack), (middle + half) / (1 + slack)
    return max(0.0, min(p, low)), min(1.0, max(p, high))  # rounding must not push p outside


def score(images: np.ndarray, labels: np.ndarray) -> dict:
    """Share of pictures [b, 64, 64, 3] that show what their labels [b] say.

    `both`, `shape`, `colour`: shares; `n`: pictures; `ci`: 95 % interval of `both`; `right`: bool
    [b], which of them show both.
    """
    shape, colour, _ = judge(images)
    want_shape, want_colour = np.divmod(np.asarray(labels), len(COLOURS))
    both = (shape == want_shape) & (colour == want_colour)
    return {"both": float(both.mean()), "shape": float((shape == want_shape).mean()),
            "colour": float((colour == want_colour).mean()), "n": len(both),
            "ci": wilson(int(both.sum()), len(both)), "right": both}
