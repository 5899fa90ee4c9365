// What all kernels share. `real` is float or double; an emulator can define its own DYNAMIC_SHARED.
#ifndef REAL
#define REAL float
#endif
#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(name)                                   \
    extern __shared__ __align__(16) unsigned char name##_raw[]; \
    real* const name = reinterpret_cast<real*>(name##_raw)
#endif

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif

typedef REAL real;
struct __align__(16) real4 {
    real x, y, z, w;
};

constexpr unsigned ALL_LANES = 0xffffffffu;

__host__ __device__ constexpr int rounded_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

// Length of a row of n numbers, such that consecutive rows of 4-vectors lie in different banks of shared memory.
__host__ __device__ constexpr int row_stride(int n) { return 4 * ((n + 3) / 4 + ((n + 3) / 4 + 1) % 2); }

__device__ inline real4 load4(const real* p) { return *reinterpret_cast<const real4*>(p); }

__device__ inline real4 add4(real4 a, real4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

// Load what other blocks wrote in this launch, bypassing the L1 cache.
template <class T>
__device__ inline real4 load4_of_blocks(const T* p) {
    if constexpr (sizeof(T) == 4) {
        const float4 found = __ldcg(reinterpret_cast<const float4*>(p));
        return {found.x, found.y, found.z, found.w};
    } else {
        const double2 first = __ldcg(reinterpret_cast<const double2*>(p));
        const double2 second = __ldcg(reinterpret_cast<const double2*>(p + 2));
        return {first.x, first.y, second.x, second.y};
    }
}

__device__ inline void store4(real* p, real4 value) { *reinterpret_cast<real4*>(p) = value; }

__device__ inline real dot4(real4 a, real4 b, real sum) {
    return sum + a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

__device__ inline bool is_positive(real value) { return value > real(0) && value < real(INFINITY); }

__device__ inline real warp_sum(real value) {
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(ALL_LANES, value, offset);
    return value;
}

// Sum over the block, in a fixed order; every thread gets the sum. `scratch` holds a number for each warp.
__device__ inline real block_sum(real value, real* scratch) {
    value = warp_sum(value);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    const int lane = threadIdx.x % 32;
    return warp_sum(lane < int(blockDim.x) / 32 ? scratch[lane] : real(0));
}

#ifndef EMULATED
__device__ inline unsigned long long arrive(unsigned long long* counter) {
    unsigned long long before;
    asm volatile("atom.add.release.gpu.global.u64 %0, [%1], 1;" : "=l"(before) : "l"(counter) : "memory");
    return before;
}

__device__ inline unsigned long long arrived(const unsigned long long* counter) {
    unsigned long long count;
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(count) : "l"(counter) : "memory");
    return count;
}
#endif

// Wait for all blocks of the grid, which must all be resident. The counter only grows and belongs to one grid size.
__device__ inline void grid_barrier(unsigned long long* counter) {
    __syncthreads();
    if (threadIdx.x == 0) {
        const unsigned long long goal = (arrive(counter) / gridDim.x + 1) * gridDim.x;
        while (arrived(counter) < goal) {
        }
    }
    __syncthreads();
}
