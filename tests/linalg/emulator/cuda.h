// A GPU for tests: runs a CUDA kernel on one core of the CPU, thread by thread. Every thread is a coroutine that goes on
// until it waits for others: at a barrier of its block, for the lanes of its warp, or for other blocks. They take turns from
// the first to the last or backwards: where a barrier is missing the two differ.
#pragma once
#define EMULATED
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __forceinline__ inline

struct float4 {
    float x, y, z, w;
};
struct double2 {
    double x, y;
};
struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

namespace emulated {

struct Barrier {
    int expected = 0, arrived = 0, generation = 0;
};

struct Warp {
    Barrier barrier;
    double given[32];
    unsigned left[32][4], right[32][2];
};

struct Block {
    std::vector<unsigned char> memory;
    Barrier barrier;
    bool is_any = false;
    std::vector<Warp> warps;
};

struct Thread {
    ucontext_t context;
    std::unique_ptr<unsigned char[]> stack;
    dim3 thread, block;
    Block* home;
    bool done = false;
};

inline ucontext_t scheduler;
inline std::vector<std::unique_ptr<Thread>> threads;
inline Thread* current = nullptr;
inline std::function<void()> kernel;
inline dim3 block_size, grid_size;

inline void yield() { swapcontext(&current->context, &scheduler); }

inline void wait(Barrier& barrier) {
    const int generation = barrier.generation;
    if (++barrier.arrived == barrier.expected) {
        barrier.arrived = 0;
        barrier.generation++;
    } else {
        while (barrier.generation == generation) yield();
    }
}

inline Warp& warp() { return current->home->warps[current->thread.x / 32]; }

template <class T>
T exchanged(T value, int source) {
    Warp& mine = warp();
    mine.given[current->thread.x % 32] = double(value);
    wait(mine.barrier);
    const T result = T(mine.given[source]);
    wait(mine.barrier);
    return result;
}

inline void enter() {
    kernel();
    current->done = true;
    yield();
}

// Run a kernel of one-dimensional blocks to its end. Shared memory begins with what nobody wrote.
inline void launch(
    unsigned n_blocks, unsigned n_threads, size_t n_bytes, bool backwards, std::function<void()> body) {
    kernel = std::move(body);
    grid_size.x = n_blocks;
    block_size.x = n_threads;
    std::vector<Block> blocks(n_blocks);
    threads.clear();
    for (unsigned b = 0; b < n_blocks; b++) {
        blocks[b].memory.assign(n_bytes + 64, 0xff);
        blocks[b].barrier.expected = n_threads;
        blocks[b].warps.resize((n_threads + 31) / 32);
        for (auto& warp : blocks[b].warps) warp.barrier.expected = 32;
        for (unsigned t = 0; t < n_threads; t++) {
            auto thread = std::make_unique<Thread>();
            thread->stack.reset(new unsigned char[1 << 16]);
            thread->thread.x = t;
            thread->block.x = b;
            thread->thread.y = thread->thread.z = thread->block.y = thread->block.z = 0;
            thread->home = &blocks[b];
            getcontext(&thread->context);
            thread->context.uc_stack.ss_sp = thread->stack.get();
            thread->context.uc_stack.ss_size = 1 << 16;
            thread->context.uc_link = &scheduler;
            makecontext(&thread->context, enter, 0);
            threads.push_back(std::move(thread));
        }
    }
    if (backwards) std::reverse(threads.begin(), threads.end());
    for (size_t left = threads.size(); left > 0;)
        for (auto& thread : threads)
            if (!thread->done) {
                current = thread.get();
                swapcontext(&scheduler, &thread->context);
                if (thread->done) left--;
            }
    threads.clear();
}

inline void* shared_memory() {
    const auto address = reinterpret_cast<size_t>(current->home->memory.data());
    return reinterpret_cast<void*>((address + 31) / 32 * 32);
}

}  // namespace emulated

#define threadIdx (emulated::current->thread)
#define blockIdx (emulated::current->block)
#define blockDim (emulated::block_size)
#define gridDim (emulated::grid_size)
#define DYNAMIC_SHARED(name) real* const name = static_cast<real*>(emulated::shared_memory())

inline void __syncthreads() { emulated::wait(emulated::current->home->barrier); }
inline int __syncthreads_or(int predicate) {
    emulated::Block& block = *emulated::current->home;
    if (predicate) block.is_any = true;
    emulated::wait(block.barrier);
    const bool result = block.is_any;
    emulated::wait(block.barrier);
    block.is_any = false;
    emulated::wait(block.barrier);
    return result;
}
inline void __syncwarp() { emulated::wait(emulated::warp().barrier); }
inline float rsqrtf(float value) { return 1.0000002f / std::sqrt(value); }  // no more accurate than a GPU's
inline unsigned long long arrive(unsigned long long* counter) { return (*counter)++; }
inline unsigned long long arrived(const unsigned long long* counter) {
    emulated::yield();
    return *counter;
}
template <class T>
T __ldcg(const T* place) {
    return *place;
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return emulated::exchanged(value, (threadIdx.x % 32) ^ mask);
}
template <class T>
T __shfl_sync(unsigned, T value, int source) {
    return emulated::exchanged(value, source);
}

// Tensor cores: the first 11 bits of floats, and m16n8k8 as PTX lays it out over the lanes.
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
inline float as_read(unsigned bits) { return __uint_as_float(bits & 0xffffe000u); }
inline void multiply_add(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    emulated::Warp& warp = emulated::warp();
    const int lane = threadIdx.x % 32;
    for (int i = 0; i < 4; i++) warp.left[lane][i] = a[i];
    for (int i = 0; i < 2; i++) warp.right[lane][i] = b[i];
    emulated::wait(warp.barrier);
    for (int i = 0; i < 4; i++) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 8; k++) {
            const float left = as_read(warp.left[row % 8 * 4 + k % 4][row / 8 + k / 4 * 2]);
            c[i] += left * as_read(warp.right[column * 4 + k % 4][k / 4]);
        }
    }
    emulated::wait(warp.barrier);
}
