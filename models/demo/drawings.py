"""Procedural 64x64 drawings: one coloured shape on a quiet background; 6 shapes x 6 colours.

Class id = shape * 6 + colour. The same label and generator state always give the same picture.
"""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.random import Generator

SIZE = 64
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
CLASS_NAMES = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)

# hue in degrees, saturation, value; hues stay >= 20 degrees apart after jitter
_HSV = ((356, 0.84, 0.88), (26, 0.90, 0.97), (52, 0.85, 0.98),
        (138, 0.74, 0.66), (217, 0.82, 0.88), (282, 0.70, 0.74))
_HUE_JITTER = 3.0
_TURN = np.radians(12.0)  # largest rotation
_RADIUS = (16.0, 22.0)    # pixels
_STRAY = 8.0              # furthest a centre lies from the middle, right or down, in pixels
_SHADOW = (2.0, 3.0)      # right, down

_GRID = np.arange(SIZE, dtype=np.float64) + 0.5


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 0.88


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.76


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    y = y - 0.2  # the middle of the bounding box, not the centroid
    return np.maximum(y, np.abs(x) * np.sqrt(0.75) - y / 2) - 0.56


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five points: fold the plane into one half-point, then one straight edge."""
    tip, valley = 1.08, 0.50
    step = np.pi / 5
    angle = np.arctan2(x, -y)
    angle = np.abs((angle + step) % (2 * step) - step)
    r = np.hypot(x, y)
    ex, ey = valley * np.cos(step) - tip, valley * np.sin(step)
    return ((r * np.cos(angle) - tip) * -ey + r * np.sin(angle) * ex) / -np.hypot(ex, ey)


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    long, short = np.maximum(x, y), np.minimum(x, y)
    return np.maximum(long - 0.95, short - 0.31)


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.71) - 0.23


_FORMS = (_circle, _square, _triangle, _star, _cross, _ring)


def _distance(shape: int, centre: tuple[float, float], radius: float, turn: float) -> np.ndarray:
    """Signed distance in pixels to the outline, negative inside; [64, 64]."""
    x = (_GRID[None, :] - centre[0]) / radius
    y = (_GRID[:, None] - centre[1]) / radius
    c, s = np.cos(turn), np.sin(turn)
    return _FORMS[shape](c * x + s * y, c * y - s * x) * radius


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue / 360 % 1, min(saturation, 1), min(value, 1)))


def _background(rng: Generator) -> np.ndarray:
    """A soft slope between two tints of one pale or one deep colour; [64, 64, 3] in 0..1."""
    pale = rng.random() < 0.5
    hue, angle = rng.uniform(0, 360), rng.uniform(0, 2 * np.pi)
    saturation = rng.uniform(0.03, 0.12) if pale else rng.uniform(0.10, 0.35)
    value = rng.uniform(0.84, 0.95) if pale else rng.uniform(0.13, 0.24)
    slope = rng.uniform(0.0, 0.06)
    ramp = (_GRID[None, :] - 32) * np.cos(angle) + (_GRID[:, None] - 32) * np.sin(angle)
    tint = _rgb(hue, saturation, 1.0)
    return tint * (value + slope * ramp / 32)[..., None]


def _paint(rng: Generator, colour: int) -> np.ndarray:
    """The shape's own colour with a little jitter; [3] in 0..1."""
    hue, saturation, value = _HSV[colour]
    return _rgb(hue + rng.uniform(-_HUE_JITTER, _HUE_JITTER),
                saturation * rng.uniform(0.95, 1.05), value * rng.uniform(0.95, 1.03))


def draw(label: int, rng: Generator) -> np.ndarray:
    """One picture of class `label`; uint8 [64, 64, 3]."""
    shape, colour = divmod(int(label), len(COLOURS))
    radius, turn = rng.uniform(*_RADIUS), rng.uniform(-_TURN, _TURN)
    room = min(_STRAY, SIZE / 2 - radius * 1.08 - 1.5)
    centre = (SIZE / 2 + rng.uniform(-room, room), SIZE / 2 + rng.uniform(-room, room))
    picture, paint = _background(rng), _paint(rng, colour)
    under = (centre[0] + _SHADOW[0], centre[1] + _SHADOW[1])
    shade = np.clip(0.5 - _distance(shape, under, radius, turn) / 5, 0, 1)
    picture *= 1 - 0.28 * shade[..., None]
    # light falls from the upper left, so the shape itself is a slope too
    light = ((_GRID[None, :] - centre[0]) + (_GRID[:, None] - centre[1])) / radius
    cover = np.clip(0.5 - _distance(shape, centre, radius, turn), 0, 1)[..., None]
    body = paint * (1 - 0.07 * light)[..., None]
    picture = picture * (1 - cover) + body * cover
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def batch(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`n` pictures uint8 [n, 64, 64, 3] and labels [n]; labels cycle, so classes are balanced.

    Picture i depends on (seed, i) alone, so a longer batch starts with the shorter one.
    """
    labels = np.arange(n) % len(CLASS_NAMES)
    pictures = [draw(label, np.random.default_rng((seed, i))) for i, label in enumerate(labels)]
    return np.stack(pictures), labels
