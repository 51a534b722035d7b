# refused when opened: the check itself stored a small turned matrix as it was (c1: a name it turns)
graph c1(%y: f32[r,s,8]) {
  @x : f32[8,1]
  %0, %1 = quantize_rows(%y) : u8[r,s,8], f32[r,s,1]
  %2, %3 = quantize_channels(@x) {axis=1} : i8[8,1], f32[1]
  %4 = matmul_int8(%0, %1, %2, %3) : f32[r,s,1]
  return out=%4
}
