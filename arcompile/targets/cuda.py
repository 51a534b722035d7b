"""NVIDIA's driver API through ctypes: memory, copies, one stream. Needs a driver and nothing else.

https://docs.nvidia.com/cuda/cuda-driver-api
"""

from __future__ import annotations

import ctypes as c
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from arcompile.errors import MACHINE, ArcError

LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
MAJOR, MINOR = 75, 76  # attributes of a device: its compute capability
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Device:
    """name: what the maker calls it; capability: such as SM90."""

    name: str
    capability: str
    driver: int


@cache
def library() -> Any:
    """The driver. Raises ArcError with exit code 2 where there is none."""
    for name in LIBRARIES:
        try:
            return c.CDLL(name)
        except OSError:
            continue
    raise ArcError("no NVIDIA driver is installed", code=MACHINE,
                   hint="this engine needs an NVIDIA GPU; build it with --target ort-cpu")


class Driver:
    """The first GPU, its primary context and one stream. Every failure is an ArcError."""

    def __init__(self) -> None:
        self.lib = library()
        self._do("cuInit", 0)
        count = c.c_int()
        self._do("cuDeviceGetCount", c.byref(count))
        if not count.value:
            raise ArcError("the NVIDIA driver sees no GPU", code=MACHINE,
                           hint="check CUDA_VISIBLE_DEVICES")
        self.id, context, stream = c.c_int(), c.c_void_p(), c.c_void_p()
        self._do("cuDeviceGet", c.byref(self.id), 0)
        self._do("cuDevicePrimaryCtxRetain", c.byref(context), self.id)
        self.context = context
        self.enter()
        self._do("cuStreamCreate", c.byref(stream), 1)  # does not wait for the default stream
        self.stream = int(stream.value or 0)

    def _do(self, name: str, *args: Any) -> None:
        if code := getattr(self.lib, name)(*args):
            text = c.c_char_p()
            self.lib.cuGetErrorString(code, c.byref(text))
            what = (text.value or b"unknown error").decode()
            raise ArcError(f"{name} failed: {what} ({code})", code=MACHINE,
                           hint="use fewer images" if code == 2 else "nvidia-smi tells its state")

    def enter(self) -> None:
        """Make the context that of this thread."""
        self._do("cuCtxSetCurrent", self.context)

    def device(self) -> Device:
        name, major, minor, version = c.create_string_buffer(100), c.c_int(), c.c_int(), c.c_int()
        self._do("cuDeviceGetName", name, 100, self.id)
        self._do("cuDeviceGetAttribute", c.byref(major), MAJOR, self.id)
        self._do("cuDeviceGetAttribute", c.byref(minor), MINOR, self.id)
        self._do("cuDriverGetVersion", c.byref(version))
        return Device(name.value.decode(), f"SM{major.value}{minor.value}", version.value)

    def alloc(self, nbytes: int) -> int:
        at = c.c_uint64()
        self._do("cuMemAlloc_v2", c.byref(at), c.c_size_t(max(1, nbytes)))
        return int(at.value)

    def free(self, at: int) -> None:
        self.lib.cuMemFree_v2(c.c_uint64(at))

    def zero(self, at: int, nbytes: int) -> None:
        self._do("cuMemsetD8Async", c.c_uint64(at), c.c_ubyte(0), c.c_size_t(nbytes),
                 self._stream())

    def upload(self, at: int, x: Array) -> None:
        """Returns when x may be changed again."""
        x = np.ascontiguousarray(x)
        self._do("cuMemcpyHtoDAsync_v2", c.c_uint64(at), c.c_void_p(x.ctypes.data),
                 c.c_size_t(x.nbytes), self._stream())
        self.sync()

    def download(self, x: Array, at: int) -> None:
        self._do("cuMemcpyDtoHAsync_v2", c.c_void_p(x.ctypes.data), c.c_uint64(at),
                 c.c_size_t(x.nbytes), self._stream())
        self.sync()

    def sync(self) -> None:
        self._do("cuStreamSynchronize", self._stream())

    def _stream(self) -> Any:
        return c.c_void_p(self.stream)
