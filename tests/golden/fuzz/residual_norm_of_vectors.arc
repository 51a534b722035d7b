# SkipSimplifiedLayerNormalization takes two axes or three
graph g981608696(%x_4: f32[8], %x_5: f32[8], %x_6: f32[2,2,s,8]) {
  %5, %6 = residual_norm(%x_4, %x_5, %x_4) {eps=1e-05} : f32[8], f32[8]
  %7, %8 = residual_norm(%x_6, %x_6, %x_4) {eps=1e-05} : f32[2,2,s,8], f32[2,2,s,8]
  return a=%5, b=%6, c=%7, d=%8
}
