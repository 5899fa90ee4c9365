// The Kronecker factors of all layers of a multilayer perceptron in one launch: A = 1/N Σ_n ã ãᵀ of a layer's inputs,
// and G = 1/N Σ_n Σ_c δ_nc δ_ncᵀ of what is propagated back to its outputs, for all columns c of a root of the metric.
//
// A tile's columns are stacked and propagated together. Sums over rows are symmetric, so only pieces
// of 16 × 8 that touch the lower triangle are formed. A piece stays with one warp, which keeps its block's sum in
// device memory; then each block adds up some pieces over all blocks. Sums have a fixed order: runs repeat bit for bit.
//
// Defined by the host: THREADS; TILE, rows at a time; AT_ONCE, columns at a time; LAYERS, beginning with the first that
// is trained, and for each layer INPUTS, OUTPUTS, ACTIVATIONS, TRAINS_WEIGHT, TRAINS_BIAS as lists, LAYER_PARAMETERS
// and LAYER_POINTERS; GROUPS, the sizes of categoricals (0: the metric is diagonal); EXPECTED_PIECES, EXPECTED_SHARED.

constexpr int N_INPUTS[] = {INPUTS};
constexpr int N_OUTPUTS[] = {OUTPUTS};
constexpr int SLOPES[] = {ACTIVATIONS};
constexpr int WEIGHT_TRAINED[] = {TRAINS_WEIGHT};
constexpr int BIAS_TRAINED[] = {TRAINS_BIAS};
constexpr int GROUP_SIZES[] = {GROUPS};
constexpr int N_GROUPS = sizeof(GROUP_SIZES) / sizeof(int);
constexpr int COLUMNS = N_OUTPUTS[LAYERS - 1];
constexpr int WARPS = THREADS / 32, ROWS = AT_ONCE * TILE, BANDS = ROWS / 16;
constexpr int BANDS_SHARED = BANDS % 2 == 0 ? 2 : 1;  // that one warp propagates, loading weights once
enum { NO_SLOPE, GIVEN_SLOPE, TANH_SLOPE };           // the last is 1 − a² of the next layer's inputs

struct Layer {
    const real* inputs;  // a, N rows
    const real* slope;   // φ'(s), N rows
    const real* weight;  // W
};

// Length of a row in whole pieces, such that four consecutive rows lie in different banks.
__host__ __device__ constexpr int stride_for(int width) {
    return rounded_up(width, 8) + (rounded_up(width, 8) % 16 == 0 ? 8 : 0);
}
__host__ __device__ constexpr int weight_stride(int l) { return stride_for(N_INPUTS[l]); }
__host__ __device__ constexpr int input_stride(int l) { return stride_for(N_INPUTS[l] + 1); }  // a one follows
__host__ __device__ constexpr int delta_stride(int l) { return stride_for(N_OUTPUTS[l]); }

// The factors: number 2l is A of layer l, number 2l + 1 its G. They lie one after the other, as do their pieces.
__host__ __device__ constexpr int size_of(int factor) {
    const int l = factor / 2;
    if (!WEIGHT_TRAINED[l] && !BIAS_TRAINED[l]) return 0;
    return factor % 2 ? N_OUTPUTS[l] : WEIGHT_TRAINED[l] * N_INPUTS[l] + BIAS_TRAINED[l];
}
__host__ __device__ constexpr int pieces_of(int size) {
    const int bands = (size + 15) / 16, columns = (size + 7) / 8;
    return bands * (bands + 1) - (2 * bands - columns);
}
__host__ __device__ constexpr int first_piece(int factor) {
    return factor == 0 ? 0 : first_piece(factor - 1) + pieces_of(size_of(factor - 1));
}
__host__ __device__ constexpr int factor_at(int factor) {
    return factor == 0 ? 0 : factor_at(factor - 1) + rounded_up(size_of(factor - 1) * size_of(factor - 1), 4);
}
constexpr int PIECES = first_piece(2 * LAYERS), PIECE = 128;

// Shared memory, in numbers.
__host__ __device__ constexpr int larger(int a, int b) { return a > b ? a : b; }
__host__ __device__ constexpr int weight_at(int l) {
    return l <= 1 ? 0 : weight_at(l - 1) + rounded_up(N_OUTPUTS[l - 1], 8) * weight_stride(l - 1);
}
__host__ __device__ constexpr int inputs_at(int l) {
    return l == 0 ? 0 : inputs_at(l - 1) + TILE * input_stride(l - 1);
}
__host__ __device__ constexpr bool keeps_slope(int l) { return SLOPES[l] == GIVEN_SLOPE; }
__host__ __device__ constexpr int slope_at(int l) {
    return l == 0 ? 0 : slope_at(l - 1) + (keeps_slope(l - 1) ? TILE * delta_stride(l - 1) : 0);
}
__host__ __device__ constexpr int widest(int l) { return l == 0 ? 0 : larger(delta_stride(l - 1), widest(l - 1)); }
constexpr int DELTA = larger(ROWS * widest(LAYERS), 2 * THREADS);  // both together hold four numbers of each thread
constexpr int METRIC = TILE * delta_stride(LAYERS - 1);
constexpr int SPARE = 32;  // read past the end of a matrix; the values do not matter
constexpr int SHARED_NUMBERS =
    weight_at(LAYERS) + inputs_at(LAYERS) + slope_at(LAYERS) + METRIC + 2 * DELTA + SPARE;
static_assert(PIECES == EXPECTED_PIECES && SHARED_NUMBERS == EXPECTED_SHARED, "the host counts otherwise");

struct Memory {
    real *weights, *inputs, *slopes, *metric, *delta[2];
};

__device__ inline Memory carve(real* arena) {
    Memory m;
    m.weights = arena;
    m.inputs = m.weights + weight_at(LAYERS);
    m.slopes = m.inputs + inputs_at(LAYERS);
    m.metric = m.slopes + slope_at(LAYERS);
    m.delta[0] = m.metric + METRIC;
    m.delta[1] = m.delta[0] + DELTA;
    return m;
}

// Copy rows of a matrix from device memory; what lies outside it is zero, but for a column of ones if it gets one.
// Several numbers are on their way at a time.
template <int WIDTH, int STRIDE, bool ONES = false>
__device__ inline void load_rows(real* to, const real* from, int n_to, int first, int n_from) {
    constexpr int loads = 8;
    for (int begin = threadIdx.x; begin < n_to * STRIDE; begin += loads * THREADS) {
        real found[loads];
#pragma unroll
        for (int i = 0; i < loads; i++) {
            const int at = begin + i * THREADS, row = at / STRIDE, column = at % STRIDE;
            const bool there = row < n_to && first + row < n_from;
            found[i] = there && ONES && column == WIDTH ? real(1) : real(0);
            if (there && column < WIDTH) found[i] = from[size_t(first + row) * WIDTH + column];
        }
#pragma unroll
        for (int i = 0; i < loads; i++)
            if (begin + i * THREADS < n_to * STRIDE) to[begin + i * THREADS] = found[i];
    }
}

template <int l>
__device__ inline void load_weights(const Layer* layers, const Memory& m) {
    if constexpr (l < LAYERS) {
        constexpr int outputs = N_OUTPUTS[l];
        load_rows<N_INPUTS[l], weight_stride(l)>(
            m.weights + weight_at(l), layers[l].weight, rounded_up(outputs, 8), 0, outputs);
        load_weights<l + 1>(layers, m);
    }
}

template <int l>
__device__ inline void load_tile(const Layer* layers, const Memory& m, int first, int n_rows) {
    if constexpr (l < LAYERS) {
        load_rows<N_INPUTS[l], input_stride(l), true>(m.inputs + inputs_at(l), layers[l].inputs, TILE, first, n_rows);
        if constexpr (keeps_slope(l))
            load_rows<N_OUTPUTS[l], delta_stride(l)>(m.slopes + slope_at(l), layers[l].slope, TILE, first, n_rows);
        load_tile<l + 1>(layers, m, first, n_rows);
    }
}

template <int l>
__device__ inline real slope(const Memory& m, int row, int unit) {
    if constexpr (keeps_slope(l)) return m.slopes[slope_at(l) + row * delta_stride(l) + unit];
    if constexpr (SLOPES[l] == TANH_SLOPE) {
        const real output = m.inputs[inputs_at(l + 1) + row * input_stride(l + 1) + unit];
        return real(1) - output * output;
    }
    return real(1);
}

// Where the group that a column belongs to begins.
template <int g = 0, int BEGIN = 0>
__device__ inline int group_of(int column) {
    if constexpr (g + 1 < N_GROUPS) {
        constexpr int end = BEGIN + GROUP_SIZES[g];
        if (column >= end) return group_of<g + 1, end>(column);
    }
    return BEGIN;
}

// Columns of a root of the metric: √d_c e_c, or √p_c (e_c − p) of a categorical; times the slope of the outputs.
__device__ inline void load_root(const Memory& m, int first_column) {
    constexpr int stride = delta_stride(LAYERS - 1), width = rounded_up(COLUMNS, 8);
    constexpr bool is_grouped = GROUP_SIZES[0] > 0;
    real* delta = m.delta[(LAYERS - 1) % 2];
    for (int t = threadIdx.x; t < ROWS * width; t += THREADS) {
        const int i = t / width, unit = t % width, row = i % TILE, column = first_column + i / TILE;
        real value = 0;
        if (unit < COLUMNS && column < COLUMNS) {
            const real* d = m.metric + row * stride;
            value = unit == column ? real(1) : real(0);
            if (is_grouped && group_of(unit) == group_of(column)) value -= d[unit];
            if (value != real(0)) value *= sqrt(d[column]) * slope<LAYERS - 1>(m, row, unit);
        }
        delta[i * stride + unit] = value;
    }
    __syncthreads();
}

// δ of the layer below: φ'(s) ∘ Wᵀδ, for some bands of rows and eight units.
template <int l>
__device__ inline void pull_piece(const Memory& m, int t) {
    constexpr int across = rounded_up(N_INPUTS[l], 8) / 8, stride = delta_stride(l), stride_out = delta_stride(l - 1);
    constexpr int stride_w = weight_stride(l);
    const int first = t / across * 16 * BANDS_SHARED, column = t % across * 8;
    const real *delta = m.delta[l % 2] + first * stride, *w = m.weights + weight_at(l) + column;
    real* out = m.delta[(l + 1) % 2] + first * stride_out;
    real c[BANDS_SHARED][4] = {};
    multiply<(N_OUTPUTS[l] + 7) / 8>(
        c, [=](int row, int k) { return delta[row * stride + k]; },
        [=](int k, int unit) { return w[k * stride_w + unit]; });
#pragma unroll
    for (int i = 0; i < BANDS_SHARED; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int row = 16 * i + piece_row() + j / 2 * 8, unit = column + piece_column() + j % 2;
            out[row * stride_out + unit] = c[i][j] * slope<l - 1>(m, (first + row) % TILE, unit);
        }
}

// A band of sixteen rows has the pieces up to the diagonal: two, four, six, ….
__device__ inline int band_of(int piece) {
    int band = 0;
    while ((band + 1) * (band + 2) <= piece) band++;
    return band;
}
__device__ inline int column_of(int piece, int band) { return piece - band * (band + 1); }

// A piece of XᵀX, added to this block's sum.
template <int STRIDE>
__device__ inline void gram_piece(const real* x, int n_rows, int piece, real* partial, bool is_first) {
    const int band = band_of(piece);
    const real *left = x + 16 * band, *right = x + 8 * column_of(piece, band);
    real c[1][4] = {};
    multiply(
        c, n_rows / 8, [=](int unit, int row) { return left[row * STRIDE + unit]; },
        [=](int row, int unit) { return right[row * STRIDE + unit]; });
    real* const place = partial + piece * PIECE + threadIdx.x % 32 * 4;
    const real4 sum = {c[0][0], c[0][1], c[0][2], c[0][3]};
    store4(place, is_first ? sum : add4(load4(place), sum));
}

// Backwards: add to this layer's factors, and compute δ of the layer below. Inputs are added once per tile.
template <int l>
__device__ inline void pull(const Memory& m, real* partial, bool is_first_tile, bool is_first_batch) {
    if constexpr (l >= 0) {
        constexpr int n_pull = l > 0 ? BANDS / BANDS_SHARED * (rounded_up(N_INPUTS[l], 8) / 8) : 0;
        constexpr int n_deltas = pieces_of(size_of(2 * l + 1)), n_inputs = pieces_of(size_of(2 * l));
        constexpr int inputs = inputs_at(l) + (WEIGHT_TRAINED[l] ? 0 : N_INPUTS[l]);
        const int n_tasks = n_pull + n_deltas + (is_first_batch ? n_inputs : 0);
        for (int t = threadIdx.x / 32; t < n_tasks; t += WARPS) {
            if constexpr (l > 0)
                if (t < n_pull) pull_piece<l>(m, t);
            if (t >= n_pull && t < n_pull + n_deltas)
                gram_piece<delta_stride(l)>(
                    m.delta[l % 2], ROWS, t - n_pull, partial + first_piece(2 * l + 1) * PIECE,
                    is_first_tile && is_first_batch);
            if (t >= n_pull + n_deltas)
                gram_piece<input_stride(l)>(
                    m.inputs + inputs, TILE, t - n_pull - n_deltas, partial + first_piece(2 * l) * PIECE,
                    is_first_tile);
        }
        __syncthreads();
        pull<l - 1>(m, partial, is_first_tile, is_first_batch);
    }
}

// Write entry i of a piece to its factor, in both triangles.
template <int factor>
__device__ inline void place(real* factors, int piece, int i, real value) {
    if constexpr (factor < 2 * LAYERS) {
        constexpr int size = size_of(factor);
        if (piece >= first_piece(factor + 1)) return place<factor + 1>(factors, piece, i, value);
        const int band = band_of(piece - first_piece(factor)), lane = i / 4;
        const int row = 16 * band + lane / 4 + i % 4 / 2 * 8;
        const int column = 8 * column_of(piece - first_piece(factor), band) + lane % 4 * 2 + i % 2;
        if (row < size && column <= row) {
            factors[factor_at(factor) + row * size + column] = value;
            factors[factor_at(factor) + column * size + row] = value;
        }
    }
}

// Sum a piece over blocks: every warp those of some blocks, then the warps' sums.
__device__ inline void reduce_piece(const real* partial, int piece, real* parts, real count, real* factors) {
    constexpr int loads = 8;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    real4 sum = {};
    for (int first = warp; first < int(gridDim.x); first += WARPS * loads) {
        real4 found[loads];
#pragma unroll
        for (int i = 0; i < loads; i++) {
            const int block = first + i * WARPS;
            found[i] = block < int(gridDim.x)
                           ? load4_of_blocks(partial + (size_t(block) * PIECES + piece) * PIECE + lane * 4)
                           : real4{};
        }
#pragma unroll
        for (int i = 0; i < loads; i++) sum = add4(sum, found[i]);
    }
    store4(parts + 4 * threadIdx.x, sum);
    __syncthreads();
    if (threadIdx.x < PIECE) {
        real total = 0;
#pragma unroll
        for (int i = 0; i < WARPS; i++) total += parts[i * PIECE + threadIdx.x];
        place<0>(factors, piece, threadIdx.x, total / count);
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) chain_factors(
    LAYER_PARAMETERS, const real* metric, const int n_rows, real* factors, real* partial, unsigned long long* barrier) {
    DYNAMIC_SHARED(arena);
    const Memory m = carve(arena);
    const Layer layers[] = {LAYER_POINTERS};
    const int n_tiles = (n_rows + TILE - 1) / TILE;
    real* const mine = partial + size_t(blockIdx.x) * PIECES * PIECE;
    load_weights<1>(layers, m);
    bool is_first_tile = true;
    for (int tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
        load_tile<0>(layers, m, tile * TILE, n_rows);
        load_rows<COLUMNS, delta_stride(LAYERS - 1)>(m.metric, metric, TILE, tile * TILE, n_rows);
        __syncthreads();
        for (int column = 0; column < COLUMNS; column += AT_ONCE) {
            load_root(m, column);
            pull<LAYERS - 1>(m, mine, is_first_tile, column == 0);
        }
        is_first_tile = false;
    }
    grid_barrier(barrier);
    for (int piece = blockIdx.x; piece < PIECES; piece += gridDim.x)
        reduce_piece(partial, piece, m.delta[0], real(n_rows), factors);
}
