// What kernels of attention share: softmax over keys as they are met, by teams of lanes. A lane holds
// WIDE neighbours of a head, a team all of it: a key is one load of up to 32 bytes a lane.
#pragma once
#include "arc.cuh"

constexpr int WIDE = 8;
constexpr float NEVER = -1e30f;    // below every score; finite, so that differences are numbers
constexpr float LOG2E = 1.4426950408889634f;

template <class T>
struct alignas(sizeof(T) * WIDE < 16 ? sizeof(T) * WIDE : 16) Eight {
  T x[WIDE];
};

template <class T>
__device__ inline void read(const T* p, float (&out)[WIDE]) {
  const Eight<T> v = *reinterpret_cast<const Eight<T>*>(p);
  for (int i = 0; i < WIDE; ++i) out[i] = arc_float(v.x[i]);
}

template <class T>
__device__ inline void write(T* p, const float (&x)[WIDE]) {
  Eight<T> v;
  for (int i = 0; i < WIDE; ++i) arc_store(&v.x[i], x[i]);
  *reinterpret_cast<Eight<T>*>(p) = v;
}

// Softmax over some keys: the largest score (in powers of two), the masses' sum, the values' sum.
struct Met {
  float most = NEVER, total = 0, acc[WIDE] = {};

  __device__ void join(float other, float mass, const float (&values)[WIDE]) {
    const float high = fmaxf(most, other), mine = exp2f(most - high), theirs = exp2f(other - high);
    most = high;
    total = total * mine + mass * theirs;
    for (int i = 0; i < WIDE; ++i) acc[i] = fmaf(values[i], theirs, acc[i] * mine);
  }
};

// The lanes of a team: a power of two that holds e numbers.
__host__ __device__ inline int lanes_of(int e) {
  int n = 1;
  while (n * WIDE < e) n *= 2;
  return n;
}

// The sum over a team. Every lane of the warp comes here.
__device__ inline float team_sum(float x, int lanes) {
  for (int step = lanes / 2; step; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

__device__ inline float dot(const float (&a)[WIDE], const float (&b)[WIDE], int lanes) {
  float sum = 0;
  for (int i = 0; i < WIDE; ++i) sum = fmaf(a[i], b[i], sum);
  return team_sum(sum, lanes);
}

// Keys first, first + 1 .. last - 1 by `teams` teams, AHEAD of a team on their way at once; read(slot, key,
// value) reads what this lane holds.
template <int AHEAD, class Read>
__device__ inline void scan(Met& met, const float (&q)[WIDE], int first, int last, int team, int teams,
                            int lanes, Read read) {
  for (int at = first; at < last; at += AHEAD * teams) {
    float key[AHEAD][WIDE], value[AHEAD][WIDE];
#pragma unroll
    for (int j = 0; j < AHEAD; ++j) read(min(at + j * teams + team, last - 1), key[j], value[j]);
#pragma unroll
    for (int j = 0; j < AHEAD; ++j) {
      const float score = dot(q, key[j], lanes);
      const bool real = at + j * teams + team < last;
      met.join(real ? score : NEVER, real ? 1.0f : 0.0f, value[j]);
    }
  }
}

// What the teams of a warp met, in each of them.
__device__ inline void join_teams(Met& met, int lanes) {
  for (int step = lanes; step < 32; step *= 2) {
    float values[WIDE];
    for (int i = 0; i < WIDE; ++i) values[i] = __shfl_xor_sync(~0u, met.acc[i], step);
    const float other = __shfl_xor_sync(~0u, met.most, step);
    met.join(other, __shfl_xor_sync(~0u, met.total, step), values);
  }
}
