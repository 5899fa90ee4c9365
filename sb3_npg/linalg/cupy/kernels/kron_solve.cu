// Damped solves with Kronecker products in their eigenbases, for several layers in one launch, a block for each:
//
//     X = Q_G [(Q_Gᵀ V Q_A) / (D + λ)] Q_Aᵀ,   V of shape (g, a), D given or λ_G λ_Aᵀ.
//
// Matrices lie in shared memory with rows of row_stride numbers, and zeros up to the next multiple of four both ways;
// a thread computes tiles of 4 × 4.
//
// Defined by the host: THREADS; SYSTEM_PARAMETERS, pointers, and SYSTEM, the block's own with its sizes.

struct System {
    const real *left_vectors, *right_vectors, *left_values, *right_values;
    const real* values;  // D; null for the product
    const real* matrix;
    real* solution;
    int g, a;
};

// A matrix in shared memory.
struct Padded {
    real* numbers;
    int rows, columns, stride;

    __device__ Padded(real* at, int n_rows, int n_columns)
        : numbers(at), rows(n_rows), columns(n_columns), stride(row_stride(n_columns)) {}
    __device__ real* end() const { return numbers + rounded_up(rows, 4) * stride; }
    __device__ real4 at(int row, int column) const { return load4(numbers + row * stride + column); }
};

__device__ inline void load(const Padded& to, const real* from) {
    for (int i = threadIdx.x; i < rounded_up(to.rows, 4) * to.stride; i += THREADS) {
        const int row = i / to.stride, column = i % to.stride;
        to.numbers[i] = row < to.rows && column < to.columns ? from[row * to.columns + column] : real(0);
    }
}

__device__ inline void add_outer(real (&sum)[4][4], real4 a, real4 b) {
    const real left[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        sum[i][0] += left[i] * b.x;
        sum[i][1] += left[i] * b.y;
        sum[i][2] += left[i] * b.z;
        sum[i][3] += left[i] * b.w;
    }
}

// A tile of a product, of A B, AᵀB or A Bᵀ.
__device__ inline void multiply(real (&sum)[4][4], const Padded& a, const Padded& b, int row, int column) {
    for (int k = 0; k < rounded_up(a.columns, 4); k += 4) {
        const real4 a0 = a.at(row, k), a1 = a.at(row + 1, k), a2 = a.at(row + 2, k), a3 = a.at(row + 3, k);
        add_outer(sum, {a0.x, a1.x, a2.x, a3.x}, b.at(k, column));
        add_outer(sum, {a0.y, a1.y, a2.y, a3.y}, b.at(k + 1, column));
        add_outer(sum, {a0.z, a1.z, a2.z, a3.z}, b.at(k + 2, column));
        add_outer(sum, {a0.w, a1.w, a2.w, a3.w}, b.at(k + 3, column));
    }
}

__device__ inline void multiply_transposed(real (&sum)[4][4], const Padded& a, const Padded& b, int row, int column) {
#pragma unroll 4
    for (int k = 0; k < a.rows; k++) add_outer(sum, a.at(k, row), b.at(k, column));
}

__device__ inline void multiply_by_transposed(real (&sum)[4][4], const Padded& a, const Padded& b, int row, int column) {
    for (int k = 0; k < rounded_up(a.columns, 4); k += 4) {
        real4 right[4];
#pragma unroll
        for (int j = 0; j < 4; j++) right[j] = b.at(column + j, k);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const real4 left = a.at(row + i, k);
#pragma unroll
            for (int j = 0; j < 4; j++) sum[i][j] = dot4(left, right[j], sum[i][j]);
        }
    }
}

__device__ inline void store(const real (&sum)[4][4], const Padded& to, int row, int column) {
#pragma unroll
    for (int i = 0; i < 4; i++)
        *reinterpret_cast<real4*>(to.numbers + (row + i) * to.stride + column) = {
            sum[i][0], sum[i][1], sum[i][2], sum[i][3]};
}

__device__ inline real eigenvalue(const System& system, int row, int column) {
    if (system.values != nullptr) return system.values[row * system.a + column];
    return system.left_values[row] * system.right_values[column];
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) kron_solve(SYSTEM_PARAMETERS, const double* lambda) {
    const real damping = real(*lambda);
    DYNAMIC_SHARED(arena);
    const System system = SYSTEM;
    const int g = system.g, a = system.a;
    const Padded left(arena, g, g), right(left.end(), a, a), one(right.end(), g, a), two(one.end(), g, a);
    const int tiles_across = rounded_up(a, 4) / 4, n_tiles = rounded_up(g, 4) / 4 * tiles_across;
    load(left, system.left_vectors);
    load(right, system.right_vectors);
    load(one, system.matrix);
    __syncthreads();

    for (int t = threadIdx.x; t < n_tiles; t += THREADS) {
        const int row = t / tiles_across * 4, column = t % tiles_across * 4;
        real sum[4][4] = {};
        multiply(sum, one, right, row, column);
        store(sum, two, row, column);
    }
    __syncthreads();
    for (int t = threadIdx.x; t < n_tiles; t += THREADS) {
        const int row = t / tiles_across * 4, column = t % tiles_across * 4;
        real sum[4][4] = {};
        multiply_transposed(sum, left, two, row, column);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (row + i < g && column + j < a) sum[i][j] /= eigenvalue(system, row + i, column + j) + damping;
        store(sum, one, row, column);
    }
    __syncthreads();
    for (int t = threadIdx.x; t < n_tiles; t += THREADS) {
        const int row = t / tiles_across * 4, column = t % tiles_across * 4;
        real sum[4][4] = {};
        multiply(sum, left, one, row, column);
        store(sum, two, row, column);
    }
    __syncthreads();
    for (int t = threadIdx.x; t < n_tiles; t += THREADS) {
        const int row = t / tiles_across * 4, column = t % tiles_across * 4;
        real sum[4][4] = {};
        multiply_by_transposed(sum, two, right, row, column);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (row + i < g && column + j < a) system.solution[(row + i) * a + column + j] = sum[i][j];
    }
}
