// Eigendecompositions of small symmetric positive semi-definite matrices in one launch, a block for each.
//
// A + σI = L Lᵀ, and one-sided Jacobi makes the columns of U = L V orthogonal: then A + σI = U Uᵀ, so that the columns'
// directions are the eigenvectors and their squared lengths λ + σ. V is never formed. The shift keeps null spaces
// apart from zero; it is raised until the factorisation succeeds, so rounding may have made A slightly indefinite.
// All is stable backwards: errors are of the order ε‖A‖. Numbers are doubles whatever comes in and goes out.
//
// Columns are paired by odd-even transposition: neighbours rotate and swap places, and after as many rounds as there
// are columns every two have met. A pair belongs to LANES threads that hold it in registers. From one round to the
// next a group keeps one column and hands on the other, through its slot in shared memory. Angles are found in single
// precision, which costs no accuracy: c² + s² = 1 is restored, and the next sweep removes what remains.
//
// Defined by the host: THREADS; MATRIX_PARAMETERS, pointers, and PROBLEM, the block's own with its size; LARGEST, the
// largest size; ROWS_USED, bit R set if a thread holds R rows for some size; TOLERANCE, the largest cosine between
// columns that counts as none; SHIFT, the first σ, for matrices whose Frobenius norm is at most one; MAX_SWEEPS;
// EXPECTED_SHARED, in doubles.

constexpr int LANES = 16;
constexpr int MAX_ROWS = (LARGEST + LANES - 1) / LANES;  // of a column that a thread holds
constexpr double FLOAT_SCALE = 1099511627776.0;          // 2⁴⁰ keeps squares of squared lengths in a float's range

struct Problem {
    const real* matrix;
    real* values;
    real* vectors;
    int n;
};

// What is needed after the sweeps; kept in shared memory meanwhile, as registers are scarce.
struct Result {
    real* values;
    real* vectors;
    double scale, shift;
};

// Where things lie for one size. Columns in excess of n, to make their number odd, are zero.
__host__ __device__ constexpr int groups_of(int n) { return n < 2 ? 1 : n / 2; }
__host__ __device__ constexpr int leading(int n) { return n | 1; }
__host__ __device__ constexpr int slot_size(int n) { return (n + LANES - 1) / LANES * LANES + 1; }
__host__ __device__ constexpr int slots_at(int n) { return n * leading(n); }
__host__ __device__ constexpr int lengths_at(int n) { return slots_at(n) + (groups_of(n) + 1) * slot_size(n); }
__host__ __device__ constexpr int scratch_at(int n) { return lengths_at(n) + 2 * groups_of(n) + 1; }
__host__ __device__ constexpr int shared_of(int n) { return scratch_at(n) + 32; }

static_assert(shared_of(LARGEST) == EXPECTED_SHARED, "the host counts otherwise");
static_assert(LANES * groups_of(LARGEST) <= THREADS, "too few threads");

__device__ inline double lane_sum(double value) {
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(ALL_LANES, value, offset);
    return value;
}

template <int R>
__device__ inline double dot(const double (&a)[R], const double (&b)[R]) {
    double even = a[0] * b[0], odd = 0;
#pragma unroll
    for (int r = 1; r < R; r++) (r % 2 ? odd : even) += a[r] * b[r];
    return lane_sum(even + odd);
}

// The largest magnitude of the matrix's entries, returned to every thread; infinity if one is not finite.
__device__ inline double largest_entry(const Problem& problem, double* scratch) {
    double largest = 0;
    bool is_bad = false;
    for (int i = threadIdx.x; i < problem.n * problem.n; i += THREADS) {
        const double size = fabs(double(problem.matrix[i]));
        is_bad |= !(size < double(INFINITY));
        largest = size > largest ? size : largest;
    }
    for (int offset = 16; offset > 0; offset /= 2) {
        const double other = __shfl_xor_sync(ALL_LANES, largest, offset);
        largest = other > largest ? other : largest;
    }
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = largest;
    if (__syncthreads_or(is_bad)) return double(INFINITY);
    for (int warp = 0; warp < THREADS / 32; warp++) largest = scratch[warp] > largest ? scratch[warp] : largest;
    return largest;
}

// The lower triangle of A·scale + σI becomes L diag(√pivots), the pivots on the diagonal. Returns whether it did.
__device__ inline bool factorise(const Problem& problem, double scale, double shift, double* factor) {
    const int n = problem.n, ld = leading(n), group = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    __syncthreads();
    for (int i = threadIdx.x; i < n * n; i += THREADS) {
        const int row = i / n, column = i % n;
        if (column > row) continue;
        const double half = 0.5 * scale;
        const double entry = half * double(problem.matrix[i]) + half * double(problem.matrix[column * n + row]);
        factor[row * ld + column] = entry + (row == column ? shift : 0.0);
    }
    __syncthreads();
    for (int k = 0; k < n; k++) {
        const double pivot = factor[k * ld + k];
        if (!(pivot > shift / 16)) return false;  // the same for all threads
        const double inverse = 1.0 / pivot;
        for (int row = k + 1 + group; row < n; row += THREADS / LANES) {
            const double multiple = factor[row * ld + k] * inverse;
            for (int column = k + 1 + lane; column <= row; column += LANES)
                factor[row * ld + column] -= multiple * factor[column * ld + k];
        }
        __syncthreads();
    }
    return true;
}

template <int R>
__device__ inline void load_column(double (&to)[R], const double* factor, int n, int column) {
    const bool there = column < n;
    const double inverse = there ? 1.0 / sqrt(factor[column * leading(n) + column]) : 0.0;
#pragma unroll
    for (int r = 0; r < R; r++) {
        const int row = threadIdx.x % LANES + r * LANES;
        to[r] = there && row >= column && row < n ? factor[row * leading(n) + column] * inverse : 0.0;
    }
}

template <int R>
__device__ inline void send(const double (&column)[R], double length, double* slot) {
    const int lane = threadIdx.x % LANES;
#pragma unroll
    for (int r = 0; r < R; r++) slot[lane + r * LANES] = column[r];
    if (lane == 0) slot[R * LANES] = length;
}

template <int R>
__device__ inline void receive(double (&column)[R], double& length, const double* slot) {
#pragma unroll
    for (int r = 0; r < R; r++) column[r] = slot[threadIdx.x % LANES + r * LANES];
    length = slot[R * LANES];
}

// Make two columns orthogonal and swap them, with their squared lengths. Returns whether this may have spoiled the
// orthogonality of other pairs: if the squared cosine, or the rotation's effect on squared cosines, exceeds `rough`.
template <int R>
__device__ inline bool rotate(double (&low)[R], double (&high)[R], double& length_low, double& length_high, int n) {
    const float rough = float(TOLERANCE) / float(n);  // squared
    const double twice = 2 * dot(low, high), gap = length_high - length_low;
    const float g = float(twice * FLOAT_SCALE), d = float(gap * FLOAT_SCALE);
    const float a = float(length_low * FLOAT_SCALE), b = float(length_high * FLOAT_SCALE);
    const float squared = g * g, product = 4 * a * b;
    double c = 1, s = 0;
    bool is_rough = false;
    if (squared > float(TOLERANCE) * float(TOLERANCE) * product) {
        const float hypotenuse = d * d + squared;
        const float along = fabsf(d) + hypotenuse * rsqrtf(hypotenuse);
        const float inverse = rsqrtf(along * along + squared);
        const float sine = (d < 0 ? -g : g) * inverse;
        c = along * inverse;
        s = sine;
        const double excess = c * c + (s * s - 1);
        const double correction = 1 + excess * (0.375 * excess - 0.5);  // 1/√(1 + excess)
        c *= correction;
        s *= correction;
        is_rough = squared > rough * product || sine * sine * fmaxf(a, b) > rough * fminf(a, b);
    }
    const double change = s * (s * gap - c * twice), length = length_low;
    length_low = length_high - change;
    length_high = length + change;
#pragma unroll
    for (int r = 0; r < R; r++) {
        const double p = low[r], q = high[r];
        low[r] = s * p + c * q;
        high[r] = c * p - s * q;
    }
    return is_rough;
}

// Sweeps over all pairs until they are orthogonal. Group g has columns 2g in `moving` and 2g + 1 in `staying`.
template <int R>
__device__ inline void orthogonalise(double (&moving)[R], double (&staying)[R], double* slots, int n) {
    const int group = threadIdx.x / LANES, groups = groups_of(n), size = slot_size(n);
    const bool is_mine = group < groups, is_busy = threadIdx.x / 32 * 32 / LANES < groups;
    double* const mine = slots + (is_mine ? group : 0) * size;
    double* const next = mine + size;
    for (int sweep = 0; sweep < MAX_SWEEPS; sweep++) {
        bool is_rough = false;
        double length_moving = dot(moving, moving), length_staying = dot(staying, staying);
        for (int round = 0; round <= groups; round++) {
            if (is_busy) is_rough |= rotate(moving, staying, length_moving, length_staying, n);
            if (is_mine) send(moving, length_moving, mine);
            __syncthreads();
            if (is_mine) receive(moving, length_moving, next);
            __syncwarp();  // all lanes have read before the slot is written again
            if (is_busy) is_rough |= rotate(staying, moving, length_staying, length_moving, n);
            if (is_mine) send(moving, length_moving, next);
            __syncthreads();
            if (is_mine) receive(moving, length_moving, mine);
            __syncwarp();
        }
        if (!__syncthreads_or(is_rough)) return;
    }
}

// Note a column's squared length; columns in excess come last.
template <int R>
__device__ inline void measure(const double (&column)[R], double* place, bool is_mine) {
    const double length = dot(column, column);
    if (is_mine && threadIdx.x % LANES == 0) *place = length > 0 ? length : double(INFINITY);
}

// Write a column as the eigenvector of its rank, with its eigenvalue.
template <int R>
__device__ inline void place_column(
    const double (&column)[R], int index, int n, double* arena, const Result& result) {
    const int n_columns = 2 * groups_of(n) + 1, lane = threadIdx.x % LANES;
    const double* lengths = arena + lengths_at(n);
    const double length = lengths[index], inverse = 1.0 / sqrt(length);
    int rank = 0;
    for (int other = 0; other < n_columns; other++)
        rank += lengths[other] < length || (lengths[other] == length && other < index);
    if (rank >= n) return;
#pragma unroll
    for (int r = 0; r < R; r++)
        if (lane + r * LANES < n) arena[(lane + r * LANES) * leading(n) + rank] = column[r] * inverse;
    const double value = (length - result.shift) / result.scale;
    if (lane == 0) result.values[rank] = real(value > 0 ? value : 0.0);
}

// From L on.
template <int R>
__device__ inline void decompose(int n, double* arena) {
    const int group = threadIdx.x / LANES, groups = groups_of(n);
    const bool is_mine = group < groups;
    double* const slots = arena + slots_at(n);
    double* const last = slots + groups * slot_size(n);  // the column that is in no pair at first
    double* const lengths = arena + lengths_at(n);
    double moving[R], staying[R];
    load_column(moving, arena, n, 2 * groups);
    double length = dot(moving, moving);
    if (group == 0) send(moving, length, last);
    load_column(moving, arena, n, is_mine ? 2 * group : n);
    load_column(staying, arena, n, is_mine ? 2 * group + 1 : n);
    orthogonalise(moving, staying, slots, n);
    measure(moving, lengths + 2 * group, is_mine);
    measure(staying, lengths + 2 * group + 1, is_mine);
    receive(moving, length, last);
    measure(moving, lengths + 2 * groups, group == 0);
    __syncthreads();
    const Result result = *reinterpret_cast<const Result*>(arena + scratch_at(n));
    if (group == 0) place_column(moving, 2 * groups, n, arena, result);
    if (is_mine) place_column(staying, 2 * group + 1, n, arena, result);
    receive(moving, length, is_mine ? slots + group * slot_size(n) : last);  // as it still stands there
    if (is_mine) place_column(moving, 2 * group, n, arena, result);
    __syncthreads();
    for (int i = threadIdx.x; i < n * n; i += THREADS) result.vectors[i] = real(arena[i / n * leading(n) + i % n]);
}

// Choose the decomposition by the rows that a thread holds of a column.
template <int R>
__device__ inline void decompose_rows(int n, double* arena) {
    if constexpr (R <= MAX_ROWS) {
        if constexpr ((ROWS_USED >> R) & 1)
            if ((n + LANES - 1) / LANES == R) return decompose<R>(n, arena);
        decompose_rows<R + 1>(n, arena);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) jacobi_eigen(MATRIX_PARAMETERS) {
    DYNAMIC_SHARED(memory);
    double* const arena = reinterpret_cast<double*>(memory);
    const Problem problem = PROBLEM;
    const int n = problem.n;
    const double largest = largest_entry(problem, arena + scratch_at(n));
    if (!(largest < double(INFINITY))) {  // ∞ − ∞ is NaN
        for (int i = threadIdx.x; i < n * n; i += THREADS) problem.vectors[i] = real(largest - largest);
        for (int i = threadIdx.x; i < n; i += THREADS) problem.values[i] = real(largest - largest);
        return;
    }
    int exponent, exponent_n;
    frexp(largest, &exponent);
    frexp(double(n), &exponent_n);
    exponent += exponent_n;
    const double scale = ldexp(1.0, largest > 0 ? (exponent > -1000 ? -exponent : 1000) : 0);
    double shift = SHIFT;
    while (!factorise(problem, scale, shift, arena)) shift *= 64;
    if (threadIdx.x == 0)
        *reinterpret_cast<Result*>(arena + scratch_at(n)) = Result{problem.values, problem.vectors, scale, shift};
    decompose_rows<1>(n, arena);
}
