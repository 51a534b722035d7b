"""Applications that embed an engine: the examples, an exported project, the installed package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import engines
import native
import numpy as np
import pytest
from PIL import Image

import arcompile
from arcompile import cli

pytestmark = pytest.mark.ort


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """Of classes, with pixels."""
    pytest.importorskip("onnx")
    return engines.write(tmp_path_factory.mktemp("apps") / "engine", engines.turns(),
                         engines.none(), info={"classes": 5})


@pytest.fixture(scope="module")
def built():
    """The folder of what is built."""
    pytest.importorskip("onnxruntime")
    return native.build() / "arcompile/runtime/cpp"


@pytest.fixture(scope="module")
def prefix(built, tmp_path_factory):
    """Where libarcompile is installed, and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    native.cmake("--install", built.parents[2], "--prefix", folder)
    return folder


def run(*words, code=0, **kw):
    env = {**os.environ, "ARC_ORT_LIBRARY": native.ort_library(), **kw.pop("env", {})}
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, env=env,
                          timeout=120, check=False, **kw)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def drawn(engine, label, seed):
    """What Python draws."""
    return arcompile.load(engine).generate([label], seed=seed).images[0]


def shows(path, picture):
    return (np.asarray(Image.open(path)) == picture).all()


@pytest.mark.parametrize("name", ["generate", "generate_c"])
def test_an_example_draws_what_python_draws(built, engine, tmp_path, name):
    example, picture = built / "examples" / name, tmp_path / "p.ppm"
    run(example, engine, 3, 2**64 - 1, picture)
    assert shows(picture, drawn(engine, 3, 2**64 - 1))
    said = run(example, engine, 5, 0, picture, code=1).stderr
    assert "error: class 5 is out of range\nclasses are 0 to 4" in said
    said = run(example, engine, 1, 0, picture, code=2, env={"ARC_ORT_LIBRARY": "/none.so"}).stderr
    assert "error: cannot load ONNX Runtime" in said
    assert "usage" in run(example, code=2).stderr


def test_a_daemon_goes_on_after_a_bad_request(built, engine, tmp_path):
    lines = f"2 7 {tmp_path / 'a.ppm'}\nmore pictures\n9 1 {tmp_path / 'b.ppm'}\n" \
            f"1 1 /no/such/folder/p.ppm\n0 8 {tmp_path / 'c.ppm'}\nquit\nnever read\n"
    said = run(built / "examples" / "serve", engine, input=lines).stdout.splitlines()
    assert [s.split()[0] for s in said] == ["ready", "ok", "error", "error", "error", "ok"]
    assert said[2] == "error a request is <class> <seed> <file.ppm>"
    assert said[4] == "error cannot write /no/such/folder/p.ppm"
    assert shows(tmp_path / "a.ppm", drawn(engine, 2, 7))
    assert shows(tmp_path / "c.ppm", drawn(engine, 0, 8))
    assert not (tmp_path / "b.ppm").exists()


def test_a_python_application_without_torch(engine, tmp_path):
    example = native.ROOT / "arcompile/runtime/cpp/examples/embed.py"
    run(sys.executable, example, engine, 4, tmp_path / "p.png")
    assert shows(tmp_path / "p.png", drawn(engine, 4, 1))


@pytest.mark.parametrize("static", ["OFF", "ON"])
def test_an_exported_project_builds_from_the_installed_package(prefix, engine, tmp_path, static):
    project, picture = tmp_path / "app", tmp_path / "p.ppm"
    assert cli.run(["export", "--cpp-example", str(engine), str(project)]) == 0
    native.cmake("-S", project, "-B", project / "build", f"-DCMAKE_PREFIX_PATH={prefix}",
                 "-DCMAKE_BUILD_TYPE=Debug", f"-DARCOMPILE_STATIC={static}")
    native.cmake("--build", project / "build")
    run(project / "build/draw", project / "engine", 6, picture, 1, 4)
    want = np.concatenate(arcompile.load(engine).generate([1, 4], seed=6).images)
    assert shows(picture, want)
    needs = run("ldd", project / "build/draw").stdout
    assert ("libarcompile.so" in needs) == (static == "OFF")
    assert "onnxruntime" not in needs
    assert "exists already" in capture(["export", "--cpp-example", str(engine), str(project)])


def capture(words):
    with pytest.raises(arcompile.ArcError) as e:
        cli.app(words, standalone_mode=False)
    return e.value.what


def test_pkg_config_and_what_is_installed(prefix, engine, tmp_path):
    if not shutil.which("pkg-config"):
        pytest.skip("pkg-config is not on the PATH")
    where = next(prefix.glob("lib*/**/pkgconfig"))
    env = {"PKG_CONFIG_PATH": str(where)}
    flags = run("pkg-config", "--cflags", "--libs", "arcompile", env=env).stdout.split()
    assert run("pkg-config", "--modversion", "arcompile", env=env).stdout.strip() == "0.1.0"
    source, made = native.ROOT / "arcompile/runtime/cpp/examples/generate.c", tmp_path / "app"
    run("cc", source, "-o", made, *flags, f"-Wl,-rpath,{where.parent}")
    run(made, engine, 2, 5, tmp_path / "p.ppm")
    assert shows(tmp_path / "p.ppm", drawn(engine, 2, 5))
    headers = {p.name for p in (prefix / "include/arcompile").iterdir()}
    assert headers == {"arcompile.h", "arcompile.hpp", "export.h", "version.h"}


def test_the_library_is_small_and_shows_its_interface_only(prefix, tmp_path):
    library = next(prefix.glob("lib*/**/libarcompile.so"))
    run("strip", "-o", tmp_path / "stripped.so", library)
    assert (tmp_path / "stripped.so").stat().st_size <= 1_500_000
    shown = run("nm", "-D", "-C", "--defined-only", library).stdout.splitlines()
    names = [line.split(maxsplit=2)[2] for line in shown]
    ours = ("arc_", "arc::", "typeinfo for arc::", "typeinfo name for arc::", "vtable for arc::")
    assert names
    assert [n for n in names if not n.startswith(ours)] == []


def test_parts_and_damaged_folders(built, engine, tmp_path):
    """Units; and `open` on mutated folders, under AddressSanitizer and UBSan for three seconds."""
    run(built / "tests/test_parts")
    said = run(built / "tests/test_fuzz_open", engine, tmp_path, 3,
               env={"ASAN_OPTIONS": "detect_leaks=1"}).stdout
    assert all(int(word) for word in said.split() if word.isdigit())  # some read, some refused


def test_threads_share_an_engine(built, engine):
    run(built / "tests/test_threads", engine)


def test_the_official_header_has_the_slots_we_use(tmp_path):
    root = os.environ.get("ONNXRUNTIME_ROOT")
    if not root:
        pytest.skip("ONNXRUNTIME_ROOT does not name a folder with onnxruntime_c_api.h")
    cpp = native.ROOT / "arcompile/runtime/cpp"
    run("c++", "-std=c++17", "-fsyntax-only", f"-I{root}", f"-I{cpp}/include",
        cpp / "src/ort_check.cpp")


def test_nodes_that_fall_back_to_the_cpu_are_found(built, tmp_path):
    """As Python finds them: no GPU is needed to see what runs where."""
    onnx = pytest.importorskip("onnx")
    import re

    import onnxruntime

    from arcompile.targets.ort import HEAVY, misplaced

    source = (native.ROOT / "arcompile/runtime/cpp/src/ort_device.cpp").read_text()
    listed = source.split("kHeavy[] = {")[1].split("}")[0]
    assert set(re.findall(r'"(\w+)"', listed)) == HEAVY
    h = onnx.helper
    nodes = [h.make_node("MatMul", ["x", "x"], ["y"]), h.make_node("Softmax", ["y"], ["z"]),
             h.make_node("Shape", ["z"], ["s"])]
    graph = h.make_graph(nodes, "g", [h.make_tensor_value_info("x", 1, ["n", "n"])],
                         [h.make_tensor_value_info("s", 7, [2]),
                          h.make_tensor_value_info("z", 1, ["n", "n"])])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 24)])
    model.ir_version = 10
    onnx.save(model, tmp_path / "m.onnx")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), options,
                                           providers=["CPUExecutionProvider"])
    found = run(built / "tests/test_placed", native.ort_library(), tmp_path / "m.onnx").stdout
    assert found.split() == misplaced(session) == ["MatMul", "Softmax"]
