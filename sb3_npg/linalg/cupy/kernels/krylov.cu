// The vector part of conjugate gradient on (A + σI) x = b, with the products A p computed elsewhere. Scalars stay on
// the device: after convergence, or a direction without positive curvature, further steps change nothing.
//
// settings: σ, rtol. state: 0 steps, 1 those that succeeded, 2 ‖r‖², 3 ‖b‖², then α and β of each step, in the layout
// that chain_cg leaves; after them the target for ‖r‖², rᵀz, the last β, and whether the solve still runs.
//
// Defined by the host: THREADS.

enum { STEPS, TAKEN, SQUARED_RESIDUAL, SQUARED_RIGHT, COEFFICIENTS };
enum { TARGET, INNER, IMPROVEMENT, RUNNING };

__device__ inline real* behind(real* state, int max_steps) { return state + COEFFICIENTS + 2 * max_steps; }

// Sum over the grid, in a fixed order. `partial` holds a number for each block, and is not used again in a launch.
__device__ inline real grid_sum(real value, real* scratch, real* partial, unsigned long long* barrier) {
    value = block_sum(value, scratch);
    if (gridDim.x == 1) return value;
    if (threadIdx.x == 0) partial[blockIdx.x] = value;
    grid_barrier(barrier);
    real total = 0;
    for (int block = 0; block < int(gridDim.x); block++) total += __ldcg(partial + block);
    return total;
}

#define FOR_EACH(i, n) for (int i = blockIdx.x * THREADS + threadIdx.x; i < n; i += gridDim.x * THREADS)

extern "C" __global__ void __launch_bounds__(THREADS, 1) cg_begin(
    const int n, const int max_steps, const real tiny, const real* settings, const real* right, const real* reference,
    real* x, real* product, real* residual, real* direction, real* state, real* partial, unsigned long long* barrier) {
    DYNAMIC_SHARED(scratch);
    real squared = 0, squared_reference = 0;
    FOR_EACH(i, n) {
        const real value = right[i], other = reference[i];
        residual[i] = value;
        x[i] = product[i] = direction[i] = 0;
        squared += value * value;
        squared_reference += other * other;
    }
    squared = grid_sum(squared, scratch, partial, barrier);
    squared_reference = grid_sum(squared_reference, scratch, partial + gridDim.x, barrier);
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        const real rtol = settings[1], target = rtol * rtol * squared_reference;
        real* more = behind(state, max_steps);
        state[STEPS] = state[TAKEN] = 0;
        state[SQUARED_RESIDUAL] = squared;
        state[SQUARED_RIGHT] = squared_reference;
        more[TARGET] = target > tiny ? target : tiny;
        more[INNER] = INFINITY;
        more[IMPROVEMENT] = 0;
        more[RUNNING] = squared > more[TARGET];
    }
}

// p ← z + (rᵀz / previous rᵀz) p.
extern "C" __global__ void __launch_bounds__(THREADS, 1) cg_direction(
    const int n, const int max_steps, const real* residual, const real* preconditioned, real* direction, real* state,
    real* partial, unsigned long long* barrier) {
    DYNAMIC_SHARED(scratch);
    real* more = behind(state, max_steps);
    if (more[RUNNING] == 0) return;
    const real before = more[INNER];
    real inner = 0;
    FOR_EACH(i, n) inner += residual[i] * preconditioned[i];
    inner = grid_sum(inner, scratch, partial, barrier);
    const real improvement = inner / before;
    FOR_EACH(i, n) direction[i] = direction[i] * improvement + preconditioned[i];
    if (gridDim.x == 1) __syncthreads();  // all have read the state
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        more[INNER] = inner;
        more[IMPROVEMENT] = improvement;
    }
}

// x ← x + αp, Ax ← Ax + αAp, r ← r − α(A + σI)p.
extern "C" __global__ void __launch_bounds__(THREADS, 1) cg_step(
    const int n, const int max_steps, const real* settings, const real* direction, const real* moved, real* x,
    real* product, real* residual, real* state, real* partial, unsigned long long* barrier) {
    DYNAMIC_SHARED(scratch);
    real* more = behind(state, max_steps);
    if (more[RUNNING] == 0) return;
    const real shift = settings[0], inner = more[INNER], target = more[TARGET], improvement = more[IMPROVEMENT];
    const int steps = int(state[STEPS]), taken = int(state[TAKEN]);
    real curvature = 0;
    FOR_EACH(i, n) curvature += direction[i] * (moved[i] + shift * direction[i]);
    curvature = grid_sum(curvature, scratch, partial, barrier);
    const bool good = is_positive(curvature) && is_positive(inner);
    const real length = good ? inner / curvature : real(0);
    real squared = 0;
    if (good) FOR_EACH(i, n) {
        const real p = direction[i], q = moved[i], value = residual[i] - length * q - length * shift * p;
        x[i] += length * p;
        product[i] += length * q;
        residual[i] = value;
        squared += value * value;
    }
    squared = grid_sum(squared, scratch, partial + gridDim.x, barrier);
    if (gridDim.x == 1) __syncthreads();
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        state[STEPS] = real(steps + 1);
        if (good) {
            state[TAKEN] = real(taken + 1);
            state[COEFFICIENTS + 2 * taken] = length;
            state[COEFFICIENTS + 1 + 2 * taken] = improvement;
            state[SQUARED_RESIDUAL] = squared;
        }
        more[RUNNING] = good && steps + 1 < max_steps && squared > target;
    }
}
