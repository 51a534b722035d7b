"""libarcompile through its C interface: built once, called by ctypes, answers as numpy arrays."""

from __future__ import annotations

import ctypes as c
import fcntl
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import arcompile
from arcompile.errors import ArcError
from arcompile.kernels import cpu

ROOT = Path(__file__).parents[1]
DTYPES = ("float32", "float16", "uint16", "float64", "int64", "int32", "int8", "uint8", "bool")
ON_STEP = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p)


class Tensor(c.Structure):
    _fields_ = (("dtype", c.c_int), ("rank", c.c_size_t), ("shape", c.POINTER(c.c_int64)),
                ("data", c.c_void_p))


class Timings(c.Structure):
    _fields_ = (*((k, c.c_double) for k in ("prompt", "loop", "finish", "total", "sessions")),
                ("steps", c.c_size_t))


def missing() -> str:
    """"" where the library can be built, else what it lacks."""
    for tool in ("cmake", "c++"):
        if not shutil.which(tool):
            return f"{tool} is not on the PATH"
    header = any(Path(p, "nlohmann", "json.hpp").is_file() for p in ("/usr/include",
                                                                      "/usr/local/include"))
    if not (header or json_root()):
        return "nlohmann/json.hpp is not found (pip install nlohmann-json)"
    return ""


def json_root() -> str:
    """The folder of the JSON header: NLOHMANN_JSON_ROOT, or this Python's own package."""
    found = importlib.util.find_spec("nlohmann_json")
    wheel = found.submodule_search_locations[0] if found else ""
    return os.environ.get("NLOHMANN_JSON_ROOT") or wheel


def build(*options: str, name: str = "release") -> Path:
    """Configure and build under build/; only what changed is compiled again. The build folder."""
    if reason := missing():
        pytest.skip(f"libarcompile is not built: {reason}")
    folder = ROOT / "build" / "cpp" / name
    folder.mkdir(parents=True, exist_ok=True)
    root = json_root()
    ninja = ["-G", "Ninja"] if shutil.which("ninja") else []
    with (folder / ".lock").open("w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        cmake("-S", ROOT, "-B", folder, *ninja, *options,
              *([f"-DNLOHMANN_JSON_ROOT={root}"] if root else []))
        cmake("--build", folder, "--parallel")
    return folder


def library() -> Path:
    """The shared library: ARC_NATIVE_LIBRARY, or built now."""
    given = os.environ.get("ARC_NATIVE_LIBRARY")
    return Path(given) if given else build() / "arcompile/runtime/cpp/libarcompile.so"


def cmake(*words: object) -> None:
    done = subprocess.run(["cmake", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def ort_library() -> str:
    """The wheel's own file."""
    import onnxruntime

    found = sorted(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.*"))
    return str(found[0])


class Library:
    """The C interface, with errors as ArcError."""

    def __init__(self, file: Path):
        self.c = c.CDLL(str(file))
        for name, kind in (("arc_request_new", c.c_void_p), ("arc_error_what", c.c_char_p),
                           ("arc_error_hint", c.c_char_p), ("arc_output_tensor", Tensor),
                           ("arc_progress_tokens", Tensor), ("arc_output_timings", Timings),
                           ("arc_engine_manifest", c.c_char_p), ("arc_engine_runtime", c.c_char_p),
                           ("arc_engine_label", c.c_char_p), ("arc_version", c.c_char_p),
                           ("arc_engine_default", c.c_double), ("arc_stop_new", c.c_void_p),
                           ("arc_progress_step", c.c_size_t),
                           ("arc_output_steps", c.POINTER(c.c_double))):
            getattr(self.c, name).restype = kind

    def must(self, name: str, *args: object) -> None:
        call = getattr(self.c, name)
        call.restype = c.c_void_p
        error = call(*args)
        if not error:
            return
        held = c.c_void_p(error)
        what, hint = (f(held).decode() for f in (self.c.arc_error_what, self.c.arc_error_hint))
        code = self.c.arc_error_code(held)
        self.c.arc_error_free(held)
        raise ArcError(what, hint=hint, code=code)

    def open(self, folder: object, threads: int = 0, library: str | None = None,
             signed_by: object = None, kernels: object = None) -> Engine:
        """kernels: by default those of the CPU that the Python runtime uses."""
        out, kernels = c.c_void_p(), kernels or cpu.library()
        words = [str(folder).encode(), threads, (library or ort_library()).encode(),
                 str(kernels or "off").encode()]
        if signed_by is None:
            self.must("arc_engine_open", *words, c.byref(out))
        else:
            self.must("arc_engine_open_signed", *words, str(signed_by).encode(), c.byref(out))
        return Engine(self, out)


def lent(x: np.ndarray) -> Tensor:
    """A view of an array, which must live as long."""
    shape = (c.c_int64 * x.ndim)(*x.shape)
    made = Tensor(DTYPES.index(str(x.dtype)), x.ndim, shape, x.ctypes.data)
    made.keep = (x, shape)
    return made


def taken(t: Tensor) -> np.ndarray | None:
    if not t.data:
        return None
    shape = [t.shape[i] for i in range(t.rank)]
    dtype = np.dtype(DTYPES[t.dtype])
    n = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(c.string_at(t.data, n), dtype).reshape(shape)


class Engine:
    def __init__(self, library: Library, handle: c.c_void_p):
        self.lib, self.handle = library, handle

    def __del__(self) -> None:
        self.lib.c.arc_engine_free(self.handle)

    def request(self, cond, seed=0, n=1, interval=None, stop=None, on_step=None, given=None,
                **numbers) -> c.c_void_p:
        lib, r = self.lib, c.c_void_p(self.lib.c.arc_request_new())
        keep = []
        self._condition(r, cond, keep)
        seeds = np.ravel(np.array(seed, object)).tolist()
        lib.must("arc_request_seeds", r, (c.c_uint64 * len(seeds))(*seeds), c.c_size_t(len(seeds)))
        lib.must("arc_request_copies", r, c.c_int64(n))
        for name, value in numbers.items():
            x = np.ravel(np.asarray(value, np.float64))
            lib.must("arc_request_set", r, name.encode(), (c.c_double * len(x))(*x),
                     c.c_size_t(len(x)))
        if interval is not None:
            lib.must("arc_request_guidance_interval", r, c.c_int64(interval))
        for name, x in (given or {}).items():
            keep.append(lent(np.ascontiguousarray(x)))
            lib.must("arc_request_given", r, name.encode(), keep[-1])
        if stop is not None:
            lib.must("arc_request_stop", r, stop)
        if on_step is not None:
            keep.append(ON_STEP(lambda p, _: on_step(c.c_void_p(p)) or 0))
            lib.must("arc_request_on_step", r, keep[-1], None)
        r.keep = keep
        return r

    def _condition(self, r, cond, keep) -> None:
        lib = self.lib
        if isinstance(cond, dict):
            for name, x in cond.items():
                keep.append(lent(np.ascontiguousarray(x)))
                lib.must("arc_request_input", r, name.encode(), keep[-1])
        elif len(cond) and isinstance(cond[0], list):
            for ids in cond:
                lib.must("arc_request_prompt", r, (c.c_int64 * len(ids))(*ids),
                         c.c_size_t(len(ids)))
        elif len(cond) and isinstance(cond[0], str):
            for name in cond:
                lib.must("arc_request_class_name", r, name.encode())
        else:
            lib.must("arc_request_classes", r, (c.c_int64 * len(cond))(*cond),
                     c.c_size_t(len(cond)))

    def generate(self, cond, **asked) -> SimpleNamespace:
        r, out = self.request(cond, **asked), c.c_void_p()
        try:
            self.lib.must("arc_generate", self.handle, r, c.byref(out))
            return self._taken(out, "tokens", "pixels", "images", "latents", "rounds")
        finally:
            self.lib.c.arc_request_free(r)
            self.lib.c.arc_output_free(out)

    def logits(self, cond, tokens) -> tuple[np.ndarray, np.ndarray]:
        r, out = self.request(cond), c.c_void_p()
        try:
            forced = np.ascontiguousarray(tokens, np.int64)
            self.lib.must("arc_logits", self.handle, r, lent(forced), c.byref(out))
            found = self._taken(out, "conditional", "unconditional")
            return found.conditional, found.unconditional
        finally:
            self.lib.c.arc_request_free(r)
            self.lib.c.arc_output_free(out)

    def encode(self, pixels) -> np.ndarray:
        out, x = c.c_void_p(), np.ascontiguousarray(pixels, np.float32)
        try:
            self.lib.must("arc_encode", self.handle, lent(x), c.byref(out))
            return self._taken(out, "tokens").tokens
        finally:
            self.lib.c.arc_output_free(out)

    def plan(self, images: int, guided: bool = True, part: str | None = None) -> int:
        found = c.c_int64()
        self.lib.must("arc_engine_plan", self.handle, c.c_int64(images), int(guided),
                      part and part.encode(), c.byref(found))
        return found.value

    def _taken(self, out: c.c_void_p, *names: str) -> SimpleNamespace:
        get = self.lib.c.arc_output_tensor
        made = {name: taken(get(out, name.encode())) for name in names}
        t = self.lib.c.arc_output_timings(out)
        steps = self.lib.c.arc_output_steps(out)
        made["timings"] = {k: getattr(t, k) for k, _ in Timings._fields_} | {
            "steps": [steps[i] for i in range(t.steps)]}
        return SimpleNamespace(**made)


class Pair:
    """One engine in both runtimes, with one thread each."""

    def __init__(self, lib: Library, folder: Path):
        self.folder = folder
        self.cpp, self.py = lib.open(folder, 1), arcompile.load(folder, threads=1)

    def same(self, cond, **ask):
        given = ask.pop("given", {})
        interval = ask.pop("interval", None)
        a = self.cpp.generate(cond, interval=interval, given=given, **ask)
        b = self.py.generate(cond, guidance_interval=interval, **given, **ask)
        for name in ("tokens", "pixels", "images", "latents", "rounds"):
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None) == (y is None), name
            if x is not None:
                assert (x.shape, x.dtype) == (y.shape, y.dtype), name
                assert x.tobytes() == np.ascontiguousarray(y).tobytes(), name
        return a
