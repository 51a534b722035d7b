# wrong values: without a past the last query is at the last key; ONNX begins at the first
graph g993096101(%x_7: f32[r,s,16], %x_9: f32[r,t,8]) {
  %6 = attention(%x_7, %x_9, %x_9) {extra=(), heads=4, kv_heads=2, mask='causal', scale=0.25} : f32[r,s,16]
  return y=%6
}
