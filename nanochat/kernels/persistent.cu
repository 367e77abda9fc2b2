// One decode step of a dense decoder for one sequence, in one launch: every multiprocessor runs one block for the
// whole step, and blocks hand activations to each other through memory. Compiled at run time (persistent.py), with
// the model's sizes as macros: HIDDEN, INNER, VOCAB, LAYERS, HEADS, KV_HEADS, HEAD_DIM, BLOCKS, UNIT, UNITS, SPLITS,
// QK_NORM, QKV_BIAS, GELU. Needs sm_90: weights come by bulk copies that complete on barriers in shared memory.
//
// Weights. Each warp owns rows of every matrix and reads them through a ring of its own in shared memory, UNIT
// elements a piece, in the order in which the step uses them. A piece is asked for as soon as a place is free, so
// the weights of most of a layer are on their way whatever the warps wait for: memory never idles.
//
// Exchanges. A 64-bit word holds 32 bits of activation and a tag that no other layer or step uses; 64-bit accesses
// are whole, so a reader that finds the tag has the value, and no barrier over all blocks is needed. A vector is
// overwritten one layer later only, after its writer has read something that every block could only produce after it
// had read the vector.
//
// Residuals stay in float32 with the block that owns their rows. Sums are float32, in a fixed order.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short bf16;  // as bits

constexpr int WARPS = 8, THREADS = 32 * WARPS;
constexpr int GROUP = HEADS / KV_HEADS;
constexpr int WIDTH = HEADS * HEAD_DIM;                  // of the attended vector
constexpr int QKV = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
constexpr int PART = GROUP * HEAD_DIM + 2 * GROUP;       // words of one split's part: values, then (top, mass) pairs
constexpr int LANE = UNIT / 32;                          // elements of a piece that a lane holds
constexpr int HIDDEN_PIECES = HIDDEN / UNIT;
constexpr int VECTORS = LANE / 8;                        // 16-byte vectors of a piece that a lane holds
__host__ __device__ constexpr int most(int pairs) { return (pairs + BLOCKS - 1) / BLOCKS * 2; }
__host__ __device__ constexpr int rows_a_warp(int pairs) { return (most(pairs) + WARPS - 1) / WARPS; }
constexpr int QKV_ROWS = rows_a_warp(QKV / 2), HIDDEN_ROWS = rows_a_warp(HIDDEN / 2), INNER_ROWS = rows_a_warp(INNER / 2);
__host__ __device__ constexpr int max2(int a, int b) { return a > b ? a : b; }
constexpr int X_SIZE = max2(max2(HIDDEN, WIDTH), INNER);
constexpr int OUT_SIZE = max2(max2(most(QKV / 2), most(INNER / 2)), most(HIDDEN / 2));
constexpr u32 SPIN_LIMIT = 1u << 21;

struct Layer {
  const bf16 *matrices[4];  // qkv, output, gate and up, down
  const bf16 *input_norm, *mlp_norm, *q_norm, *k_norm, *qkv_bias;
  bf16 *k_cache, *v_cache;
};

struct Step {
  Layer layers[LAYERS];
  const bf16 *embedding, *final_norm, *head;
  const float *frequencies;  // [HEAD_DIM / 2]
  const long long *id, *position, *slot;
  const int *context, *table;
  float *logits;   // [VOCAB]
  u64 *exchange;   // words, see the offsets below
  u32 *state;      // [0] steps so far, [1] 1 after a wait that never ended
  long long block_stride, slot_stride, head_stride;
  float scale, eps, qk_eps, rope_factor;
};

// Word offsets in `exchange`.
constexpr int AT_QKV = 0, AT_ATTENDED = AT_QKV + QKV / 2, AT_MIDDLE = AT_ATTENDED + WIDTH / 2,
              AT_INNER = AT_MIDDLE + HIDDEN / 2, AT_HIDDEN = AT_INNER + INNER / 2, AT_PARTS = AT_HIDDEN + HIDDEN / 2;

struct Shared {
  alignas(128) unsigned char ring[WARPS][UNITS][UNIT * 2];
  alignas(16) bf16 x[X_SIZE];
  alignas(16) float raw[(GROUP + 2) * HEAD_DIM];  // queries of a group, the new key, the new value
  alignas(16) float sums[WARPS][GROUP][HEAD_DIM];
  float tops[WARPS][GROUP], masses[WARPS][GROUP];
  float out[OUT_SIZE], gate[OUT_SIZE], residual[most(HIDDEN / 2)];
  float mixed[GROUP * HEAD_DIM];
  float cosine[HEAD_DIM / 2], sine[HEAD_DIM / 2];
  alignas(8) u64 full[WARPS][UNITS];
};

extern "C" __device__ const int shared_bytes = sizeof(Shared);

__device__ __forceinline__ float low(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ float wide(bf16 x) { return __uint_as_float((u32)x << 16); }
__device__ __forceinline__ u32 narrow2(float first, float second) {
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}
__device__ __forceinline__ bf16 narrow(float x) { return (bf16)(narrow2(x, 0.f) & 0xffffu); }
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int i = 16; i; i >>= 1) x += __shfl_xor_sync(~0u, x, i);
  return x;
}
__device__ __forceinline__ u32 address(const void *p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void put(u64 *to, u32 value, u32 tag) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"((u64)tag << 32 | value) : "memory");
}
__device__ __forceinline__ void look(const u64 *from, u64 &a, u64 &b) {
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(a), "=l"(b) : "l"(from) : "memory");
}
__device__ __forceinline__ bool tagged(u64 word, u32 tag) { return (u32)(word >> 32) == tag; }

// A span of pairs of rows, shared out evenly over the blocks.
struct Span {
  int first, rows;  // rows, an even number
  __device__ explicit Span(int pairs) {
    int begin = (int)((long long)pairs * blockIdx.x / BLOCKS), end = (int)((long long)pairs * (blockIdx.x + 1) / BLOCKS);
    first = 2 * begin;
    rows = 2 * (end - begin);
  }
  __device__ int mine(int warp) const { return rows > warp ? (rows - warp + WARPS - 1) / WARPS : 0; }
};

// A warp's ring of pieces. Lane i asks for the i-th piece of every layer, lane 0 for those of the head; all lanes read.
struct Ring {
  Shared &shared;
  const Step &step;
  int warp, lane, fill = 0, drain = 0, cursor = 0, layer = 0, pieces = 0;
  u32 phase = 0;
  int matrix = 0, head_left;     // this lane's piece: which matrix,
  long long offset = 0;          // and how many elements into it
  const bf16 *head;

  __device__ Ring(Shared &shared, const Step &step, int warp, int lane) : shared(shared), step(step), warp(warp), lane(lane) {
    const Span qkv(QKV / 2), hidden(HIDDEN / 2), inner(INNER / 2);
    plan(0, qkv.mine(warp), qkv.first, HIDDEN, 1);
    plan(1, hidden.mine(warp), hidden.first, WIDTH, 1);
    plan(2, 2 * inner.mine(warp), inner.first, HIDDEN, 2);
    plan(3, hidden.mine(warp), hidden.first, INNER, 1);
    if (!pieces) layer = LAYERS;
    const int first = (int)((long long)VOCAB * blockIdx.x / BLOCKS) + warp;
    head_left = head_rows(warp) * HIDDEN_PIECES;
    head = step.head + (long long)first * HIDDEN;
    if (lane < UNITS) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(&shared.full[warp][lane])));
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp();
    for (int i = 0; i < UNITS; i++) ask();
  }
  static __device__ int head_rows(int warp) {
    int rows = (int)((long long)VOCAB * (blockIdx.x + 1) / BLOCKS) - (int)((long long)VOCAB * blockIdx.x / BLOCKS);
    return rows > warp ? (rows - warp + WARPS - 1) / WARPS : 0;
  }
  // The pieces of `rows` rows of a matrix [., K]; with two halves, every second row is INNER rows further on.
  __device__ void plan(int which, int rows, int first, int k, int halves) {
    const int each = k / UNIT, mine = lane - pieces;
    if (mine >= 0 && mine < rows * each) {
      int row = mine / each;
      matrix = which;
      offset = (long long)(first + warp + WARPS * (row / halves) + (row % halves) * INNER) * k + mine % each * UNIT;
    }
    pieces += rows * each;
  }
  __device__ __forceinline__ void ask_for(const bf16 *source) {
    u32 bar = address(&shared.full[warp][fill]), to = address(shared.ring[warp][fill]);
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(UNIT * 2) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(source), "r"(UNIT * 2), "r"(bar)
                 : "memory");
  }
  __device__ __forceinline__ void ask() {
    if (layer < LAYERS) {
      if (lane == cursor) ask_for(step.layers[layer].matrices[matrix] + offset);
      if (++cursor == pieces) cursor = 0, ++layer;
    } else {
      if (head_left <= 0) return;
      if (lane == 0) ask_for(head);
      head += --head_left % HIDDEN_PIECES ? UNIT : WARPS * HIDDEN - (HIDDEN_PIECES - 1) * UNIT;
    }
    fill = fill + 1 == UNITS ? 0 : fill + 1;
  }
  __device__ __forceinline__ void take(uint4 *w) {  // the next piece, VECTORS vectors a lane; its place is asked for again
    u32 bar = address(&shared.full[warp][drain]), done = 0;
    for (u32 spins = 0; !done && spins < SPIN_LIMIT; spins++)
      asm volatile(
          "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
          : "=r"(done)
          : "r"(bar), "r"(phase)
          : "memory");
    const uint4 *from = (const uint4 *)shared.ring[warp][drain] + lane;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) w[i] = from[32 * i];
    if (++drain == UNITS) drain = 0, phase ^= 1;
    __syncwarp();
    ask();
  }
};

__device__ __forceinline__ void add8(float &sum, uint4 w, const float *x) {
  sum = fmaf(low(w.x), x[0], sum), sum = fmaf(high(w.x), x[1], sum);
  sum = fmaf(low(w.y), x[2], sum), sum = fmaf(high(w.y), x[3], sum);
  sum = fmaf(low(w.z), x[4], sum), sum = fmaf(high(w.z), x[5], sum);
  sum = fmaf(low(w.w), x[6], sum), sum = fmaf(high(w.w), x[7], sum);
}
__device__ __forceinline__ void spread8(float *x, uint4 v) {
  x[0] = low(v.x), x[1] = high(v.x), x[2] = low(v.y), x[3] = high(v.y);
  x[4] = low(v.z), x[5] = high(v.z), x[6] = low(v.w), x[7] = high(v.w);
}

// All of a vector of `PAIRS` words into shared memory, as soon as every word carries the tag.
template <int PAIRS>
__device__ __forceinline__ void gather(const u64 *from, u32 tag, bf16 *to, u32 *state) {
  constexpr int N = (PAIRS / 2 + THREADS - 1) / THREADS;
  u64 a[N], b[N];
  bool ready = false;
  for (u32 spins = 0; !ready; spins++) {
    ready = true;
#pragma unroll
    for (int i = 0; i < N; i++) {
      int at = threadIdx.x + i * THREADS;
      if (at < PAIRS / 2) look(from + 2 * at, a[i], b[i]);
    }
#pragma unroll
    for (int i = 0; i < N; i++)
      if (threadIdx.x + i * THREADS < PAIRS / 2) ready = ready && tagged(a[i], tag) && tagged(b[i], tag);
    if (spins > SPIN_LIMIT || (spins > 1024 && *(volatile u32 *)(state + 1))) {
      *(volatile u32 *)(state + 1) = 1;
      break;
    }
  }
#pragma unroll
  for (int i = 0; i < N; i++) {
    int at = threadIdx.x + i * THREADS;
    if (at < PAIRS / 2) ((uint2 *)to)[at] = make_uint2((u32)a[i], (u32)b[i]);
  }
}

// The hidden vector as a lane's pieces see it, times the norm's weight; returns the inverse rms.
__device__ __forceinline__ void load_norm(uint4 *g, const bf16 *weight, int lane) {
#pragma unroll
  for (int i = 0; i < HIDDEN_PIECES * VECTORS; i++) g[i] = __ldg((const uint4 *)weight + 32 * i + lane);
}
__device__ __forceinline__ float normed(float *x, const bf16 *from, const uint4 *g, float eps, int lane) {
  float squares = 0.f;
#pragma unroll
  for (int i = 0; i < HIDDEN_PIECES * VECTORS; i++) {
    float weight[8];
    spread8(x + 8 * i, ((const uint4 *)from)[32 * i + lane]);
    spread8(weight, g[i]);
#pragma unroll
    for (int j = 0; j < 8; j++) squares = fmaf(x[8 * i + j], x[8 * i + j], squares), x[8 * i + j] *= weight[j];
  }
  return rsqrtf(warp_sum(squares) / HIDDEN + eps);
}

// Rows of a matrix times the normed hidden vector: results of this warp's rows to `out`, every second to `gate` if
// GATED. The first rows wait in registers for the vector: more do not fit.
template <int ROWS, bool GATED>
__device__ __forceinline__ void from_hidden(
    Ring &ring, Shared &shared, int mine, const u64 *source, u32 tag, const bf16 *norm, const Step &step) {
  constexpr int FIT = 64 / (HIDDEN_PIECES * VECTORS * 4), EARLY = ROWS < FIT ? ROWS : FIT > 1 ? FIT : 1;
  uint4 w[EARLY][HIDDEN_PIECES][VECTORS], g[HIDDEN_PIECES * VECTORS];
  load_norm(g, norm, ring.lane);
#pragma unroll
  for (int r = 0; r < EARLY; r++)
    if (r < mine)
#pragma unroll
      for (int p = 0; p < HIDDEN_PIECES; p++) ring.take(w[r][p]);
  if (source) gather<HIDDEN / 2>(source, tag, shared.x, step.state);
  __syncthreads();
  float x[HIDDEN_PIECES * LANE], y[ROWS];
  float inverse = normed(x, shared.x, g, step.eps, ring.lane);
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    y[r] = 0.f;
    if (r < mine)
#pragma unroll
      for (int p = 0; p < HIDDEN_PIECES; p++) {
        if (r >= EARLY) ring.take(w[r % EARLY][p]);
#pragma unroll
        for (int i = 0; i < VECTORS; i++) add8(y[r], w[r % EARLY][p][i], x + p * LANE + 8 * i);
      }
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++) y[r] = warp_sum(y[r]) * inverse;
  if (ring.lane == 0)
#pragma unroll
    for (int r = 0; r < ROWS; r++)
      if (r < mine) {
        if (!GATED) shared.out[ring.warp + WARPS * r] = y[r];
        else if (r & 1) shared.out[ring.warp + WARPS * (r >> 1)] = y[r];
        else shared.gate[ring.warp + WARPS * (r >> 1)] = y[r];
      }
  __syncthreads();
}

// Rows of a matrix [HIDDEN, K] times an exchanged vector, added to the residual, and handed on.
template <int K>
__device__ __forceinline__ void to_hidden(
    Ring &ring, Shared &shared, const Span &span, const u64 *source, u64 *result, u32 tag, const Step &step) {
  constexpr int PIECES = K / UNIT;
  uint4 w[HIDDEN_ROWS][PIECES][VECTORS];
  int mine = span.mine(ring.warp);
#pragma unroll
  for (int r = 0; r < HIDDEN_ROWS; r++)
    if (r < mine)
#pragma unroll
      for (int p = 0; p < PIECES; p++) ring.take(w[r][p]);
  gather<K / 2>(source, tag, shared.x, step.state);
  __syncthreads();
  float y[HIDDEN_ROWS];
#pragma unroll
  for (int r = 0; r < HIDDEN_ROWS; r++) y[r] = 0.f;
#pragma unroll
  for (int p = 0; p < PIECES; p++)
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
      float x[8];
      spread8(x, ((const uint4 *)shared.x)[(p * VECTORS + i) * 32 + ring.lane]);
#pragma unroll
      for (int r = 0; r < HIDDEN_ROWS; r++)
        if (r < mine) add8(y[r], w[r][p][i], x);
    }
#pragma unroll
  for (int r = 0; r < HIDDEN_ROWS; r++) {
    y[r] = warp_sum(y[r]);
    if (ring.lane == 0 && r < mine) shared.out[ring.warp + WARPS * r] = y[r];
  }
  __syncthreads();
  int pair = threadIdx.x;
  if (2 * pair < span.rows) {
    float first = shared.residual[2 * pair] += shared.out[2 * pair];
    float second = shared.residual[2 * pair + 1] += shared.out[2 * pair + 1];
    put(result + span.first / 2 + pair, narrow2(first, second), tag);
  }
}
#include "persistent_attention.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1) decode_step(const __grid_constant__ Step step) {
  extern __shared__ unsigned char memory[];
  Shared &shared = *(Shared *)memory;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const u32 first_tag = *(volatile u32 *)step.state * LAYERS + 1;
  Ring ring(shared, step, warp, lane);
  const Span qkv(QKV / 2), hidden(HIDDEN / 2), inner(INNER / 2);
  u64 *words = step.exchange;

  const bf16 *embedded = step.embedding + *step.id * HIDDEN;
  for (int i = threadIdx.x; i < HIDDEN / 8; i += THREADS) ((uint4 *)shared.x)[i] = ((const uint4 *)embedded)[i];
  for (int i = threadIdx.x; i < hidden.rows; i += THREADS) shared.residual[i] = wide(embedded[hidden.first + i]);
  const float position = (float)*step.position;
  for (int i = threadIdx.x; i < HEAD_DIM / 2; i += THREADS) {
    float angle = position * step.frequencies[i];
    shared.cosine[i] = cosf(angle) * step.rope_factor;
    shared.sine[i] = sinf(angle) * step.rope_factor;
  }

  for (int l = 0; l < LAYERS; l++) {
    const Layer &layer = step.layers[l];
    const u32 tag = first_tag + l;
    from_hidden<QKV_ROWS, false>(
        ring, shared, qkv.mine(warp), l ? words + AT_HIDDEN : nullptr, tag - 1, layer.input_norm, step);
    if (2 * threadIdx.x < qkv.rows) {
      float first = shared.out[2 * threadIdx.x], second = shared.out[2 * threadIdx.x + 1];
      int row = qkv.first + 2 * threadIdx.x;
      if (QKV_BIAS) first += wide(layer.qkv_bias[row]), second += wide(layer.qkv_bias[row + 1]);
      put(words + AT_QKV + row / 2, narrow2(first, second), tag);
    }
    if (blockIdx.x < KV_HEADS * SPLITS) attend(shared, step, layer, words, tag, warp, lane);
    to_hidden<WIDTH>(ring, shared, hidden, words + AT_ATTENDED, words + AT_MIDDLE, tag, step);
    from_hidden<2 * INNER_ROWS, true>(
        ring, shared, 2 * inner.mine(warp), words + AT_MIDDLE, tag, layer.mlp_norm, step);
    if (2 * threadIdx.x < inner.rows) {
      float y[2];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        float gate = shared.gate[2 * threadIdx.x + i], up = shared.out[2 * threadIdx.x + i];
        float z = GELU ? 1.5957691216057308f * (gate + 0.044715f * gate * gate * gate) : gate;
        y[i] = gate / (1.f + expf(-z)) * up;
      }
      put(words + AT_INNER + inner.first / 2 + threadIdx.x, narrow2(y[0], y[1]), tag);
    }
    to_hidden<INNER>(ring, shared, hidden, words + AT_INNER, words + AT_HIDDEN, tag, step);
  }

  // The head: the same vector for all rows, so the weights just stream by.
  uint4 g[HIDDEN_PIECES * VECTORS];
  load_norm(g, step.final_norm, lane);
  gather<HIDDEN / 2>(words + AT_HIDDEN, first_tag + LAYERS - 1, shared.x, step.state);
  __syncthreads();
  float x[HIDDEN_PIECES * LANE];
  const float inverse = normed(x, shared.x, g, step.eps, lane);
  const int rows = Ring::head_rows(warp), head_first = (int)((long long)VOCAB * blockIdx.x / BLOCKS) + warp;
  for (int row = 0; row < rows; row += 4) {
    float y[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
    for (int r = 0; r < 4; r++)
      if (row + r < rows)
#pragma unroll
        for (int p = 0; p < HIDDEN_PIECES; p++) {
          uint4 w[VECTORS];
          ring.take(w);
#pragma unroll
          for (int i = 0; i < VECTORS; i++) add8(y[r], w[i], x + p * LANE + 8 * i);
        }
#pragma unroll
    for (int r = 0; r < 4; r++) y[r] = warp_sum(y[r]) * inverse;
    if (lane < 4 && row + lane < rows) {
      float mine = lane == 0 ? y[0] : lane == 1 ? y[1] : lane == 2 ? y[2] : y[3];
      step.logits[head_first + WARPS * (row + lane)] = mine;
    }
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) *(volatile u32 *)step.state = *(volatile u32 *)step.state + 1;
}
