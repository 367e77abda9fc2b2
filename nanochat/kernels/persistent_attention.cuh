// Attention of one new token, inside the persistent step: block (h, s) takes KV head h and share s of the cached
// positions; the last share takes the new token too, and writes its key and value. Then the shares of a head
// exchange parts, and each adds up an equal slice of the head's group.

constexpr int KEY_LANES = HEAD_DIM / 8;            // lanes that hold one key, 16 bytes each
constexpr int KEYS_A_WARP = 32 / KEY_LANES;        // keys that a warp looks at in one go
constexpr int AHEAD = 4;                           // goes whose keys and values are on their way together
constexpr int SLICE = GROUP * HEAD_DIM / SPLITS;   // values that a block adds up in the end

struct Cached {
  uint4 k[AHEAD], v[AHEAD];
  bool valid[AHEAD];

  __device__ __forceinline__ void load(const Step &step, const Layer &layer, int head, int first, int end, int warp, int lane) {
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      int key = first + (i * WARPS + warp) * KEYS_A_WARP + lane / KEY_LANES;
      valid[i] = key < end;
      k[i] = v[i] = make_uint4(0, 0, 0, 0);
      if (valid[i]) {
        long long at = step.table[key / 16] * step.block_stride + (key % 16) * step.slot_stride + head * step.head_stride;
        at += lane % KEY_LANES * 8;
        k[i] = *(const uint4 *)(layer.k_cache + at);
        v[i] = *(const uint4 *)(layer.v_cache + at);
      }
    }
  }
};

// A lane's share of the running softmax over the keys that its group of lanes has seen.
struct Running {
  float top[GROUP], mass[GROUP], sum[GROUP][8];

  __device__ __forceinline__ Running() {
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
      top[g] = -1e30f, mass[g] = 0.f;
#pragma unroll
      for (int j = 0; j < 8; j++) sum[g][j] = 0.f;
    }
  }
  template <int N>
  __device__ __forceinline__ void see(const float (&q)[GROUP][8], const uint4 *k, const uint4 *v, const bool *valid) {
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
      float score[N], new_top = top[g];
#pragma unroll
      for (int i = 0; i < N; i++) {
        score[i] = 0.f;
        add8(score[i], k[i], q[g]);
#pragma unroll
        for (int m = KEY_LANES / 2; m; m >>= 1) score[i] += __shfl_xor_sync(~0u, score[i], m);
        if (valid[i]) new_top = fmaxf(new_top, score[i]);
      }
      float keep = exp2f(top[g] - new_top);
      top[g] = new_top;
      mass[g] *= keep;
#pragma unroll
      for (int j = 0; j < 8; j++) sum[g][j] *= keep;
#pragma unroll
      for (int i = 0; i < N; i++) {
        float weight = valid[i] ? exp2f(score[i] - new_top) : 0.f, x[8];
        mass[g] += weight;
        spread8(x, v[i]);
#pragma unroll
        for (int j = 0; j < 8; j++) sum[g][j] = fmaf(weight, x[j], sum[g][j]);
      }
    }
  }
  __device__ __forceinline__ void merge_lanes() {  // over the keys of a warp
#pragma unroll
    for (int m = KEY_LANES; m < 32; m <<= 1)
#pragma unroll
      for (int g = 0; g < GROUP; g++) {
        float other = __shfl_xor_sync(~0u, top[g], m), new_top = fmaxf(top[g], other);
        float keep = exp2f(top[g] - new_top), take = exp2f(other - new_top);
        top[g] = new_top;
        mass[g] = mass[g] * keep + __shfl_xor_sync(~0u, mass[g], m) * take;
#pragma unroll
        for (int j = 0; j < 8; j++) sum[g][j] = sum[g][j] * keep + __shfl_xor_sync(~0u, sum[g][j], m) * take;
      }
  }
};

// The group's queries, the new key and the new value into `raw`, queries and key normed and rotated; keys as the cache holds them.
__device__ __forceinline__ void prepare(
    Shared &shared, const Step &step, const Layer &layer, const u64 *words, u32 tag, int head, int warp, int lane) {
  constexpr int PAIRS = (GROUP + 2) * HEAD_DIM / 2;
  for (int i = threadIdx.x; i < PAIRS; i += THREADS) {
    int which = i / (HEAD_DIM / 2), source = which < GROUP ? head * GROUP + which
                                             : which == GROUP ? HEADS + head : HEADS + KV_HEADS + head;
    const u64 *from = words + AT_QKV + source * (HEAD_DIM / 2) + i % (HEAD_DIM / 2);
    u64 word = *(volatile u64 *)from;
    for (u32 spins = 0; !tagged(word, tag); spins++) {
      if (spins > SPIN_LIMIT || (spins > 1024 && *(volatile u32 *)(step.state + 1))) {
        *(volatile u32 *)(step.state + 1) = 1;
        break;
      }
      word = *(volatile u64 *)from;
    }
    shared.raw[2 * i] = low((u32)word), shared.raw[2 * i + 1] = high((u32)word);
  }
  __syncthreads();
  constexpr int HALF = HEAD_DIM / 2, N = HALF / 32;
  for (int which = warp; which <= GROUP; which += WARPS) {
    float *x = shared.raw + which * HEAD_DIM, first[N], second[N], squares = 0.f;
#pragma unroll
    for (int i = 0; i < N; i++) {
      first[i] = x[lane + 32 * i], second[i] = x[lane + 32 * i + HALF];
      squares += first[i] * first[i] + second[i] * second[i];
    }
    const bf16 *norm = which < GROUP ? layer.q_norm : layer.k_norm;
    float inverse = QK_NORM ? rsqrtf(warp_sum(squares) / HEAD_DIM + step.qk_eps) : 1.f;
#pragma unroll
    for (int i = 0; i < N; i++) {
      int d = lane + 32 * i;
      float a = first[i] * inverse * (QK_NORM ? wide(norm[d]) : 1.f);
      float b = second[i] * inverse * (QK_NORM ? wide(norm[d + HALF]) : 1.f);
      float c = shared.cosine[d], s = shared.sine[d], turned = a * c - b * s, other = b * c + a * s;
      bool query = which < GROUP;
      x[d] = query ? turned * step.scale * 1.4426950408889634f : wide(narrow(turned));
      x[d + HALF] = query ? other * step.scale * 1.4426950408889634f : wide(narrow(other));
    }
  }
  __syncthreads();
}

__device__ __forceinline__ void attend(
    Shared &shared, const Step &step, const Layer &layer, u64 *words, u32 tag, int warp, int lane) {
  const int head = blockIdx.x % KV_HEADS, share = blockIdx.x / KV_HEADS, dim = lane % KEY_LANES * 8;
  const int old = max(*step.context - 1, 0), each = (old + SPLITS - 1) / SPLITS;
  const int begin = share * each, end = min(begin + each, old);
  constexpr int STRIDE = AHEAD * WARPS * KEYS_A_WARP;
  Cached cached;
  cached.load(step, layer, head, begin, end, warp, lane);
  prepare(shared, step, layer, words, tag, head, warp, lane);
  const bool newest = share == SPLITS - 1;
  const float *new_k = shared.raw + GROUP * HEAD_DIM, *new_v = new_k + HEAD_DIM;
  if (newest && threadIdx.x < HEAD_DIM && *step.slot >= 0) {
    long long slot = *step.slot;
    long long at = slot / 16 * step.block_stride + slot % 16 * step.slot_stride + head * step.head_stride + threadIdx.x;
    layer.k_cache[at] = narrow(new_k[threadIdx.x]);
    layer.v_cache[at] = narrow(new_v[threadIdx.x]);
  }
  float q[GROUP][8];
#pragma unroll
  for (int g = 0; g < GROUP; g++)
#pragma unroll
    for (int j = 0; j < 8; j++) q[g][j] = shared.raw[g * HEAD_DIM + dim + j];

  Running running;
  for (int first = begin; first < end; first += STRIDE) {
    Cached next;
    next.load(step, layer, head, first + STRIDE, end, warp, lane);
    running.see<AHEAD>(q, cached.k, cached.v, cached.valid);
    cached = next;
  }
  if (newest && warp == 0) {
    bool valid = lane < KEY_LANES;
    uint4 k = make_uint4(narrow2(new_k[dim], new_k[dim + 1]), narrow2(new_k[dim + 2], new_k[dim + 3]),
                         narrow2(new_k[dim + 4], new_k[dim + 5]), narrow2(new_k[dim + 6], new_k[dim + 7]));
    uint4 v = make_uint4(narrow2(new_v[dim], new_v[dim + 1]), narrow2(new_v[dim + 2], new_v[dim + 3]),
                         narrow2(new_v[dim + 4], new_v[dim + 5]), narrow2(new_v[dim + 6], new_v[dim + 7]));
    running.see<1>(q, &k, &v, &valid);
  }
  running.merge_lanes();
#pragma unroll
  for (int g = 0; g < GROUP; g++) {
    if (lane < KEY_LANES)
#pragma unroll
      for (int j = 0; j < 8; j++) shared.sums[warp][g][dim + j] = running.sum[g][j];
    if (lane == 0) shared.tops[warp][g] = running.top[g], shared.masses[warp][g] = running.mass[g];
  }
  __syncthreads();

  // This share's part, over its warps.
  u64 *part = words + AT_PARTS + (long long)(head * SPLITS + share) * PART;
  for (int i = threadIdx.x; i < GROUP * HEAD_DIM; i += THREADS) {
    int g = i / HEAD_DIM, d = i % HEAD_DIM;
    float top = -1e30f, sum = 0.f, mass = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) top = fmaxf(top, shared.tops[w][g]);
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      float take = exp2f(shared.tops[w][g] - top);
      sum = fmaf(shared.sums[w][g][d], take, sum), mass = fmaf(shared.masses[w][g], take, mass);
    }
    put(part + i, __float_as_uint(sum), tag);
    if (d == 0) put(part + GROUP * HEAD_DIM + 2 * g, __float_as_uint(top), tag);
    if (d == 1) put(part + GROUP * HEAD_DIM + 2 * g + 1, __float_as_uint(mass), tag);
  }

  // This block's slice, over the shares: SPLITS lanes in a row look at the same value of all parts.
  for (int i = threadIdx.x; i < SLICE * SPLITS; i += THREADS) {
    int value = share * SLICE + i / SPLITS;
    const u64 *from = words + AT_PARTS + (long long)(head * SPLITS + i % SPLITS) * PART;
    const u64 *stats = from + GROUP * HEAD_DIM + 2 * (value / HEAD_DIM);
    u64 word = 0, top_word = 0, mass_word = 0;
    for (u32 spins = 0; !(tagged(word, tag) && tagged(top_word, tag) && tagged(mass_word, tag)); spins++) {
      if (spins > SPIN_LIMIT || (spins > 1024 && *(volatile u32 *)(step.state + 1))) {
        *(volatile u32 *)(step.state + 1) = 1;
        break;
      }
      word = *(volatile u64 *)(from + value);
      look(stats, top_word, mass_word);
    }
    __syncwarp();
    float top = __uint_as_float((u32)top_word), most_top = top;
#pragma unroll
    for (int m = SPLITS / 2; m; m >>= 1) most_top = fmaxf(most_top, __shfl_xor_sync(~0u, most_top, m));
    float take = exp2f(top - most_top);
    float sum = __uint_as_float((u32)word) * take, mass = __uint_as_float((u32)mass_word) * take;
#pragma unroll
    for (int m = SPLITS / 2; m; m >>= 1) sum += __shfl_xor_sync(~0u, sum, m), mass += __shfl_xor_sync(~0u, mass, m);
    if (i % SPLITS == 0) shared.mixed[i / SPLITS] = sum / mass;
  }
  __syncthreads();
  if (threadIdx.x < SLICE / 2) {
    int first = head * GROUP * HEAD_DIM + share * SLICE;
    put(words + AT_ATTENDED + first / 2 + threadIdx.x,
        narrow2(shared.mixed[2 * threadIdx.x], shared.mixed[2 * threadIdx.x + 1]), tag);
  }
}
