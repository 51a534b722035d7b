"""Ops whose meaning is compared in other files of tests, each by name."""

ELSEWHERE = {
    "agree", "attention", "cache_append", "conv2d_int8", "conv_last", "decode_attention",
    "draw", "draw_from", "fake_quantize", "filter_logits", "kv_attend", "kv_dequantise", "kv_drop",
    "kv_quantise", "kv_update", "kv_watch", "law", "linear_int8", "matmul_blocks",
    "matmul_columns", "matmul_int8", "narrow_conv", "nearest", "norm_conv_last",
    "pack_conv", "pack_linear", "quantize_blocks", "quantize_channels", "quantize_fp8",
    "quantize_rows", "rope", "slide", "verify",
}
