program tiny positions=4 mask=causal accept=all
  cache full
  input cond: i64[b]
  state k0: f32[r,2,5,4]
  state v0: f32[r,2,5,4]
  state unread: f32[r,3]
  draw noise: uniform x 2 per step
  prompt prompt
  steps 3 x 1 : step sample feed ; append=1
  steps 1 x 1 : step sample ; append=1
  finish decode/each
graph prompt(%cond: i64[b], %image: i64[r], %is_null: bool[r]) {
  @classes : f32[4,8]
  %0 = full() {dtype='i64', shape=('r',), value=3} : i64[r]
  %1 = gather(%cond, %image) {axis=0} : i64[r]
  %2 = where(%is_null, %0, %1) : i64[r]
  %3 = gather(@classes, %2) {axis=0} : f32[r,8]
  %4 = reshape(%3) {shape=('r', 1, 8)} : f32[r,1,8]
  return x=%4
}
graph step(%x: f32[r,s,8], %past: i32[r], %noise: f32[b,c,2], %k0: f32[r,2,5,4], %v0: f32[r,2,5,4]) {
  @l0.n1 : f32[8]
  @l0.n2 : f32[8]
  @l0.q : f32[8,8]
  @l0.k : f32[8,8]
  @l0.v : f32[8,8]
  @l0.o : f32[8,8]
  @l0.w1 : f32[12,8]
  @l0.w3 : f32[12,8]
  @l0.w2 : f32[8,12]
  @norm : f32[8]
  @head : f32[16,8]
  @cos : f32[5,2]
  @sin : f32[5,2]
  %n0 = rms_norm(%x, @l0.n1) {eps=1e-05} : f32[r,s,8]
  %wq0 = transpose(@l0.q) {perm=(1, 0)} : f32[8,8]
  %q0 = matmul(%n0, %wq0) : f32[r,s,8]
  %wk0 = transpose(@l0.k) {perm=(1, 0)} : f32[8,8]
  %kk0 = matmul(%n0, %wk0) : f32[r,s,8]
  %wv0 = transpose(@l0.v) {perm=(1, 0)} : f32[8,8]
  %vv0 = matmul(%n0, %wv0) : f32[r,s,8]
  %rq0 = rope(%q0, @cos, @sin, %past) {heads=2, interleaved=True} : f32[r,s,8]
  %rk0 = rope(%kk0, @cos, @sin, %past) {heads=2, interleaved=True} : f32[r,s,8]
  %ck0 = cache_append(%k0, %rk0, %past) : f32[r,2,5,4]
  %cv0 = cache_append(%v0, %vv0, %past) : f32[r,2,5,4]
  %a0 = attention(%rq0, %ck0, %cv0, %past) {extra=('past',), heads=2, kv_heads=2, mask='causal', scale=0.5} : f32[r,s,8]
  %wo0 = transpose(@l0.o) {perm=(1, 0)} : f32[8,8]
  %o0 = matmul(%a0, %wo0) : f32[r,s,8]
  %h0 = add(%x, %o0) : f32[r,s,8]
  %m0 = rms_norm(%h0, @l0.n2) {eps=1e-05} : f32[r,s,8]
  %g0 = transpose(@l0.w1) {perm=(1, 0)} : f32[8,12]
  %gate0 = matmul(%m0, %g0) : f32[r,s,12]
  %act0 = silu(%gate0) : f32[r,s,12]
  %u0 = transpose(@l0.w3) {perm=(1, 0)} : f32[8,12]
  %up0 = matmul(%m0, %u0) : f32[r,s,12]
  %flat0 = reshape(%up0) {shape=('r', 's', 12)} : f32[r,s,12]
  %y0 = mul(%act0, %flat0) : f32[r,s,12]
  %d0 = transpose(@l0.w2) {perm=(1, 0)} : f32[12,8]
  %z0 = matmul(%y0, %d0) : f32[r,s,8]
  %x1 = add(%h0, %z0) : f32[r,s,8]
  %t = tail(%x1, %noise) {axis=1} : f32[r,c,8]
  %n = rms_norm(%t, @norm) {eps=1e-05} : f32[r,c,8]
  %wh = transpose(@head) {perm=(1, 0)} : f32[8,16]
  %logits = matmul(%n, %wh) : f32[r,c,16]
  return logits=%logits, k0=%ck0, v0=%cv0
}
graph feed(%token: i64[b,c], %image: i64[r]) {
  @tokens : f32[16,8]
  %0 = gather(@tokens, %token) {axis=0} : f32[b,c,8]
  %1 = gather(%0, %image) {axis=0} : f32[r,c,8]
  return x=%1
}
graph decode(%tokens: i64[b,4]) {
  @codes : f32[16,4]
  %0 = l2_norm(@codes) {axis=1, eps=1e-12} : f32[16,4]
  %1 = gather(%0, %tokens) {axis=0} : f32[b,4,4]
  return pixels=%1
}
graph encode(%pixels: f32[b,4,4]) {
  @codes : f32[16,4]
  %0 = l2_norm(@codes) {axis=1, eps=1e-12} : f32[16,4]
  %1 = transpose(%0) {perm=(1, 0)} : f32[4,16]
  %2 = matmul(%pixels, %1) : f32[b,4,16]
  %3 = argmax(%2) {axis=2} : i64[b,4]
  return tokens=%3
}
graph sample(%logits: f32[r,c,16], %row: i64[b], %null_row: i64[b], %scale: f32[b], %temperature: f32[b], %top_k: i64[b], %top_p: f32[b], %most: i64[1], %noise: f32[b,c,2]) {
  %0 = gather(%logits, %row) {axis=0} : f32[b,c,16]
  %1 = gather(%logits, %null_row) {axis=0} : f32[b,c,16]
  %2 = const() {dtype='f32', value=1.0} : f32[]
  %3 = sub(%scale, %2) : f32[b]
  %4 = reshape(%3) {shape=('b', 1, 1)} : f32[b,1,1]
  %5 = sub(%0, %1) : f32[b,c,16]
  %6 = mul(%4, %5) : f32[b,c,16]
  %7 = add(%0, %6) : f32[b,c,16]
  %8 = filter_logits(%7, %temperature, %top_k, %top_p, %most) : f32[b,c,16]
  %9 = draw(%8, %noise, %temperature) : i64[b,c]
  return token=%9
}