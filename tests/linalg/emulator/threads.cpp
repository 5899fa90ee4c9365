// A GPU for tests: runs a CUDA kernel on one core of the CPU, thread by thread. Every thread is a coroutine that goes on
// until it waits for others: at a barrier of its block, for the lanes of its warp, or for other blocks.
#include <ucontext.h>

#include <cmath>
#include <cstring>
#include <memory>

#include "memory.h"

namespace {

struct Barrier {
    int expected = 0, arrived = 0, line = 0;
    unsigned passed = 0;
};

struct Warp {
    Barrier barrier, exchange;  // an exchange between lanes orders no accesses to memory
    double given[32];
    unsigned left[32][4], right[32][2];
};

struct Block {
    std::vector<unsigned char> memory;
    std::unique_ptr<Piece> shared;
    Barrier barrier;
    bool is_any = false, is_at_grid_barrier = false;
    unsigned grid_barriers = 0;
    std::vector<Warp> warps;
};

constexpr size_t STACK = 1 << 17;

struct Thread {
    ucontext_t context;
    std::unique_ptr<unsigned char[]> stack{new unsigned char[STACK]};
    unsigned index, block;
    Block* home;
    bool done = false;

    Warp& warp() const { return home->warps[index / 32]; }
    bool owns(size_t address) const { return address - reinterpret_cast<size_t>(stack.get()) < STACK; }
    Access now() const {
        return {int(block), int(index / 32), int(index), home->grid_barriers, home->barrier.passed, warp().barrier.passed};
    }
};

struct Launch {
    void (*kernel)(void**);
    void** arguments;
    unsigned n_blocks, n_threads;
    Image image;
    std::vector<Piece> tensors;
    std::vector<Block> blocks;
    std::vector<std::unique_ptr<Thread>> threads;
};

Report report;
std::unique_ptr<Launch> launched;
ucontext_t scheduler;
Thread* current = nullptr;
bool is_progress = false;

void yield() { swapcontext(&current->context, &scheduler); }

void wait(Barrier& barrier, int line) {
    if (barrier.arrived == 0) barrier.line = line;
    if (barrier.line != line)
        report.add("threads meet at a barrier from lines " + std::to_string(barrier.line) + " and " + std::to_string(line));
    is_progress = true;
    const unsigned passed = barrier.passed;
    if (++barrier.arrived == barrier.expected) {
        barrier.arrived = 0;
        barrier.passed++;
    } else {
        while (barrier.passed == passed) yield();
    }
}

void wait_for_block(int line) {
    Block& home = *current->home;
    if (home.is_at_grid_barrier && home.barrier.arrived + 1 == home.barrier.expected) {
        home.is_at_grid_barrier = false;
        home.grid_barriers++;
    }
    wait(home.barrier, line);
}

// Where in its library an instruction lies that calls from the address before ``code``.
size_t place_of(const void* code) { return reinterpret_cast<size_t>(code) - 1 - launched->image.begin; }

void access(const void* place, size_t size, bool writes, const void* code) {
    const auto address = reinterpret_cast<size_t>(place), from = place_of(code);
    if (current->owns(address)) return;
    Piece& shared = *current->home->shared;
    if (shared.holds(address)) return shared.touch(address, size, writes, current->now(), from, report);
    for (Piece& tensor : launched->tensors)
        if (tensor.holds(address)) return tensor.touch(address, size, writes, current->now(), from, report);
    if (writes || !launched->image.holds(address)) report.add("access outside of all memory", from);
}

void enter() {
    launched->kernel(launched->arguments);
    current->done = is_progress = true;
    yield();
}

// Shared memory begins with NaNs, at an address that is a multiple of 16 and no more.
void prepare(Block& block, size_t n_bytes, unsigned n_threads) {
    block.memory.assign(n_bytes + 64, 0xff);
    const auto begin = (reinterpret_cast<size_t>(block.memory.data()) + 31) / 32 * 32 + 16;
    block.shared = std::make_unique<Piece>(begin, n_bytes, "shared memory", false);
    block.barrier.expected = n_threads;
    block.warps.resize(n_threads / 32);
    for (Warp& warp : block.warps) warp.barrier.expected = warp.exchange.expected = 32;
}

std::unique_ptr<Thread> make_thread(unsigned index, unsigned block, Block& home) {
    auto thread = std::make_unique<Thread>();
    thread->index = index;
    thread->block = block;
    thread->home = &home;
    getcontext(&thread->context);
    thread->context.uc_stack.ss_sp = thread->stack.get();
    thread->context.uc_stack.ss_size = STACK;
    thread->context.uc_link = &scheduler;
    makecontext(&thread->context, enter, 0);
    return thread;
}

// Let the threads take turns until all are done, or all of the rest wait for one another.
void run_all() {
    size_t left = launched->threads.size();
    for (int idle = 0; left > 0; idle = is_progress ? 0 : idle + 1) {
        if (idle > 2) return report.add(std::to_string(left) + " threads wait for ever");
        is_progress = false;
        for (auto& thread : launched->threads)
            if (!thread->done) {
                current = thread.get();
                swapcontext(&scheduler, &thread->context);
                left -= thread->done;
            }
        current = nullptr;
    }
}

float as_read(unsigned bits) {  // the first 11 bits of its significand
    bits &= 0xffffe000u;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

}  // namespace

extern "C" {

// A tensor that a kernel gets: where it is, and whether the kernel promises to leave it as it is.
struct Tensor {
    size_t begin, n_bytes;
    int argument;
    bool is_constant;
};

// Run a kernel of one-dimensional blocks to its end, and return what is wrong with it, line by line.
const char* emulated_launch(void (*kernel)(void**), void** arguments, unsigned n_blocks, unsigned n_threads,
                            size_t n_bytes, const Tensor* tensors, int n_tensors) {
    static std::string found;
    report = Report();
    launched.reset(new Launch{kernel, arguments, n_blocks, n_threads, Image(reinterpret_cast<void*>(kernel)), {}, {}, {}});
    for (int i = 0; i < n_tensors; i++)
        launched->tensors.emplace_back(tensors[i].begin, tensors[i].n_bytes,
                                       "argument " + std::to_string(tensors[i].argument), tensors[i].is_constant);
    launched->blocks.resize(n_blocks);
    for (unsigned b = 0; b < n_blocks; b++) {
        prepare(launched->blocks[b], n_bytes, n_threads);
        for (unsigned t = 0; t < n_threads; t++) launched->threads.push_back(make_thread(t, b, launched->blocks[b]));
    }
    run_all();
    launched.reset();
    found = report.text();
    return found.c_str();
}

unsigned emulated_thread() { return current->index; }
unsigned emulated_block() { return current->block; }
unsigned emulated_threads() { return launched->n_threads; }
unsigned emulated_blocks() { return launched->n_blocks; }
void* emulated_shared_memory() { return reinterpret_cast<void*>(current->home->shared->begin); }

void emulated_block_barrier(int line) { wait_for_block(line); }
bool emulated_block_barrier_or(bool mine, int line) {
    Block& home = *current->home;
    home.is_any |= mine;
    wait_for_block(line);
    const bool is_any = home.is_any;
    wait_for_block(line);
    home.is_any = false;
    wait_for_block(line);
    return is_any;
}
void emulated_warp_barrier(int line) { wait(current->warp().barrier, line); }

double emulated_exchange(double mine, int lane, int line) {
    Warp& warp = current->warp();
    warp.given[current->index % 32] = mine;
    wait(warp.exchange, line);
    const double found = warp.given[lane];
    wait(warp.exchange, line);
    return found;
}

// m16n8k8 of tensor cores, as PTX lays it out over the lanes.
void emulated_multiply_add(float* c, const unsigned* a, const unsigned* b, int line) {
    Warp& warp = current->warp();
    const int lane = current->index % 32;
    std::copy(a, a + 4, warp.left[lane]);
    std::copy(b, b + 2, warp.right[lane]);
    wait(warp.exchange, line);
    for (int i = 0; i < 4; i++) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 8; k++) {
            const float left = as_read(warp.left[row % 8 * 4 + k % 4][row / 8 + k / 4 * 2]);
            c[i] += left * as_read(warp.right[column * 4 + k % 4][k / 4]);
        }
    }
    wait(warp.exchange, line);
}

unsigned long long emulated_arrive(unsigned long long* counter) {
    current->home->is_at_grid_barrier = is_progress = true;
    return (*counter)++;
}
unsigned long long emulated_arrived(const unsigned long long* counter) {
    yield();
    return *counter;
}

#define CODE __builtin_return_address(0)
#define ACCESSES(size)                                                                   \
    void __tsan_read##size(void* place) { access(place, size, false, CODE); }            \
    void __tsan_write##size(void* place) { access(place, size, true, CODE); }            \
    void __tsan_unaligned_read##size(void* place) { access(place, size, false, CODE); }  \
    void __tsan_unaligned_write##size(void* place) { access(place, size, true, CODE); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* place, size_t size) { access(place, size, false, CODE); }
void __tsan_write_range(void* place, size_t size) { access(place, size, true, CODE); }
void __ubsan_handle_type_mismatch_v1(void*, void*) { report.add("misaligned access", place_of(CODE)); }
void __ubsan_handle_out_of_bounds(void*, void*) { report.add("access outside of an array", place_of(CODE)); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

}  // extern "C"
