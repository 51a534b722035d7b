"""Sweeps, the pictures over all rows, and scores against a user's folder of pictures."""

from __future__ import annotations

import json

import numpy as np
import plain
import pytest
from PIL import Image

from arcompile import bench
from arcompile.bench import charts, pictures, reference, report, sweeps
from arcompile.errors import ArcError
from arcompile.family import FAMILIES, Source
from arcompile.models.demo import drawings

STEP = {"n": 9, "median": 10.0, "min": 9.0, "p10": 9.5, "p90": 11.0}
MACHINE = {"read_gbps": {"best": 40.0}, "gemm_gflops": 150.0}
POINT = {"suite": "s", "s": 2.0, "steps_s": 1.5, "decoder_s": 0.5, "flops": 2e12, "tokens": 64}


def rows():
    full = {"suite": "a", "machine": MACHINE, "greedy": {"engine": STEP},
            "image": {"s": {"min": 2}},
            "bytes": {"run_weights": 5e8, "state": 1e8, "step_flops": 3e8, "step_bytes": 4e8},
            "run_memory": {"peak": 7e8}, "quality": {"judge": 0.9, "interval": [0.85, 0.93]}}
    batch = {"suite": "b", "kind": "sweep", "axis": "batch", "machine": MACHINE,
             "points": [{**POINT, "batch": 1}, {**POINT, "batch": 2, "s": 3.0}],
             "line": {"start_s": 1.0, "each_s": 1.0, "off": 0.0}}
    return [full, batch, {**batch, "suite": "c", "axis": "tokens"}]


def test_a_picture_for_each_kind_of_figure():
    pytest.importorskip("matplotlib")
    titles = [t for t, _ in charts.charts(rows())]
    assert [t.split()[0] for t in titles] == ["Roofline:", "Time", "Memory", "Latency", "Cost"]
    assert len(report.overall(rows())) == 5
    assert charts.charts([{"suite": "x"}]) == []


def test_the_roof_is_where_it_was_measured():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    ax = figure.subplots()
    charts._roofline(ax, rows()[:1])
    x, y = ax.lines[0].get_data()
    assert y[1] == y[2] == 150e9
    assert np.isclose(x[1], 150 / 40)
    assert np.allclose(ax.collections[0].get_offsets()[0], [0.75, 3e10])  # 3e8 flop in 10 ms


def test_a_line_through_batches():
    straight = sweeps.line([1, 2, 4], [3.0, 4.0, 6.0])
    assert (straight["start_s"], straight["each_s"]) == (2.0, 1.0)
    assert straight["off"] < 1e-12
    assert sweeps.line([1, 2, 4], [3.0, 4.0, 12.0])["off"] > 0.1
    told = sweeps.markdown(rows()[1])
    assert "| 2 | 3 | 1.5 | 0.5 | 1.5 | 2 |" in told
    with pytest.raises(ArcError, match="no sweep named 'sweep-x'"):
        bench.run("sweep-x")


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """Of tiny random weights, with an encoder."""
    return plain.engine("llamagen", FAMILIES["llamagen"].random("tiny"),
                        tmp_path_factory.mktemp("scored"), grid=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("real")
    (home / "inner").mkdir()
    for i, x in enumerate(drawings.batch(6, 1)[0]):
        Image.fromarray(x).resize((80, 70)).save(home / ("inner" if i % 2 else "") / f"{i}.png")
    return home


@pytest.mark.ort
def test_scores_without_a_network_of_ones_own(engine, folder, capsys):
    code = bench.run(str(engine.folder), reference=folder, as_json=True, pictures=4)
    row = json.loads(capsys.readouterr().out)
    assert code == 0
    assert (row["pictures"], row["references"]) == (4, 6)
    assert row["frechet"] > row["floor"] >= 0  # noise is not drawings
    assert {"psnr", "ssim", "detail"} <= row["tokenizer"].keys()


@pytest.mark.ort
def test_scores_by_a_network_of_the_users(engine, folder, tmp_path):
    """A mean and a law, as ONNX: FID of means by hand, IS of one law is 1."""
    from onnx import TensorProto, helper

    h, f32 = helper, TensorProto.FLOAT
    x = h.make_tensor_value_info("x", f32, ["n", 3, 299, 299])
    outs = [h.make_tensor_value_info(k, f32, ["n", 3]) for k in ("features", "law")]
    nodes = [h.make_node("GlobalAveragePool", ["x"], ["m"]), h.make_node("Flatten", ["m"],
             ["features"]), h.make_node("Mul", ["features", "none"], ["z"]),
             h.make_node("Softmax", ["z"], ["law"])]
    none = h.make_tensor("none", f32, [1], [0.0])
    model = h.make_model(h.make_graph(nodes, "g", [x], outs, [none]),
                         opset_imports=[h.make_opsetid("", 21)])
    model.ir_version = 10
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    told = reference.scores(engine, folder, path, 4)
    assert told["inception_score"] == 1
    real = np.stack([reference.read(p, 299) for p in reference.files(folder)]) / 127.5 - 1
    made = reference.resized(reference.drawn(engine, 4), 299) / 127.5 - 1
    want = pictures.frechet(made.mean((1, 2)), real.mean((1, 2)))
    assert np.isclose(told["fid"], want, rtol=1e-3)
    assert "fewer than" in told["note"]


@pytest.mark.ort
def test_scores_by_torchscript_of_the_layout_of_inception(engine, folder, tmp_path):
    """As inception-2015-12-05.pt is called: bytes [n,3,h,w]; features on request, else a law."""
    import torch

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
            assert x.dtype == torch.uint8
            mean = x.float().mean([2, 3]) / 127.5 - 1.0
            return mean if return_features else torch.softmax(0.0 * mean, 1)

    path = tmp_path / "net.pt"
    torch.jit.script(Net()).save(str(path))
    told = reference.scores(engine, folder, path, 4)
    assert told["inception_score"] == 1
    real = np.stack([reference.read(p, 299) for p in reference.files(folder)]) / 127.5 - 1
    made = reference.drawn(engine, 4) / 127.5 - 1
    want = pictures.frechet(made.mean((1, 2)), real.mean((1, 2)))
    assert np.isclose(told["fid"], want, rtol=0.05)  # the network resizes by itself, if it does


def test_what_is_no_folder_of_pictures(tmp_path):
    plain.refuses("is not a folder", lambda: reference.files(tmp_path / "x"))
    plain.refuses("holds 0 pictures", lambda: reference.files(tmp_path))
    (tmp_path / "a.png").write_bytes(b"no picture")
    plain.refuses("a.png cannot be read", lambda: reference.read(tmp_path / "a.png", 8))
    (tmp_path / "n.onnx").write_bytes(b"no network")
    plain.refuses("cannot be opened", lambda: reference.network(tmp_path / "n.onnx"))
    (tmp_path / "n.pt").write_bytes(b"no network")
    plain.refuses("is not TorchScript", lambda: reference.network(tmp_path / "n.pt"))
    plain.refuses("is not a file", lambda: reference.network(tmp_path / "none.pt"))


@pytest.mark.ort
@pytest.mark.parametrize("name", ["llamagen", "var"])
def test_tokens_become_the_picture_they_were(name, tmp_path):
    """Where the decoder reads tokens alone, and where it reads what the steps added up."""
    source: Source = FAMILIES[name].random("tiny")
    e = plain.engine(name, source, tmp_path, **({"grid": 4} if name == "llamagen" else {}))
    out = e.generate([1, 3], temperature=1.0, guidance=1.0)
    assert (pictures.redrawn(e, out.tokens) == out.pixels).all()
