// Conjugate gradient on (F + λI) x = g in one launch, for the Fisher of a multilayer perceptron:
//
//     F = S (1/N Σ_n J_nᵀ M_n J_n) S,   J_n v = W_L ∘ … of the layers, M_n a row's output metric, S a diagonal.
//
// Every block keeps some rows of the rollout. A product with F is three steps: each block's own rows (partial sums),
// the sum over blocks (each block a slice of the vector), and the vector updates, which every block computes in full,
// so that all take the same decisions without communication. Sums have a fixed order: runs repeat bit for bit.

// Entry i of the noise's part of a product: its blocks do not depend on the layers.
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

// Sum this block's slice over all blocks: neighbouring threads read neighbouring vectors of the same block.
__device__ inline void reduce_slice(
    const Memory& m, const real* partial, const real* noise, const int* place, const real* scale, real* reduced,
    int begin, int end, real weight) {
    constexpr int parts = 32, across = THREADS / parts, loads = 4;
    const int part = threadIdx.x / across, quad = threadIdx.x % across;
    for (int from = begin; from < end; from += 4 * across) {
        const int column = from + 4 * quad;
        real4 sum = {};
        if (column < end)
            for (int first = part; first < int(gridDim.x); first += parts * loads) {
                real4 found[loads];
#pragma unroll
                for (int i = 0; i < loads; i++) {
                    const int block = first + i * parts;
                    found[i] = block < int(gridDim.x) ? load4_of_blocks(partial + size_t(block) * PADDED + column)
                                                      : real4{};
                }
#pragma unroll
                for (int i = 0; i < loads; i++) sum = add4(sum, found[i]);
            }
        store4(m.parts + 4 * threadIdx.x, sum);
        __syncthreads();
        const int i = from + threadIdx.x;
        if (threadIdx.x < 4 * across && i < end) {
            real value = 0;
#pragma unroll
            for (int other = 0; other < parts; other++) value += m.parts[4 * across * other + threadIdx.x];
            value *= weight;
            if (i >= NOISE_AT) value = noise_product<NOISE_GROUPS, NOISE_SIZE>(m, noise, i - NOISE_AT);
            const int at = place[i];
            reduced[i] = at < 0 ? real(0) : SCALED ? value * scale[at] : value;
        }
        __syncthreads();
    }
}

// p ← r + βp.
__device__ inline void turn(const Memory& m, real improvement, const int* place, const real* scale) {
    for (int i = 4 * threadIdx.x; i < PADDED; i += 4 * THREADS) {
        const real4 p = load4(m.direction + i), r = load4(m.residual + i);
        store4(m.direction + i, {p.x * improvement + r.x, p.y * improvement + r.y, p.z * improvement + r.z,
                                 p.w * improvement + r.w});
        if (SCALED)
            for (int j = i; j < i + 4; j++)
                m.scaled[j] = place[j] >= 0 ? m.direction[j] * scale[place[j]] : real(0);
    }
}

constexpr int VECTORS = (PADDED + 4 * THREADS - 1) / (4 * THREADS);

// This thread's part of pᵀ(F + λI)p; its entries of Fp are kept in `moved`.
__device__ inline real curvature_of(const Memory& m, const real* reduced, real damping, real4 (&moved)[VECTORS]) {
    real sum = 0;
#pragma unroll
    for (int j = 0; j < VECTORS; j++) {
        const int i = 4 * (threadIdx.x + j * THREADS);
        moved[j] = i < PADDED ? load4_of_blocks(reduced + i) : real4{};
    }
#pragma unroll
    for (int j = 0; j < VECTORS; j++) {
        const int i = 4 * (threadIdx.x + j * THREADS);
        if (i < PADDED) {
            const real4 p = load4(m.direction + i);
            store4(m.sums + i, moved[j]);
            sum += dot4(p, moved[j], real(0)) + damping * dot4(p, p, real(0));
        }
    }
    return sum;
}

// r ← r − α(F + λI)p; returns this thread's part of ‖r‖².
__device__ inline real advance(const Memory& m, real length, real damping, const real4 (&moved)[VECTORS]) {
    real sum = 0;
    const real shift = length * damping;
#pragma unroll
    for (int j = 0; j < VECTORS; j++) {
        const int i = 4 * (threadIdx.x + j * THREADS);
        if (i < PADDED) {
            const real4 p = load4(m.direction + i), q = moved[j], r = load4(m.residual + i);
            const real4 next = {
                r.x - length * q.x - shift * p.x, r.y - length * q.y - shift * p.y, r.z - length * q.z - shift * p.z,
                r.w - length * q.w - shift * p.w};
            store4(m.residual + i, next);
            sum = dot4(next, next, sum);
        }
    }
    return sum;
}

// Numbers of x and Fx that a thread keeps: of its block's slice, which may be all.
constexpr int OWN = (PADDED + THREADS - 1) / THREADS;

extern "C" __global__ void __launch_bounds__(THREADS, 1) chain_cg(
    LAYER_PARAMETERS, const real* metric, const real* noise, const int* place, const real* scale, const real* right,
    const real* reference, const int n_rows, const real damping, const real rtol, const int max_steps, const real tiny,
    real* x, real* product, real* figures, real* partial, real* reduced, unsigned long long* barrier) {
    DYNAMIC_SHARED(arena);
    const Memory m = carve(arena);
    const Layer layers[] = {LAYER_POINTERS};
    const int slice = rounded_up((PADDED + gridDim.x - 1) / gridDim.x, 8), begin = blockIdx.x * slice;
    const int end = begin + slice < PADDED ? begin + slice : PADDED;

    real squared_right = 0, squared_reference = 0;
#pragma unroll 4
    for (int i = threadIdx.x; i < PADDED; i += THREADS) {
        const int at = place[i];
        const real value = at >= 0 ? right[at] : real(0), other = at >= 0 ? reference[at] : real(0);
        m.residual[i] = value;
        m.direction[i] = 0;
        squared_right += value * value;
        squared_reference += other * other;
    }
    load_weights<0>(layers, m.weights);
    real squared_residual = block_sum(squared_right, m.scratch);
    squared_reference = block_sum(squared_reference, m.scratch);
    real target = rtol * rtol * squared_reference;
    target = target > tiny ? target : tiny;
    real inner = INFINITY;
    int steps = 0, taken = 0;
    real own_x[OWN] = {}, own_product[OWN] = {};
    while (steps < max_steps && squared_residual > target) {
        const real improvement = squared_residual / inner;
        inner = squared_residual;
        turn(m, improvement, place, scale);
        __syncthreads();

        sum_over_rows(layers, m, metric, n_rows, steps == 0, partial + size_t(blockIdx.x) * PADDED);
        grid_barrier(barrier);

        reduce_slice(m, partial, noise, place, scale, reduced, begin, end, real(1) / real(n_rows));
        grid_barrier(barrier);

        // The vectors.
        real4 moved[VECTORS];
        const real curvature = block_sum(curvature_of(m, reduced, damping, moved), m.scratch);
        steps++;
        if (!(is_positive(curvature) && is_positive(inner))) break;
        const real length = inner / curvature;
        const real squared = advance(m, length, damping, moved);
#pragma unroll
        for (int j = 0; j < OWN; j++) {
            const int i = begin + threadIdx.x + j * THREADS;
            if (i < end) {
                own_x[j] += length * m.direction[i];
                own_product[j] += length * m.sums[i];
            }
        }
        squared_residual = block_sum(squared, m.scratch);
        if (blockIdx.x == 0 && threadIdx.x == 0) {
            figures[4 + 2 * taken] = length;
            figures[5 + 2 * taken] = improvement;
        }
        taken++;
    }
#pragma unroll
    for (int j = 0; j < OWN; j++) {
        const int i = begin + threadIdx.x + j * THREADS;
        if (i < end && place[i] >= 0) {
            x[place[i]] = own_x[j];
            product[place[i]] = own_product[j];
        }
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        figures[0] = real(steps);
        figures[1] = real(taken);
        figures[2] = squared_residual;
        figures[3] = squared_reference;
    }
}
