// What native.py calls on CPUs, in float32: products of few rows, attention of few queries, and a copy.
//
// Of one row or query the same comes out, to the last bit, whatever others there are beside it, and threads or tiles.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

using Floats = ffi::Buffer<ffi::F32>;
using Bytes = ffi::Buffer<ffi::S8>;

#ifdef __AVX512F__
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
constexpr int kRows = 8;  // that share what is in registers
typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));

inline Lanes load(const float* from) {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

inline void store(float* to, Lanes lanes) { std::memcpy(to, &lanes, sizeof lanes); }

inline Integers widened(const int8_t* from) {
#if defined(__AVX512F__)
  return (Integers)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__AVX2__)
  return (Integers)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#else
  Integers lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = from[i];
  return lanes;
#endif
}

inline Lanes floats(Integers lanes) { return __builtin_convertvector(lanes, Lanes); }

int64_t threads_of(const ffi::ThreadPool& pool) { return std::max<int64_t>(1, pool.num_threads()); }

// Calls run(i) for parts 0 to `parts` - 1 on the threads of the pool. The caller takes parts too, and waits for none that
// has not begun, so that a pool whose threads all wait for each other goes on.
template <typename Run>
void in_parts(ffi::ThreadPool& pool, int64_t parts, const Run& run) {
  struct Shared {
    std::atomic<int64_t> begun{0}, ended{0};
  };
  auto shared = std::make_shared<Shared>();
  std::function<void()> work = [=] {
    for (int64_t i; (i = shared->begun.fetch_add(1)) < parts;) {
      run(i);
      shared->ended.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t i = 1; i < std::min(parts, threads_of(pool)); ++i) pool.Schedule(std::function<void()>(work));
  work();
  for (int tries = 0; shared->ended.load(std::memory_order_acquire) < parts; ++tries)
    if (tries > 1000) std::this_thread::yield();
}

// Of N numbers, folded in half until one is left.
template <int N = kLanes, typename Run>
inline float folded(const float* lanes, const Run& run) {
  if constexpr (N == 1) {
    return lanes[0];
  } else {
    typedef float Half __attribute__((vector_size(2 * N)));
    Half low, high;
    std::memcpy(&low, lanes, sizeof low);
    std::memcpy(&high, lanes + N / 2, sizeof high);
    low = run(low, high);
    float both[N / 2];
    std::memcpy(both, &low, sizeof low);
    return folded<N / 2>(both, run);
  }
}

inline float sum(Lanes lanes) {
  float each[kLanes];
  store(each, lanes);
  return folded(each, [](auto a, auto b) { return a + b; });
}

// ---- Products of few rows with a kernel, for products.py: y [R, O] = x [R, I] W ------------------------------------------
//
// Each number of a kernel is read once, turned into a float in a register, and multiplied with eight rows. An output is
// summed over its inputs in one order.

// Kernels that lie output by output. Of an output's group of inputs, a stored number holds `kParts`: the j-th of each
// equal part of the group. Lanes and single numbers are without the group's unit.

struct Float32 {
  static constexpr int kParts = 1;
  static constexpr int64_t groups = 1;
  const float* stored;  // [O, I]

  void lanes(int64_t at, Lanes* parts) const { parts[0] = load(stored + at); }
  float single(int64_t at, int) const { return stored[at]; }
  float unit(int64_t, int64_t) const { return 1; }
};

struct Int8 {
  static constexpr int kParts = 1;
  const int8_t* stored;  // [O, I]
  const float* scale;    // [O, groups]
  int64_t groups;

  void lanes(int64_t at, Lanes* parts) const { parts[0] = floats(widened(stored + at)); }
  float single(int64_t at, int) const { return stored[at]; }
  float unit(int64_t output, int64_t group) const { return scale[output * groups + group]; }
};

struct Int4 {
  static constexpr int kParts = 2;
  const int8_t* stored;     // [O, I / 2]
  const int8_t* multiples;  // [O, groups]
  const float* scale;       // [O, 1]
  int64_t groups;

  void lanes(int64_t at, Lanes* parts) const {
    Integers both = widened(stored + at);
    parts[0] = floats((both << 28) >> 28);
    parts[1] = floats(both >> 4);
  }
  float single(int64_t at, int part) const {
    int32_t both = stored[at];
    return part ? both >> 4 : static_cast<int32_t>(static_cast<uint32_t>(both) << 28) >> 28;
  }
  float unit(int64_t output, int64_t group) const { return multiples[output * groups + group] * scale[output]; }
};

// y [R, O] of R rows and O outputs from `output` on.
template <int R, int O, typename Kernel>
inline void outputs_of(const float* x, const Kernel& kernel, int64_t inputs, int64_t output, float* y, int64_t width) {
  constexpr int P = Kernel::kParts;
  const int64_t length = inputs / kernel.groups / P;  // of a group, as stored
  Lanes sums[R][O] = {};
  float rests[R][O] = {};
  for (int64_t group = 0; group < kernel.groups; ++group) {
    const float* from = x + group * length * P;
    const int64_t at = output * (inputs / P) + group * length;
    Lanes part_sums[R][O] = {};
    float part_rests[R][O] = {};
    int64_t i = 0;
    for (; i + kLanes <= length; i += kLanes) {
      Lanes weights[O][P];
#pragma GCC unroll 8
      for (int o = 0; o < O; ++o) {
        __builtin_prefetch(kernel.stored + at + (o + 2 * O) * (inputs / P) + i);
        kernel.lanes(at + o * (inputs / P) + i, weights[o]);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) {
          const Lanes row = load(from + r * inputs + p * length + i);
#pragma GCC unroll 8
          for (int o = 0; o < O; ++o) part_sums[r][o] += row * weights[o][p];
        }
    }
    for (; i < length; ++i)
      for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p)
          for (int o = 0; o < O; ++o)
            part_rests[r][o] += from[r * inputs + p * length + i] * kernel.single(at + o * (inputs / P) + i, p);
    for (int r = 0; r < R; ++r)
      for (int o = 0; o < O; ++o) {
        const float unit = kernel.unit(output + o, group);
        sums[r][o] += unit * part_sums[r][o];
        rests[r][o] += unit * part_rests[r][o];
      }
  }
  for (int r = 0; r < R; ++r)
    for (int o = 0; o < O; ++o) y[r * width + output + o] = sum(sums[r][o]) + rests[r][o];
}

constexpr int kColumns = 2 * kLanes;  // of a block
typedef float Block[kRows][kColumns];

// blocks [R, columns] += x [R, inputs] W [inputs, columns], where rows of x and W are so many numbers apart.
template <int R>
void add_product(const float* x, int64_t x_width, const float* w, int64_t width, Block* blocks, int64_t inputs,
                 int64_t columns) {
  constexpr int kInputs = kLanes / 2;  // whose weights of a block there are registers for
  int64_t i = 0;
  for (; i + kInputs <= inputs; i += kInputs, w += kInputs * width) {
    float numbers[R][kInputs];
    for (int r = 0; r < R; ++r) std::memcpy(numbers[r], x + r * x_width + i, sizeof numbers[r]);
    int64_t c = 0;
    for (Block* block = blocks; c + kColumns <= columns; c += kColumns, ++block) {
      Lanes weights[kInputs][2];
#pragma GCC unroll 8
      for (int j = 0; j < kInputs; ++j) {
        // Into the second cache: in the first, so many rows ahead would take the place of sums.
        for (int l = 0; l < kColumns; l += 16) __builtin_prefetch(w + (j + 2 * kInputs) * width + c + l, 0, 2);
        weights[j][0] = load(w + j * width + c);
        weights[j][1] = load(w + j * width + c + kLanes);
      }
      const float* number = numbers[0];
      // Where there are registers for them they stay there; else they must not be loaded before the loop.
      if constexpr (R > 2) asm("" : "+r"(number));
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        Lanes left = load((*block)[r]), right = load((*block)[r] + kLanes);
#pragma GCC unroll 8
        for (int j = 0; j < kInputs; ++j) {
          left += number[r * kInputs + j] * weights[j][0];
          right += number[r * kInputs + j] * weights[j][1];
        }
        store((*block)[r], left);
        store((*block)[r] + kLanes, right);
      }
    }
    for (; c < columns; ++c)
      for (int r = 0; r < R; ++r)
        for (int j = 0; j < kInputs; ++j)
          blocks[c / kColumns][r][c % kColumns] += x[r * x_width + i + j] * w[j * width + c];
  }
  for (; i < inputs; ++i, w += width)
    for (int64_t c = 0; c < columns; ++c)
      for (int r = 0; r < R; ++r) blocks[c / kColumns][r][c % kColumns] += x[r * x_width + i] * w[c];
}

// Calls run(integral_constant<R>) for R = rows, of 1 to kRows.
template <int R = kRows, typename Run>
inline void with_rows(int64_t rows, const Run& run) {
  if constexpr (R > 1)
    if (rows < R) return with_rows<R - 1>(rows, run);
  run(std::integral_constant<int, R>());
}

// How many outputs each of `parts` takes.
int64_t share(int64_t outputs, int64_t parts) {
  constexpr int64_t kMultiple = 2 * kLanes;
  return ((outputs + parts - 1) / parts + kMultiple - 1) / kMultiple * kMultiple;
}

template <typename Kernel>
ffi::Error product(ffi::ThreadPool& pool, const Floats& x, const Kernel& kernel, ffi::Result<Floats>& result) {
  const int64_t rows = x.dimensions()[0], inputs = x.dimensions()[1], outputs = result->dimensions()[1];
  const int64_t part = share(outputs, threads_of(pool));
  const float* from = x.typed_data();
  float* y = result->typed_data();
  in_parts(pool, (outputs + part - 1) / part, [=](int64_t number) {
    const int64_t first = number * part, last = std::min(outputs, first + part);
    const int64_t step = rows > kRows ? 16 : part;  // outputs whose kernel stays in the cache for all rows
    for (int64_t begin = first; begin < last; begin += step)
      for (int64_t r = 0; r < rows; r += kRows)
        with_rows(std::min<int64_t>(kRows, rows - r), [&](auto count) {
          constexpr int R = decltype(count)::value;
          constexpr int O = R > 4 ? kLanes / 8 : R > 1 ? 2 : 4;  // as many sums as there are registers for
          const int64_t end = std::min(last, begin + step);
          int64_t o = begin;
          for (; o + O <= end; o += O) outputs_of<R, O>(from + r * inputs, kernel, inputs, o, y + r * outputs, outputs);
          for (; o < end; ++o) outputs_of<R, 1>(from + r * inputs, kernel, inputs, o, y + r * outputs, outputs);
        });
  });
  return ffi::Error::Success();
}

// The first and the second half of the inputs are summed apart, whatever the threads: of two, each reads one piece of
// memory from its beginning to its end.
ffi::Error ByInput(ffi::ThreadPool pool, Floats x, Floats kernel, ffi::Result<Floats> result) {
  const int64_t rows = x.dimensions()[0], inputs = x.dimensions()[1], outputs = result->dimensions()[1];
  const int64_t part = share(outputs, (threads_of(pool) + 1) / 2);
  const float *from = x.typed_data(), *w = kernel.typed_data();
  std::vector<float> second_sums(rows * outputs);
  float *y = result->typed_data(), *second = second_sums.data();
  in_parts(pool, 2 * ((outputs + part - 1) / part), [=](int64_t number) {
    const int64_t first = number / 2 * part, last = std::min(outputs, first + part);
    const int64_t top = number % 2 ? inputs / 2 : 0, bottom = number % 2 ? inputs : inputs / 2;
    float* to = number % 2 ? second : y;
    // Sums of a tile stay in the cache, one after the other; for many rows a tile of the kernel does, too.
    constexpr int64_t kBlocks = 64;
    const int64_t groups = (rows + kRows - 1) / kRows;  // at most four: see FEW in products.py
    const int64_t tile = std::min(kBlocks / groups, std::max(kBlocks / 4, 128 / rows));
    const int64_t wide = tile * kColumns, high = rows > kRows ? 128 : inputs;
    alignas(64) Block sums[kBlocks];
    for (int64_t c = first; c < last; c += wide) {
      const int64_t columns = std::min(wide, last - c);
      std::memset(sums, 0, groups * tile * sizeof(Block));
      for (int64_t i = top; i < bottom; i += high)
        for (int64_t r = 0; r < rows; r += kRows)
          with_rows(std::min<int64_t>(kRows, rows - r), [&](auto count) {
            add_product<decltype(count)::value>(from + r * inputs + i, inputs, w + i * outputs + c, outputs,
                                                sums + r / kRows * tile, std::min(high, bottom - i), columns);
          });
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t k = 0; k < columns; k += kColumns)
          std::memcpy(to + r * outputs + c + k, sums[r / kRows * tile + k / kColumns][r % kRows],
                      std::min<int64_t>(kColumns, columns - k) * sizeof(float));
    }
  });
  for (int64_t i = 0; i < rows * outputs; ++i) y[i] += second[i];
  return ffi::Error::Success();
}

ffi::Error ByOutput(ffi::ThreadPool pool, Floats x, Floats kernel, ffi::Result<Floats> result) {
  return product(pool, x, Float32{kernel.typed_data()}, result);
}

ffi::Error ByOutputInt8(ffi::ThreadPool pool, Floats x, Bytes values, Floats scale, ffi::Result<Floats> result) {
  return product(pool, x, Int8{values.typed_data(), scale.typed_data(), scale.dimensions()[1]}, result);
}

ffi::Error ByOutputInt4(ffi::ThreadPool pool, Floats x, Bytes nibbles, Bytes multiples, Floats scale,
                        ffi::Result<Floats> result) {
  const Int4 kernel{nibbles.typed_data(), multiples.typed_data(), scale.typed_data(), multiples.dimensions()[1]};
  return product(pool, x, kernel, result);
}

// ---- Attention of few queries, for softmax.py -----------------------------------------------------------------------------
//
// Keys are taken in pieces, whose softmaxes are put together in the end; a piece that no query sees is not read. A score
// is summed in lanes, what is found key by key, so that no lane is without work, however few the queries.

constexpr int64_t kPiece = 64;                                // keys whose scores exist at once, a multiple of kLanes
constexpr float kLeast = -std::numeric_limits<float>::max();  // the score of what is not seen

inline Lanes all(float x) { return Lanes{} + x; }

inline Lanes larger(Lanes a, Lanes b) { return a > b ? a : b; }

inline float largest(Lanes lanes) {
  float each[kLanes];
  store(each, lanes);
  return folded(each, [](auto a, auto b) { return a > b ? a : b; });
}

// e^x of x <= 0, within two units of the last place: 2^n times a polynomial of the rest (Cephes' expf).
inline Lanes exponential(Lanes x) {
  x = larger(x, all(-87));
  const Lanes shift = all(12582912);  // 1.5 * 2^23, so that a sum with it is rounded to a whole number
  const Lanes n = (x * 1.44269504f + shift) - shift;
  const Lanes rest = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Lanes y = all(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    y = y * rest + c;
  y = y * rest * rest + rest + 1;
  return (Lanes)((Integers)y + (__builtin_convertvector(n, Integers) << 23));
}

// The sums of pairs of neighbours: those of a, then those of b.
inline Lanes pairs(Lanes a, Lanes b) {
#if defined(__AVX512F__)
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  return (Lanes)_mm512_permutex2var_ps((__m512)a, even, (__m512)b) +
         (Lanes)_mm512_permutex2var_ps((__m512)a, odd, (__m512)b);
#elif defined(__AVX2__)
  return (Lanes)_mm256_permute4x64_pd((__m256d)_mm256_hadd_ps((__m256)a, (__m256)b), 0xd8);
#else
  Lanes sums;
  for (int i = 0; i < kLanes; ++i) {
    const Lanes& from = i < kLanes / 2 ? a : b;
    sums[i] = from[2 * i % kLanes] + from[2 * i % kLanes + 1];
  }
  return sums;
#endif
}

// Of a query with kLanes keys: a sum in lanes for each, whose pairs are added until every key is one lane.
inline Lanes scores_of(const float* query, const float* keys, int64_t width) {
  Lanes sums[kLanes] = {};
  int64_t h = 0;
  for (; h + kLanes <= width; h += kLanes) {
    const Lanes numbers = load(query + h);
#pragma GCC unroll 16
    for (int n = 0; n < kLanes; ++n) sums[n] += numbers * load(keys + n * width + h);
  }
#pragma GCC unroll 4
  for (int left = kLanes / 2; left > 0; left /= 2)
#pragma GCC unroll 8
    for (int n = 0; n < left; ++n) sums[n] = pairs(sums[2 * n], sums[2 * n + 1]);
  for (; h < width; ++h)
    for (int n = 0; n < kLanes; ++n) sums[0][n] += query[h] * keys[n * width + h];
  return sums[0];
}

// found [R, C vectors] = weights [R, keys] values [keys, C vectors].
template <int R, int C>
inline void mix_vectors(const float (*weights)[kPiece], const float* values, int64_t keys, int64_t width,
                        float* found) {
  Lanes sums[R][C] = {};
  for (int64_t s = 0; s < keys; ++s, values += width)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sums[r][c] += weights[r][s] * load(values + c * kLanes);
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) store(found + r * width + c * kLanes, sums[r][c]);
}

// found [R, width] = weights [R, keys] values [keys, width].
template <int R>
inline void mix(const float (*weights)[kPiece], const float* values, int64_t keys, int64_t width, float* found) {
  constexpr int C = R > 4 ? kLanes / 8 : kLanes / 4;  // as many sums as there are registers for
  int64_t h = 0;
  for (; h + C * kLanes <= width; h += C * kLanes) mix_vectors<R, C>(weights, values + h, keys, width, found + h);
  for (; h + kLanes <= width; h += kLanes) mix_vectors<R, 1>(weights, values + h, keys, width, found + h);
  for (; h < width; ++h)
    for (int r = 0; r < R; ++r) {
      float sum = 0;
      for (int64_t s = 0; s < keys; ++s) sum += weights[r][s] * values[s * width + h];
      found[r * width + h] = sum;
    }
}

// Of queries [B, K, G, T, H], scaled, keys and values [B, K, S, H] and what is seen [B, T, S]: what they found
// [B, K, G, T, H], and the logarithms of their softmaxes' sums [B, K, G, T].
ffi::Error Attend(ffi::ThreadPool pool, Floats query, Floats key, Floats value, ffi::Buffer<ffi::PRED> visible,
                  ffi::Result<Floats> result, ffi::Result<Floats> result_sums) {
  const auto shape = query.dimensions();
  const int64_t batch = shape[0], heads = shape[1], tokens = shape[3], queries = shape[2] * tokens, width = shape[4];
  const int64_t keys = key.dimensions()[2];
  const int64_t pieces = (keys + kPiece - 1) / kPiece, groups = (queries + kRows - 1) / kRows;
  const float *all_queries = query.typed_data(), *all_keys = key.typed_data(), *all_values = value.typed_data();
  const bool* all_seen = visible.typed_data();
  // Of each piece and group of queries, unless it was not read: their largest scores, their sums, and what they found.
  const int64_t size = kRows * (2 + width);
  std::unique_ptr<Lanes[]> memory(new Lanes[batch * heads * pieces * groups * size / kLanes + 1]);
  std::vector<char> unread(batch * heads * pieces * groups);
  float* parts = reinterpret_cast<float*>(memory.get());
  char* is_unread = unread.data();

  in_parts(pool, batch * heads * pieces * groups, [=](int64_t number) {
    const int64_t head = number / groups / pieces, first = number / groups % pieces * kPiece;
    const int64_t begin = number % groups * kRows, rows = std::min<int64_t>(kRows, queries - begin);
    const int64_t count = std::min(kPiece, keys - first);
    const bool* seen = all_seen + head / heads * tokens * keys + first;
    auto seen_by = [=](int64_t r) { return seen + (begin + r) % tokens * keys; };
    bool any = false, every = true;
    for (int64_t r = 0; r < std::min(rows, tokens); ++r) {
      any = any || std::memchr(seen_by(r), true, count);
      every = every && !std::memchr(seen_by(r), false, count);
    }
    if ((is_unread[number] = !any)) return;

    const float* queries_at = all_queries + (head * queries + begin) * width;
    const float* keys_at = all_keys + (head * keys + first) * width;
    alignas(64) float scores[kRows][kPiece];
    for (int64_t s = 0; s < count; s += kLanes, keys_at += kLanes * width) {
      float last[kLanes * width];  // those that are left, filled up
      if (s + kLanes > count) {
        std::memset(last, 0, sizeof last);
        keys_at = static_cast<float*>(std::memcpy(last, keys_at, (count - s) * width * sizeof(float)));
      }
      for (int64_t r = 0; r < rows; ++r) store(scores[r] + s, scores_of(queries_at + r * width, keys_at, width));
    }
    float *most = parts + number * size, *sums = most + kRows;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t end = (count + kLanes - 1) / kLanes * kLanes;
      if (!every)
        for (int64_t s = 0; s < count; ++s)
          if (!seen_by(r)[s]) scores[r][s] = kLeast;
      for (int64_t s = count; s < end; ++s) scores[r][s] = kLeast;
      Lanes each_most = all(kLeast), each_sum = {};
      for (int64_t s = 0; s < end; s += kLanes) each_most = larger(each_most, load(scores[r] + s));
      most[r] = largest(each_most);
      for (int64_t s = 0; s < end; s += kLanes) {
        const Lanes score = load(scores[r] + s);
        const Lanes weight = score > kLeast ? exponential(score - most[r]) : Lanes{};
        each_sum += weight;
        store(scores[r] + s, weight);
      }
      sums[r] = sum(each_sum);
    }
    const float* values = all_values + (head * keys + first) * width;
    with_rows(rows, [&](auto some) { mix<decltype(some)::value>(scores, values, count, width, sums + kRows); });
  });

  float *out = result->typed_data(), *out_sums = result_sums->typed_data();
  for (int64_t row = 0; row < batch * heads * queries; ++row, out += width) {
    const int64_t head = row / queries, group = row % queries / kRows, r = row % queries % kRows;
    float most = kLeast, sum = 0;
    auto each_read = [&](auto run) {
      for (int64_t i = head * pieces * groups + group; i < (head + 1) * pieces * groups; i += groups)
        if (!is_unread[i]) run(parts + i * size);
    };
    each_read([&](const float* part) { most = std::max(most, part[r]); });
    std::fill(out, out + width, 0);
    each_read([&](const float* part) {
      const float share = part[r] > kLeast ? exponential(all(part[r] - most))[0] : 0;
      const float* found = part + 2 * kRows + r * width;
      sum += share * part[kRows + r];
      for (int64_t h = 0; h < width; ++h) out[h] += share * found[h];
    });
    out_sums[row] = most + (sum > 0 ? std::log(sum) : 0);
    for (int64_t h = 0; h < width; ++h) out[h] = sum > 0 ? out[h] / sum : 0;
  }
  return ffi::Error::Success();
}

// ---- What is computed once, for native.held ------------------------------------------------------------------------------

ffi::Error Held(Floats given, ffi::Result<Floats> result) {
  std::memcpy(result->typed_data(), given.typed_data(), given.size_bytes());
  return ffi::Error::Success();
}

auto of_rows() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>(); }

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(held, Held, ffi::Ffi::Bind().Arg<Floats>().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(by_input, ByInput, of_rows().Arg<Floats>().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(by_output, ByOutput, of_rows().Arg<Floats>().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(by_output_int8, ByOutputInt8, of_rows().Arg<Bytes>().Arg<Floats>().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(by_output_int4, ByOutputInt4,
                              of_rows().Arg<Bytes>().Arg<Bytes>().Arg<Floats>().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(attend, Attend,
                              of_rows().Arg<Floats>().Arg<Floats>().Arg<ffi::Buffer<ffi::PRED>>().Ret<Floats>().Ret<Floats>());
