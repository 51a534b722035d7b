"""What this machine can do, and what to install for more."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arcompile.errors import ArcError

PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "Pillow", "torch", "onnx", "safetensors",
            "networkx", "matplotlib", "triton", "tensorrt", "tensorrt-rtx")
PEERS = ("openvino", "nncf", "onnxruntime-genai", "transformers")  # of `arcompile bench peers`
FLAGS = ("avx", "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile",
         "amx_int8", "amx_bf16", "asimd", "sve", "i8mm")


def examine() -> dict[str, Any]:
    """Everything `arcompile doctor` tells, as JSON-ready data. Never raises."""
    import arcompile

    found, peers = packages(), packages(PEERS)
    return {
        "arcompile": arcompile.__version__,
        "python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu(), "memory_bytes": memory(), "gpus": gpus(),
        "packages": found, "peers": peers, "missing": _missing(found | peers),
        "targets": targets(), "kernels": kernels(), "cache": cache_folder(),
    }


# --- hardware ------------------------------------------------------------------------------------


def cpu() -> dict[str, Any]:
    try:
        usable = len(os.sched_getaffinity(0))
    except AttributeError:
        usable = os.cpu_count() or 1
    text = _read("/proc/cpuinfo")
    name = re.search(r"model name\s*:\s*(.+)", text)
    flags = re.search(r"(?:flags|Features)\s*:\s*(.+)", text)
    have = set(flags[1].split()) if flags else set()
    return {"name": name[1] if name else platform.processor(), "cores": usable,
            "flags": [f for f in FLAGS if f in have]}


def memory() -> dict[str, int]:
    """Total and free; the total is the container's limit where that is lower."""
    found = {k: int(v) << 10 for k, v in re.findall(r"(\w+):\s+(\d+) kB", _read("/proc/meminfo"))}
    total, free = found.get("MemTotal", 0), found.get("MemAvailable", 0)
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    if limit.isdigit() and total:
        total = min(total, int(limit))
    return {"total": total, "free": min(free, total)}


def gpus() -> list[str]:
    """NVIDIA's GPUs as `nvidia-smi` names them; empty without a driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    asked = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [s.strip() for s in done.stdout.splitlines() if s.strip()] if not done.returncode else []


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


# --- software ------------------------------------------------------------------------------------


def packages(names: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of what is installed; "" where it is not. Nothing is imported."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


def _missing(found: dict[str, str]) -> dict[str, str]:
    """What cannot be done, and the command that cures it."""
    build = [p for p in ("torch", "onnx", "safetensors", "networkx") if not found[p]]
    run = [p for p in ("numpy", "Pillow") if not found[p]]
    if not found["onnxruntime"] and not found["onnxruntime-gpu"]:
        run.append("onnxruntime")
    told = {}
    if build:
        told[f"building ({', '.join(build)})"] = "pip install 'arcompile[build]'"
    if run:
        told[f"running ({', '.join(run)})"] = "pip install arcompile"
    if not found["matplotlib"]:
        told["plots (matplotlib)"] = "pip install matplotlib"
    if peers := [p for p in PEERS if not found[p]]:
        told[f"peers of the bench ({', '.join(peers)})"] = "pip install 'arcompile[peers]'"
    return told


def targets() -> dict[str, dict[str, str]]:
    """Each target: why it cannot run here ("" when it can), and what would install it."""
    from arcompile.target import TARGETS

    found = {}
    for name, t in TARGETS.all().items():
        try:
            reason = t.available()
        except ArcError as e:
            reason = e.what
        cure = f"pip install {shlex.join(t.needs)}" if reason and t.needs else ""
        found[name] = {"reason": reason, "install": cure}
    return found


def kernels() -> dict[str, str]:
    """The library of our own CPU kernels: where it is and what it uses, or why it is not there."""
    from arcompile.kernels import cpu

    try:
        found = cpu.library()
    except ArcError as e:
        return {"library": "", "isa": "", "reason": e.what}
    if found:
        return {"library": str(found), "isa": cpu.isa(found), "reason": ""}
    off = os.getenv("ARC_KERNELS") == "off"
    how = "the first `arcompile build` makes it" if cpu.compiler() else "there is no C++ compiler"
    return {"library": "", "isa": "", "reason": "ARC_KERNELS=off" if off else how}


def cache_folder() -> dict[str, Any]:
    """Where engines are kept unless a folder is named, and what they take."""
    from arcompile.cache import cache

    folder = cache()
    files = [f for f in folder.rglob("*") if f.is_file()] if folder.is_dir() else []
    engines = folder / "engines"
    count = sum(1 for f in engines.iterdir() if f.is_dir()) if engines.is_dir() else 0
    total = sum(f.stat().st_size for f in files)
    disk = _existing(folder)
    free = shutil.disk_usage(disk).free
    return {"folder": str(folder), "bytes": total, "engines": count, "disk_free_bytes": free,
            "writable": os.access(disk, os.W_OK)}


def _existing(path: Path) -> Path:
    """The path, or its nearest parent that is there."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


# --- for people ----------------------------------------------------------------------------------


def report(told: dict[str, Any]) -> str:
    from arcompile.cli.terminal import facts
    from arcompile.cost import figure

    def gb(n: int) -> str:
        return figure(n, "B")

    c, memory, cache = told["cpu"], told["memory_bytes"], told["cache"]
    have = ", ".join(f"{k} {v}" for k, v in told["packages"].items() if v)
    lack = ", ".join(k for k, v in told["packages"].items() if not v)
    lines = [facts({
        "arcompile": told["arcompile"], "python": f"{told['python']}, {told['system']}",
        "cpu": f"{c['cores']} cores, {c['name']}", "flags": " ".join(c["flags"]),
        "memory": f"{gb(memory['total'])}, {gb(memory['free'])} free" if memory["total"] else "",
        "gpu": "; ".join(told["gpus"]) or "no NVIDIA GPU seen",
        "packages": have, "absent": lack,
        "peers": ", ".join(f"{k} {v}" for k, v in told["peers"].items() if v),
        "kernels": _kernels(told["kernels"]),
        "cache": f"{cache['folder']}: {cache['engines']} engines, {gb(cache['bytes'])}; "
                 f"{gb(cache['disk_free_bytes'])} free{'' if cache['writable'] else ', read-only'}",
    }, 0), "", "targets"]
    for name, t in told["targets"].items():
        lines.append(f"  {name:12} {'no: ' + t['reason'] if t['reason'] else 'yes'}")
        if t["install"]:
            lines.append(f"  {'':12} {t['install']}")
    if told["missing"]:
        lines += ["", "missing"]
        lines += [f"  {what}: {cure}" for what, cure in told["missing"].items()]
    lines += ["", "measured: nothing; `arcompile bench` measures this machine"]
    return "\n".join(lines)


def _kernels(told: dict[str, str]) -> str:
    return f"{told['isa']}, {told['library']}" if told["library"] else f"none: {told['reason']}"


if __name__ == "__main__":
    sys.stdout.write(report(examine()) + "\n")
