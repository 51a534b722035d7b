# an open end of a slice that runs backwards is before the first entry
graph g280122267(%x_1: f32[b,s,16]) {
  %2 = slice(%x_1) {axis=2, start=-7, step=-1} : f32[b,s,10]
  return y=%2
}
