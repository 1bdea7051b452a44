/* Reassembly, its two adjoints and the softmax of its kernels on a CPU, for any strides, in one pass over the maps.
 *
 *   reassemble  y[c, i, j] = sum over k, l of w[k*K + l, i, j] * x[c, i/s + k - K/2, j/s + l - K/2]
 *   similarity  w[k*K + l, i, j] = sum over c of y[c, i, j] * x[c, i/s + k - K/2, j/s + l - K/2]
 *   spread      x[c, i', j'] = sum over all (i, j, k, l) that read x[c, i', j'] of w[k*K + l, i, j] * y[c, i, j]
 *
 * x is the low-resolution map (B, C, h, w), y the high-resolution map, w the kernels (B, G*K*K, s*h, s*w). For the
 * kernels themselves, there is the softmax over each kernel of logits plus nearest-upsampled coarse logits.
 *
 * All loops visit the low-resolution pixels: the s*s output pixels of a parent share their K x K window, so one load of x
 * serves s*s multiplications, and the sums of four output pixels stay in registers.
 *
 * The arithmetic needs the channels of a pixel next to each other. A map in that layout is read and written in place; rows
 * of any other map (bfloat16, channel counts that do not fill a vector) are copied into small buffers of a thread, a row
 * at a time. Contiguous maps, where the pixels of a row are next to each other, have a second form of the loops: `planes`.
 * Every sum is computed by one thread in a fixed order: results depend neither on the number of threads nor on the layout.
 *
 * BITS, defined on the command line, is 32 or 64: the type of the computation. The file includes itself for the part that
 * depends on it, and sampled.c. It is one file of more than 500 lines because it is compiled at once, on first use, and
 * its inner loops, which the compiler inlines, share their types and vectors.
 */
#ifndef REAL

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define F32 0
#define F64 1
#define BF16 2
#define F16 3

/* BLOCK: vectors of channels that are processed at once. With 4 pixels, 4 vectors of sums fill half of 32 registers. */
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define F32_LANES 16
#define F64_LANES 8
#define BLOCK 4
#define REGISTERS 32
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define F32_LANES 8
#define F64_LANES 4
#define BLOCK 2
#define REGISTERS 16
#else
#define VECTOR_BYTES 16
#define F32_LANES 4
#define F64_LANES 2
#define BLOCK 2
#define REGISTERS 16
#endif

/* The lanes of two vectors alternating: of their first halves, and of their second halves. */
#define LOW2 0, 2
#define HIGH2 1, 3
#define LOW4 0, 4, 1, 5
#define HIGH4 2, 6, 3, 7
#define LOW8 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH8 4, 12, 5, 13, 6, 14, 7, 15
#define LOW16 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH16 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31

/* Every second lane of two vectors side by side: from the first on, and from the second on. */
#define EVEN2 0, 2
#define ODD2 1, 3
#define EVEN4 0, 2, 4, 6
#define ODD4 1, 3, 5, 7
#define EVEN8 0, 2, 4, 6, 8, 10, 12, 14
#define ODD8 1, 3, 5, 7, 9, 11, 13, 15
#define EVEN16 EVEN8, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD16 ODD8, 17, 19, 21, 23, 25, 27, 29, 31

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline)) /* one copy is enough: the file is compiled while the user waits */

typedef struct {
  void *data;
  int64_t type;
  int64_t batch, channel, row, column; /* strides, in elements */
} Map;

typedef struct {
  int64_t batch, channels, height, width; /* of the low-resolution map */
  int64_t kernel, scale, groups, threads;
} Shape;

INLINE float bf16_to_float(uint16_t bits) {
  uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}

INLINE uint16_t float_to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40); /* NaN stays NaN */
  return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);                  /* to nearest, ties to even */
}

/* Keeps a vector in a register: otherwise gcc loads it again for every use. */
#if defined(__x86_64__)
#define HOLD(value) __asm__("" : "+v"(value))
#else
#define HOLD(value)
#endif

enum { GATHER, CORRELATE, SCATTER };

typedef float f32_vector __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t i32_vector __attribute__((vector_size(VECTOR_BYTES)));

INLINE f32_vector choose(i32_vector mask, f32_vector yes, f32_vector no) {
  return (f32_vector)((mask & (i32_vector)yes) | (~mask & (i32_vector)no));
}

/* exp for arguments up to 0, to 2 units in the last place: 2^n times a polynomial (Taylor's, which the short interval of
 * r allows) in r = v - n log 2, log 2 in two parts. */
INLINE f32_vector exp_f32(f32_vector v) {
  v = choose(v < -104.0f, (f32_vector){0} - 104.0f, v); /* -inf too; NaN stays */
  f32_vector n = v * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the sum has no binary places left */
  n -= 12582912.0f;
  f32_vector r = v - n * 0.693359375f + n * 2.12194440e-4f;
  f32_vector y = r * (1.0f / 5040) + 1.0f / 720;
  y = y * r + 1.0f / 120;
  y = y * r + 1.0f / 24;
  y = y * r + 1.0f / 6;
  y = y * r + 0.5f;
  y = y * r * r + r + 1.0f;
  /* 2^n in two factors: it may be smaller than the smallest normal number. */
  i32_vector whole = __builtin_convertvector(n, i32_vector), half = whole >> 1;
  return y * (f32_vector)((half + 127) << 23) * (f32_vector)((whole - half + 127) << 23);
}

#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)

#if BITS == 32
#define REAL float
#define REAL_TYPE F32
#define LANES F32_LANES
#define INTEGER int32_t
#define N(name) JOIN(name, _f32)
#else
#define REAL double
#define REAL_TYPE F64
#define LANES F64_LANES
#define INTEGER int64_t
#define N(name) JOIN(name, _f64)
#endif
#include "native.c"

#else /* the part that depends on REAL */

/* aligned to one element: a pixel's channels may begin at any address */
typedef REAL N(vector) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
#define vector N(vector)

/* Rows with the channels of a pixel next to each other, each group padded to whole vectors: the map itself if possible,
 * else a ring of buffers. */
typedef struct {
  const Map *map;
  REAL *buffer;       /* NULL: direct */
  int64_t *held;      /* the row in a slot of the ring, image * height + row, or -1 */
  int64_t slots, height, width, groups, channels, padded; /* channels and padded channels of one group */
  int64_t row_size;
} N(Rows);
#define Rows N(Rows)

static int N(is_direct)(const Map *map, int64_t channels, int64_t lanes) {
  return map->type == REAL_TYPE && map->channel == 1 && channels % lanes == 0;
}

static int N(open_rows)(Rows *rows, const Map *map, int64_t slots, int64_t height, int64_t width, int64_t groups,
                        int64_t channels, int64_t lanes) {
  memset(rows, 0, sizeof *rows);
  rows->map = map;
  rows->slots = slots;
  rows->height = height;
  rows->width = width;
  rows->groups = groups;
  rows->channels = channels;
  rows->padded = (channels + lanes - 1) / lanes * lanes;
  rows->row_size = width * groups * rows->padded;
  if (N(is_direct)(map, channels, lanes)) return 1;
  rows->buffer = aligned_alloc(64, ((slots * rows->row_size * sizeof(REAL)) / 64 + 1) * 64);
  rows->held = malloc(slots * sizeof(int64_t));
  if (!rows->buffer || !rows->held) return 0;
  memset(rows->buffer, 0, slots * rows->row_size * sizeof(REAL)); /* the padding of a group stays zero */
  for (int64_t i = 0; i < slots; i++) rows->held[i] = -1;
  return 1;
}

static void N(close_rows)(Rows *rows) {
  free(rows->buffer);
  free(rows->held);
}

/* Distances, in elements, from one pixel to the next, and from one group to the next. */
INLINE int64_t N(pixel_step)(const Rows *rows) {
  return rows->buffer ? rows->groups * rows->padded : rows->map->column;
}

/* At most 16 elements, by two moves of one fixed size that may overlap: a memcpy of unknown size is a call. */
INLINE void N(move)(REAL *to, const REAL *from, int64_t count) {
  if (count == 16) {
    memcpy(to, from, 16 * sizeof(REAL));
  } else if (count >= 8) {
    memcpy(to, from, 8 * sizeof(REAL));
    memcpy(to + count - 8, from + count - 8, 8 * sizeof(REAL));
  } else if (count >= 4) {
    memcpy(to, from, 4 * sizeof(REAL));
    memcpy(to + count - 4, from + count - 4, 4 * sizeof(REAL));
  } else {
    for (int64_t i = 0; i < count; i++) to[i] = from[i];
  }
}

/* COUNT contiguous elements of a map, as REAL. */
INLINE void N(load)(REAL *to, const Map *map, int64_t at, int64_t count) {
  if (map->type == REAL_TYPE && count <= 16) {
    N(move)(to, (const REAL *)map->data + at, count);
  } else if (map->type == F32) {
    const float *from = (const float *)map->data + at;
    for (int64_t i = 0; i < count; i++) to[i] = (REAL)from[i];
  } else if (map->type == F64) {
    const double *from = (const double *)map->data + at;
    for (int64_t i = 0; i < count; i++) to[i] = (REAL)from[i];
  } else if (map->type == BF16) {
    const uint16_t *from = (const uint16_t *)map->data + at;
    for (int64_t i = 0; i < count; i++) to[i] = (REAL)bf16_to_float(from[i]);
  }
#ifdef __FLT16_MAX__
  else {
    const _Float16 *from = (const _Float16 *)map->data + at;
    for (int64_t i = 0; i < count; i++) to[i] = (REAL)from[i];
  }
#endif
}

INLINE void N(store)(const REAL *from, const Map *map, int64_t at, int64_t count) {
  if (map->type == REAL_TYPE && count <= 16) {
    N(move)((REAL *)map->data + at, from, count);
  } else if (map->type == F32) {
    float *to = (float *)map->data + at;
    for (int64_t i = 0; i < count; i++) to[i] = (float)from[i];
  } else if (map->type == F64) {
    double *to = (double *)map->data + at;
    for (int64_t i = 0; i < count; i++) to[i] = (double)from[i];
  } else if (map->type == BF16) {
    uint16_t *to = (uint16_t *)map->data + at;
    for (int64_t i = 0; i < count; i++) to[i] = float_to_bf16((float)from[i]);
  }
#ifdef __FLT16_MAX__
  else {
    _Float16 *to = (_Float16 *)map->data + at;
    for (int64_t i = 0; i < count; i++) to[i] = (_Float16)from[i];
  }
#endif
}

/* COUNT elements of a map, STRIDE apart. */
NOINLINE void N(load_line)(REAL *to, const Map *map, int64_t at, int64_t stride, int64_t count) {
  if (stride == 1) N(load)(to, map, at, count);
  else
    for (int64_t i = 0; i < count; i++) N(load)(to + i, map, at + i * stride, 1);
}

NOINLINE void N(store_line)(const REAL *from, const Map *map, int64_t at, int64_t stride, int64_t count) {
  if (stride == 1) N(store)(from, map, at, count);
  else
    for (int64_t i = 0; i < count; i++) N(store)(from + i, map, at + i * stride, 1);
}

INLINE vector N(zip_low)(vector a, vector b) { return __builtin_shufflevector(a, b, JOIN(LOW, LANES)); }
INLINE vector N(zip_high)(vector a, vector b) { return __builtin_shufflevector(a, b, JOIN(HIGH, LANES)); }

/* LANES vectors of LANES lanes, transposed: merging the upper half of the vectors into the lower, log2(LANES) times. */
INLINE void N(transpose)(vector *v) {
  for (int size = 1; size < LANES; size *= 2) {
    vector merged[LANES];
    for (int i = 0; i < LANES / 2; i++) {
      merged[2 * i] = N(zip_low)(v[i], v[i + LANES / 2]);
      merged[2 * i + 1] = N(zip_high)(v[i], v[i + LANES / 2]);
    }
    memcpy(v, merged, sizeof merged);
  }
}

/* Between a row of a map, at element `base`, and a buffer with the channels of a pixel next to each other. */
static void N(copy_row)(const Rows *rows, int64_t base, REAL *row, const int reading) {
  const Map *map = rows->map;
  int64_t step = rows->groups * rows->padded;
  for (int64_t g = 0; g < rows->groups; g++) {
    REAL *group = row + g * rows->padded;
    int64_t at = base + g * rows->channels * map->channel;
    if (map->channel == 1 || map->column != 1) {
      for (int64_t j = 0; j < rows->width; j++)
        if (reading) N(load_line)(group + j * step, map, at + j * map->column, map->channel, rows->channels);
        else N(store_line)(group + j * step, map, at + j * map->column, map->channel, rows->channels);
      continue;
    }
    /* Square blocks, so that every cache line of the map is read once: its planes are often a multiple of the page size
     * apart, where lines evict each other. */
    for (int64_t c = 0; c < rows->channels; c += LANES) {
      int64_t deep = rows->channels - c < LANES ? rows->channels - c : LANES;
      for (int64_t j = 0; j < rows->width; j += LANES) {
        int64_t wide = rows->width - j < LANES ? rows->width - j : LANES;
        vector block[LANES];
        if (reading) {
          for (int64_t i = 0; i < LANES; i++) {
            if (i < deep && wide == LANES) N(load)((REAL *)&block[i], map, at + (c + i) * map->channel + j, LANES);
            else block[i] = (vector){0};
            if (i < deep && wide != LANES) N(load)((REAL *)&block[i], map, at + (c + i) * map->channel + j, wide);
          }
          N(transpose)(block);
          for (int64_t i = 0; i < wide; i++) N(move)(group + (j + i) * step + c, (REAL *)&block[i], deep);
        } else {
          for (int64_t i = 0; i < LANES; i++) {
            block[i] = (vector){0};
            if (i < wide) N(move)((REAL *)&block[i], group + (j + i) * step + c, deep);
          }
          N(transpose)(block);
          for (int64_t i = 0; i < deep; i++)
            if (wide == LANES) N(store)((REAL *)&block[i], map, at + (c + i) * map->channel + j, LANES);
            else N(store)((REAL *)&block[i], map, at + (c + i) * map->channel + j, wide);
        }
      }
    }
  }
}

/* The row in the layout of the arithmetic. */
static REAL *N(read_row)(Rows *rows, int64_t image, int64_t index) {
  const Map *map = rows->map;
  int64_t base = image * map->batch + index * map->row;
  if (!rows->buffer) return (REAL *)map->data + base;
  int64_t slot = index % rows->slots;
  REAL *row = rows->buffer + slot * rows->row_size;
  if (rows->held[slot] == image * rows->height + index) return row;
  rows->held[slot] = image * rows->height + index;
  N(copy_row)(rows, base, row, 1);
  return row;
}

/* Where to write a row; write_row then takes it to the map. */
INLINE REAL *N(place_row)(Rows *rows, int64_t image, int64_t index) {
  const Map *map = rows->map;
  if (!rows->buffer) return (REAL *)map->data + image * map->batch + index * map->row;
  return rows->buffer + index % rows->slots * rows->row_size;
}

static void N(write_row)(Rows *rows, int64_t image, int64_t index) {
  if (!rows->buffer) return;
  N(copy_row)(rows, image * rows->map->batch + index * rows->map->row,
              rows->buffer + index % rows->slots * rows->row_size, 0);
}

/* The sum of each of four vectors. */
INLINE void N(sum4)(const vector *v, REAL *sums) {
#if LANES >= 4
  vector ab = N(zip_low)(v[0], v[1]) + N(zip_high)(v[0], v[1]);
  vector cd = N(zip_low)(v[2], v[3]) + N(zip_high)(v[2], v[3]);
  vector all = N(zip_low)(ab, cd) + N(zip_high)(ab, cd); /* a, c, b, d, a, c, b, d ... */
  typedef REAL four __attribute__((vector_size(4 * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
  four total = ((const four *)&all)[0];
  for (int i = 1; i < LANES / 4; i++) total += ((const four *)&all)[i];
  sums[0] = total[0], sums[1] = total[2], sums[2] = total[1], sums[3] = total[3];
#else
  for (int p = 0; p < 4; p++) {
    sums[p] = 0;
    for (int i = 0; i < LANES; i++) sums[p] += v[p][i];
  }
#endif
}

/* The columns of the window that lie inside the map, for the parent in column j. */
#define WINDOW                                                  \
  int64_t K = shape->kernel, before = K / 2;                    \
  int64_t first = before - j > 0 ? before - j : 0;              \
  int64_t last = shape->width - j + before < K ? shape->width - j + before : K;

/* y of PIXELS children of a parent, COUNT vectors of channels. */
INLINE void N(gather)(const int PIXELS, const int COUNT, const Shape *shape, int64_t j, REAL **x, int64_t x_step,
                      REAL **w, REAL **y) {
  WINDOW
  vector total[4][BLOCK];
  for (int p = 0; p < PIXELS; p++)
    for (int n = 0; n < COUNT; n++) total[p][n] = (vector){0};
  for (int64_t k = 0; k < K; k++) {
    if (!x[k]) continue;
    const REAL *at = x[k] + (j - before + first) * x_step;
    for (int64_t l = first; l < last; l++, at += x_step) {
      vector value[BLOCK];
      for (int n = 0; n < COUNT; n++) value[n] = ((const vector *)at)[n];
      for (int p = 0; p < PIXELS; p++) {
        REAL weight = w[p][k * K + l];
        for (int n = 0; n < COUNT; n++) total[p][n] += weight * value[n];
      }
    }
  }
  for (int p = 0; p < PIXELS; p++)
    for (int n = 0; n < COUNT; n++) ((vector *)y[p])[n] = total[p][n];
}

/* Kernels of PIXELS children of a parent, from all vectors of channels of a group. */
INLINE void N(correlate)(const int PIXELS, const Shape *shape, int64_t j, REAL **x, int64_t x_step, REAL **w, REAL **y,
                         int64_t vectors) {
  WINDOW
  for (int64_t k = 0; k < K; k++)
    for (int64_t l = 0; l < K; l++) {
      if (!x[k] || l < first || l >= last) {
        for (int p = 0; p < PIXELS; p++) w[p][k * K + l] = 0;
        continue;
      }
      const vector *at = (const vector *)(x[k] + (j - before + l) * x_step);
      vector total[4] = {{0}, {0}, {0}, {0}};
      for (int64_t n = 0; n < vectors; n++)
        for (int p = 0; p < PIXELS; p++) total[p] += at[n] * ((const vector *)y[p])[n];
      REAL sums[4];
      N(sum4)(total, sums);
      for (int p = 0; p < PIXELS; p++) w[p][k * K + l] = sums[p];
    }
}

/* Adds the contributions of PIXELS children of a parent to x; rows that are not this thread's are NULL. */
INLINE void N(scatter)(const int PIXELS, const int COUNT, const Shape *shape, int64_t j, REAL **x, int64_t x_step,
                       REAL **w, REAL **y) {
  WINDOW
  vector value[4][BLOCK];
  for (int p = 0; p < PIXELS; p++)
    for (int n = 0; n < COUNT; n++) value[p][n] = ((const vector *)y[p])[n];
  for (int64_t k = 0; k < K; k++) {
    if (!x[k]) continue;
    REAL *at = x[k] + (j - before + first) * x_step;
    for (int64_t l = first; l < last; l++, at += x_step) {
      vector total[BLOCK];
      for (int n = 0; n < COUNT; n++) total[n] = ((vector *)at)[n];
      for (int p = 0; p < PIXELS; p++) {
        REAL weight = w[p][k * K + l];
        for (int n = 0; n < COUNT; n++) total[n] += weight * value[p][n];
      }
      for (int n = 0; n < COUNT; n++) ((vector *)at)[n] = total[n];
    }
  }
}

/* One row of parents: x holds the K rows of their windows, w and y the s rows of their children. */
INLINE void N(walk)(const int what, const Shape *shape, Rows *x_rows, Rows *w_rows, Rows *y_rows, REAL **x_row,
                    REAL **w_row, REAL **y_row) {
  int64_t s = shape->scale, K = shape->kernel, children = s * s;
  int64_t x_step = N(pixel_step)(x_rows), w_step = N(pixel_step)(w_rows), y_step = N(pixel_step)(y_rows);
  int64_t vectors = y_rows->padded / LANES;
  for (int64_t g = 0; g < shape->groups; g++)
    for (int64_t j = 0; j < shape->width; j++)
      for (int64_t child = 0; child < children; child += 4) {
        int count = children - child < 4 ? (int)(children - child) : 4;
        REAL *w[4], *y[4], *x[64];
        for (int p = 0; p < count; p++) {
          int64_t column = j * s + (child + p) % s, row = (child + p) / s;
          w[p] = w_row[row] + column * w_step + g * w_rows->padded;
          y[p] = y_row[row] + column * y_step + g * y_rows->padded;
        }
        for (int64_t k = 0; k < K; k++) x[k] = x_row[k] ? x_row[k] + g * x_rows->padded : NULL;
        if (what == CORRELATE) {
          if (count == 4)
            N(correlate)(4, shape, j, x, x_step, w, y, vectors);
          else
            for (int p = 0; p < count; p++) N(correlate)(1, shape, j, x, x_step, w + p, y + p, vectors);
          continue;
        }
        for (int64_t n = 0; n < vectors;) {
          int block = vectors - n >= BLOCK ? BLOCK : 1;
#define CALL(function, pixels, offset)                                                  \
  if (block == BLOCK)                                                                   \
    N(function)(pixels, BLOCK, shape, j, x, x_step, w + (offset), y + (offset));        \
  else                                                                                  \
    N(function)(pixels, 1, shape, j, x, x_step, w + (offset), y + (offset));
          if (what == GATHER) {
            if (count == 4) { CALL(gather, 4, 0) }
            else for (int p = 0; p < count; p++) { CALL(gather, 1, p) }
          } else {
            if (count == 4) { CALL(scatter, 4, 0) }
            else for (int p = 0; p < count; p++) { CALL(scatter, 1, p) }
          }
#undef CALL
          n += block;
          for (int64_t k = 0; k < K; k++)
            if (x[k]) x[k] += block * LANES;
          for (int p = 0; p < count; p++) y[p] += block * LANES;
        }
      }
}

/* Rows [begin, end) of all images' rows: of parents, or for SCATTER of x itself. Returns 0 when memory ran out. */
INLINE int N(run)(const int what, const Shape *shape, const Map *x_map, const Map *w_map, const Map *y_map, int64_t begin,
                  int64_t end) {
  int64_t s = shape->scale, K = shape->kernel, before = K / 2, h = shape->height;
  Rows x, w, y;
  memset(&x, 0, sizeof x), memset(&w, 0, sizeof w), memset(&y, 0, sizeof y);
  REAL *x_row[64], *w_row[16], *y_row[16];
  int done = N(open_rows)(&x, x_map, K, h, shape->width, shape->groups, shape->channels / shape->groups, LANES) &&
             N(open_rows)(&w, w_map, s, h * s, shape->width * s, shape->groups, K * K, 1) &&
             N(open_rows)(&y, y_map, s, h * s, shape->width * s, shape->groups, shape->channels / shape->groups, LANES);
  /* y may be padded to whole vectors where x is read in place: both must then have the same end. */
  for (int64_t index = begin; done && index < end;) {
    int64_t image = index / h, top = index % h;
    int64_t bottom = end - image * h < h ? end - image * h : h; /* rows [top, bottom) of this image belong to this thread */
    if (what == SCATTER) {
      int64_t ready = top; /* rows of x below this one have been started */
      for (int64_t i = top - (K - 1 - before) > 0 ? top - (K - 1 - before) : 0; i < h && i - before < bottom; i++) {
        for (int64_t k = 0; k < K; k++) {
          int64_t row = i + k - before;
          x_row[k] = NULL;
          if (row < top || row >= bottom) continue;
          x_row[k] = N(place_row)(&x, image, row);
          if (row >= ready) {
            int64_t step = N(pixel_step)(&x), size = x.groups * x.padded;
            for (int64_t j = 0; j < shape->width; j++) memset(x_row[k] + j * step, 0, size * sizeof(REAL));
            ready = row + 1;
          }
        }
        for (int64_t a = 0; a < s; a++) {
          w_row[a] = N(read_row)(&w, image, i * s + a);
          y_row[a] = N(read_row)(&y, image, i * s + a);
        }
        N(walk)(what, shape, &x, &w, &y, x_row, w_row, y_row);
        if (i - before >= top) N(write_row)(&x, image, i - before); /* no row below reaches it */
      }
      /* Near the last parent row some rows of x are complete before they leave the window. */
      int64_t past = h - before > top ? h - before : top;
      for (int64_t row = past; row < bottom; row++) N(write_row)(&x, image, row);
    } else {
      for (int64_t i = top; i < bottom; i++) {
        for (int64_t k = 0; k < K; k++) {
          int64_t row = i + k - before;
          x_row[k] = row < 0 || row >= h ? NULL : N(read_row)(&x, image, row);
        }
        for (int64_t a = 0; a < s; a++) {
          w_row[a] = what == CORRELATE ? N(place_row)(&w, image, i * s + a) : N(read_row)(&w, image, i * s + a);
          y_row[a] = what == GATHER ? N(place_row)(&y, image, i * s + a) : N(read_row)(&y, image, i * s + a);
        }
        N(walk)(what, shape, &x, &w, &y, x_row, w_row, y_row);
        for (int64_t a = 0; a < s; a++) N(write_row)(what == GATHER ? &y : &w, image, i * s + a);
      }
    }
    index = image * h + bottom;
  }
  N(close_rows)(&x), N(close_rows)(&w), N(close_rows)(&y);
  return done;
}

/* Maps in which the pixels of a row are next to each other, as in contiguous ones: a vector then holds neighbouring pixels
 * of a channel, and nothing is transposed. The columns of a high-resolution row are distributed to s phases, one for each
 * child of a parent, so that the children of a vector of parents read the same values of x. Every sum is computed in the
 * order of the code above: results do not depend on the layout, bit for bit. */
typedef struct {
  const Map *map;
  REAL *data;   /* channels (those of a group filled up to whole blocks), slots (rows), phases, pitch */
  REAL *line;   /* a row of the map as REAL */
  int64_t extent; /* elements, from the map's first to the end of its last */
  int64_t groups, channels, padded; /* channels of a group, without and with padding */
  int64_t slots, phases, width, left, pitch, step; /* width: of a phase; left: zeros before it; step: of a channel */
  int64_t lean; /* K: column l of a kernel lies l - K/2 further to the right, at the pixel of x that it reaches; or 1 */
} N(Planes);
#define Planes N(Planes)

/* LEFT and RIGHT: zeros at both sides of a row. HOLD_ALL: all channels are stored, otherwise one block. */
static int N(open_planes)(Planes *planes, const Map *map, const Shape *shape, int64_t height, int64_t groups,
                          int64_t channels, int64_t slots, int64_t phases, int64_t left, int64_t right,
                          int64_t lean, int hold_all) {
  int64_t vectors = (shape->width + LANES - 1) / LANES;
  memset(planes, 0, sizeof *planes);
  planes->map = map;
  planes->extent = 1 + (shape->batch - 1) * map->batch + (groups * channels - 1) * map->channel +
                   (height - 1) * map->row + (shape->width * phases - 1) * map->column;
  planes->groups = groups;
  planes->channels = channels;
  planes->padded = (channels + BLOCK - 1) / BLOCK * BLOCK;
  planes->slots = slots;
  planes->phases = phases;
  planes->width = shape->width;
  planes->left = left;
  planes->lean = lean;
  /* An odd number of vectors: at a multiple of the page size the taps of a kernel evict each other from the cache. */
  planes->pitch = left + right ? left + vectors * LANES + right : (vectors | 1) * LANES;
  if (lean > 1) planes->pitch = (planes->pitch + LANES - 1) / LANES * LANES;
  planes->step = slots * phases * planes->pitch;
  int64_t bytes = (hold_all ? groups * planes->padded : BLOCK) * planes->step * sizeof(REAL);
  planes->data = aligned_alloc(64, (bytes / 64 + 1) * 64);
  planes->line = malloc((shape->width * phases + 16) * sizeof(REAL));
  if (!planes->data || !planes->line) return 0;
  memset(planes->data, 0, bytes); /* the surroundings of the rows stay zero */
  return 1;
}

static void N(close_planes)(Planes *planes) {
  free(planes->data);
  free(planes->line);
}

INLINE vector N(even)(vector a, vector b) { return __builtin_shufflevector(a, b, JOIN(EVEN, LANES)); }
INLINE vector N(odd)(vector a, vector b) { return __builtin_shufflevector(a, b, JOIN(ODD, LANES)); }

/* LANES elements: the first COUNT are read, the others are zero; memory may be read up to LIMIT. */
INLINE vector N(load_some)(const REAL *from, int64_t count, const REAL *limit) {
  typedef INTEGER integers __attribute__((vector_size(VECTOR_BYTES)));
  vector value = {0};
  integers lane;
  for (int i = 0; i < LANES; i++) lane[i] = i;
  if (count >= LANES) return *(const vector *)from;
  if (limit - from >= LANES) return (vector)((lane < (INTEGER)count) & (integers)*(const vector *)from);
  if (count > 0) N(move)((REAL *)&value, from, count);
  return value;
}

INLINE void N(store_some)(REAL *to, vector value, int64_t count) {
  if (count >= LANES) *(vector *)to = value;
  else if (count > 0) N(move)(to, (const REAL *)&value, count);
}

/* From a row of a map to its phases; lanes beyond the end become zero. */
INLINE void N(split)(const REAL *row, const REAL *limit, REAL *to, int64_t phases, int64_t width, int64_t pitch) {
  if (phases == 1) {
    for (int64_t j = 0; j < width; j += LANES) *(vector *)(to + j) = N(load_some)(row + j, width - j, limit);
  } else if (phases == 2) {
    for (int64_t j = 0; j < width; j += LANES) {
      vector a = N(load_some)(row + 2 * j, 2 * (width - j), limit);
      vector b = N(load_some)(row + 2 * j + LANES, 2 * (width - j) - LANES, limit);
      *(vector *)(to + j) = N(even)(a, b);
      *(vector *)(to + pitch + j) = N(odd)(a, b);
    }
  } else {
    for (int64_t b = 0; b < phases; b++)
      for (int64_t j = 0; j < width; j++) to[b * pitch + j] = row[j * phases + b];
  }
}

/* From the phases back to the row. */
INLINE void N(merge)(const REAL *from, REAL *row, int64_t phases, int64_t width, int64_t pitch) {
  if (phases == 1) {
    for (int64_t j = 0; j < width; j += LANES) N(store_some)(row + j, *(const vector *)(from + j), width - j);
  } else if (phases == 2) {
    for (int64_t j = 0; j < width; j += LANES) {
      vector a = *(const vector *)(from + j), b = *(const vector *)(from + pitch + j);
      N(store_some)(row + 2 * j, N(zip_low)(a, b), 2 * (width - j));
      N(store_some)(row + 2 * j + LANES, N(zip_high)(a, b), 2 * (width - j) - LANES);
    }
  } else {
    for (int64_t b = 0; b < phases; b++)
      for (int64_t j = 0; j < width; j++) row[j * phases + b] = from[b * pitch + j];
  }
}

/* COUNT rows from TOP on of CHANNELS channels of a group, from FIRST on, whose place is at `held`. */
INLINE void N(copy_planes)(const Planes *planes, int64_t image, int64_t group, int64_t first, int64_t channels,
                           int64_t top, int64_t count, REAL *held, const int reading) {
  const Map map = *planes->map; /* local copies: the compiler must assume that a write could change the originals */
  const int64_t slots = planes->slots, phases = planes->phases, pitch = planes->pitch, step = planes->step;
  const int64_t lean = planes->lean, part = planes->width, width = part * phases;
  const int64_t size = map.type == F64 ? 8 : map.type == F32 ? 4 : 2, line = 64 / size;
  const int direct = map.type == REAL_TYPE && map.column == 1;
  const int64_t extent = planes->extent;
  const REAL *limit = direct ? (const REAL *)map.data + extent : planes->line + width + 16;
  int64_t start = image * map.batch + (group * planes->channels + first) * map.channel + top * map.row;
  held += top % slots * phases * pitch + planes->left; /* followed by the slots of the other channels */
  for (int64_t c = 0; c < channels; c++, start += map.channel, held += step)
    for (int64_t i = 0; i < count; i++) {
      int64_t at = start + i * map.row;
      REAL *row = direct ? (REAL *)map.data + at : planes->line;
      REAL *own = held + i * phases * pitch + (first + c) % lean - lean / 2;
      /* The next rows of this channel: a processor does not prefetch across pages. */
      for (int64_t j = 0; map.column == 1 && j < width + line - 1; j += line) {
        const char *next = (const char *)map.data + (at + count * map.row + (j < width ? j : width - 1)) * size;
        if (reading) __builtin_prefetch(next, 0, 2);
        else __builtin_prefetch(next, 1, 2);
      }
      if (reading) {
        /* The conversions process whole vectors, including elements that follow in the map. */
        int64_t whole = (width + 15) / 16 * 16;
        if (map.column != 1 || at + whole > extent) whole = width;
        if (!direct) N(load_line)(row, &map, at, map.column, whole);
        N(split)(row, limit, own, phases, part, pitch);
      } else {
        N(merge)(own, row, phases, part, pitch);
        if (!direct) N(store_line)(row, &map, at, map.column, width);
      }
    }
}

NOINLINE void N(read_planes)(const Planes *planes, int64_t image, int64_t group, int64_t first, int64_t channels,
                           int64_t top, int64_t count, REAL *held) {
  N(copy_planes)(planes, image, group, first, channels, top, count, held, 1);
}

NOINLINE void N(write_planes)(const Planes *planes, int64_t image, int64_t group, int64_t first, int64_t channels,
                            int64_t top, int64_t count, REAL *held) {
  N(copy_planes)(planes, image, group, first, channels, top, count, held, 0);
}

/* COUNT rows from TOP on of all channels. */
static void N(copy_all)(const Planes *planes, int64_t image, int64_t top, int64_t count, int reading) {
  for (int64_t g = 0; g < planes->groups; g++) {
    REAL *held = planes->data + g * planes->padded * planes->step;
    if (reading) N(read_planes)(planes, image, g, 0, planes->channels, top, count, held);
    else N(write_planes)(planes, image, g, 0, planes->channels, top, count, held);
  }
}

/* The data of a row of parents. */
typedef struct {
  const Shape *shape;
  const Planes *x, *w, *y;
  int64_t first, last; /* the rows of its windows that exist */
  int64_t slot[64];    /* the position of each in a channel of x */
} N(Band);
#define Band N(Band)

/* PIXELS children of each parent, a block of channels. */
INLINE void N(gather_planes)(const int PIXELS, const Band *band, const REAL *x, const REAL *w, REAL *y) {
  int64_t K = band->shape->kernel, x_step = band->x->step, w_step = band->w->step, y_step = band->y->step;
  int64_t w_pitch = band->w->pitch, y_pitch = band->y->pitch;
  for (int64_t j = 0; j < band->shape->width; j += LANES) {
    vector total[BLOCK][4];
    for (int n = 0; n < BLOCK; n++)
      for (int p = 0; p < PIXELS; p++) total[n][p] = (vector){0};
    for (int64_t k = band->first; k < band->last; k++) {
      const REAL *at = x + band->slot[k] + j, *weights = w + k * K * w_step + j;
      for (int64_t l = 0; l < K; l++, at++, weights += w_step) {
        vector value[BLOCK];
        for (int n = 0; n < BLOCK; n++) {
          value[n] = *(const vector *)(at + n * x_step);
          HOLD(value[n]);
        }
        for (int p = 0; p < PIXELS; p++) {
          vector weight = *(const vector *)(weights + p * w_pitch);
          HOLD(weight);
          for (int n = 0; n < BLOCK; n++) total[n][p] += weight * value[n];
        }
      }
    }
    for (int n = 0; n < BLOCK; n++)
      for (int p = 0; p < PIXELS; p++) *(vector *)(y + n * y_step + p * y_pitch + j) = total[n][p];
  }
}

/* Adds the contributions of all children to ROWS rows of x, from row k of the windows on, for a block of channels. */
INLINE void N(scatter_planes)(const int ROWS, const Band *band, int64_t k, REAL *x, const REAL *w, const REAL *y) {
  int64_t K = band->shape->kernel, children = band->shape->scale * band->shape->scale;
  int64_t x_step = band->x->step, w_step = band->w->step, y_step = band->y->step;
  int64_t w_pitch = band->w->pitch, y_pitch = band->y->pitch;
  for (int64_t j = 0; j < band->shape->width; j += LANES) {
    vector total[BLOCK][5];
    for (int n = 0; n < BLOCK; n++)
      for (int r = 0; r < ROWS; r++) total[n][r] = *(const vector *)(x + n * x_step + band->slot[k + r] + j);
    for (int64_t l = K - 1; l >= 0; l--) { /* parents from left to right */
      const REAL *weights = w + (k * K + l) * w_step + j, *from = y + j + K - 1 - l;
      for (int64_t p = 0; p < children; p++, weights += w_pitch, from += y_pitch) {
        vector value[BLOCK];
        for (int n = 0; n < BLOCK; n++) {
          value[n] = *(const vector *)(from + n * y_step);
          HOLD(value[n]);
        }
        for (int r = 0; r < ROWS; r++) {
          vector weight = *(const vector *)(weights + r * K * w_step);
          HOLD(weight);
          for (int n = 0; n < BLOCK; n++) total[n][r] += weight * value[n];
        }
      }
    }
    for (int n = 0; n < BLOCK; n++)
      for (int r = 0; r < ROWS; r++) *(vector *)(x + n * x_step + band->slot[k + r] + j) = total[n][r];
  }
}

/* Sums over every LANES-th channel from FIRST on, as one lane of `correlate` does. */
INLINE void N(correlate_lane)(const int PIXELS, const int COLUMNS, const Band *band, int64_t first, const REAL *x,
                              const REAL *y, vector (*sums)[4]) {
  vector total[5][4];
  for (int l = 0; l < COLUMNS; l++)
    for (int p = 0; p < PIXELS; p++) total[l][p] = (vector){0};
  for (int64_t c = first; c < band->x->channels; c += LANES) {
    const REAL *at = x + c * band->x->step, *from = y + c * band->y->step;
    vector value[5];
    for (int l = 0; l < COLUMNS; l++) {
      value[l] = *(const vector *)(at + l);
      HOLD(value[l]);
    }
    for (int p = 0; p < PIXELS; p++) {
      vector up = *(const vector *)(from + p * band->y->pitch);
      HOLD(up);
      for (int l = 0; l < COLUMNS; l++) total[l][p] += value[l] * up;
    }
  }
  for (int l = 0; l < COLUMNS; l++)
    for (int p = 0; p < PIXELS; p++) sums[l][p] = total[l][p];
}

/* COLUMNS columns of one row of the kernels of PIXELS children of LANES parents; the lanes are summed as by `sum4`. */
INLINE void N(correlate_planes)(const int PIXELS, const int COLUMNS, const Band *band, const REAL *x, REAL *w,
                                const REAL *y) {
  static const int turn[4] = {0, 2, 1, 3};
  const int parts = LANES < 4 ? LANES : 4;
  vector part[4][5][4];
  for (int i = 0; i < LANES / parts && i < band->x->channels; i++) {
    for (int q = 0; q < parts; q++)
      N(correlate_lane)(PIXELS, COLUMNS, band, i + (parts == 4 ? turn[q] : q) * (LANES / parts), x, y, part[q]);
    for (int l = 0; l < COLUMNS; l++)
      for (int p = 0; p < PIXELS; p++) {
        vector *to = (vector *)(w + l * band->w->step + p * band->w->pitch), sum = part[0][l][p] + part[1][l][p];
        if (parts == 4) sum += part[2][l][p] + part[3][l][p];
        if (i) *to += sum;
        else *to = sum;
      }
  }
}

/* The kernels of PIXELS children of each parent. */
INLINE void N(correlate_row)(const int PIXELS, const Band *band, const REAL *x, REAL *w, const REAL *y) {
  int64_t K = band->shape->kernel, step = band->w->step;
  for (int64_t j = 0; j < band->shape->width; j += LANES)
    for (int64_t k = 0; k < K; k++) {
      REAL *to = w + k * K * step + j;
      int64_t l = 0;
      if (k < band->first || k >= band->last)
        for (; l < K; l++)
          for (int p = 0; p < PIXELS; p++) *(vector *)(to + l * step + p * band->w->pitch) = (vector){0};
      const REAL *at = x + band->slot[k] + j;
      /* The sums fill the registers. */
      const int most = REGISTERS == 32 ? 5 : 3, fewer = REGISTERS == 32 ? 3 : 2;
      for (; l + most <= K; l += most) N(correlate_planes)(PIXELS, most, band, at + l, to + l * step, y + j);
      for (; l + fewer <= K; l += fewer) N(correlate_planes)(PIXELS, fewer, band, at + l, to + l * step, y + j);
      for (; l < K; l++) N(correlate_planes)(PIXELS, 1, band, at + l, to + l * step, y + j);
    }
}

/* One row of parents, one group. */
INLINE void N(walk_planes)(const int what, const Band *band, int64_t image, int64_t row, int64_t group) {
  const Planes *x = band->x, *y = band->y, *w = band->w;
  int64_t s = band->shape->scale, children = s * s;
  REAL *x_at = x->data + group * x->padded * x->step, *w_at = w->data + group * w->padded * w->step;
  if (what == CORRELATE) {
    const REAL *y_at = y->data + group * y->padded * y->step;
    int64_t p = 0;
    for (; p + 4 <= children; p += 4) N(correlate_row)(4, band, x_at, w_at + p * w->pitch, y_at + p * y->pitch);
    for (; p < children; p++) N(correlate_row)(1, band, x_at, w_at + p * w->pitch, y_at + p * y->pitch);
    return;
  }
  for (int64_t c = 0; c < x->channels; c += BLOCK, x_at += BLOCK * x->step) {
    int64_t count = x->channels - c < BLOCK ? x->channels - c : BLOCK;
    if (what == GATHER) {
      int64_t p = 0;
      for (; p + 4 <= children; p += 4) N(gather_planes)(4, band, x_at, w_at + p * w->pitch, y->data + p * y->pitch);
      for (; p < children; p++) N(gather_planes)(1, band, x_at, w_at + p * w->pitch, y->data + p * y->pitch);
      N(write_planes)(y, image, group, c, count, row * s, s, y->data);
    } else {
      int64_t k = band->first;
      N(read_planes)(y, image, group, c, count, row * s, s, y->data);
      for (; k + 5 <= band->last; k += 5) N(scatter_planes)(5, band, k, x_at, w_at + w->left, y->data);
      for (; k + 3 <= band->last; k += 3) N(scatter_planes)(3, band, k, x_at, w_at + w->left, y->data);
      for (; k < band->last; k++) N(scatter_planes)(1, band, k, x_at, w_at + w->left, y->data);
    }
  }
}

/* Rows [begin, end) of all images' rows, as `run` does. */
INLINE int N(run_planes)(const int what, const Shape *shape, const Map *x_map, const Map *w_map, const Map *y_map,
                         int64_t begin, int64_t end) {
  int64_t s = shape->scale, K = shape->kernel, before = K / 2, after = K - 1 - before, h = shape->height;
  int64_t groups = shape->groups, channels = shape->channels / groups;
  const int around = what == SCATTER; /* if so, w and y, otherwise x, are read around a pixel, and need a border of zeros */
  Planes x, w, y;
  Band band = {shape, &x, &w, &y, 0, 0, {0}};
  memset(&x, 0, sizeof x), memset(&w, 0, sizeof w), memset(&y, 0, sizeof y);
  const int64_t aside = (before + LANES - 1) / LANES * LANES;
  int done = N(open_planes)(&x, x_map, shape, h, groups, channels, K, 1, around ? 0 : before, around ? 0 : after, 1, 1) &&
             N(open_planes)(&w, w_map, shape, h * s, groups, K * K, s, s, around ? aside : 0, around ? after : 0,
                            around ? K : 1, 1) &&
             N(open_planes)(&y, y_map, shape, h * s, groups, channels, s, s, around ? after : 0, around ? before : 0, 1,
                            what == CORRELATE);
  for (int64_t index = begin; done && index < end;) {
    int64_t image = index / h, top = index % h;
    int64_t bottom = end - image * h < h ? end - image * h : h; /* rows [top, bottom) of this image belong to this thread */
    /* Rows [from, to) of parents reach rows [low, high) of x. */
    int64_t from = around ? (top > after ? top - after : 0) : top;
    int64_t to = around ? (bottom + before < h ? bottom + before : h) : bottom;
    int64_t low = around ? top : 0, high = around ? bottom : h;
    int64_t next = from - before > low ? from - before : low; /* the first row of x that has not been started */
    for (int64_t i = from; i < to; i++) {
      band.first = low - i + before > 0 ? low - i + before : 0;
      band.last = high - i + before < K ? high - i + before : K;
      for (int64_t k = band.first; k < band.last; k++) band.slot[k] = (i + k - before) % K * x.pitch;
      for (; next < high && next <= i + after; next++)
        if (what != SCATTER) {
          N(copy_all)(&x, image, next, 1, 1);
        } else {
          for (int64_t c = 0; c < groups * x.padded; c++) {
            vector *row = (vector *)(x.data + c * x.step + next % K * x.pitch);
            for (int64_t j = 0; j < x.pitch / LANES; j++) row[j] = (vector){0};
          }
        }
      N(copy_all)(what == CORRELATE ? &y : &w, image, i * s, s, 1);
      for (int64_t g = 0; g < groups; g++) N(walk_planes)(what, &band, image, i, g);
      if (what == CORRELATE) N(copy_all)(&w, image, i * s, s, 0);
      if (what == SCATTER && i - before >= top) N(copy_all)(&x, image, i - before, 1, 0); /* it is complete */
    }
    /* Near the last parent row some rows of x are complete before they leave the window. */
    if (what == SCATTER)
      for (int64_t row = to - before > top ? to - before : top; row < bottom; row++) N(copy_all)(&x, image, row, 1, 0);
    index = image * h + bottom;
  }
  N(close_planes)(&x), N(close_planes)(&w), N(close_planes)(&y);
  return done;
}

/* Whether to process planes. Where rows are short, vectors of channels are fuller; converting rows of float16 is slower
 * than transposing small blocks. */
static int N(is_planar)(const Shape *shape, const Map *x, const Map *y) {
  return x->column == 1 && y->column == 1 && x->type != F16 && y->type != F16 &&
         (shape->width > 8 || shape->channels / shape->groups < LANES);
}

/* The two forms are separate functions: in a common one the compiler runs out of registers. */
#define ENTRY(name, what)                                                                                        \
  NOINLINE int N(name##_rows)(const Shape *shape, const Map *x, const Map *w, const Map *y, int64_t begin,       \
                              int64_t end) {                                                                     \
    return N(run)(what, shape, x, w, y, begin, end);                                                             \
  }                                                                                                              \
  NOINLINE int N(name##_planes)(const Shape *shape, const Map *x, const Map *w, const Map *y, int64_t begin,     \
                                int64_t end) {                                                                   \
    return N(run_planes)(what, shape, x, w, y, begin, end);                                                      \
  }                                                                                                              \
  int N(name)(const Shape *shape, const Map *x, const Map *w, const Map *y) {                                    \
    int64_t rows = shape->batch * shape->height, planar = N(is_planar)(shape, x, y);                             \
    int64_t threads = shape->threads < rows ? shape->threads : rows;                                             \
    int done = 1;                                                                                                \
    _Pragma("omp parallel for num_threads(threads) schedule(static, 1) reduction(&& : done)")                    \
    for (int64_t t = 0; t < threads; t++) {                                                                      \
      int64_t begin = rows * t / threads, end = rows * (t + 1) / threads;                                        \
      done = (planar ? N(name##_planes) : N(name##_rows))(shape, x, w, y, begin, end) && done;                   \
    }                                                                                                            \
    return done;                                                                                                 \
  }

/* Whether load and store support float16. */
int N(fadeviz_reads_float16)(void) {
#ifdef __FLT16_MAX__
  return 1;
#else
  return 0;
#endif
}

ENTRY(fadeviz_reassemble, GATHER)
ENTRY(fadeviz_similarity, CORRELATE)
ENTRY(fadeviz_spread, SCATTER)

#if REAL_TYPE == F32
/* The COUNT logits of a kernel plus coarse ones, from FROM on; lanes before SKIP and beyond the end are -infinity. */
INLINE f32_vector take_logits(const float *logits, const float *coarse, int64_t from, int32_t skip, int64_t count) {
  f32_vector value, more;
  i32_vector lane;
  for (int i = 0; i < LANES; i++) lane[i] = i;
  if (count < LANES) {
    float some[LANES];
    for (int i = 0; i < LANES; i++) some[i] = -INFINITY;
    for (int64_t i = 0; i < count; i++) some[i] = coarse ? logits[i] + coarse[i] : logits[i];
    memcpy(&value, some, sizeof value);
    return value;
  }
  memcpy(&value, logits + from, sizeof value);
  if (coarse) {
    memcpy(&more, coarse + from, sizeof more);
    value += more;
  }
  return skip ? choose(lane < skip, (f32_vector){0} - INFINITY, value) : value;
}

/* Kernels of one pixel: softmax over COUNT logits, plus coarse ones if there are any, in VECTORS vectors. The last vector
 * ends with the last logit, and so may overlap the one before. */
INLINE void softmax_vectors(const int64_t VECTORS, const float *logits, const float *coarse, float *out, int64_t count) {
  f32_vector value[VECTORS], high, total = {0};
  int64_t last = VECTORS - 1;
  for (int64_t i = 0; i < last; i++) value[i] = take_logits(logits, coarse, i * LANES, 0, count);
  value[last] = take_logits(logits, coarse, count - LANES, (int32_t)(VECTORS * LANES - count), count);
  high = value[0];
  for (int64_t i = 1; i < VECTORS; i++) high = choose(value[i] > high, value[i], high);
  for (int i = 1; i < LANES; i *= 2) { /* each step pairs every lane with the one half a vector away */
    vector low = N(zip_low)(high, high), rest = N(zip_high)(high, high);
    high = choose(rest > low, rest, low);
  }
  for (int64_t i = 0; i < VECTORS; i++) total += value[i] = exp_f32(value[i] - high);
  for (int i = 1; i < LANES; i *= 2) total = N(zip_low)(total, total) + N(zip_high)(total, total);
  total = 1.0f / total;
  value[last] *= total;
  if (count < LANES) {
    for (int64_t i = 0; i < count; i++) out[i] = value[last][i];
    return;
  }
  memcpy(out + count - LANES, &value[last], sizeof total);
  for (int64_t i = 0; i < last; i++) {
    value[i] *= total;
    memcpy(out + i * LANES, &value[i], sizeof total);
  }
}

static void N(softmax)(const REAL *logits, const REAL *coarse, REAL *out, int64_t count) {
  if (count <= LANES) softmax_vectors(1, logits, coarse, out, count);
  else if (count <= 2 * LANES) softmax_vectors(2, logits, coarse, out, count);
  else softmax_vectors((count + LANES - 1) / LANES, logits, coarse, out, count);
}

#define MANY 128 /* logits: buffers for more are not worth their memory */

/* A row of ITEMS contiguous kernels, LANES of them at once, with exactly the sums of softmax_vectors: transposed, so that
 * a vector holds one logit of each, no lane depends on another. */
static void softmax_row(const float *in, const float *coarse, int64_t coarse_step, int64_t scale, int64_t groups, float *out,
                        int64_t items, int64_t count) {
  int64_t blocks = (count + LANES - 1) / LANES, end = items * count;
  f32_vector value[MANY + LANES], lane[LANES];
  for (int64_t first = 0; first < items; first += LANES) {
    int64_t wide = items - first < LANES ? items - first : LANES;
    for (int64_t n = 0; n < blocks; n++) {
      int64_t from = n < blocks - 1 || count < LANES ? n * LANES : count - LANES;
      for (int64_t i = 0; i < LANES; i++) {
        int64_t item = first + (i < wide ? i : wide - 1);
        float some[LANES] = {0};
        if (item * count + from + LANES <= end) memcpy(&value[n * LANES + i], in + item * count + from, sizeof some);
        else {
          memcpy(some, in + item * count + from, (end - item * count - from) * sizeof(float));
          memcpy(&value[n * LANES + i], some, sizeof some);
        }
        if (coarse) {
          /* Without groups and scale this avoids three divisions for every vector. */
          const float *more = groups * scale == 1 ? coarse + item * coarse_step + from
                                                  : coarse + item / groups / scale * coarse_step + item % groups * count + from;
          f32_vector low;
          if (count < LANES) for (int64_t c = 0; c < count; c++) some[c] = more[c];
          memcpy(&low, count < LANES ? some : more, sizeof low);
          value[n * LANES + i] += low;
        }
      }
      N(transpose)((vector *)value + n * LANES);
    }
    int64_t last = (blocks - 1) * LANES, shift = count < LANES ? 0 : blocks * LANES - count; /* of the last block */
    f32_vector high = value[0];
    for (int64_t c = 1; c < (count < LANES ? count : blocks * LANES); c++) high = choose(value[c] > high, value[c], high);
    for (int64_t c = 0; c < LANES; c++) lane[c] = (f32_vector){0};
    for (int64_t c = 0; c < last; c++) lane[c % LANES] += value[c] = exp_f32(value[c] - high);
    for (int64_t c = shift; c < (count < LANES ? count : LANES); c++)
      lane[c] += value[last + c] = exp_f32(value[last + c] - high);
    for (int64_t c = LANES / 2; c; c /= 2)
      for (int64_t i = 0; i < c; i++) lane[i] += lane[i + c];
    f32_vector total = 1.0f / lane[0];
    for (int64_t c = 0; c < last; c++) value[c] *= total;
    for (int64_t c = shift; c < LANES; c++) value[last + c] *= total;
    for (int64_t c = 0; c < shift; c++) value[last + c] = value[last - shift + c]; /* the last block overlaps the one before */
    for (int64_t n = 0; n < blocks; n++) {
      int64_t from = n < blocks - 1 || count < LANES ? n * LANES : count - LANES;
      N(transpose)((vector *)value + n * LANES);
      for (int64_t i = 0; i < wide; i++) { /* lanes beyond the end belong to the next kernel, which is written afterwards */
        int64_t at = (first + i) * count + from, room = end - at < LANES ? end - at : LANES;
        memcpy(out + at, &value[n * LANES + i], room == LANES ? sizeof total : room * sizeof(float));
      }
    }
  }
}
#else
static void N(softmax)(const REAL *logits, const REAL *coarse, REAL *out, int64_t count) {
  REAL most = -INFINITY, total = 0;
  for (int64_t i = 0; i < count; i++) {
    out[i] = coarse ? logits[i] + coarse[i] : logits[i];
    most = out[i] > most ? out[i] : most;
  }
  for (int64_t i = 0; i < count; i++) total += out[i] = exp(out[i] - most);
  for (int64_t i = 0; i < count; i++) out[i] /= total;
}
#endif

/* The gradient of the logits: kernel * (grad - sum of kernel * grad), summed over its children for a coarse logit. */
INLINE void N(softmax_grad)(const REAL *grad, const REAL *kernel, REAL *out, REAL *coarse, int64_t count) {
  REAL mean = 0;
  for (int64_t i = 0; i < count; i++) mean += kernel[i] * grad[i];
  for (int64_t i = 0; i < count; i++) out[i] = kernel[i] * (grad[i] - mean);
  if (coarse)
    for (int64_t i = 0; i < count; i++) coarse[i] += out[i];
}

/* Rows [begin, end) of all images' low-resolution rows. `first` holds the logits, or the kernels' gradient; `second` the
 * kernels to write, or to read; `third` the gradient to write. A coarse map without data is ignored. */
static int N(run_softmax)(const int backward, const Shape *shape, const Map *first, const Map *second, const Map *third,
                          const Map *coarse, int64_t begin, int64_t end) {
  int64_t s = shape->scale, area = shape->kernel * shape->kernel, h = shape->height, w = shape->width;
  Rows a, b, c, low;
  memset(&a, 0, sizeof a), memset(&b, 0, sizeof b), memset(&c, 0, sizeof c), memset(&low, 0, sizeof low);
  int done = N(open_rows)(&a, first, 1, h * s, w * s, shape->groups, area, 1) &&
             N(open_rows)(&b, second, 1, h * s, w * s, shape->groups, area, 1) &&
             (!backward || N(open_rows)(&c, third, 1, h * s, w * s, shape->groups, area, 1)) &&
             (!coarse->data || N(open_rows)(&low, coarse, 1, h, w, shape->groups, area, 1));
  for (int64_t index = begin; done && index < end; index++) {
    int64_t image = index / h, i = index % h;
    REAL *few = NULL;
    int64_t few_step = 0;
    if (coarse->data) {
      few = backward ? N(place_row)(&low, image, i) : N(read_row)(&low, image, i);
      few_step = N(pixel_step)(&low);
    }
    if (backward && few)
      for (int64_t j = 0; j < w; j++) memset(few + j * few_step, 0, shape->groups * area * sizeof(REAL));
    for (int64_t row = i * s; row < (i + 1) * s; row++) {
      const REAL *in = N(read_row)(&a, image, row);
      REAL *kernel = backward ? N(read_row)(&b, image, row) : N(place_row)(&b, image, row);
      REAL *grad = backward ? N(place_row)(&c, image, row) : NULL;
      int64_t in_step = N(pixel_step)(&a), kernel_step = N(pixel_step)(&b);
      int64_t grad_step = backward ? N(pixel_step)(&c) : 0;
#if REAL_TYPE == F32
      if (!backward && area <= MANY && in_step == shape->groups * area && kernel_step == in_step) {
        softmax_row(in, few, few_step, s, shape->groups, kernel, w * s * shape->groups, area);
        N(write_row)(&b, image, row);
        continue;
      }
#endif
      for (int64_t j = 0; j < w * s; j++)
        for (int64_t g = 0; g < shape->groups; g++) {
          REAL *parent = few ? few + j / s * few_step + g * area : NULL;
          if (backward)
            N(softmax_grad)(in + j * in_step + g * area, kernel + j * kernel_step + g * area,
                            grad + j * grad_step + g * area, parent, area);
          else
            N(softmax)(in + j * in_step + g * area, parent, kernel + j * kernel_step + g * area, area);
        }
      N(write_row)(backward ? &c : &b, image, row);
    }
    if (backward && few) N(write_row)(&low, image, i);
  }
  N(close_rows)(&a), N(close_rows)(&b), N(close_rows)(&c), N(close_rows)(&low);
  return done;
}

#define SOFTMAX(name, backward)                                                                                  \
  int N(name)(const Shape *shape, const Map *first, const Map *second, const Map *third, const Map *coarse) {    \
    int64_t rows = shape->batch * shape->height;                                                                 \
    int64_t threads = shape->threads < rows ? shape->threads : rows;                                             \
    int done = 1;                                                                                                \
    _Pragma("omp parallel for num_threads(threads) schedule(static, 1) reduction(&& : done)")                    \
    for (int64_t t = 0; t < threads; t++)                                                                        \
      done = N(run_softmax)(backward, shape, first, second, third, coarse, rows * t / threads,                   \
                            rows * (t + 1) / threads) && done;                                                   \
    return done;                                                                                                 \
  }

SOFTMAX(fadeviz_softmax, 0)
SOFTMAX(fadeviz_softmax_backward, 1)

/* y = r + g * (e - r) with one g a pixel, and its gradients; all maps dense in one layout: channels last, or planes. The
 * pixels are processed in short runs, so that a run's gate stays in the cache from plane to plane. */
#define RUN 512

int N(fadeviz_blend)(const REAL *r, const REAL *e, const REAL *g, REAL *y, int64_t batch, int64_t channels,
                     int64_t pixels, int64_t channels_last, int64_t threads) {
  int64_t runs = (pixels + RUN - 1) / RUN;
  _Pragma("omp parallel for num_threads(threads) schedule(static)")
  for (int64_t run = 0; run < batch * runs; run++) {
    int64_t image = run / runs, from = run % runs * RUN, to = from + RUN < pixels ? from + RUN : pixels;
    const REAL *gate = g + image * pixels;
    int64_t base = image * channels * pixels;
    if (channels_last) {
      for (int64_t i = from; i < to; i++)
        for (int64_t at = base + i * channels; at < base + (i + 1) * channels; at++)
          y[at] = r[at] + gate[i] * (e[at] - r[at]);
    } else {
      for (int64_t c = 0; c < channels; c++) {
        int64_t at = base + c * pixels;
        for (int64_t i = from; i < to; i++) y[at + i] = r[at + i] + gate[i] * (e[at + i] - r[at + i]);
      }
    }
  }
  return 1;
}

int N(fadeviz_blend_backward)(const REAL *grad, const REAL *r, const REAL *e, const REAL *g, REAL *grad_r, REAL *grad_e,
                              REAL *grad_g, int64_t batch, int64_t channels, int64_t pixels, int64_t channels_last,
                              int64_t threads) {
  int64_t runs = (pixels + RUN - 1) / RUN;
  _Pragma("omp parallel for num_threads(threads) schedule(static)")
  for (int64_t run = 0; run < batch * runs; run++) {
    int64_t image = run / runs, from = run % runs * RUN, to = from + RUN < pixels ? from + RUN : pixels;
    const REAL *gate = g + image * pixels;
    REAL *sums = grad_g + image * pixels;
    int64_t base = image * channels * pixels;
    if (channels_last) {
      for (int64_t i = from; i < to; i++) {
        const REAL *own = grad + base + i * channels, *r_own = r + base + i * channels, *e_own = e + base + i * channels;
        REAL *to_r = grad_r + base + i * channels, *to_e = grad_e + base + i * channels;
        vector total = {0};
        REAL rest = 0;
        int64_t whole = channels / LANES * LANES;
        for (int64_t c = 0; c < whole; c += LANES) {
          vector up = *(const vector *)(own + c);
          *(vector *)(to_e + c) = gate[i] * up;
          *(vector *)(to_r + c) = up - gate[i] * up;
          total += up * (*(const vector *)(e_own + c) - *(const vector *)(r_own + c));
        }
        for (int64_t c = whole; c < channels; c++) {
          to_e[c] = gate[i] * own[c];
          to_r[c] = own[c] - gate[i] * own[c];
          rest += own[c] * (e_own[c] - r_own[c]);
        }
        for (int lane = 0; lane < LANES; lane++) rest += total[lane];
        sums[i] = rest;
      }
    } else {
      for (int64_t i = from; i < to; i++) sums[i] = 0;
      for (int64_t c = 0; c < channels; c++) {
        int64_t at = base + c * pixels;
        for (int64_t i = from; i < to; i++) {
          grad_e[at + i] = gate[i] * grad[at + i];
          grad_r[at + i] = grad[at + i] - gate[i] * grad[at + i];
          sums[i] += grad[at + i] * (e[at + i] - r[at + i]);
        }
      }
    }
  }
  return 1;
}

/* FreqFusion's frame. KERNEL-sized kernels n that sum to 1 lose, near the border, the weights beyond it: there d is 1 minus
 * the sum of the weights inside, beyond the border d is -1, and elsewhere 0. The convolution of d with shift (k*k, M), k
 * being SCALE, is added to a map of M channels; or the gradients of n and shift are computed from the map's. */
static REAL N(left_out)(const Shape *shape, const Map *n, int64_t b, int64_t i, int64_t j) {
  int64_t K = shape->kernel, R = K / 2, h = shape->height, w = shape->width;
  const REAL *at = (const REAL *)n->data + b * n->batch + i * n->row + j * n->column;
  REAL inside = 0;
  for (int64_t u = 0; u < K; u++)
    for (int64_t v = 0; v < K; v++)
      if (i + u >= R && i + u - R < h && j + v >= R && j + v - R < w) inside += at[(u * K + v) * n->channel];
  return 1 - inside;
}

static void N(take_from_kernel)(const Shape *shape, const Map *n, int64_t b, int64_t i, int64_t j, REAL value) {
  int64_t K = shape->kernel, R = K / 2, h = shape->height, w = shape->width;
  REAL *at = (REAL *)n->data + b * n->batch + i * n->row + j * n->column;
  for (int64_t u = 0; u < K; u++)
    for (int64_t v = 0; v < K; v++)
      if (i + u >= R && i + u - R < h && j + v >= R && j + v - R < w) at[(u * K + v) * n->channel] -= value;
}

/* to_shift: (batch, k*k, M); NULL: forward. */
int N(fadeviz_frame)(const Shape *shape, const Map *map, const Map *n, const Map *to_n, const REAL *shift, REAL *to_shift) {
  int64_t M = shape->channels, k = shape->scale, r = k / 2, R = shape->kernel / 2, h = shape->height, w = shape->width;
  int64_t padded = (M + LANES - 1) / LANES * LANES, bytes = ((2 * k * k + 1) * padded * sizeof(REAL) / 64 + 1) * 64;
  int done = 1;
  _Pragma("omp parallel for num_threads(shape->threads) schedule(static, 1) reduction(&& : done)")
  for (int64_t b = 0; b < shape->batch; b++) {
    REAL *weight = aligned_alloc(64, bytes), *sums = weight + k * k * padded, *own = sums + k * k * padded;
    REAL *d = calloc(2 * h * w, sizeof(REAL)), *to_d = d + h * w; /* only the outer R rows and columns are used */
    done = done && weight && d;
    if (!weight || !d) {
      free(weight), free(d);
      continue;
    }
    memset(weight, 0, bytes);
    for (int64_t i = 0; i < h; i++)
      for (int64_t j = 0; j < w; j++) {
        if (i >= R && i < h - R && j == R && j < w - R) j = w - R;
        if (j < w) d[i * w + j] = N(left_out)(shape, n, b, i, j);
      }
    for (int64_t t = 0; t < k * k; t++) memcpy(weight + t * padded, shift + t * M, M * sizeof(REAL));
    for (int64_t i = 0; i < h; i++)
      for (int64_t j = 0; j < w; j++) {
        if (i >= R + r && i < h - R - r && j == R + r && j < w - R - r) j = w - R - r; /* nothing is missing there */
        REAL *pixel = (REAL *)map->data + b * map->batch + i * map->row + j * map->column;
        for (int64_t m = 0; m < M; m++) own[m] = pixel[m * map->channel];
        for (int64_t t = 0; t < k * k; t++) {
          int64_t y = i + t / k - r, x = j + t % k - r;
          int inside = y >= 0 && x >= 0 && y < h && x < w;
          if (y >= R && x >= R && y < h - R && x < w - R) continue;
          REAL value = inside ? d[y * w + x] : -1;
          const REAL *of_tap = weight + t * padded;
          if (!to_shift) {
            for (int64_t m = 0; m < padded; m += LANES) *(vector *)(own + m) += value * *(const vector *)(of_tap + m);
            continue;
          }
          vector total = {0};
          for (int64_t m = 0; m < padded; m += LANES) {
            *(vector *)(sums + t * padded + m) += value * *(const vector *)(own + m);
            total += *(const vector *)(of_tap + m) * *(const vector *)(own + m);
          }
          if (!inside) continue;
          for (int lane = 0; lane < LANES; lane++) to_d[y * w + x] += total[lane];
        }
        if (!to_shift)
          for (int64_t m = 0; m < M; m++) pixel[m * map->channel] = own[m];
      }
    if (to_shift)
      for (int64_t t = 0; t < k * k; t++) memcpy(to_shift + (b * k * k + t) * M, sums + t * padded, M * sizeof(REAL));
    for (int64_t i = 0; to_shift && i < h; i++)
      for (int64_t j = 0; j < w; j++) {
        if (i >= R && i < h - R && j == R && j < w - R) j = w - R;
        if (j < w) N(take_from_kernel)(shape, to_n, b, i, j, to_d[i * w + j]);
      }
    free(weight), free(d);
  }
  return done;
}

#include "sampled.c"

#endif
