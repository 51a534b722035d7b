"""libarcompile under sanitizers, over whole runs of the demo engines: `make sanitize`.

Every demo is built, and then libarcompile with its tests, once under ThreadSanitizer and once under
AddressSanitizer, LeakSanitizer and UBSan. `test_whole` opens an engine twice, draws (with previews,
in a batch), is refused, stopped, and thrown at; `test_threads` draws with one engine in several
threads and with two engines in one process, and stops a run from another thread. ONNX Runtime is as
it is installed, not instrumented: arcompile/runtime/cpp/tests/tsan.txt excuses it, since it orders
its threads by what the tool cannot see. So it would of our CPU kernels, which run on those threads:
under ThreadSanitizer engines run without them. Nothing else is excused, and no leak.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import native

import arcompile
from arcompile.kernels import cpu

DEMOS = ("demo", "demo-var", "demo-mar", "demo-shuffle")
BUILDS = {"thread": "thread", "address": "address,undefined"}


def engines(folder: Path) -> list[Path]:
    """The demos, built where they are not there yet."""
    for name in DEMOS:
        if not (folder / name / "manifest.json").is_file():
            arcompile.build(name, out=folder / name, report=False)
    return [folder / name for name in DEMOS]


def main(asked: list[str]) -> int:
    made = engines(Path("out/sanitize"))
    env = {**os.environ, "ARC_ORT_LIBRARY": native.ort_library()}
    failed = 0
    for name in asked or BUILDS:
        env["ARC_KERNELS"] = "off" if name == "thread" else str(cpu.library() or "off")
        folder = native.build("-DCMAKE_BUILD_TYPE=Debug", f"-DARC_SANITIZE={BUILDS[name]}",
                              "-DARC_TEST_ENGINE=" + ";".join(str(e.resolve()) for e in made),
                              name=name)
        failed += subprocess.run(["ctest", "--test-dir", folder, "--output-on-failure"], env=env,
                                 check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
