// Conjugate gradient on (F + λI) x = g in one launch, for the Fisher of a multilayer perceptron:
//
//     F = S (1/N Σ_n J_nᵀ M_n J_n) S,   J_n v = W_L ∘ … of the layers, M_n a row's output metric, S a diagonal.
//
// Every block keeps some rows of the rollout. A product with F is three steps: each block's own rows (partial sums),
// the sum over blocks (each block a slice of the vector), and the vector updates, which every block makes for itself,
// so that all take the same decisions without being told. Sums have a fixed order: runs repeat bit for bit.
//
// Vectors have a padded layout, layer after layer: the weight as rows of row_stride(inputs) numbers, then the bias;
// the noise's parameters come last. `place` says where in θ each number lies, −1 for padding and what is not trained.
//
// Defined by the host: THREADS, TILE (rows at a time), LAYERS, and for each layer l INPUTS, OUTPUTS, ACTIVATIONS as
// lists, LAYER_PARAMETERS and LAYER_POINTERS, EXPECTED_PADDED and EXPECTED_SHARED; GROUPS, the sizes of categoricals (0: the metric is diagonal);
// NOISE_GROUPS × NOISE_SIZE, the blocks of the noise (0: none); SCALED (whether S is not the identity).

constexpr int N_INPUTS[] = {INPUTS};
constexpr int N_OUTPUTS[] = {OUTPUTS};
constexpr int SLOPES[] = {ACTIVATIONS};
constexpr int GROUP_SIZES[] = {GROUPS};
constexpr int N_GROUPS = sizeof(GROUP_SIZES) / sizeof(int);
enum { NO_SLOPE, GIVEN_SLOPE, TANH_SLOPE };  // the last is 1 − a² of the next layer's inputs

struct Layer {
    const real* inputs;  // a, N rows
    const real* slope;   // φ'(s), N rows
    const real* weight;  // W
};

__host__ __device__ constexpr int stride_of(int l) { return row_stride(l < LAYERS ? N_INPUTS[l] : N_OUTPUTS[LAYERS - 1]); }
__host__ __device__ constexpr int size_of(int l) { return rounded_up(N_OUTPUTS[l] * stride_of(l) + N_OUTPUTS[l], 4); }
__host__ __device__ constexpr int offset_of(int l) { return l == 0 ? 0 : offset_of(l - 1) + size_of(l - 1); }
constexpr int NOISE_AT = offset_of(LAYERS);
constexpr int PADDED = rounded_up(NOISE_AT + NOISE_GROUPS * NOISE_SIZE, 4);

// Shared memory, in numbers.
__host__ __device__ constexpr int weight_at(int l) { return l <= 1 ? 0 : weight_at(l - 1) + rounded_up(N_OUTPUTS[l - 1], 4) * stride_of(l - 1); }
__host__ __device__ constexpr int inputs_at(int l) { return l == 0 ? 0 : inputs_at(l - 1) + TILE * stride_of(l - 1); }
__host__ __device__ constexpr bool keeps_slope(int l) { return SLOPES[l] == GIVEN_SLOPE; }
__host__ __device__ constexpr int slope_at(int l) { return l == 0 ? 0 : slope_at(l - 1) + (keeps_slope(l - 1) ? TILE * stride_of(l) : 0); }
__host__ __device__ constexpr int widest(int l) { return l == 0 ? 0 : (stride_of(l) > widest(l - 1) ? stride_of(l) : widest(l - 1)); }
constexpr int SCRATCH = THREADS / 32 > 4 ? rounded_up(THREADS / 32, 4) : 4;
constexpr int REDUCING = rounded_up(THREADS, 4);
constexpr int TANGENT = TILE * widest(LAYERS);
constexpr int METRIC = TILE * stride_of(LAYERS);
constexpr int SHARED_NUMBERS = (3 + SCALED) * PADDED + weight_at(LAYERS) + inputs_at(LAYERS) + slope_at(LAYERS)
                               + 2 * TANGENT + METRIC + SCRATCH + REDUCING;

static_assert(PADDED == EXPECTED_PADDED && SHARED_NUMBERS == EXPECTED_SHARED, "the host counts otherwise");

struct Memory {
    real *residual, *direction, *scaled, *sums, *weights, *inputs, *slopes, *tangent[2], *metric, *scratch, *reducing;
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
    m.tangent[1] = m.tangent[0] + TANGENT;
    m.metric = m.tangent[1] + TANGENT;
    m.scratch = m.metric + METRIC;
    m.reducing = m.scratch + SCRATCH;
    return m;
}

// Copy rows of a matrix from device memory; what lies outside it is zero.
template <int COLUMNS, int STRIDE>
__device__ inline void load_rows(real* to, const real* from, int n_to, int first, int n_from) {
    for (int i = threadIdx.x; i < n_to * STRIDE; i += THREADS) {
        const int row = i / STRIDE, column = i % STRIDE;
        const bool there = column < COLUMNS && first + row < n_from;
        to[i] = there ? from[size_t(first + row) * COLUMNS + column] : real(0);
    }
}

template <int l>
__device__ inline void load_weights(const Layer* layers, const Memory& m) {
    if constexpr (l < LAYERS) {
        if constexpr (l > 0) {
            constexpr int columns = N_INPUTS[l], outputs = N_OUTPUTS[l];
            load_rows<columns, stride_of(l)>(
                m.weights + weight_at(l), layers[l].weight, rounded_up(outputs, 4), 0, outputs);
        }
        load_weights<l + 1>(layers, m);
    }
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

// sum[i][j] += Σ_k a[row i][k] b[row j][k], rows ROWS_A and ROWS_B apart.
template <int K, int STRIDE, int RM, int RN>
__device__ inline void multiply_rows(real (&sum)[RM][RN], const real* a, const real* b, int apart_a, int apart_b) {
#pragma unroll 4
    for (int k = 0; k < rounded_up(K, 4); k += 4) {
        real4 left[RM], right[RN];
#pragma unroll
        for (int i = 0; i < RM; i++) left[i] = load4(a + i * apart_a * STRIDE + k);
#pragma unroll
        for (int j = 0; j < RN; j++) right[j] = load4(b + j * apart_b * STRIDE + k);
#pragma unroll
        for (int i = 0; i < RM; i++)
#pragma unroll
            for (int j = 0; j < RN; j++) sum[i][j] = dot4(left[i], right[j], sum[i][j]);
    }
}

// Forwards: ∂a_out = φ'(s) ∘ (V a + v + W ∂a_in), for the tile's rows; the last layer's goes through the metric's
// diagonal. The tangent of layer l goes into buffer (l + 1) % 2.
template <int l>
__device__ inline void push(const Memory& m) {
    if constexpr (l < LAYERS) {
        constexpr int outputs = N_OUTPUTS[l], stride = stride_of(l), stride_out = stride_of(l + 1);
        constexpr int RM = TILE >= 64 ? 4 : 2, RN = outputs < 32 ? 1 : (TILE >= 64 ? 4 : 2);
        constexpr int tiles_m = TILE / RM, tiles_n = (outputs + RN - 1) / RN;
        const real* v = m.scaled + offset_of(l);
        real* out = m.tangent[(l + 1) % 2];
        for (int t = threadIdx.x; t < tiles_m * tiles_n; t += THREADS) {
            const int row = t / tiles_n, unit = t % tiles_n;
            real sum[RM][RN] = {};
            multiply_rows<N_INPUTS[l], stride>(
                sum, m.inputs + inputs_at(l) + row * stride, v + unit * stride, tiles_m, tiles_n);
            if constexpr (l > 0)
                multiply_rows<N_INPUTS[l], stride>(
                    sum, m.tangent[l % 2] + row * stride, m.weights + weight_at(l) + unit * stride, tiles_m, tiles_n);
#pragma unroll
            for (int j = 0; j < RN; j++) {
                const int u = unit + j * tiles_n;
                if (u < outputs) {
                    const real bias = v[outputs * stride + u];
#pragma unroll
                    for (int i = 0; i < RM; i++) {
                        const int r = row + i * tiles_m;
                        real tangent = (sum[i][j] + bias) * slope<l>(m, r, u);
                        if constexpr (l == LAYERS - 1) tangent *= m.metric[r * stride_out + u];
                        out[r * stride_out + u] = tangent;
                    }
                }
            }
        }
        constexpr int padding = stride_out - outputs;
        if constexpr (padding > 0)
            for (int i = threadIdx.x; i < TILE * padding; i += THREADS)
                out[i / padding * stride_out + outputs + i % padding] = 0;
        __syncthreads();
        push<l + 1>(m);
    }
}

// Categoricals: M u = p∘u − p (pᵀu), of which push has made p∘u. Then the slope of the outputs, if they have one.
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

// δ of the layer below: φ'(s) ∘ Wᵀδ, for RM rows and four units.
template <int l, int RM>
__device__ inline void pull_tile(const Memory& m, const real* delta, real* out, int t) {
    constexpr int stride = stride_of(l), stride_delta = stride_of(l + 1), n_units = rounded_up(N_INPUTS[l], 4) / 4;
    constexpr int tiles_m = TILE / RM, n_inputs = N_INPUTS[l];
    const int row = t / n_units, unit = t % n_units * 4;
    real sum[RM][4] = {};
#pragma unroll 4
    for (int k = 0; k < rounded_up(N_OUTPUTS[l], 4); k += 4) {
        real4 left[RM];
#pragma unroll
        for (int i = 0; i < RM; i++) left[i] = load4(delta + (row + i * tiles_m) * stride_delta + k);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const real4 w = load4(m.weights + weight_at(l) + (k + j) * stride + unit);
#pragma unroll
            for (int i = 0; i < RM; i++) {
                const real d = j == 0 ? left[i].x : j == 1 ? left[i].y : j == 2 ? left[i].z : left[i].w;
                sum[i][0] += d * w.x;
                sum[i][1] += d * w.y;
                sum[i][2] += d * w.z;
                sum[i][3] += d * w.w;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < RM; i++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int r = row + i * tiles_m, u = unit + c;
            out[r * stride + u] = u < n_inputs ? sum[i][c] * slope<l - 1>(m, r, u) : real(0);
        }
}

// δᵀa summed over the tile's rows, for four outputs and four inputs.
template <int l>
__device__ inline void gradient_tile(const Memory& m, const real* delta, int t, bool is_first) {
    constexpr int stride = stride_of(l), stride_delta = stride_of(l + 1), n_units = rounded_up(N_INPUTS[l], 4) / 4;
    constexpr int n_outputs = N_OUTPUTS[l];
    const int out = t / n_units * 4, unit = t % n_units * 4;
    const real* inputs = m.inputs + inputs_at(l);
    real sum[4][4] = {};
#pragma unroll 4
    for (int row = 0; row < TILE; row++) {
        const real4 d = load4(delta + row * stride_delta + out), a = load4(inputs + row * stride + unit);
        const real left[4] = {d.x, d.y, d.z, d.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sum[i][0] += left[i] * a.x;
            sum[i][1] += left[i] * a.y;
            sum[i][2] += left[i] * a.z;
            sum[i][3] += left[i] * a.w;
        }
    }
    real* to = m.sums + offset_of(l) + unit;
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (out + i < n_outputs)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                real* const place = to + (out + i) * stride + c;
                *place = is_first ? sum[i][c] : *place + sum[i][c];
            }
}

// Backwards: the gradients of each layer, δᵀa and δ summed over rows.
template <int l>
__device__ inline void pull(const Memory& m, bool is_first) {
    if constexpr (l >= 0) {
        constexpr int outputs = N_OUTPUTS[l], stride_delta = stride_of(l + 1);
        constexpr int n_units = rounded_up(N_INPUTS[l], 4) / 4, RM = TILE >= 64 ? 4 : 2;
        constexpr int n_pull = l > 0 ? TILE / RM * n_units : 0;
        constexpr int n_gradient = rounded_up(outputs, 4) / 4 * n_units;
        const real* delta = m.tangent[(l + 1) % 2];
        for (int t = threadIdx.x; t < n_pull + n_gradient + outputs; t += THREADS) {
            if constexpr (l > 0)
                if (t < n_pull) pull_tile<l, RM>(m, delta, m.tangent[l % 2], t);
            if (t >= n_pull && t < n_pull + n_gradient) gradient_tile<l>(m, delta, t - n_pull, is_first);
            if (t >= n_pull + n_gradient) {
                const int unit = t - n_pull - n_gradient;
                real sum = 0;
                for (int row = 0; row < TILE; row++) sum += delta[row * stride_delta + unit];
                real* const place = m.sums + offset_of(l) + outputs * stride_of(l) + unit;
                *place = is_first ? sum : *place + sum;
            }
        }
        __syncthreads();
        pull<l - 1>(m, is_first);
    }
}

// Number i of the noise's part of a product, whose blocks stand alone.
template <int BLOCKS, int SIZE>
__device__ inline real noise_product(const Memory& m, const real* noise, int i) {
    real sum = 0;
    if constexpr (BLOCKS > 0) {
        const int row = i / BLOCKS, block = i % BLOCKS;
        if (row < SIZE)
            for (int other = 0; other < SIZE; other++)
                sum += noise[(block * SIZE + row) * SIZE + other] * m.scaled[NOISE_AT + other * BLOCKS + block];
    }
    return sum;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) chain_cg(
    LAYER_PARAMETERS, const real* metric, const real* noise, const int* place, const real* scale, const real* right,
    const real* reference, const int n_rows, const real damping, const real rtol, const int max_steps, const real tiny,
    real* x, real* product, real* figures, real* partial, real* reduced, unsigned long long* barrier) {
    DYNAMIC_SHARED(arena);
    const Memory m = carve(arena);
    const Layer layers[] = {LAYER_POINTERS};
    constexpr int k = N_OUTPUTS[LAYERS - 1];
    const int n_tiles = (n_rows + TILE - 1) / TILE;
    const int slice = (PADDED + gridDim.x - 1) / gridDim.x, begin = blockIdx.x * slice;
    const int end = begin + slice < PADDED ? begin + slice : PADDED;
    const bool stays = n_tiles <= int(gridDim.x);  // one tile a block, loaded once

    real squared_right = 0, squared_reference = 0;
    for (int i = threadIdx.x; i < PADDED; i += THREADS) {
        const bool there = place[i] >= 0;
        const real value = there ? right[place[i]] : real(0), other = there ? reference[place[i]] : real(0);
        m.residual[i] = value;
        m.direction[i] = 0;
        m.sums[i] = 0;
        squared_right += value * value;
        squared_reference += other * other;
        if (there && i >= begin && i < end) x[place[i]] = product[place[i]] = 0;
    }
    load_weights<0>(layers, m);
    real squared_residual = block_sum(squared_right, m.scratch);
    squared_reference = block_sum(squared_reference, m.scratch);
    real target = rtol * rtol * squared_reference;
    target = target > tiny ? target : tiny;
    real inner = INFINITY;
    int steps = 0, taken = 0;
    bool is_loaded = false;
    while (steps < max_steps && squared_residual > target) {
        const real improvement = squared_residual / inner;
        inner = squared_residual;
        for (int i = threadIdx.x; i < PADDED; i += THREADS) {
            const real value = m.direction[i] * improvement + m.residual[i];
            m.direction[i] = value;
            if (SCALED) m.scaled[i] = place[i] >= 0 ? value * scale[place[i]] : real(0);
        }
        __syncthreads();

        // This block's rows.
        bool is_first = true;
        for (int tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
            if (!(stays && is_loaded)) {
                load_tile<0>(layers, m, tile * TILE, n_rows);
                load_rows<k, stride_of(LAYERS)>(m.metric, metric, TILE, tile * TILE, n_rows);
                is_loaded = true;
                __syncthreads();
            }
            push<0>(m);
            finish_metric(m);
            pull<LAYERS - 1>(m, is_first);
            is_first = false;
        }
        for (int i = threadIdx.x; i < NOISE_AT; i += THREADS)
            partial[size_t(blockIdx.x) * PADDED + i] = is_first ? real(0) : m.sums[i];
        grid_barrier(barrier);

        // This block's slice of the sum over blocks.
        const int columns = slice < THREADS ? slice : THREADS, groups = THREADS / columns;
        for (int from = begin; from < end; from += columns) {
            const int i = from + threadIdx.x % columns, group = threadIdx.x / columns;
            real sum = 0;
            if (group < groups && i < end && i < NOISE_AT)
                for (int block = group; block < int(gridDim.x); block += groups)
                    sum += __ldcg(partial + size_t(block) * PADDED + i);
            m.reducing[threadIdx.x] = sum;
            __syncthreads();
            if (group == 0 && i < end) {
                for (int other = 1; other < groups; other++) sum += m.reducing[threadIdx.x + other * columns];
                sum /= real(n_rows);
                if (i >= NOISE_AT) sum = noise_product<NOISE_GROUPS, NOISE_SIZE>(m, noise, i - NOISE_AT);
                const bool there = place[i] >= 0;
                reduced[i] = !there ? real(0) : SCALED ? sum * scale[place[i]] : sum;
            }
            __syncthreads();
        }
        grid_barrier(barrier);

        // The vectors.
        real along = 0, squared_direction = 0;
        for (int i = threadIdx.x; i < PADDED; i += THREADS) {
            const real value = __ldcg(reduced + i), p = m.direction[i];
            m.sums[i] = value;
            along += p * value;
            squared_direction += p * p;
        }
        along = block_sum(along, m.scratch);
        const real curvature = along + damping * block_sum(squared_direction, m.scratch);
        steps++;
        if (!(is_positive(curvature) && is_positive(inner))) break;
        const real length = inner / curvature;
        real squared = 0;
        for (int i = threadIdx.x; i < PADDED; i += THREADS) {
            const real value = m.residual[i] - length * m.sums[i] - length * damping * m.direction[i];
            m.residual[i] = value;
            squared += value * value;
        }
        for (int i = begin + threadIdx.x; i < end; i += THREADS)
            if (place[i] >= 0) {
                x[place[i]] += length * m.direction[i];
                product[place[i]] += length * m.sums[i];
            }
        squared_residual = block_sum(squared, m.scratch);
        if (blockIdx.x == 0 && threadIdx.x == 0) {
            figures[4 + 2 * taken] = length;
            figures[5 + 2 * taken] = improvement;
        }
        taken++;
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        figures[0] = real(steps);
        figures[1] = real(taken);
        figures[2] = squared_residual;
        figures[3] = squared_reference;
    }
}
