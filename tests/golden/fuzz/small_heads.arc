# GroupQueryAttention takes heads of a multiple of 8, and rotates those of 16 only
graph g376953574(%cache_1: f32[r,2,8,4], %cache_2: f32[r,2,8,4], %x_3: f32[r,1,16], %x_4: f32[r,1,8], %below8_5: i32[r], %cache_8: f32[r,1,8,8], %cache_9: f32[r,1,8,8]) {
  @share_6 : f32[10,2]
  @share_7 : f32[10,2]
  @share_10 : f32[10,4]
  @share_11 : f32[10,4]
  %0, %1, %2 = decode_attention(%x_3, %x_4, %x_4, %cache_1, %cache_2, %below8_5, @share_6, @share_7) {heads=4, interleaved=True, kv_heads=2, mask='causal', scale=0.5} : f32[r,1,16], f32[r,2,8,4], f32[r,2,8,4]
  %3, %4, %5 = decode_attention(%x_3, %x_4, %x_4, %cache_8, %cache_9, %below8_5, @share_10, @share_11) {heads=2, interleaved=True, kv_heads=1, mask='causal', scale=0.5} : f32[r,1,16], f32[r,1,8,8], f32[r,1,8,8]
  return a=%0, b=%3
}
