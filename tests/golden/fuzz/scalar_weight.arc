# a weight without axes was written as one with an axis, and refused
graph g5(%x: f32[b,3]) {
  @x_1 : f32[]
  %0 = add(%x, @x_1) : f32[b,3]
  return y=%0
}
