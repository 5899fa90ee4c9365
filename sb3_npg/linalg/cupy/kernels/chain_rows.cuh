// The same products for many rows: a warp takes sixteen of them through all layers in registers.
//
// Of each piece of 16 rows and 8 columns, a lane holds what the tensor cores leave in it: rows g and g + 8, columns 2t
// and 2t + 1, with g = lane / 4 and t = lane % 4. As a factor they expect columns t and t + 4 instead, but a product
// may be summed in any order: with the other factor's rows in the order 0, 2, 4, 6, 1, 3, 5, 7, one layer's result is
// the next layer's factor as it is. Sums over rows include all warps' rows: δ goes through shared memory, and each warp
// sums its pieces of δᵀa in registers, from the block's first tile to its last. In single precision, on tensor cores.

static_assert(sizeof(real) == 4 && TILE == 16 * WARPS, "a warp takes sixteen rows in single precision");

__host__ __device__ constexpr int pieces_of(int width) { return (width + 7) / 8; }
__host__ __device__ constexpr int bands_of(int width) { return (width + 15) / 16; }
__host__ __device__ constexpr int divisor_from(int n, int least) { return n % least ? divisor_from(n, least + 1) : least; }
// Pieces of layer l's δᵀa that a warp sums, all of one band; units whose δ a thread sums, over every fourth row.
__host__ __device__ constexpr int pieces_per_warp(int l) {
    return divisor_from(pieces_of(N_INPUTS[l]), (bands_of(N_OUTPUTS[l]) * pieces_of(N_INPUTS[l]) + WARPS - 1) / WARPS);
}
__host__ __device__ constexpr int units_per_thread(int l) { return (4 * N_OUTPUTS[l] + THREADS - 1) / THREADS; }
__host__ __device__ constexpr int widest_delta(int l) { return l == 0 ? 0 : larger(stride_of(l), widest_delta(l - 1)); }

// Shared memory, in numbers. The tile's part is reused for the sums over blocks between products.
constexpr int TILES = inputs_at(LAYERS) + TILE * widest_delta(LAYERS) + SPARE;
constexpr int REGION = larger(TILES, PADDED + 4 * THREADS);
constexpr int SHARED_NUMBERS = (2 + SCALED) * PADDED + weight_at(LAYERS) + REGION + 32;
static_assert(PADDED == EXPECTED_PADDED && SHARED_NUMBERS == EXPECTED_SHARED, "the host counts otherwise");

struct Memory {
    real *residual, *direction, *scaled, *weights, *inputs, *delta, *sums, *parts, *scratch;
};

__device__ inline Memory carve(real* arena) {
    Memory m;
    m.residual = arena;
    m.direction = m.residual + PADDED;
    m.scaled = SCALED ? m.direction + PADDED : m.direction;
    m.weights = arena + (2 + SCALED) * PADDED;
    m.inputs = m.weights + weight_at(LAYERS);
    m.delta = m.inputs + inputs_at(LAYERS);
    m.sums = m.inputs;
    m.parts = m.sums + PADDED;
    m.scratch = m.inputs + REGION;
    return m;
}

// Start to copy N numbers from device memory, or N zeros; they have arrived once the thread has called wait_for_all().
template <int N>
__device__ inline void send_for(real* to, const real* from, bool there) {
#ifdef EMULATED
    for (int i = 0; i < N; i++) to[i] = there ? from[i] : real(0);
#else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(unsigned(__cvta_generic_to_shared(to))), "l"(from),
                 "n"(4 * N), "r"(there ? 4 * N : 0)
                 : "memory");
#endif
}

__device__ inline void wait_for_all() {
#ifndef EMULATED
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Start to copy the tile's rows of layer l's inputs, from row `first` on.
template <int l>
__device__ inline void send_for_inputs(const Layer* layers, const Memory& m, int first, int n_rows) {
    constexpr int columns = N_INPUTS[l], stride = stride_of(l), at_once = columns % 4 == 0 ? 4 : 1, across = stride / at_once;
    real* to = m.inputs + inputs_at(l);
    const real* from = layers[l].inputs;
#pragma unroll 1  // more of them would take registers from the sums
    for (int i = threadIdx.x; i < TILE * across; i += THREADS) {
        const int row = first + i / across, column = i % across * at_once;
        const bool there = column < columns && row < n_rows;
        send_for<at_once>(to + at_once * i, there ? from + size_t(row) * columns + column : from, there);
    }
}

template <int l>
__device__ inline void send_for_tile(const Layer* layers, const Memory& m, int first, int n_rows) {
    if constexpr (l < LAYERS) {
        send_for_inputs<l>(layers, m, first, n_rows);
        send_for_tile<l + 1>(layers, m, first, n_rows);
    }
}

struct __align__(8) Pair {
    real x, y;
};

__device__ inline Pair load_pair(const real* p) { return *reinterpret_cast<const Pair*>(p); }

// The position of this lane and its warp.
struct Lane {
    int row, column;  // g and 2t
    int first;        // the warp's first row of the tile
    int before, n_rows;  // the tile's first row, and the rollout's rows

    __device__ int next() const { return before + gridDim.x * TILE; }

    // Numbers 2t and 2t + 1 of a piece of 8 columns of a row of a matrix in device memory; zero outside it.
    template <int COLUMNS>
    __device__ Pair load(const real* matrix, int half, int piece) const {
        const int at = before + first + row + 8 * half, unit = 8 * piece + column;
        const real* from = matrix + size_t(at) * COLUMNS + unit;
        if constexpr (COLUMNS % 2 == 0) return at < n_rows && unit < COLUMNS ? load_pair(from) : Pair{};
        return {at < n_rows && unit < COLUMNS ? from[0] : real(0), at < n_rows && unit + 1 < COLUMNS ? from[1] : real(0)};
    }
};

// Numbers of a factor, as tensor cores read them.
template <int N>
struct Factor {
    unsigned large[N], small[N];
};

template <int N>
__device__ inline Factor<N> factor(const real (&values)[N]) {
    Factor<N> f;
    take_apart(values, f.large, f.small);
    return f;
}

__device__ inline void add_product(real (&c)[4], const Factor<4>& a, const Factor<2>& b) {
    if (TERMS > 1) {
        multiply_add(c, a.small, b.large);
        multiply_add(c, a.large, b.small);
    }
    multiply_add(c, a.large, b.large);
}

// A result as the left factor of the next product.
__device__ inline Factor<4> turned(const real (&c)[4]) {
    const real values[4] = {c[0], c[2], c[1], c[3]};
    return factor(values);
}

template <int l>
__device__ inline Pair slope(const Memory& m, const Layer* layers, const Lane& lane, int half, int piece) {
    if constexpr (SLOPES[l] == GIVEN_SLOPE) return lane.load<N_OUTPUTS[l]>(layers[l].slope, half, piece);
    if constexpr (SLOPES[l] == TANH_SLOPE) {
        constexpr int stride = stride_of(l + 1);
        const int row = lane.first + lane.row + 8 * half;
        const Pair a = load_pair(m.inputs + inputs_at(l + 1) + row * stride + 8 * piece + lane.column);
        return {1 - a.x * a.x, 1 - a.y * a.y};
    }
    return {1, 1};
}

// c ← φ'(s) ∘ c for layer l's outputs.
template <int l, int PIECES>
__device__ inline void bend(const Memory& m, const Layer* layers, const Lane& lane, real (&c)[PIECES][4]) {
    if constexpr (SLOPES[l] != NO_SLOPE) {
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const Pair s = slope<l>(m, layers, lane, half, piece);
                c[piece][2 * half] *= s.x;
                c[piece][2 * half + 1] *= s.y;
            }
    }
}

// u = φ'(s) ∘ (V a + v + W ∂a_in).
template <int l, int BEFORE, int PIECES>
__device__ inline void push(
    const Memory& m, const Layer* layers, const Lane& lane, const real (&tangent)[BEFORE][4], real (&u)[PIECES][4]) {
    constexpr int stride = stride_of(l), outputs = N_OUTPUTS[l], steps = pieces_of(N_INPUTS[l]);
    const real* inputs = m.inputs + inputs_at(l) + (lane.first + lane.row) * stride + lane.column;
    const real* v = m.scaled + offset_of(l) + lane.row * stride + lane.column;
    const real* w = m.weights + weight_at(l) + lane.row * stride + lane.column;
#pragma unroll(l > 0 ? steps : 2)
    for (int step = 0; step < steps; step++) {
        const Pair upper = load_pair(inputs + 8 * step), lower = load_pair(inputs + 8 * stride + 8 * step);
        const real values[4] = {upper.x, lower.x, upper.y, lower.y};
        const Factor<4> left = factor(values);
        Factor<4> moved = left;
        if constexpr (l > 0) moved = turned(tangent[step]);
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            const Pair direction = load_pair(v + 8 * piece * stride + 8 * step);
            const real of_direction[2] = {direction.x, direction.y};
            add_product(u[piece], left, factor(of_direction));
            if constexpr (l > 0) {
                const Pair weight = load_pair(w + 8 * piece * stride + 8 * step);
                const real of_weight[2] = {weight.x, weight.y};
                add_product(u[piece], moved, factor(of_weight));
            }
        }
    }
    const real* bias = m.scaled + offset_of(l) + outputs * stride + lane.column;
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const bool there = 8 * piece + lane.column + j % 2 < outputs;  // beyond lie numbers of other parameters
            u[piece][j] = there ? u[piece][j] + bias[8 * piece + j % 2] : real(0);
        }
    bend<l>(m, layers, lane, u);
}

// δ = φ'(s) ∘ M u of the outputs; for categoricals M u = p∘u − p (pᵀu).
template <int PIECES>
__device__ inline void apply_metric(
    const Memory& m, const Layer* layers, const Lane& lane, const real* metric, real (&u)[PIECES][4]) {
    real p[PIECES][4];
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const Pair found = lane.load<N_OUTPUTS[LAYERS - 1]>(metric, half, piece);
            p[piece][2 * half] = found.x;
            p[piece][2 * half + 1] = found.y;
            u[piece][2 * half] *= found.x;
            u[piece][2 * half + 1] *= found.y;
        }
    if constexpr (GROUP_SIZES[0] > 0) {
        const int sizes[] = {GROUPS};
        int begin = 0;
#pragma unroll
        for (int group = 0; group < N_GROUPS; group++) {
            const int end = begin + sizes[group];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                real total = 0;
#pragma unroll
                for (int piece = 0; piece < PIECES; piece++)
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        const int unit = 8 * piece + lane.column + j;
                        if (unit >= begin && unit < end) total += u[piece][2 * half + j];
                    }
                total += __shfl_xor_sync(ALL_LANES, total, 1);
                total += __shfl_xor_sync(ALL_LANES, total, 2);
#pragma unroll
                for (int piece = 0; piece < PIECES; piece++)
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        const int unit = 8 * piece + lane.column + j;
                        if (unit >= begin && unit < end) u[piece][2 * half + j] -= p[piece][2 * half + j] * total;
                    }
            }
            begin = end;
        }
    }
    bend<LAYERS - 1>(m, layers, lane, u);
}

// δ of the layer below: φ'(s) ∘ Wᵀδ.
template <int l, int PIECES, int BELOW>
__device__ inline void pull(
    const Memory& m, const Layer* layers, const Lane& lane, const real (&delta)[PIECES][4], real (&below)[BELOW][4]) {
    constexpr int stride = stride_of(l);
    const real* w = m.weights + weight_at(l) + lane.column * stride + lane.row;
#pragma unroll
    for (int piece = 0; piece < BELOW; piece++)
#pragma unroll
        for (int j = 0; j < 4; j++) below[piece][j] = 0;
#pragma unroll
    for (int step = 0; step < PIECES; step++) {
        const Factor<4> left = turned(delta[step]);
#pragma unroll
        for (int piece = 0; piece < BELOW; piece++) {
            const real* from = w + 8 * step * stride + 8 * piece;
            const real right[2] = {from[0], from[stride]};
            add_product(below[piece], left, factor(right));
        }
    }
    bend<l - 1>(m, layers, lane, below);
}

// A thread's sums over tiles.
template <int l>
struct Sums {
    Sums<l - 1> below;
    real gradient[pieces_per_warp(l)][4] = {};
    real bias[units_per_thread(l)] = {};
};
template <>
struct Sums<-1> {};

template <int l, int k>
__device__ inline Sums<l>& of_layer(Sums<k>& sums) {
    if constexpr (k == l)
        return sums;
    else
        return of_layer<l>(sums.below);
}

// δᵀa and δ summed over the tile's rows: this warp's pieces, this thread's quarter of rows.
template <int l>
__device__ inline void add_gradient(const Memory& m, const Lane& lane, Sums<l>& sums) {
    constexpr int stride = stride_of(l), stride_delta = stride_of(l + 1), across = pieces_of(N_INPUTS[l]);
    constexpr int outputs = N_OUTPUTS[l], all = bands_of(outputs) * across, own = pieces_per_warp(l);
    const int t = lane.column / 2, begin = threadIdx.x / 32 * own;
    const real* delta = m.delta + t * stride_delta + lane.row + begin / across * 16;
    const real* inputs = m.inputs + inputs_at(l) + t * stride + lane.row + begin % across * 8;
    if (begin < all)
#pragma unroll 2
        for (int row = 0; row < TILE; row += 8) {
            const real *from = delta + row * stride_delta, *to = inputs + row * stride;
            const real values[4] = {from[0], from[8], from[4 * stride_delta], from[4 * stride_delta + 8]};
            const Factor<4> left = factor(values);
#pragma unroll
            for (int i = 0; i < own; i++) {
                const real right[2] = {to[8 * i], to[8 * i + 4 * stride]};
                add_product(sums.gradient[i], left, factor(right));
            }
        }
#pragma unroll
    for (int i = 0; i < units_per_thread(l); i++) {
        const int unit = (threadIdx.x + i * THREADS) / 4;
        if (unit < outputs)
#pragma unroll 4
            for (int row = threadIdx.x % 4; row < TILE; row += 4) sums.bias[i] += m.delta[row * stride_delta + unit];
    }
}

template <int l>
__device__ inline void store_gradient(const Lane& lane, const Sums<l>& sums, real* partial) {
    constexpr int stride = stride_of(l), across = pieces_of(N_INPUTS[l]), outputs = N_OUTPUTS[l];
    constexpr int own = pieces_per_warp(l);
    real* to = partial + offset_of(l);
#pragma unroll
    for (int i = 0; i < own; i++) {
        const int piece = threadIdx.x / 32 * own + i;
        const int unit = piece / across * 16 + lane.row, column = piece % across * 8 + lane.column;
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (unit + j / 2 * 8 < outputs) to[(unit + j / 2 * 8) * stride + column + j % 2] = sums.gradient[i][j];
    }
#pragma unroll
    for (int i = 0; i < units_per_thread(l); i++) {
        const int unit = (threadIdx.x + i * THREADS) / 4;
        real sum = sums.bias[i];
        sum += __shfl_xor_sync(ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(ALL_LANES, sum, 2);
        if (unit < outputs && threadIdx.x % 4 == 0) to[outputs * stride + unit] = sum;
    }
    if constexpr (l > 0) store_gradient<l - 1>(lane, sums.below, partial);
}

// Layer l and those above it, forwards and backwards; its inputs are then overwritten by those of the next tile.
// `passing` is ∂a_in before, and δ of the layer below afterwards.
template <int l, int BEFORE, class S>
__device__ inline void through(
    const Memory& m, const Layer* layers, const Lane& lane, const real* metric, real (&passing)[BEFORE][4], S& all) {
    constexpr int pieces = pieces_of(N_OUTPUTS[l]), stride = stride_of(l + 1);
    real u[pieces][4] = {};
    push<l>(m, layers, lane, passing, u);
    if constexpr (l == LAYERS - 1)
        apply_metric(m, layers, lane, metric, u);
    else
        through<l + 1>(m, layers, lane, metric, u, all);
    real* delta = m.delta + (lane.first + lane.row) * stride + lane.column;
#pragma unroll
    for (int piece = 0; piece < pieces; piece++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            *reinterpret_cast<Pair*>(delta + 8 * half * stride + 8 * piece) = {u[piece][2 * half], u[piece][2 * half + 1]};
    if constexpr (l > 0) pull<l>(m, layers, lane, u, passing);
    __syncthreads();
    add_gradient<l>(m, lane, of_layer<l>(all));
    __syncthreads();
    if (lane.next() < lane.n_rows) send_for_inputs<l>(layers, m, lane.next(), lane.n_rows);
}

// This block's part of a product: the sum over its rows.
__device__ inline void sum_over_rows(
    const Layer* layers, const Memory& m, const real* metric, int n_rows, bool, real* partial) {
    Sums<LAYERS - 1> sums;
    Lane lane = {int(threadIdx.x) % 32 / 4, int(threadIdx.x) % 4 * 2, int(threadIdx.x) / 32 * 16, 0, n_rows};
    lane.before = blockIdx.x * TILE;
    if (lane.before < n_rows) send_for_tile<0>(layers, m, lane.before, n_rows);
    for (; lane.before < n_rows; lane.before = lane.next()) {
        wait_for_all();
        __syncthreads();
        real nothing[1][4];
        through<0>(m, layers, lane, metric, nothing, sums);
    }
    store_gradient<LAYERS - 1>(lane, sums, partial);
}
