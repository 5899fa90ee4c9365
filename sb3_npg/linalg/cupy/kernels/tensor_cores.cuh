// Products of small matrices in shared memory, a warp for each 16 × 8 piece of the result.
//
// Tensor cores read the first 11 bits of a float's significand. A float is split into what they read and the rest,
// a = a₁ + a₀, and ab ≈ a₁b₁ + a₁b₀ + a₀b₁ is nearly as accurate as a product in single precision (3×TF32). In double
// precision, and before sm_80, lanes multiply without them. Defined by the host: TERMS, 3, or 1 for a product in TF32.

#if defined(EMULATED) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800)
#define TENSOR_CORES 1
#else
#define TENSOR_CORES 0
#endif

// Where this lane's numbers lie in a piece: c = C[row][column], C[row][column + 1], C[row + 8][…], C[row + 8][…].
__device__ inline int piece_row() { return threadIdx.x % 32 / 4; }
__device__ inline int piece_column() { return threadIdx.x % 4 * 2; }

#if TENSOR_CORES && !defined(EMULATED)
__device__ inline void multiply_add(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

#if TENSOR_CORES
template <int N>
__device__ inline void take_apart(const float (&values)[N], unsigned (&large)[N], unsigned (&small)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        large[i] = __float_as_uint(values[i]);
        if (TERMS > 1) small[i] = __float_as_uint(values[i] - __uint_as_float(large[i] & 0xffffe000u));
    }
}

template <int PIECES, class A, class B>
__device__ inline void add_step(float (&c)[PIECES][4], float (&rest)[PIECES][4], int k, A a, B b) {
    const int group = threadIdx.x % 32 / 4, in_group = threadIdx.x % 4;
    const float right[2] = {b(k + in_group, group), b(k + in_group + 4, group)};
    unsigned b_large[2], b_small[2];
    take_apart(right, b_large, b_small);
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        const int row = 16 * i + group;
        const float left[4] = {
            a(row, k + in_group), a(row + 8, k + in_group), a(row, k + in_group + 4), a(row + 8, k + in_group + 4)};
        unsigned a_large[4], a_small[4];
        take_apart(left, a_large, a_small);
        multiply_add(c[i], a_large, b_large);
        if (TERMS > 1) {
            multiply_add(rest[i], a_small, b_large);
            multiply_add(rest[i], a_large, b_small);
        }
    }
}
#endif

// Without tensor cores: in double precision always.
template <class T, int PIECES, class A, class B>
__device__ inline void add_step(T (&c)[PIECES][4], T (&)[PIECES][4], int k, A a, B b) {
    const int row = piece_row(), column = piece_column();
#pragma unroll
    for (int i = 0; i < PIECES; i++)
        for (int j = k; j < k + 8; j++)
#pragma unroll
            for (int part = 0; part < 4; part++)
                c[i][part] += a(16 * i + row + part / 2 * 8, j) * b(j, column + part % 2);
}

template <int PIECES>
__device__ inline void add_rest(real (&c)[PIECES][4], const real (&rest)[PIECES][4]) {
#pragma unroll
    for (int i = 0; i < PIECES; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) c[i][j] += rest[i][j];
}

// C += A B for PIECES stacked pieces of 16 rows, summed over STEPS times eight. Small terms are summed separately, so
// that the sums do not wait for each other.
template <int STEPS, int PIECES, class A, class B>
__device__ inline void multiply(real (&c)[PIECES][4], A a, B b) {
    real rest[PIECES][4] = {};
#pragma unroll(PIECES > 1 ? 2 : 8)
    for (int step = 0; step < STEPS; step++) add_step(c, rest, 8 * step, a, b);
    add_rest(c, rest);
}

// The same over `n_steps` steps.
template <int PIECES, class A, class B>
__device__ inline void multiply(real (&c)[PIECES][4], int n_steps, A a, B b) {
    real rest[PIECES][4] = {};
#pragma unroll 2
    for (int step = 0; step < n_steps; step++) add_step(c, rest, 8 * step, a, b);
    add_rest(c, rest);
}
