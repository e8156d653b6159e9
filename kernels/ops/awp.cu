// Adversarial weight perturbation (Wu et al., NeurIPS 2020): the weights of each convolution and of the linear layer move along
// their gradient, by a share of their own norm.
//
//   v = gamma * |w| / (|g| + 1e-20) * g, w += v, the norms of whole tensors, in f64
//
// A block takes one row of a tensor: a filter, or a class. `awp_squares` sums the squares of each row; `awp_perturb` adds those of
// its tensor up, in every block the same way.

#include "portable/portable.h"

namespace secateur {

constexpr int AWP_THREADS = 128;
constexpr int MOST_TENSORS = 64;

/// A tensor as rows that lie one after the other.
struct AwpTensor {
    uint32_t first_row;  // among the rows of all tensors
    uint32_t rows;
    uint32_t row_length;
    uint32_t offset;  // of the first element in the arena
};

struct AwpArenas {
    Global<float> weights;
    Global<const float> gradients;
    Global<float> displacement;
    Global<double> squares;  // rows x {of weights, of gradients}
};

struct AwpParams {
    AwpArenas arenas;
    AwpTensor tensors[MOST_TENSORS];
    uint32_t count;
    float gamma;
};

struct AwpShared {
    double sums[AWP_THREADS / 32];
};

/// Which tensor a row belongs to.
DEVICE uint32_t tensor_of(const AwpParams& p, uint32_t row) {
    uint32_t t = 0;
    while (t + 1 < p.count && p.tensors[t + 1].first_row <= row) ++t;
    return t;
}

/// The element of the arena with which a row begins.
DEVICE int64_t row_start(const AwpTensor& tensor, uint32_t row) {
    return tensor.offset + int64_t(row - tensor.first_row) * tensor.row_length;
}

KERNEL(awp_squares, AwpParams, AWP_THREADS, AwpShared) {
    const AwpArenas& at = p.arenas;
    const uint32_t row = blockIdx.x;
    const AwpTensor& tensor = p.tensors[tensor_of(p, row)];
    const int64_t start = row_start(tensor, row);
    double of_weights = 0.0, of_gradients = 0.0;
    for (uint32_t i = threadIdx.x; i < tensor.row_length; i += AWP_THREADS) {
        const double w = at.weights[start + i], g = at.gradients[start + i];
        of_weights += w * w;
        of_gradients += g * g;
    }
    of_weights = block_sum<AWP_THREADS>(of_weights, shared.sums);
    of_gradients = block_sum<AWP_THREADS>(of_gradients, shared.sums);
    if (threadIdx.x == 0) store_vector(at.squares, int64_t(row) * 2, Double2{{of_weights, of_gradients}});
}

KERNEL(awp_perturb, AwpParams, AWP_THREADS, AwpShared) {
    const AwpArenas& at = p.arenas;
    const uint32_t row = blockIdx.x;
    const AwpTensor& tensor = p.tensors[tensor_of(p, row)];
    double of_weights = 0.0, of_gradients = 0.0;
    for (uint32_t r = threadIdx.x; r < tensor.rows; r += AWP_THREADS) {
        const Double2 squares = load_vector<Double2>(at.squares, int64_t(tensor.first_row + r) * 2);
        of_weights += squares.value[0];
        of_gradients += squares.value[1];
    }
    of_weights = block_sum<AWP_THREADS>(of_weights, shared.sums);
    of_gradients = block_sum<AWP_THREADS>(of_gradients, shared.sums);
    const double factor = double(p.gamma) * sqrt(of_weights) / (sqrt(of_gradients) + 1e-20);

    const int64_t start = row_start(tensor, row);
    for (uint32_t i = threadIdx.x; i < tensor.row_length; i += AWP_THREADS) {
        const float v = float(factor * double(at.gradients[start + i]));
        at.displacement[start + i] = v;
        at.weights[start + i] += v;
    }
}

}  // namespace secateur
