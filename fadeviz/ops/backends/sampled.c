/* Attention to points between the pixels of a map, for any strides; part of native.c, which includes this file.
 *
 *   sums     y[c] = sum over points m of k[head, m] * (x[c] at point m)
 *   logits   k[head, m] = sum over c of the head of y[c] * (x[c] at point m)
 *   slopes   the derivatives of the sum over c and m of k[head, m] * y[c] * (x[c] at point m) by the points, and by k
 *   spread   its derivatives by x
 *
 * x is the low-resolution map (B, C, h, w), y the high-resolution one, k (B, heads*P, H, W), the points (B, groups*P*2, H,
 * W). A point is read bilinearly, and as 0 outside: x is copied into planes with a border of two zeros, one plane for each
 * segment of channels that share group and head, and points beyond the border are moved onto it. A tile of pixels of one
 * row is processed at a time: first the positions of all its points, in whole vectors, then the channels pixel by pixel.
 *
 * The second part is included once for each width of the vectors of channels, V, because maps may have few channels. It is
 * one file of more than 500 lines for the same reason as native.c.
 */
#ifndef V

typedef struct {
  int64_t batch, channels, height, width; /* of the low-resolution map */
  int64_t high, wide;                     /* rows and columns of the high-resolution map */
  int64_t groups, heads, points, threads;
} N(Points);
#define Points N(Points)

#if REAL_TYPE == F32
typedef int32_t N(whole);
#else
typedef int64_t N(whole);
#endif
#define whole N(whole)
typedef whole N(wholes) __attribute__((vector_size(VECTOR_BYTES)));
#define wholes N(wholes)

enum { SUMS, LOGITS, SLOPES, SPREAD };

/* The data of a thread. Arrays of a tile have an element for each of its points: pixel, group, point. */
typedef struct {
  const Points *shape;
  int64_t segments, lanes, padded; /* segments of channels; lanes of a vector; channels of a segment in whole vectors */
  int64_t tile;                    /* pixels */
  int64_t row_step, plane;         /* of the planes, in elements */
  REAL *planes, *bias;             /* (segments, h + 4, w + 4, padded), (segments, P, padded) */
  int spreads;
  REAL *to_y;                      /* destination of sums that are computed with slopes, or NULL */
  int64_t to_y_step;
  REAL *sink;                      /* planes of sums, of the same size */
  int64_t twin;                    /* distance from these to their twins, 0 without twins; see spread_pixel */
  REAL *column;                    /* the pixel's number in the tile */
  whole *index;                    /* the pixel of a plane to the upper left of the point */
  REAL *down, *across;             /* the point's distance below and right of it */
  REAL *weight[4];                 /* of the four pixels */
  REAL *sums;                      /* products: of (tile, P), those with up to four pixels, a vector each */
} N(Tile);
#define Tile N(Tile)

static int64_t N(common)(int64_t a, int64_t b) { return b ? N(common)(b, a % b) : a; }

INLINE REAL *N(room)(char **at, int64_t count) {
  REAL *start = (REAL *)*at;
  *at += (count * sizeof(REAL) / 64 + 2) * 64; /* and a vector more, which may be touched */
  return start;
}

/* Allocates one block of memory for all arrays, and returns it; NULL if there is not enough. */
static char *N(open_tile)(Tile *tile, const Points *shape, const REAL *bias, int reads, int spreads) {
  memset(tile, 0, sizeof *tile);
  int64_t of_group = shape->channels / shape->groups, of_head = shape->channels / shape->heads;
  int64_t size = N(common)(of_group, of_head), P = shape->points;
  tile->shape = shape;
  tile->segments = shape->channels / size;
  for (tile->lanes = 1; tile->lanes < size && tile->lanes < LANES;) tile->lanes *= 2;
  tile->padded = (size + tile->lanes - 1) / tile->lanes * tile->lanes;
  tile->row_step = (shape->width + 4) * tile->padded;
  tile->plane = (shape->height + 4) * tile->row_step;
  int64_t each = shape->groups * P; /* of a pixel */
  tile->tile = each < 64 ? 16 : each < 1024 ? 1024 / each : 1;
  int64_t all = tile->tile * each, planes = tile->segments * tile->plane, sink = planes;
  if (spreads && 2 * tile->lanes <= LANES) {
    tile->twin = planes + 3 * tile->lanes - planes % (2 * tile->lanes); /* so that odd pixels start a pair of vectors */
    sink += tile->twin;
  }
  tile->spreads = spreads;
  if (!reads) planes = 0;
  if (!spreads) sink = 0;
  int64_t folded = tile->tile * P * 4 * tile->lanes;
  int64_t of_bias = bias ? tile->segments * P * tile->padded : 0;
  int64_t bytes = (planes + sink + of_bias + 8 * all + folded) * sizeof(REAL) + 32 * 128;
  char *memory = aligned_alloc(64, (bytes / 64 + 1) * 64), *at = memory;
  if (!memory) return NULL;
  tile->planes = N(room)(&at, planes);
  memset(tile->planes, 0, planes * sizeof(REAL));
  tile->sink = N(room)(&at, sink);
  tile->column = N(room)(&at, all);
  tile->index = (whole *)N(room)(&at, all);
  tile->down = N(room)(&at, all);
  tile->across = N(room)(&at, all);
  for (int i = 0; i < 4; i++) tile->weight[i] = N(room)(&at, all);
  tile->sums = N(room)(&at, folded);
  for (int64_t q = 0; q < all; q++) tile->column[q] = (REAL)(q / each);
  if (bias) {
    tile->bias = N(room)(&at, of_bias);
    memset(tile->bias, 0, of_bias * sizeof(REAL));
    for (int64_t s = 0; s < tile->segments; s++)
      for (int64_t m = 0; m < P; m++)
        for (int64_t c = 0; c < size; c++) {
          int64_t channel = s * size + c, head = channel / of_head;
          tile->bias[(s * P + m) * tile->padded + c] = bias[(head * P + m) * of_head + channel % of_head];
        }
  }
  return memory;
}

INLINE vector N(pick)(wholes mask, vector yes, vector no) {
  return (vector)((mask & (wholes)yes) | (~mask & (wholes)no));
}

INLINE vector N(at)(const REAL *from) { return *(const vector *)from; }
INLINE void N(put)(REAL *to, vector value) { *(vector *)to = value; }

/* One coordinate of LANES points: the pixel before it, from -2 on, and its distance from that. */
INLINE wholes N(split_point)(vector position, int64_t size, vector *behind) {
  REAL end = (REAL)size;
  position = N(pick)(position > -2, position, (vector){0} - 2); /* NaN, too */
  position = N(pick)(position < end, position, (vector){0} + end);
  wholes before = __builtin_convertvector(position, wholes); /* towards 0 */
  before += (wholes)(__builtin_convertvector(before, vector) > position);
  *behind = position - __builtin_convertvector(before, vector);
  return before;
}

/* The positions of the points of COUNT pixels, from column FIRST of row I on. */
static void N(locate)(Tile *tile, const REAL *offsets, int64_t i, int64_t first, int64_t count) {
  const Points *shape = tile->shape;
  int64_t all = count * shape->groups * shape->points;
  REAL pitch_down = (REAL)(shape->height - 1) / (REAL)(shape->high > 1 ? shape->high - 1 : 1);
  REAL pitch_across = (REAL)(shape->width - 1) / (REAL)(shape->wide > 1 ? shape->wide - 1 : 1);
  for (int64_t q = 0; q < all; q += LANES) {
    REAL last[2 * LANES];
    const REAL *from = offsets + 2 * q;
    if (q + LANES > all) { /* memory beyond the end must not be read */
      memset(last, 0, sizeof last);
      memcpy(last, from, 2 * (all - q) * sizeof(REAL));
      from = last;
    }
    vector a = N(at)(from), b = N(at)(from + LANES), below, right;
    vector v = __builtin_shufflevector(a, b, JOIN(EVEN, LANES)), u = __builtin_shufflevector(a, b, JOIN(ODD, LANES));
    wholes row = N(split_point)((v + (REAL)i) * pitch_down, shape->height, &below);
    wholes column = N(split_point)((u + N(at)(tile->column + q) + (REAL)first) * pitch_across, shape->width, &right);
    *(wholes *)(tile->index + q) = (row + 2) * (whole)(shape->width + 4) + column + 2;
    N(put)(tile->down + q, below);
    N(put)(tile->across + q, right);
    vector both = below * right;
    N(put)(tile->weight[0] + q, 1 - below - right + both);
    N(put)(tile->weight[1] + q, right - both);
    N(put)(tile->weight[2] + q, below - both);
    N(put)(tile->weight[3] + q, both);
  }
}

/* Sums of neighbours: 2*COUNT numbers become COUNT. */
static void N(fold)(REAL *values, int64_t count) {
  for (int64_t i = 0; i < count; i += LANES) {
    vector a = N(at)(values + 2 * i), b = N(at)(values + 2 * i + LANES);
    N(put)(values + i, __builtin_shufflevector(a, b, JOIN(EVEN, LANES)) + __builtin_shufflevector(a, b, JOIN(ODD, LANES)));
  }
}

typedef REAL N(quad) __attribute__((vector_size(4 * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));

/* Writes COUNT numbers to their destination, or adds them to it. */
INLINE void N(copy)(REAL *to, const REAL *from, int64_t count, const int adding) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    N(quad) value = *(const N(quad) *)(from + i);
    if (adding) value += *(const N(quad) *)(to + i);
    *(N(quad) *)(to + i) = value;
  }
  for (; i < count; i++) to[i] = adding ? to[i] + from[i] : from[i];
}

/* From the products with the four pixels around the points of one pixel, from point Q of the tile on: the slopes and the
 * value at each, written or added to those of other segments. ROOM: the number of weights that may be read from k on. */
static void N(finish_slopes)(const Tile *tile, const REAL *dots, int64_t q, const REAL *k, int64_t room, REAL *slope,
                             int first_of_group, REAL *out, int first_of_head) {
  const Points *shape = tile->shape;
  REAL down = (REAL)(shape->height - 1) / (REAL)(shape->high > 1 ? shape->high - 1 : 1);
  REAL across = (REAL)(shape->width - 1) / (REAL)(shape->wide > 1 ? shape->wide - 1 : 1);
  for (int64_t m = 0; m < shape->points; m += LANES) {
    int64_t left = shape->points - m, some = left < LANES ? left : LANES;
    REAL both[2 * LANES];
    const REAL *at = dots + 4 * m;
    vector v0 = N(at)(at), v1 = N(at)(at + LANES), v2 = N(at)(at + 2 * LANES), v3 = N(at)(at + 3 * LANES);
    vector e0 = __builtin_shufflevector(v0, v1, JOIN(EVEN, LANES)), e1 = __builtin_shufflevector(v2, v3, JOIN(EVEN, LANES));
    vector o0 = __builtin_shufflevector(v0, v1, JOIN(ODD, LANES)), o1 = __builtin_shufflevector(v2, v3, JOIN(ODD, LANES));
    vector a = __builtin_shufflevector(e0, e1, JOIN(EVEN, LANES)), c = __builtin_shufflevector(e0, e1, JOIN(ODD, LANES));
    vector b = __builtin_shufflevector(o0, o1, JOIN(EVEN, LANES)), d = __builtin_shufflevector(o0, o1, JOIN(ODD, LANES));
    vector right = N(at)(tile->across + q + m), below = N(at)(tile->down + q + m);
    vector falls = c - a + right * (d - b - c + a);
    if (out) {
      N(put)(both, a + right * (b - a) + below * falls);
      if (first_of_head) N(copy)(out + m, both, some, 0);
      else N(copy)(out + m, both, some, 1);
    }
    if (slope) {
      vector weight;
      if (m + LANES <= room) weight = N(at)(k + m);
      else {
        memcpy(both, k + m, some * sizeof(REAL)); /* memory beyond the end must not be read */
        weight = N(at)(both);
      }
      vector v = weight * down * falls, u = weight * across * (b - a + below * (d - b - c + a));
      N(put)(both, N(zip_low)(v, u));
      N(put)(both + LANES, N(zip_high)(v, u));
      if (first_of_group) N(copy)(slope + 2 * m, both, 2 * some, 0);
      else N(copy)(slope + 2 * m, both, 2 * some, 1);
    }
  }
}

/* Copies an image of x into the planes. */
static void N(fill_planes)(Tile *tile, Rows *x, int64_t image) {
  int64_t step = N(pixel_step)(x), size = tile->padded * sizeof(REAL);
  for (int64_t i = 0; i < tile->shape->height; i++) {
    const REAL *row = N(read_row)(x, image, i);
    for (int64_t s = 0; s < tile->segments; s++) {
      REAL *to = tile->planes + s * tile->plane + (i + 2) * tile->row_step + 2 * tile->padded;
      for (int64_t j = 0; j < tile->shape->width; j++)
        memcpy(to + j * tile->padded, row + j * step + s * tile->padded, size);
    }
  }
}

/* Copies segments [FROM, TO) of the sums into an image of x. */
static void N(empty_sink)(Tile *tile, const Map *x, int64_t image, int64_t from, int64_t to) {
  int64_t size = tile->shape->channels / tile->segments;
  if (tile->twin)
    for (int64_t q = from * tile->plane; q < to * tile->plane; q++) tile->sink[q] += tile->sink[tile->twin + q];
  for (int64_t i = 0; i < tile->shape->height; i++)
    for (int64_t s = from; s < to; s++) {
      const REAL *row = tile->sink + s * tile->plane + (i + 2) * tile->row_step + 2 * tile->padded;
      int64_t base = image * x->batch + s * size * x->channel + i * x->row;
      for (int64_t j = 0; j < tile->shape->width; j++) {
        const REAL *pixel = row + j * tile->padded;
        int64_t at = base + j * x->column;
        if (x->channel == 1) N(store)(pixel, x, at, size);
        else
          for (int64_t c = 0; c < size; c++) N(store)(pixel + c, x, at + c * x->channel, 1);
      }
    }
}

#define V 1
#include "sampled.c"
#undef V
#define V 2
#include "sampled.c"
#undef V
#if LANES >= 4
#define V 4
#include "sampled.c"
#undef V
#endif
#if LANES >= 8
#define V 8
#include "sampled.c"
#undef V
#endif
#if LANES >= 16
#define V 16
#include "sampled.c"
#undef V
#endif

INLINE void N(work)(const int what, Tile *tile, int64_t count, REAL *k, int64_t k_step, REAL *y, int64_t y_step,
                    REAL *slope, int64_t slope_step, REAL *out, int64_t out_step, int64_t from, int64_t to) {
#define CALL(lanes)                                                                                                  \
  JOIN(N(work), lanes)(what, tile, count, k, k_step, y, y_step, slope, slope_step, out, out_step, from, to)
  switch (tile->lanes) {
    case 1: CALL(_v1); break;
    case 2: CALL(_v2); break;
#if LANES >= 4
    case 4: CALL(_v4); break;
#endif
#if LANES >= 8
    case 8: CALL(_v8); break;
#endif
#if LANES >= 16
    case 16: CALL(_v16); break;
#endif
  }
#undef CALL
}

/* High-resolution rows [BEGIN, END) of all images' rows, for segments [FROM, TO); whole images if to_x, the gradient of x,
 * is needed. Returns 0 when memory ran out. */
static int N(run_points)(const int what, const Points *shape, const Map *x, const Map *points, const Map *kernels,
                         const REAL *bias, const Map *y, const Map *slopes, const Map *to_kernels,
                         const Map *to_x, const Map *to_y, int64_t begin, int64_t end, int64_t part, int64_t parts) {
  Tile tile;
  Rows low, offsets, k, high, slope, out, sums;
  memset(&low, 0, sizeof low), memset(&offsets, 0, sizeof offsets), memset(&k, 0, sizeof k);
  memset(&high, 0, sizeof high), memset(&slope, 0, sizeof slope), memset(&out, 0, sizeof out);
  memset(&sums, 0, sizeof sums);
  char *memory = N(open_tile)(&tile, shape, bias, what != SPREAD, to_x != NULL);
  if (!memory) return 0;
  int64_t H = shape->high, W = shape->wide, P = shape->points, size = shape->channels / tile.segments;
  int64_t from = tile.segments * part / parts, to = tile.segments * (part + 1) / parts;
  int done =
      N(open_rows)(&low, x, 1, shape->height, shape->width, tile.segments, size, tile.lanes) &&
      N(open_rows)(&offsets, points, 1, H, W, 1, shape->groups * P * 2, 1) &&
      N(open_rows)(&k, kernels, 1, H, W, 1, shape->heads * P, 1) &&
      N(open_rows)(&high, y, 1, H, W, tile.segments, size, tile.lanes) &&
      (!slopes || N(open_rows)(&slope, slopes, 1, H, W, 1, shape->groups * P * 2, 1)) &&
      (!to_kernels || N(open_rows)(&out, to_kernels, 1, H, W, 1, shape->heads * P, 1)) &&
      (!to_y || N(open_rows)(&sums, to_y, 1, H, W, tile.segments, size, tile.lanes));
  int64_t held = -1;
  for (int64_t index = begin; done && index < end; index++) {
    int64_t image = index / H, i = index % H;
    if (image != held && what != SPREAD) N(fill_planes)(&tile, &low, image);
    if (image != held && to_x) {
      if (held >= 0) N(empty_sink)(&tile, to_x, held, from, to);
      memset(tile.sink, 0, (tile.twin + tile.segments * tile.plane) * sizeof(REAL));
    }
    held = image;
    const REAL *offset_row = N(read_row)(&offsets, image, i);
    REAL *k_row = what == LOGITS ? N(place_row)(&k, image, i) : N(read_row)(&k, image, i);
    REAL *y_row = what == SUMS ? N(place_row)(&high, image, i) : N(read_row)(&high, image, i);
    REAL *slope_row = slopes ? N(place_row)(&slope, image, i) : NULL;
    REAL *out_row = to_kernels ? N(place_row)(&out, image, i) : NULL;
    REAL *sums_row = to_y ? N(place_row)(&sums, image, i) : NULL;
    tile.to_y_step = to_y ? N(pixel_step)(&sums) : 0;
    int64_t offset_step = N(pixel_step)(&offsets), k_step = N(pixel_step)(&k), y_step = N(pixel_step)(&high);
    int64_t slope_step = slopes ? N(pixel_step)(&slope) : 0, out_step = to_kernels ? N(pixel_step)(&out) : 0;
    for (int64_t j = 0; j < W; j += tile.tile) {
      int64_t count = W - j < tile.tile ? W - j : tile.tile;
      N(locate)(&tile, offset_row + j * offset_step, i, j, count);
      tile.to_y = to_y ? sums_row + j * tile.to_y_step : NULL;
      N(work)(what, &tile, count, k_row + j * k_step, k_step, y_row + j * y_step, y_step,
              slopes ? slope_row + j * slope_step : NULL, slope_step, to_kernels ? out_row + j * out_step : NULL, out_step,
              from, to);
    }
    if (what == LOGITS) N(write_row)(&k, image, i);
    if (what == SUMS) N(write_row)(&high, image, i);
    if (slopes) N(write_row)(&slope, image, i);
    if (to_kernels) N(write_row)(&out, image, i);
    if (to_y) N(write_row)(&sums, image, i);
  }
  if (done && to_x && held >= 0) N(empty_sink)(&tile, to_x, held, from, to);
  N(close_rows)(&low), N(close_rows)(&offsets), N(close_rows)(&k);
  N(close_rows)(&high), N(close_rows)(&slope), N(close_rows)(&out);
  N(close_rows)(&sums);
  free(memory);
  return done;
}

#define POINTS(name, what)                                                                                           \
  int N(name)(const Points *shape, const Map *x, const Map *points, const Map *kernels, const REAL *bias,            \
              const Map *y, const Map *slopes, const Map *to_kernels) {                                              \
    int64_t rows = shape->batch * shape->high;                                                                       \
    int64_t threads = shape->threads < rows ? shape->threads : rows;                                                 \
    int done = 1;                                                                                                    \
    _Pragma("omp parallel for num_threads(threads) schedule(static, 1) reduction(&& : done)")                        \
    for (int64_t t = 0; t < threads; t++)                                                                            \
      done = N(run_points)(what, shape, x, points, kernels, bias, y, slopes->data ? slopes : NULL,                   \
                           to_kernels->data ? to_kernels : NULL, NULL, NULL, rows * t / threads,          \
                           rows * (t + 1) / threads, 0, 1) && done;                                                                                                \
    return done;                                                                                                     \
  }

POINTS(fadeviz_sampled_sums, SUMS)
POINTS(fadeviz_sampled_logits, LOGITS)
POINTS(fadeviz_sampled_slopes, SLOPES)

/* A thread sums all contributions to its segments of an image. */
int N(fadeviz_sampled_spread)(const Points *shape, const Map *x, const Map *points, const Map *kernels, const REAL *bias,
                              const Map *y, const Map *slopes, const Map *to_kernels) {
  (void)bias, (void)slopes, (void)to_kernels;
  int64_t segments = shape->channels / N(common)(shape->channels / shape->groups, shape->channels / shape->heads);
  int64_t parts = (shape->threads + shape->batch - 1) / shape->batch;
  parts = parts < segments ? parts : segments;
  int done = 1;
  _Pragma("omp parallel for num_threads(shape->threads) schedule(static, 1) reduction(&& : done)")
  for (int64_t task = 0; task < shape->batch * parts; task++)
    done = N(run_points)(SPREAD, shape, x, points, kernels, NULL, y, NULL, NULL, x, NULL, task / parts * shape->high,
                         (task / parts + 1) * shape->high, task % parts, parts) && done;
  return done;
}

/* The slopes, the gradient of x and, where it has data, that of y, the sums: in one pass if there is an image for every
 * thread. */
int N(fadeviz_sampled_gradients)(const Points *shape, const Map *x, const Map *points, const Map *kernels, const REAL *bias,
                                 const Map *y, const Map *slopes, const Map *to_kernels, const Map *to_x, const Map *to_y) {
  const Map none = {0};
  if (shape->threads > shape->batch)
    return N(fadeviz_sampled_slopes)(shape, x, points, kernels, NULL, y, slopes, to_kernels) &&
           N(fadeviz_sampled_spread)(shape, to_x, points, kernels, NULL, y, slopes, to_kernels) &&
           (!to_y->data || N(fadeviz_sampled_sums)(shape, x, points, kernels, bias, to_y, &none, &none));
  int done = 1;
  _Pragma("omp parallel for num_threads(shape->threads) schedule(static, 1) reduction(&& : done)")
  for (int64_t t = 0; t < shape->threads; t++)
    done = N(run_points)(SLOPES, shape, x, points, kernels, bias, y, slopes->data ? slopes : NULL,
                         to_kernels->data ? to_kernels : NULL, to_x, to_y->data ? to_y : NULL,
                         shape->batch * t / shape->threads * shape->high,
                         shape->batch * (t + 1) / shape->threads * shape->high, 0, 1) && done;
  return done;
}

/* COUNT numbers of OUT: reach * tanh(in) + regular; or the gradient of the learned offsets, from that of the points, `in`,
 * and the points. */
#if REAL_TYPE == F32
INLINE vector N(bend_vector)(const int backward, vector value, vector point, vector regular, REAL reach, REAL inverse) {
  if (backward) return value * (reach - (point - regular) * (point - regular) * inverse);
  wholes sign = (wholes)value & INT32_MIN;
  vector less = exp_f32(-2 * (vector)((wholes)value & INT32_MAX));
  return regular + reach * (vector)((wholes)((1 - less) / (1 + less)) | sign);
}

static void N(bend)(const int backward, REAL *out, const REAL *in, const REAL *point, const REAL *regular, REAL reach,
                    int64_t count) {
  REAL inverse = reach ? 1 / reach : 0; /* without reach the points stay regular */
  int64_t q = 0;
  for (; q + LANES <= count; q += LANES)
    N(put)(out + q, N(bend_vector)(backward, N(at)(in + q), backward ? N(at)(point + q) : (vector){0}, N(at)(regular + q),
                                   reach, inverse));
  if (q == count) return;
  REAL some[3][LANES] = {{0}};
  memcpy(some[0], in + q, (count - q) * sizeof(REAL));
  if (backward) memcpy(some[1], point + q, (count - q) * sizeof(REAL));
  N(put)(some[2], N(bend_vector)(backward, N(at)(some[0]), N(at)(some[1]), N(at)(regular + q), reach, inverse));
  memcpy(out + q, some[2], (count - q) * sizeof(REAL));
}
#else
static void N(bend)(const int backward, REAL *out, const REAL *in, const REAL *point, const REAL *regular, REAL reach,
                    int64_t count) {
  REAL inverse = reach ? 1 / reach : 0;
  for (int64_t q = 0; q < count; q++) {
    REAL bent = backward ? point[q] - regular[q] : tanh(in[q]);
    out[q] = backward ? in[q] * (reach - bent * bent * inverse) : regular[q] + reach * bent;
  }
}
#endif

/* Between learned offsets (B*groups, P*2, H, W) and points (B, groups*P*2, H, W), whose pixels are contiguous: the
 * points, or the gradient of the learned offsets. P is a square, and the regular points are its pixels around the middle. */
static int N(run_bend)(const int backward, const Points *shape, const Map *learned, const Map *points, const Map *grad,
                       REAL reach, int64_t begin, int64_t end) {
  Rows in, out, up;
  memset(&in, 0, sizeof in), memset(&out, 0, sizeof out), memset(&up, 0, sizeof up);
  int64_t G = shape->groups, each = 2 * shape->points, W = shape->wide, H = shape->high, all = W * G * each, side = 1;
  while (side * side < shape->points) side++;
  REAL *memory = aligned_alloc(64, (2 * all * sizeof(REAL) / 64 + 4) * 64), *regular = memory;
  int done = memory && N(open_rows)(&in, learned, 1, H, W, 1, each, 1) &&
             N(open_rows)(&out, points, 1, H, W, 1, G * each, 1) &&
             (!backward || N(open_rows)(&up, grad, 1, H, W, 1, G * each, 1));
  if (done)
    for (int64_t q = 0; q < all; q++) {
      int64_t m = q % each / 2;
      regular[q] = (REAL)((q % 2 ? m % side : m / side) - side / 2);
    }
  for (int64_t index = begin; done && index < end; index++) {
    int64_t image = index / H, i = index % H;
    REAL *line = regular + all + LANES;
    if (backward)
      N(bend)(1, line, N(read_row)(&up, image, i), N(read_row)(&out, image, i), regular, reach, all);
    for (int64_t g = 0; g < G; g++) {
      REAL *row = backward ? N(place_row)(&in, image * G + g, i) : N(read_row)(&in, image * G + g, i);
      int64_t step = N(pixel_step)(&in);
      for (int64_t j = 0; j < W; j++) {
        if (backward) N(copy)(row + j * step, line + (j * G + g) * each, each, 0);
        else N(copy)(line + (j * G + g) * each, row + j * step, each, 0);
      }
      if (backward) N(write_row)(&in, image * G + g, i);
    }
    if (!backward) {
      N(bend)(0, N(place_row)(&out, image, i), line, NULL, regular, reach, all);
      N(write_row)(&out, image, i);
    }
  }
  N(close_rows)(&in), N(close_rows)(&out), N(close_rows)(&up);
  free(memory);
  return done;
}

#define BEND(name, backward)                                                                                         \
  int N(name)(const Points *shape, const Map *learned, const Map *points, const Map *grad, double reach) {           \
    int64_t rows = shape->batch * shape->high;                                                                       \
    int64_t threads = shape->threads < rows ? shape->threads : rows;                                                 \
    int done = 1;                                                                                                    \
    _Pragma("omp parallel for num_threads(threads) schedule(static, 1) reduction(&& : done)")                        \
    for (int64_t t = 0; t < threads; t++)                                                                            \
      done = N(run_bend)(backward, shape, learned, points, grad, (REAL)reach, rows * t / threads,                    \
                         rows * (t + 1) / threads) && done;                                                          \
    return done;                                                                                                     \
  }

BEND(fadeviz_points, 0)
BEND(fadeviz_points_backward, 1)

/* The 3x3 convolution of few channels to the learned offsets of a 3x3 neighbourhood, and the points, in one pass: hidden
 * (B*groups, H, W, C) to points (B, H, W, groups*18), all dense. Intermediate values, nine times as many, are kept for a
 * row at a time. */
enum { N(LEARNED) = 18, N(VECTORS) = (18 + LANES - 1) / LANES, N(ROOM) = N(VECTORS) * LANES };

typedef struct {
  REAL *regular, *line, *rows, *weight, *turned, *column, *sums;
} N(Conv);
#define Conv N(Conv)

static char *N(open_conv)(Conv *conv, const Points *shape, const REAL *weight, const REAL *bias) {
  int64_t W = shape->wide, C = shape->channels, G = shape->groups, all = (W + 4) * G * N(LEARNED), taps = 9 * C;
  int64_t wide = (taps + LANES - 1) / LANES * LANES;
  int64_t count = 2 * all + 3 * (W + 6) * C + 2 * (taps + 1) * N(ROOM) + (W + 6 + N(LEARNED)) * wide;
  int64_t bytes = count * sizeof(REAL) + 16 * 192;
  char *memory = aligned_alloc(64, (bytes / 64 + 1) * 64), *at = memory;
  if (!memory) return NULL;
  memset(memory, 0, bytes);
  conv->regular = N(room)(&at, all);
  conv->line = N(room)(&at, all);
  conv->rows = N(room)(&at, 3 * (W + 6) * C);
  conv->weight = N(room)(&at, (taps + 1) * N(ROOM));
  conv->sums = N(room)(&at, (taps + 1) * N(ROOM));
  conv->column = N(room)(&at, (W + 6) * wide);
  conv->turned = N(room)(&at, N(LEARNED) * wide);
  for (int64_t q = 0; q < all; q++) {
    int64_t m = q % N(LEARNED) / 2;
    conv->regular[q] = (REAL)((q % 2 ? m % 3 : m / 3) - 1);
  }
  for (int64_t t = 0; t < taps; t++)
    for (int64_t o = 0; o < N(LEARNED); o++) {
      conv->weight[t * N(ROOM) + o] = weight[t * N(LEARNED) + o];
      conv->turned[o * wide + t] = weight[t * N(LEARNED) + o];
    }
  if (bias) memcpy(conv->weight + taps * N(ROOM), bias, N(LEARNED) * sizeof(REAL));
  return memory;
}

/* Rows I - 1 to I + 1 of an image, with a pixel of zeros before them and more after them. */
INLINE void N(take_rows)(const int64_t C, const Conv *conv, const Points *shape, const REAL *image, int64_t i) {
  int64_t size = shape->wide * C;
  for (int64_t n = 0; n < 3; n++) {
    REAL *to = conv->rows + n * (shape->wide + 6) * C + C;
    int64_t row = i + n - 1;
    if (row < 0 || row >= shape->high) memset(to, 0, size * sizeof(REAL));
    else memcpy(to, image + row * size, size * sizeof(REAL));
  }
}

INLINE void N(conv_row)(const int64_t C, Conv *conv, const Points *shape, const REAL *hidden, REAL *points, int64_t b,
                        int64_t i, REAL reach) {
  int64_t W = shape->wide, H = shape->high, G = shape->groups, pitch = (W + 6) * C;
  for (int64_t g = 0; g < G; g++) {
    N(take_rows)(C, conv, shape, hidden + (b * G + g) * H * W * C, i);
    for (int64_t j = 0; j < W; j += 4) {
      vector total[4][N(VECTORS)];
      for (int p = 0; p < 4; p++)
        for (int n = 0; n < N(VECTORS); n++) total[p][n] = N(at)(conv->weight + 9 * C * N(ROOM) + n * LANES);
      for (int64_t v = 0; v < 3; v++)
        for (int64_t u = 0; u < 3 * C; u++) {
          const REAL *from = conv->rows + v * pitch + j * C + u, *weight = conv->weight + (v * 3 * C + u) * N(ROOM);
          for (int n = 0; n < N(VECTORS); n++) {
            vector share = N(at)(weight + n * LANES);
            for (int p = 0; p < 4; p++) total[p][n] += from[p * C] * share;
          }
        }
      int64_t some = W - j < 4 ? W - j : 4;
      for (int64_t p = 0; p < some; p++) {
        REAL value[N(ROOM)];
        for (int n = 0; n < N(VECTORS); n++) N(put)(value + n * LANES, total[p][n]);
        memcpy(conv->line + ((j + p) * G + g) * N(LEARNED), value, N(LEARNED) * sizeof(REAL));
      }
    }
  }
  N(bend)(0, points + (b * H + i) * W * G * N(LEARNED), conv->line, NULL, conv->regular, reach, W * G * N(LEARNED));
}

INLINE void N(conv_row_backward)(const int64_t C, Conv *conv, const Points *shape, const REAL *hidden, const REAL *points,
                                 const REAL *grad, REAL *to_hidden, int64_t b, int64_t i, REAL reach) {
  int64_t W = shape->wide, H = shape->high, G = shape->groups, pitch = (W + 6) * C, step = G * N(LEARNED);
  const int64_t lanes = (9 * C + LANES - 1) / LANES, wide = lanes * LANES;
  N(bend)(1, conv->line, grad + (b * H + i) * W * step, points + (b * H + i) * W * step, conv->regular, reach, W * step);
  for (int64_t g = 0; g < G; g++) {
    int64_t image = (b * G + g) * H * W * C;
    const REAL *line = conv->line + g * N(LEARNED);
    N(take_rows)(C, conv, shape, hidden + image, i);
    for (int64_t v = 0; v < 3; v++) { /* of the weight; the remaining lanes belong to the next pixel, and are ignored */
      vector total[3 * C + 1][N(VECTORS)];
      for (int64_t u = 0; u <= 3 * C; u++)
        for (int n = 0; n < N(VECTORS); n++) total[u][n] = (vector){0};
      const REAL *from = conv->rows + v * pitch;
      for (int64_t j = 0; j < W; j++)
        for (int n = 0; n < N(VECTORS); n++) {
          vector up = N(at)(line + j * step + n * LANES);
          for (int64_t u = 0; u < 3 * C; u++) total[u][n] += from[j * C + u] * up;
          if (v == 2) total[3 * C][n] += up;
        }
      for (int64_t u = 0; u < 3 * C + (v == 2); u++)
        for (int n = 0; n < N(VECTORS); n++) {
          REAL *sum = conv->sums + (v * 3 * C + u) * N(ROOM) + n * LANES;
          N(put)(sum, N(at)(sum) + total[u][n]);
        }
    }
    for (int64_t j = 0; j < W; j += 4) { /* the contributions of each pixel to the nine around it */
      vector total[4][lanes];
      for (int p = 0; p < 4; p++)
        for (int64_t n = 0; n < lanes; n++) total[p][n] = (vector){0};
      for (int64_t o = 0; o < N(LEARNED); o++)
        for (int64_t n = 0; n < lanes; n++) {
          vector share = N(at)(conv->turned + o * wide + n * LANES);
          for (int p = 0; p < 4; p++) total[p][n] += line[(j + p) * step + o] * share;
        }
      for (int p = 0; p < 4; p++)
        for (int64_t n = 0; n < lanes; n++) N(put)(conv->column + (j + p + 1) * wide + n * LANES, total[p][n]);
    }
    memset(conv->column + (W + 1) * wide, 0, wide * sizeof(REAL));
    for (int64_t v = 0; v < 3; v++) {
      int64_t row = i + v - 1;
      if (row < 0 || row >= H) continue;
      REAL *to = to_hidden + image + row * W * C;
      const REAL *from = conv->column + v * 3 * C;
      for (int64_t j = 0; j < W; j++)
        for (int64_t c = 0; c < C; c++)
          to[j * C + c] += from[(j + 2) * wide + c] + from[(j + 1) * wide + C + c] + from[j * wide + 2 * C + c];
    }
  }
}

/* grad NULL: points from hidden. Otherwise the gradient of hidden, and for each image those of the weight (9*C, 18), then the bias. */
int N(fadeviz_points_conv)(const Points *shape, const REAL *hidden, const REAL *weight, const REAL *bias, REAL *points,
                           const REAL *grad, REAL *to_hidden, REAL *sums, double reach) {
  int64_t C = shape->channels, tasks = grad ? shape->batch : shape->batch * shape->high;
  int64_t threads = shape->threads < tasks ? shape->threads : tasks;
  int done = 1;
  if ((C != 2 && C != 4) || shape->points != 9) return 0;
  _Pragma("omp parallel for num_threads(threads) schedule(static, 1) reduction(&& : done)")
  for (int64_t t = 0; t < threads; t++) {
    Conv conv;
    char *memory = N(open_conv)(&conv, shape, weight, bias);
    done = done && memory;
    for (int64_t task = tasks * t / threads; memory && task < tasks * (t + 1) / threads; task++) {
      if (!grad) {
        int64_t b = task / shape->high, i = task % shape->high;
        if (C == 2) N(conv_row)(2, &conv, shape, hidden, points, b, i, (REAL)reach);
        else N(conv_row)(4, &conv, shape, hidden, points, b, i, (REAL)reach);
        continue;
      }
      int64_t size = shape->groups * shape->high * shape->wide * C;
      memset(to_hidden + task * size, 0, size * sizeof(REAL));
      memset(conv.sums, 0, (9 * C + 1) * N(ROOM) * sizeof(REAL));
      for (int64_t i = 0; i < shape->high; i++)
        if (C == 2) N(conv_row_backward)(2, &conv, shape, hidden, points, grad, to_hidden, task, i, (REAL)reach);
        else N(conv_row_backward)(4, &conv, shape, hidden, points, grad, to_hidden, task, i, (REAL)reach);
      for (int64_t u = 0; u <= 9 * C; u++)
        memcpy(sums + (task * (9 * C + 1) + u) * N(LEARNED), conv.sums + u * N(ROOM), N(LEARNED) * sizeof(REAL));
    }
    free(memory);
  }
  return done;
}
#undef Conv

/* Copies COUNT channels of every pixel of a row, from one pixel stride to another. */
INLINE void N(regroup)(REAL *to, int64_t to_step, const REAL *from, int64_t step, int64_t pixels, int64_t count) {
  if (count == 2) for (int64_t j = 0; j < pixels; j++) memcpy(to + j * to_step, from + j * step, 2 * sizeof(REAL));
  else if (count == 4) for (int64_t j = 0; j < pixels; j++) memcpy(to + j * to_step, from + j * step, 4 * sizeof(REAL));
  else for (int64_t j = 0; j < pixels; j++) N(move)(to + j * to_step, from + j * step, count);
}

/* Rows I - 1 to I + 1 of (H, W, D) numbers, with D zeros in front and zeros behind; of groups' maps where GROUPS > 1. */
INLINE void N(three_rows)(REAL *rows, int64_t pitch, const REAL *from, int64_t i, int64_t H, int64_t W, int64_t D,
                          int64_t groups) {
  int64_t C = D / groups;
  for (int64_t n = 0; n < 3; n++) {
    REAL *to = rows + n * pitch + D;
    int64_t row = i + n - 1;
    if (row < 0 || row >= H) memset(to, 0, W * D * sizeof(REAL));
    else if (groups == 1) memcpy(to, from + row * W * D, W * D * sizeof(REAL));
    else
      for (int64_t g = 0; g < groups; g++) N(regroup)(to + g * C, D, from + (g * H + row) * W * C, C, W, C);
  }
}

/* A depth-wise 3x3 convolution, weight (9, C), shared by the groups: query (B, H, W, G*C) to hidden (B*G, H, W, C), all
 * dense, where the D = G*C channels divide a vector. With `grad`, that of hidden, the gradients of query and of the weight,
 * (9, D) for each image. */
int N(fadeviz_group_conv)(const Points *shape, const REAL *query, const REAL *weight, REAL *hidden, const REAL *grad,
                          REAL *to_query, REAL *sums) {
  int64_t C = shape->channels, G = shape->groups, D = G * C, W = shape->wide, H = shape->high;
  int64_t size = W * D, pitch = ((size + 2 * D + LANES) / LANES + 1) * LANES;
  int64_t tasks = grad ? shape->batch : shape->batch * H, threads = shape->threads < tasks ? shape->threads : tasks;
  int done = 1;
  if (D > LANES || LANES % D) return 0;
  _Pragma("omp parallel for num_threads(threads) schedule(static, 1) reduction(&& : done)")
  for (int64_t t = 0; t < threads; t++) {
    REAL *rows = calloc(7 * pitch, sizeof(REAL)), *upper = rows + 3 * pitch, *line = rows + 6 * pitch;
    done = done && rows;
    vector share[9] = {{0}}, total[9];
    for (int n = 0; n < 9; n++)
      for (int lane = 0; lane < LANES; lane++) share[n][lane] = weight[n * C + lane % D % C];
    for (int64_t task = tasks * t / threads; rows && task < tasks * (t + 1) / threads; task++) {
      int64_t b = grad ? task : task / H, first = grad ? 0 : task % H, end = grad ? H : first + 1;
      for (int n = 0; n < 9; n++) total[n] = (vector){0};
      for (int64_t i = first; i < end; i++) {
        N(three_rows)(rows, pitch, query + b * H * size, i, H, W, D, 1);
        if (!grad) {
          for (int64_t q = 0; q < size; q += LANES) {
            vector value = {0};
            for (int n = 0; n < 9; n++) value += share[n] * N(at)(rows + n / 3 * pitch + n % 3 * D + q);
            N(put)(line + q, value);
          }
          for (int64_t g = 0; g < G; g++) N(regroup)(hidden + ((b * G + g) * H + i) * W * C, C, line + g * C, D, W, C);
          continue;
        }
        N(three_rows)(upper, pitch, grad + b * H * size, i, H, W, D, G);
        for (int64_t q = 0; q < size; q += LANES) {
          vector value = {0}, up = N(at)(upper + pitch + D + q); /* beyond the end it is 0 */
          for (int n = 0; n < 9; n++) {
            value += share[8 - n] * N(at)(upper + n / 3 * pitch + n % 3 * D + q);
            total[n] += up * N(at)(rows + n / 3 * pitch + n % 3 * D + q);
          }
          N(put)(line + q, value);
        }
        memcpy(to_query + (b * H + i) * size, line, size * sizeof(REAL));
      }
      if (grad)
        for (int n = 0; n < 9; n++)
          for (int lane = 0; lane < LANES; lane++) sums[(b * 9 + n) * D + lane % D] += total[n][lane];
    }
    free(rows);
  }
  return done;
}

/* LayerNorm over the few channels (2, 4 ... LANES) of every pixel, which are contiguous: LANES pixels at once, transposed so
 * that a vector holds one channel of each. */
#define FEW LANES
#define RUN_OF_PIXELS 1024

INLINE void N(to_channels)(const REAL *from, vector *v, int64_t channels) {
  vector other[FEW];
  for (int64_t c = 0; c < channels; c++) v[c] = N(at)(from + c * LANES);
  for (int64_t n = 1; n < channels; n *= 2) {
    for (int64_t c = 0; c < channels / 2; c++) {
      other[c] = __builtin_shufflevector(v[2 * c], v[2 * c + 1], JOIN(EVEN, LANES));
      other[channels / 2 + c] = __builtin_shufflevector(v[2 * c], v[2 * c + 1], JOIN(ODD, LANES));
    }
    for (int64_t c = 0; c < channels; c++) v[c] = other[c];
  }
}

INLINE void N(to_pixels)(REAL *to, vector *v, int64_t channels) {
  vector other[FEW];
  for (int64_t n = 1; n < channels; n *= 2) {
    for (int64_t c = 0; c < channels / 2; c++) {
      other[2 * c] = N(zip_low)(v[c], v[channels / 2 + c]);
      other[2 * c + 1] = N(zip_high)(v[c], v[channels / 2 + c]);
    }
    for (int64_t c = 0; c < channels; c++) v[c] = other[c];
  }
  for (int64_t c = 0; c < channels; c++) N(put)(to + c * LANES, v[c]);
}

/* Pixels [first, end): y, or with a gradient y is that of x, and the sums are those of the weight and of the bias. */
INLINE void N(norm_run)(const int backward, const int64_t channels, const REAL *x, const REAL *grad, const REAL *weight,
                        const REAL *bias, REAL *y, REAL *sums, int64_t first, int64_t end, REAL eps) {
  vector to_weight[FEW], to_bias[FEW], v[FEW], g[FEW];
  for (int64_t c = 0; c < channels; c++) to_weight[c] = to_bias[c] = (vector){0};
  for (int64_t i = first; i < end; i += LANES) {
    REAL some[3][FEW * LANES];
    int64_t size = (end - i < LANES ? end - i : LANES) * channels;
    const REAL *from = x + i * channels, *up = backward ? grad + i * channels : NULL;
    REAL *to = y + i * channels;
    if (end - i < LANES) {
      memset(some, 0, sizeof some);
      memcpy(some[0], from, size * sizeof(REAL));
      if (backward) memcpy(some[1], up, size * sizeof(REAL));
      from = some[0], up = some[1], to = some[2];
    }
    N(to_channels)(from, v, channels);
    vector mean = {0}, spread = {0}, share = (vector){0} + 1 / (REAL)channels;
    for (int64_t c = 0; c < channels; c++) mean += v[c] * share;
    for (int64_t c = 0; c < channels; c++) {
      v[c] -= mean;
      spread += v[c] * v[c] * share;
    }
    REAL root[LANES];
    N(put)(root, spread + eps);
    for (int l = 0; l < LANES; l++) root[l] = 1 / (REAL)(sizeof(REAL) == 4 ? sqrtf((float)root[l]) : sqrt(root[l]));
    vector scale = N(at)(root);
    for (int64_t c = 0; c < channels; c++) v[c] *= scale;
    if (!backward) {
      for (int64_t c = 0; c < channels; c++) v[c] = v[c] * weight[c] + bias[c];
    } else {
      vector average = {0}, along = {0};
      N(to_channels)(up, g, channels);
      for (int64_t c = 0; c < channels; c++) {
        to_weight[c] += g[c] * v[c];
        to_bias[c] += g[c];
        g[c] *= weight[c];
        average += g[c] * share;
        along += g[c] * v[c] * share;
      }
      for (int64_t c = 0; c < channels; c++) v[c] = scale * (g[c] - average - v[c] * along);
    }
    N(to_pixels)(to, v, channels);
    if (end - i < LANES) memcpy(y + i * channels, some[2], size * sizeof(REAL));
  }
  if (backward)
    for (int64_t c = 0; c < channels; c++) {
      sums[c] = sums[channels + c] = 0;
      for (int l = 0; l < LANES; l++) sums[c] += to_weight[c][l], sums[channels + c] += to_bias[c][l];
    }
}

int N(fadeviz_norm_channels)(void) { return FEW; }

/* grad NULL: forward. sums: (runs, 2, channels), weight and bias. */
int N(fadeviz_pixel_norm)(const REAL *x, const REAL *grad, const REAL *weight, const REAL *bias, REAL *y, REAL *sums,
                          int64_t pixels, int64_t channels, double eps, int64_t threads) {
  int64_t runs = (pixels + RUN_OF_PIXELS - 1) / RUN_OF_PIXELS;
  if (channels > FEW || (channels & (channels - 1))) return 0;
  _Pragma("omp parallel for num_threads(threads) schedule(static)")
  for (int64_t run = 0; run < runs; run++) {
    int64_t first = run * RUN_OF_PIXELS, end = first + RUN_OF_PIXELS < pixels ? first + RUN_OF_PIXELS : pixels;
    REAL *own = grad ? sums + run * 2 * channels : NULL;
#define CALL(count)                                                                                              \
  if (grad) N(norm_run)(1, count, x, grad, weight, bias, y, own, first, end, (REAL)eps);                         \
  else N(norm_run)(0, count, x, NULL, weight, bias, y, own, first, end, (REAL)eps);
    if (channels == 2) { CALL(2) }
    else { CALL(channels) }
#undef CALL
  }
  return 1;
}

#undef Points
#undef Tile
#undef whole
#undef wholes

#else /* the part that depends on V */

#define NV(name) JOIN(JOIN(N(name), _v), V)
typedef REAL NV(part) __attribute__((vector_size(V * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
#define part NV(part)

/* The sums of four vectors: a, b, c, d. */
#if V > 1
INLINE void NV(four)(part a, part b, part c, part d, REAL *sums) {
  part ac = __builtin_shufflevector(a, c, JOIN(LOW, V)) + __builtin_shufflevector(a, c, JOIN(HIGH, V));
  part bd = __builtin_shufflevector(b, d, JOIN(LOW, V)) + __builtin_shufflevector(b, d, JOIN(HIGH, V));
#if V == 2
  sums[0] = ac[0], sums[1] = bd[0], sums[2] = ac[1], sums[3] = bd[1];
#else
  part all = __builtin_shufflevector(ac, bd, JOIN(LOW, V)) + __builtin_shufflevector(ac, bd, JOIN(HIGH, V));
  typedef REAL quad __attribute__((vector_size(4 * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
  quad total = ((const quad *)&all)[0];
  for (int i = 1; i < V / 4; i++) total += ((const quad *)&all)[i];
  *(quad *)sums = total;
#endif
}
#endif

#if 2 * V <= LANES
/* A pixel's channels fill one vector, and those of its right neighbour follow: both are one wider vector. */
typedef REAL NV(pair) __attribute__((vector_size(2 * V * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
#define pair NV(pair)
#if V == 1
#define BOTH 0, 1
#elif V == 2
#define BOTH 0, 1, 2, 3
#elif V == 4
#define BOTH 0, 1, 2, 3, 4, 5, 6, 7
#else
#define BOTH 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#endif

INLINE pair NV(join)(part left, part right) { return __builtin_shufflevector(left, right, BOTH); }

/* The pixels left and right of point q, between the rows above and below it. */
INLINE pair NV(between_rows)(const Tile *tile, const REAL *plane, int64_t q) {
  const REAL *at = plane + tile->index[q] * V;
  pair above = *(const pair *)at, below = *(const pair *)(at + tile->row_step);
  return above + tile->down[q] * (below - above);
}

INLINE pair NV(shares)(const Tile *tile, int64_t q, REAL weight) {
  REAL right = weight * tile->across[q], left = weight - right;
  return NV(join)(left + (part){0}, right + (part){0});
}

INLINE void NV(sum_pixel)(const Tile *tile, const REAL *plane, const REAL *bias, int64_t q, const REAL *k, REAL *y) {
  pair total = {0};
  for (int64_t m = 0; m < tile->shape->points; m++) {
    pair value = NV(between_rows)(tile, plane, q + m);
    if (bias) value += NV(join)(*(const part *)(bias + m * V), *(const part *)(bias + m * V));
    total += NV(shares)(tile, q + m, k[m]) * value;
  }
  *(part *)y = *(const part *)&total + *(const part *)((REAL *)&total + V);
}

/* Products with the pixels left and right, V of each, for every point. */
INLINE void NV(logit_pixel)(const Tile *tile, const REAL *plane, const REAL *bias, int64_t q, const REAL *y, REAL *sums) {
  pair own = NV(join)(*(const part *)y, *(const part *)y);
  for (int64_t m = 0; m < tile->shape->points; m++) {
    pair value = NV(between_rows)(tile, plane, q + m);
    if (bias) value += NV(join)(*(const part *)(bias + m * V), *(const part *)(bias + m * V));
    *(pair *)(sums + 2 * V * m) = value * own;
  }
}

/* Products with the four pixels, V of each, or their sums for wide vectors. */
INLINE void NV(slope_pixel)(const Tile *tile, const REAL *plane, int64_t q, const REAL *y, REAL *sums) {
  part value = *(const part *)y;
  for (int64_t m = 0; m < tile->shape->points; m++) {
    const REAL *at = plane + tile->index[q + m] * V;
#if V >= 8
    const part *a = (const part *)at, *c = (const part *)(at + tile->row_step);
    NV(four)(value * a[0], value * a[1], value * c[0], value * c[1], sums + 4 * m);
#else
    pair own = NV(join)(value, value);
    *(pair *)(sums + 4 * V * m) = own * *(const pair *)at;
    *(pair *)(sums + 4 * V * m + 2 * V) = own * *(const pair *)(at + tile->row_step);
#endif
  }
}

/* Recent writes are read again at once, which is fast only in the units in which they were written: pairs of pixels that
 * begin at an odd one are added to the twin of the plane, where no other pair overlaps them. */
INLINE void NV(spread_pixel)(const Tile *tile, REAL *plane, int64_t q, const REAL *k, const REAL *y) {
  pair own = NV(join)(*(const part *)y, *(const part *)y);
  for (int64_t m = 0; m < tile->shape->points; m++) {
    int64_t index = tile->index[q + m];
    int64_t under = index + tile->shape->width + 4;
    pair value = NV(shares)(tile, q + m, k[m]) * own, below = tile->down[q + m] * value;
    *(pair *)(plane + index * V + (index & 1) * tile->twin) += value - below;
    *(pair *)(plane + under * V + (under & 1) * tile->twin) += below;
  }
}

#define LEFT 2 /* numbers of a point that a logit is made of: left and right of it */
#define EACH (V >= 8 ? 1 : V) /* products that add up to a number */
#undef BOTH
#undef pair
#else
/* COUNT vectors of a pixel's channels at point q. */
INLINE void NV(interpolate)(const int COUNT, const Tile *tile, const REAL *plane, int64_t q, part *value) {
  const REAL *at = plane + tile->index[q] * tile->padded;
  const part *a = (const part *)at, *b = (const part *)(at + tile->padded);
  const part *c = (const part *)(at + tile->row_step), *d = (const part *)(at + tile->row_step + tile->padded);
  REAL p = tile->weight[0][q], r = tile->weight[1][q], s = tile->weight[2][q], t = tile->weight[3][q];
  for (int n = 0; n < COUNT; n++) value[n] = p * a[n] + r * b[n] + s * c[n] + t * d[n];
}

INLINE void NV(sum_block)(const int COUNT, const Tile *tile, const REAL *plane, const REAL *bias, int64_t q,
                          const REAL *k, REAL *y) {
  part total[COUNT], value[COUNT];
  for (int n = 0; n < COUNT; n++) total[n] = (part){0};
  for (int64_t m = 0; m < tile->shape->points; m++) {
    NV(interpolate)(COUNT, tile, plane, q + m, value);
    for (int n = 0; n < COUNT; n++) {
      if (bias) value[n] += ((const part *)(bias + m * tile->padded))[n];
      total[n] += k[m] * value[n];
    }
  }
  for (int n = 0; n < COUNT; n++) ((part *)y)[n] = total[n];
}

INLINE void NV(sum_pixel)(const Tile *tile, const REAL *plane, const REAL *bias, int64_t q, const REAL *k, REAL *y) {
  int64_t c = 0;
  for (; c + 4 * V <= tile->padded; c += 4 * V) NV(sum_block)(4, tile, plane + c, bias ? bias + c : NULL, q, k, y + c);
  for (; c < tile->padded; c += V) NV(sum_block)(1, tile, plane + c, bias ? bias + c : NULL, q, k, y + c);
}

INLINE void NV(logit_pixel)(const Tile *tile, const REAL *plane, const REAL *bias, int64_t q, const REAL *y, REAL *sums) {
  for (int64_t m = 0; m < tile->shape->points; m++) {
    part total = {0}, value;
    for (int64_t c = 0; c < tile->padded; c += V) {
      NV(interpolate)(1, tile, plane + c, q + m, &value);
      if (bias) value += *(const part *)(bias + m * tile->padded + c);
      total += value * *(const part *)(y + c);
    }
    *(part *)(sums + V * m) = total;
  }
}

INLINE void NV(slope_pixel)(const Tile *tile, const REAL *plane, int64_t q, const REAL *y, REAL *sums) {
  for (int64_t m = 0; m < tile->shape->points; m++) {
    const REAL *at = plane + tile->index[q + m] * tile->padded, *under = at + tile->row_step;
    part a = {0}, b = {0}, c = {0}, d = {0};
    for (int64_t n = 0; n < tile->padded; n += V) {
      part value = *(const part *)(y + n);
      a += value * *(const part *)(at + n), b += value * *(const part *)(at + tile->padded + n);
      c += value * *(const part *)(under + n), d += value * *(const part *)(under + tile->padded + n);
    }
    NV(four)(a, b, c, d, sums + 4 * m);
  }
}

/* In single pixels: recent writes are read again at once, which is fast only in the units in which they were written. */
INLINE void NV(spread_pixel)(const Tile *tile, REAL *plane, int64_t q, const REAL *k, const REAL *y) {
  for (int64_t m = 0; m < tile->shape->points; m++) {
    REAL *at = plane + tile->index[q + m] * tile->padded, *under = at + tile->row_step;
    REAL a = k[m] * tile->weight[0][q + m], b = k[m] * tile->weight[1][q + m];
    REAL c = k[m] * tile->weight[2][q + m], d = k[m] * tile->weight[3][q + m];
    for (int64_t n = 0; n < tile->padded; n += V) {
      part value = *(const part *)(y + n);
      *(part *)(at + n) += a * value, *(part *)(at + tile->padded + n) += b * value;
      *(part *)(under + n) += c * value, *(part *)(under + tile->padded + n) += d * value;
    }
  }
}

#define LEFT 1
#define EACH 1
#endif

static void NV(work)(const int what, Tile *tile, int64_t count, REAL *k, int64_t k_step, REAL *y, int64_t y_step,
                     REAL *slope, int64_t slope_step, REAL *out, int64_t out_step, int64_t from, int64_t to) {
  const Points *shape = tile->shape;
  int64_t P = shape->points, groups = shape->groups, padded = tile->padded;
  int64_t of_group = tile->segments / groups, of_head = tile->segments / shape->heads;
  REAL *sums = tile->sums;
  int spreads = tile->spreads;
  for (int64_t s = from; s < to; s++) {
    int64_t g = s / of_group, head = s / of_head;
    int first_of_head = s % of_head == 0;
    REAL *plane = tile->planes + s * tile->plane, *sink = tile->sink + s * tile->plane;
    const REAL *bias = tile->bias ? tile->bias + s * P * padded : NULL;
    for (int64_t t = 0; t < count; t++) {
      int64_t q = (t * groups + g) * P;
      REAL *kernel = k + t * k_step + head * P, *pixel = y + t * y_step + s * padded;
      if (what == SUMS) NV(sum_pixel)(tile, plane, bias, q, kernel, pixel);
      if (what == LOGITS) NV(logit_pixel)(tile, plane, bias, q, pixel, sums + t * P * LEFT * V);
      if (what == SLOPES) NV(slope_pixel)(tile, plane, q, pixel, sums + t * P * 4 * EACH);
      if (what == SLOPES && tile->to_y)
        NV(sum_pixel)(tile, plane, bias, q, kernel, tile->to_y + t * tile->to_y_step + s * padded);
      if (what == SPREAD || (what == SLOPES && spreads)) NV(spread_pixel)(tile, sink, q, kernel, pixel);
    }
    if (what == LOGITS) {
      for (int64_t width = V / 2; width; width /= 2) N(fold)(sums, count * P * LEFT * width);
      for (int64_t t = 0; t < count; t++) {
        const REAL *right = tile->across + (t * groups + g) * P, *sum = sums + t * P * LEFT;
        REAL *logit = k + t * k_step + head * P;
        for (int64_t m = 0; m < P; m++) {
          REAL value = sum[m * LEFT];
          if (LEFT == 2) value += right[m] * (sum[m * LEFT + LEFT - 1] - value);
          logit[m] = first_of_head ? value : logit[m] + value;
        }
      }
    }
    if (what == SLOPES) {
      for (int64_t width = EACH / 2; width; width /= 2) N(fold)(sums, count * P * 4 * width);
      for (int64_t t = 0; t < count; t++)
        N(finish_slopes)(tile, sums + t * P * 4, (t * groups + g) * P, k + t * k_step + head * P, (count - t) * k_step - head * P,
                         slope ? slope + t * slope_step + g * P * 2 : NULL, s % of_group == 0,
                         out ? out + t * out_step + head * P : NULL, first_of_head);
    }
  }
}

#undef LEFT
#undef EACH
#undef part
#undef NV
#endif
