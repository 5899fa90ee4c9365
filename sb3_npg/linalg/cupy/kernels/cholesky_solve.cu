// X = (G + λ_G I)⁻¹ V (A + λ_A I)⁻¹ of several layers in one launch, a block for each, with λ = λ_A λ_G split so that
// λ_A / λ_G is the ratio of the factors' mean eigenvalues. Computed in doubles throughout.
//
// Half of the threads invert A + λ_A I, the other half G + λ_G I, by symmetric sweeps: row k of what is left, the one
// that Cholesky would scale by the root of its pivot, is subtracted from all others at once, so that a column costs
// one barrier and no substitutions follow. Pivots are Cholesky's: one that is not positive makes X NaN.
//
// A matrix is held in registers, of which each of 16 × 16 threads has every sixteenth row and column.
//
// Defined by the host: HELD, rows and columns of a matrix that a thread holds at most; LAYER_PARAMETERS, pointers, and
// LAYER, the block's own with its sizes.

constexpr int SIDE = 16, HALF = SIDE * SIDE, THREADS = 2 * HALF, LONGEST = SIDE * HELD;
constexpr int WIDE = 2 * SIDE, HELD_WIDE = (HELD + 1) / 2;  // the layout of a product, which all threads share

struct Layer {
    const real *a, *g, *v;
    real* x;
    int n_a, n_g;
};

typedef double Held[HELD][HELD];

// The mean of a diagonal, returned to every lane.
__device__ inline double mean_diagonal(const real* matrix, int n) {
    double sum = 0;
    for (int i = threadIdx.x % 32; i < n; i += 32) sum += double(matrix[i * n + i]);
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, offset);
    return sum / n;
}

// λ_A = π√λ or λ_G = √λ/π.
__device__ inline double share_of(const Layer& layer, bool is_a, double damping) {
    const double mean_a = mean_diagonal(layer.a, layer.n_a), mean_g = mean_diagonal(layer.g, layer.n_g);
    const double ratio = mean_a > 0 && mean_g > 0 ? sqrt(mean_a / mean_g) : 1.0;
    return is_a ? ratio * sqrt(damping) : sqrt(damping) / ratio;
}

// The lower triangle, mirrored; zero outside the matrix.
__device__ inline void load(Held& m, const real* matrix, int n, int row, int column) {
#pragma unroll
    for (int r = 0; r < HELD; r++)
#pragma unroll
        for (int c = 0; c < HELD; c++) {
            const int i = row + SIDE * r, j = column + SIDE * c, low = i > j ? i : j, high = i > j ? j : i;
            m[r][c] = low < n ? double(matrix[low * n + high]) : 0.0;
        }
}

// Sweep rows 16 r to 16 r + 15, and then those after them. Tells whether a pivot was not positive.
template <int r>
__device__ inline bool sweep(Held& m, double* buffer, int n, int n_steps, int row, int column) {
    bool is_bad = false;
    if constexpr (r < HELD) {
        for (int k = SIDE * r; k < SIDE * (r + 1) && k < n_steps; k++) {
            double* const given = buffer + k % 2 * LONGEST;
            const bool in_row = row == k % SIDE, in_column = column == k % SIDE;
            if (in_row)
#pragma unroll
                for (int c = 0; c < HELD; c++) given[column + SIDE * c] = m[r][c];
            __syncthreads();
            if (k >= n) continue;
            const double pivot = given[k], inverse = 1.0 / pivot;
            is_bad |= !(pivot > 0 && pivot < double(INFINITY));
            double left[HELD];
#pragma unroll
            for (int i = 0; i < HELD; i++) left[i] = given[row + SIDE * i];
#pragma unroll
            for (int c = 0; c < HELD; c++) {
                const double right = given[column + SIDE * c] * inverse;
#pragma unroll
                for (int i = 0; i < HELD; i++) m[i][c] -= left[i] * right;
                if (in_row) m[r][c] = right;
            }
            if (in_column)
#pragma unroll
                for (int i = 0; i < HELD; i++) m[i][r] = i == r && in_row ? -inverse : left[i] * inverse;
        }
        is_bad |= sweep<r + 1>(m, buffer, n, n_steps, row, column);
    }
    return is_bad;
}

// This thread's entries of left · right, of shapes (n, depth) and (depth, width).
__device__ inline void multiply(
    double (&sums)[HELD][HELD_WIDE], const double* left, const double* right, int n, int depth, int width) {
    const int row = threadIdx.x / WIDE, column = threadIdx.x % WIDE;
    const double *rows[HELD], *columns[HELD_WIDE];
#pragma unroll
    for (int r = 0; r < HELD; r++) rows[r] = left + (row + SIDE * r < n ? row + SIDE * r : 0) * depth;
#pragma unroll
    for (int c = 0; c < HELD_WIDE; c++) columns[c] = right + (column + WIDE * c < width ? column + WIDE * c : 0);
    for (int k = 0; k < depth; k++) {
        double found[HELD_WIDE];
#pragma unroll
        for (int c = 0; c < HELD_WIDE; c++) found[c] = columns[c][k * width];
#pragma unroll
        for (int r = 0; r < HELD; r++) {
            const double value = rows[r][k];
#pragma unroll
            for (int c = 0; c < HELD_WIDE; c++) sums[r][c] += value * found[c];
        }
    }
}

template <class T>
__device__ inline void store(T* to, const double (&values)[HELD][HELD_WIDE], int n, int width, bool is_bad) {
#pragma unroll
    for (int r = 0; r < HELD; r++)
#pragma unroll
        for (int c = 0; c < HELD_WIDE; c++) {
            const int i = threadIdx.x / WIDE + SIDE * r, j = threadIdx.x % WIDE + WIDE * c;
            if (i < n && j < width) to[i * width + j] = is_bad ? T(INFINITY) - T(INFINITY) : T(values[r][c]);
        }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) cholesky_solve(LAYER_PARAMETERS, const double* lambda) {
    const double damping = *lambda;
    DYNAMIC_SHARED(arena);
    const Layer layer = LAYER;
    const int n_a = layer.n_a, n_g = layer.n_g, t = threadIdx.x % HALF, row = t / SIDE, column = t % SIDE;
    const bool is_a = threadIdx.x < HALF;
    const int n = is_a ? n_a : n_g;
    double* const buffers = reinterpret_cast<double*>(arena);
    double *const inverse_a = buffers + 4 * LONGEST, *const inverse_g = inverse_a + n_a * n_a;
    double* const product = inverse_g + n_g * n_g;
    bool is_bad = false;
    {
        Held m;
        load(m, is_a ? layer.a : layer.g, n, row, column);
        for (int i = threadIdx.x; i < n_g * n_a; i += THREADS) product[i] = double(layer.v[i]);
        const double share = share_of(layer, is_a, damping);
#pragma unroll
        for (int r = 0; r < HELD; r++)
            if (row == column && row + SIDE * r < n) m[r][r] += share;
        is_bad = sweep<0>(m, buffers + (is_a ? 0 : 2 * LONGEST), n, n_a > n_g ? n_a : n_g, row, column);
        double* const to = is_a ? inverse_a : inverse_g;  // both are negated, which cancels in the product
#pragma unroll
        for (int r = 0; r < HELD; r++)
#pragma unroll
            for (int c = 0; c < HELD; c++) {
                const int i = row + SIDE * r, j = column + SIDE * c;
                if (i < n && j < n) to[i * n + j] = m[r][c];
            }
    }
    is_bad = __syncthreads_or(is_bad);
    double half[HELD][HELD_WIDE] = {};
    multiply(half, product, inverse_a, n_g, n_a, n_a);
    __syncthreads();
    store(product, half, n_g, n_a, false);
    __syncthreads();
    double whole[HELD][HELD_WIDE] = {};
    multiply(whole, inverse_g, product, n_g, n_g, n_a);
    store(layer.x, whole, n_g, n_a, is_bad);
}
