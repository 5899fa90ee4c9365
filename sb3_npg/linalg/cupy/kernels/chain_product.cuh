// Products with the Fisher of a multilayer perceptron on the rows of one tile, by all threads of a block:
//
//     Σ_n J_nᵀ M_n J_n v,   J_n v computed layer by layer, M_n a row's output metric.

constexpr int BANDS = TILE / 16;  // of 16 rows

// Shared memory, in numbers.
__host__ __device__ constexpr bool keeps_slope(int l) { return SLOPES[l] == GIVEN_SLOPE; }
__host__ __device__ constexpr int slope_at(int l) {
    return l == 0 ? 0 : slope_at(l - 1) + (keeps_slope(l - 1) ? TILE * stride_of(l) : 0);
}
constexpr int TANGENT = TILE * widest(LAYERS);
constexpr int GAP = 4;  // between two tangents: read past the end of one while the other is written
constexpr int METRIC = TILE * stride_of(LAYERS);
constexpr int PARTS = larger(4 * THREADS, larger(128 * WARPS, 2 * TANGENT));  // of sums that several warps share
constexpr int SHARED_NUMBERS = (3 + SCALED) * PADDED + weight_at(LAYERS) + inputs_at(LAYERS) + slope_at(LAYERS)
                               + 2 * TANGENT + GAP + METRIC + PARTS + SPARE + 32;
static_assert(PADDED == EXPECTED_PADDED && SHARED_NUMBERS == EXPECTED_SHARED, "the host counts otherwise");

struct Memory {
    real *residual, *direction, *scaled, *sums, *weights, *inputs, *slopes, *tangent[2], *metric, *parts, *scratch;
};

__device__ inline Memory carve(real* arena) {
    Memory m;
    m.residual = arena;
    m.direction = m.residual + PADDED;
    m.sums = m.direction + PADDED;
    m.scaled = SCALED ? m.sums + PADDED : m.direction;
    m.weights = arena + (3 + SCALED) * PADDED;
    m.inputs = m.weights + weight_at(LAYERS);
    m.slopes = m.inputs + inputs_at(LAYERS);
    m.tangent[0] = m.slopes + slope_at(LAYERS);
    m.tangent[1] = m.tangent[0] + TANGENT + GAP;
    m.metric = m.tangent[1] + TANGENT;
    m.parts = m.metric + METRIC;
    m.scratch = m.parts + PARTS + SPARE;
    return m;
}

template <int l>
__device__ inline void load_tile(const Layer* layers, const Memory& m, int first, int n_rows) {
    if constexpr (l < LAYERS) {
        constexpr int columns = N_INPUTS[l], outputs = N_OUTPUTS[l];
        load_rows<columns, stride_of(l)>(m.inputs + inputs_at(l), layers[l].inputs, TILE, first, n_rows);
        if constexpr (keeps_slope(l))
            load_rows<outputs, stride_of(l + 1)>(m.slopes + slope_at(l), layers[l].slope, TILE, first, n_rows);
        load_tile<l + 1>(layers, m, first, n_rows);
    }
}

template <int l>
__device__ inline real slope(const Memory& m, int row, int unit) {
    if constexpr (keeps_slope(l)) return m.slopes[slope_at(l) + row * stride_of(l + 1) + unit];
    if constexpr (SLOPES[l] == TANH_SLOPE) {
        const real output = m.inputs[inputs_at(l + 1) + row * stride_of(l + 1) + unit];
        return real(1) - output * output;
    }
    return real(1);
}

// The largest divisor of n that is not above `limit`.
__host__ __device__ constexpr int divisor(int n, int limit) {
    return limit <= 1 ? 1 : n % limit == 0 ? limit : divisor(n, limit - 1);
}

// Forwards: ∂a_out = φ'(s) ∘ (V a + v + W ∂a_in), for the tile's rows; the last layer's goes through the metric's
// diagonal. The tangent of layer l goes into buffer (l + 1) % 2. If there are more warps than pieces of 8 outputs,
// they split the sums, of which V a and W ∂a_in are two.
template <int l>
__device__ inline void push(const Memory& m) {
    if constexpr (l < LAYERS) {
        constexpr int outputs = N_OUTPUTS[l], stride = stride_of(l), stride_out = stride_of(l + 1);
        constexpr int sums = l > 0 ? 2 : 1, pieces = (outputs + 7) / 8, width = 8 * pieces;
        constexpr int depth = (N_INPUTS[l] + 7) / 8, free = WARPS / (pieces * sums * BANDS);
        constexpr int shares = divisor(depth, free > 8 ? 8 : free), steps = depth / shares, parts = sums * shares;
        const real *v = m.scaled + offset_of(l), *w = l > 0 ? m.weights + weight_at(l) : v;
        for (int t = threadIdx.x / 32; t < pieces * parts; t += WARPS) {
            const int piece = t % pieces, part = t / pieces, begin = part % shares * steps * 8;
            const real* left = (part < shares ? m.inputs + inputs_at(l) : m.tangent[l % 2]) + begin;
            const real* right = (part < shares ? v : w) + piece * 8 * stride + begin;
            real c[BANDS][4] = {};
            multiply<steps>(
                c, [=](int row, int k) { return left[row * stride + k]; },
                [=](int k, int column) { return right[column * stride + k]; });
            real* to = m.parts + part * TILE * width + piece * 8 + piece_row() * width + piece_column();
#pragma unroll
            for (int i = 0; i < BANDS; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) to[(16 * i + j / 2 * 8) * width + j % 2] = c[i][j];
        }
        __syncthreads();
        real* out = m.tangent[(l + 1) % 2];
#pragma unroll 4
        for (int t = threadIdx.x; t < TILE * stride_out; t += THREADS) {
            const int row = t / stride_out, unit = t % stride_out;
            real sum = 0;
            if (unit < outputs) {
                sum = v[outputs * stride + unit];
#pragma unroll
                for (int part = 0; part < parts; part++) sum += m.parts[(part * TILE + row) * width + unit];
                sum *= slope<l>(m, row, unit);
                if constexpr (l == LAYERS - 1) sum *= m.metric[row * stride_out + unit];
            }
            out[t] = sum;
        }
        __syncthreads();
        push<l + 1>(m);
    }
}

// Categoricals: M u = p∘u − p (pᵀu), where push has computed p∘u. Then times the slope of the outputs, if there is one.
__device__ inline void finish_metric(const Memory& m) {
    constexpr int outputs = N_OUTPUTS[LAYERS - 1], stride = stride_of(LAYERS);
    real* u = m.tangent[LAYERS % 2];
    if constexpr (GROUP_SIZES[0] > 0) {
        for (int t = threadIdx.x; t < TILE * N_GROUPS; t += THREADS) {
            const int sizes[] = {GROUPS}, row = t / N_GROUPS;
            int begin = 0;
            for (int g = 0; g < t % N_GROUPS; g++) begin += sizes[g];
            const int end = begin + sizes[t % N_GROUPS];
            real total = 0;
            for (int k = begin; k < end; k++) total += u[row * stride + k];
            for (int k = begin; k < end; k++) u[row * stride + k] -= m.metric[row * stride + k] * total;
        }
        __syncthreads();
    }
    if constexpr (SLOPES[LAYERS - 1] != NO_SLOPE) {
        for (int t = threadIdx.x; t < TILE * outputs; t += THREADS)
            u[t / outputs * stride + t % outputs] *= slope<LAYERS - 1>(m, t / outputs, t % outputs);
        __syncthreads();
    }
}

// δ of the layer below: φ'(s) ∘ Wᵀδ, for all rows of the tile and eight units.
template <int l>
__device__ inline void pull_piece(const Memory& m, const real* delta, real* out, int piece) {
    constexpr int stride = stride_of(l), stride_delta = stride_of(l + 1);
    const real* w = m.weights + weight_at(l) + piece * 8;
    real c[BANDS][4] = {};
    multiply<(N_OUTPUTS[l] + 7) / 8>(
        c, [=](int row, int k) { return delta[row * stride_delta + k]; },
        [=](int k, int column) { return w[k * stride + column]; });
#pragma unroll
    for (int i = 0; i < BANDS; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int row = 16 * i + piece_row() + j / 2 * 8, unit = piece * 8 + piece_column() + j % 2;
            out[row * stride + unit] = c[i][j] * slope<l - 1>(m, row, unit);
        }
}

// δᵀa summed over the tile's rows, for sixteen outputs and eight inputs.
template <int l>
__device__ inline void gradient_piece(const Memory& m, const real* delta, int t, bool is_first) {
    constexpr int stride = stride_of(l), stride_delta = stride_of(l + 1), across = rounded_up(N_INPUTS[l], 8) / 8;
    constexpr int n_outputs = N_OUTPUTS[l];
    const int first = t / across * 16, column = t % across * 8;
    const real* inputs = m.inputs + inputs_at(l) + column;
    real c[1][4] = {};
    multiply<TILE / 8>(
        c, [=](int unit, int row) { return delta[row * stride_delta + first + unit]; },
        [=](int row, int unit) { return inputs[row * stride + unit]; });
    real* to = m.sums + offset_of(l) + column + piece_column();
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int unit = first + piece_row() + j / 2 * 8;
        if (unit < n_outputs) {
            real* const place = to + unit * stride + j % 2;
            *place = is_first ? c[0][j] : *place + c[0][j];
        }
    }
}

// δ summed over the tile's rows, by four lanes for each output.
template <int l>
__device__ inline void bias_gradient(const Memory& m, const real* delta, bool is_first) {
    constexpr int outputs = N_OUTPUTS[l], stride_delta = stride_of(l + 1);
    for (int t = threadIdx.x; t < rounded_up(4 * outputs, 32); t += THREADS) {
        const int unit = t / 4;
        real sum = 0;
        if (unit < outputs)
#pragma unroll 4
            for (int row = t % 4; row < TILE; row += 4) sum += delta[row * stride_delta + unit];
        sum += __shfl_xor_sync(ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(ALL_LANES, sum, 2);
        if (unit < outputs && t % 4 == 0) {
            real* const place = m.sums + offset_of(l) + outputs * stride_of(l) + unit;
            *place = is_first ? sum : *place + sum;
        }
    }
}

// Backwards: the gradients of each layer, δᵀa and δ summed over rows.
template <int l>
__device__ inline void pull(const Memory& m, bool is_first) {
    if constexpr (l >= 0) {
        constexpr int across = rounded_up(N_INPUTS[l], 8) / 8, n_pull = l > 0 ? across : 0;
        constexpr int n_gradient = rounded_up(N_OUTPUTS[l], 16) / 16 * across;
        const real* delta = m.tangent[(l + 1) % 2];
        for (int t = threadIdx.x / 32; t < n_pull + n_gradient; t += WARPS) {
            if constexpr (l > 0)
                if (t < n_pull) pull_piece<l>(m, delta, m.tangent[l % 2], t);
            if (t >= n_pull) gradient_piece<l>(m, delta, t - n_pull, is_first);
        }
        bias_gradient<l>(m, delta, is_first);
        __syncthreads();
        pull<l - 1>(m, is_first);
    }
}

// This block's part of a product: the sum over its rows. If a block has a single tile, it is loaded only once.
__device__ inline void sum_over_rows(
    const Layer* layers, const Memory& m, const real* metric, int n_rows, bool is_first_product, real* partial) {
    constexpr int k = N_OUTPUTS[LAYERS - 1];
    const int n_tiles = (n_rows + TILE - 1) / TILE;
    const bool stays = n_tiles <= int(gridDim.x);
    bool is_first = true;
    for (int tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
        if (!stays || is_first_product) {
            load_tile<0>(layers, m, tile * TILE, n_rows);
            load_rows<k, stride_of(LAYERS)>(m.metric, metric, TILE, tile * TILE, n_rows);
            __syncthreads();
        }
        push<0>(m);
        finish_metric(m);
        pull<LAYERS - 1>(m, is_first);
        is_first = false;
    }
    for (int i = 4 * threadIdx.x; i < NOISE_AT; i += 4 * THREADS)
        store4(partial + i, is_first ? real4{} : load4(m.sums + i));
}
