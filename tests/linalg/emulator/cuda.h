// What a kernel finds in the place of CUDA when the machine's C++ compiler compiles it, with a call at every access to
// memory (-fsanitize, of which only the calls are used). threads.cpp answers them all.
#pragma once
#define EMULATED
#define UNCHECKED __attribute__((no_sanitize("thread", "alignment")))
#include <cmath>
#include <cstddef>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __forceinline__ inline

struct __align__(16) float4 {
    float x, y, z, w;
};
struct __align__(16) double2 {
    double x, y;
};

extern "C" {
unsigned emulated_thread();
unsigned emulated_block();
unsigned emulated_threads();
unsigned emulated_blocks();
void* emulated_shared_memory();
void emulated_block_barrier(int line);
bool emulated_block_barrier_or(bool mine, int line);
void emulated_warp_barrier(int line);
double emulated_exchange(double mine, int lane, int line);
void emulated_multiply_add(float* c, const unsigned* a, const unsigned* b, int line);
unsigned long long emulated_arrive(unsigned long long* counter);
unsigned long long emulated_arrived(const unsigned long long* counter);
}

namespace emulated {
struct Index {
    unsigned x;
};
template <class T>
T exchanged(T mine, int lane, int line) {
    return T(emulated_exchange(double(mine), lane, line));
}
}  // namespace emulated

#define threadIdx (emulated::Index{emulated_thread()})
#define blockIdx (emulated::Index{emulated_block()})
#define blockDim (emulated::Index{emulated_threads()})
#define gridDim (emulated::Index{emulated_blocks()})
#define DYNAMIC_SHARED(name) real* const name = static_cast<real*>(emulated_shared_memory())
#define __syncthreads() emulated_block_barrier(__LINE__)
#define __syncthreads_or(mine) emulated_block_barrier_or(mine, __LINE__)
#define __syncwarp() emulated_warp_barrier(__LINE__)
#define __shfl_sync(mask, mine, lane) emulated::exchanged(mine, lane, __LINE__)
#define __shfl_xor_sync(mask, mine, bits) emulated::exchanged(mine, int(threadIdx.x % 32) ^ (bits), __LINE__)
#define multiply_add(c, a, b) emulated_multiply_add(c, a, b, __LINE__)

inline unsigned long long arrive(unsigned long long* counter) { return emulated_arrive(counter); }
inline unsigned long long arrived(const unsigned long long* counter) { return emulated_arrived(counter); }
inline float rsqrtf(float value) { return 1.0000002f / std::sqrt(value); }  // no more accurate than a GPU's
template <class T>
T __ldcg(const T* place) {
    return *place;
}
inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
