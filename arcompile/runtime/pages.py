"""Memory of a run that goes back to the system when the run lets go of it, in large pages.

A heap keeps what is freed while the image decoder needs it; and to fill caches in pages of 4 KiB
costs more than all the rest of appending to them.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Mapping

import numpy as np

from arcompile import dims
from arcompile.errors import MACHINE, ArcError, quoted
from arcompile.ir import Type
from arcompile.ops.tensor import NUMPY
from arcompile.runtime.runner import Array, zeros

SMALL = 1 << 18  # bytes below which a tensor may lie in the heap
BLOCK = 64 << 20  # bytes of a block: it goes when its last tensor goes
LINE = 64  # bytes of a cache line


class Pages:
    """Zeroed tensors carved from blocks of large pages."""

    def __init__(self) -> None:
        self.block: mmap.mmap | None = None
        self.used = 0

    def zeros(self, t: Type, sizes: Mapping[str, int]) -> Array:
        """Raises ArcError when there is no memory, or a size is negative."""
        shape = [dims.value(d, sizes) for d in t.shape]
        if min(shape, default=0) < 0 or math.prod(shape) * NUMPY[t.dtype]().itemsize < SMALL:
            return zeros(t, sizes)
        try:
            return self.like(shape, np.dtype(NUMPY[t.dtype]))
        except (OSError, OverflowError) as e:
            raise ArcError(f"no memory for a state {t}: {quoted(e)}", code=MACHINE,
                           hint="draw fewer images at once") from None

    def copy(self, x: Array) -> Array:
        if x.nbytes < SMALL:
            return np.ascontiguousarray(x)
        made = self.like(x.shape, x.dtype)
        made[...] = x
        return made

    def like(self, shape: tuple[int, ...] | list[int], dtype: np.dtype) -> Array:
        count = math.prod(shape)
        need = -(-count * dtype.itemsize // LINE) * LINE
        if self.block is None or self.used + need > len(self.block):
            self.block, self.used = _block(max(need, BLOCK)), 0
        made = np.frombuffer(self.block, dtype, count, self.used).reshape(shape)
        self.used += need
        return made


def _block(size: int) -> mmap.mmap:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return mmap.mmap(-1, size)
    # shared memory, mmap's default, has no large pages
    made = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # advice: without it the memory is as good, and slower
        made.madvise(mmap.MADV_HUGEPAGE)
    return made
