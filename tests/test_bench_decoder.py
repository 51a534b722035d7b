import pytest

from arcompile.bench import decoder
from arcompile.kernels import cpu


@pytest.mark.skipif(not cpu.compiler(), reason="no C++ compiler on this machine")
def test_forms_of_a_tiny_decoder(tmp_path):
    """Every form runs, and is as near to f32 as its products allow."""
    row = decoder.measure(*decoder.forms_of("llamagen", "tiny", False, tmp_path), 1)
    assert row["psnr_db"]["f32"] > 90
    assert 40 < row["psnr_db"]["bf16"] < 80
    assert 25 < row["psnr_db"]["int8"] < row["psnr_db"]["bf16"]
    assert set(row["s"]) == set(decoder.FORMS)
    kept = sorted(p.parent.name for p in tmp_path.glob("*/decode.onnx"))
    assert kept == sorted(decoder.FORMS)  # for the next run
