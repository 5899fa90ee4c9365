// How a multilayer perceptron and a tile of its rollout lie in shared memory.
//
// Vectors have a padded layout, layer after layer: the weight as rows of stride_of(l) numbers, then the bias; the
// noise's parameters come last. `place` tells where each number lies in θ, −1 for padding and what is not trained.
//
// Defined by the host: THREADS; TILE, rows at a time; LAYERS, and for each layer l INPUTS, OUTPUTS, ACTIVATIONS as lists,
// LAYER_PARAMETERS and LAYER_POINTERS; STRIDES, the lengths of rows of each layer's inputs and of the outputs, in whole
// pieces of 8 columns or more; GROUPS, the sizes of categoricals (0: the metric is diagonal); NOISE_GROUPS × NOISE_SIZE,
// the blocks of the noise (0: none); SCALED, whether S is not the identity; EXPECTED_PADDED, EXPECTED_SHARED.

constexpr int N_INPUTS[] = {INPUTS};
constexpr int N_OUTPUTS[] = {OUTPUTS};
constexpr int SLOPES[] = {ACTIVATIONS};
constexpr int GROUP_SIZES[] = {GROUPS};
constexpr int N_GROUPS = sizeof(GROUP_SIZES) / sizeof(int);
constexpr int ROW_STRIDES[] = {STRIDES};
constexpr int WARPS = THREADS / 32;
enum { NO_SLOPE, GIVEN_SLOPE, TANH_SLOPE };  // the last is 1 − a² of the next layer's inputs

struct Layer {
    const real* inputs;  // a, N rows
    const real* slope;   // φ'(s), N rows
    const real* weight;  // W
};

__host__ __device__ constexpr int stride_of(int l) { return ROW_STRIDES[l]; }
__host__ __device__ constexpr int size_of(int l) { return rounded_up(N_OUTPUTS[l] * stride_of(l) + N_OUTPUTS[l], 4); }
__host__ __device__ constexpr int offset_of(int l) { return l == 0 ? 0 : offset_of(l - 1) + size_of(l - 1); }
constexpr int NOISE_AT = offset_of(LAYERS);
constexpr int PADDED = rounded_up(NOISE_AT + NOISE_GROUPS * NOISE_SIZE, 4);

// Tiles of shared memory, in numbers.
__host__ __device__ constexpr int weight_at(int l) {
    return l <= 1 ? 0 : weight_at(l - 1) + rounded_up(N_OUTPUTS[l - 1], 8) * stride_of(l - 1);
}
__host__ __device__ constexpr int inputs_at(int l) { return l == 0 ? 0 : inputs_at(l - 1) + TILE * stride_of(l - 1); }
__host__ __device__ constexpr int larger(int a, int b) { return a > b ? a : b; }
__host__ __device__ constexpr int widest(int l) { return l == 0 ? 0 : larger(stride_of(l), widest(l - 1)); }
constexpr int SPARE = 16 * widest(LAYERS);  // read past the end of a matrix; the values do not matter

// Copy rows of a matrix from device memory; what lies outside it is zero.
template <int COLUMNS, int STRIDE>
__device__ inline void load_rows(real* to, const real* from, int n_to, int first, int n_from) {
    if constexpr (COLUMNS % 4 == 0) {
        constexpr int across = STRIDE / 4;
#pragma unroll 4
        for (int i = threadIdx.x; i < n_to * across; i += THREADS) {
            const int row = first + i / across, column = i % across * 4;
            const bool there = column < COLUMNS && row < n_from;
            store4(to + 4 * i, there ? load4(from + size_t(row) * COLUMNS + column) : real4{});
        }
    } else {
#pragma unroll 4
        for (int i = threadIdx.x; i < n_to * STRIDE; i += THREADS) {
            const int row = first + i / STRIDE, column = i % STRIDE;
            const bool there = column < COLUMNS && row < n_from;
            to[i] = there ? from[size_t(row) * COLUMNS + column] : real(0);
        }
    }
}

template <int l>
__device__ inline void load_weights(const Layer* layers, real* weights) {
    if constexpr (l < LAYERS) {
        if constexpr (l > 0) {
            constexpr int columns = N_INPUTS[l], outputs = N_OUTPUTS[l];
            load_rows<columns, stride_of(l)>(
                weights + weight_at(l), layers[l].weight, rounded_up(outputs, 8), 0, outputs);
        }
        load_weights<l + 1>(layers, weights);
    }
}
