# Attention takes a mask for every query, or fails while it runs
graph g131249223(%x_4: f32[r,s,2], %x_6: f32[r,t,2], %x_7: bool[r,t]) {
  %1 = attention(%x_4, %x_6, %x_6, %x_7) {extra=('keep',), heads=1, kv_heads=1, mask='full', scale=0.5} : f32[r,s,2]
  return y=%1
}
