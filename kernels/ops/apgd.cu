// APGD: the step that updates each image's state and moves it.
//
// A block takes one image, a thread twelve of its 3,072 elements. Every thread reads the image's state and comes to the same
// decisions; the first one writes it after a barrier. Formulas: src/ops/apgd.rs. Products are rounded by themselves, so
// the points have the same bits on every device.

#include "portable/portable.h"

namespace secateur {

constexpr uint32_t APGD_THREADS = 256;
constexpr uint32_t IMAGE_QUADS = 32 * 32 * 3 / 4;
constexpr int QUADS_PER_THREAD = IMAGE_QUADS / APGD_THREADS;
static_assert(IMAGE_QUADS % APGD_THREADS == 0, "every thread takes as many elements");

/// First element of quad `i` of this thread.
DEVICE int64_t quad_of(int i) {
    return (int64_t(blockIdx.x) * IMAGE_QUADS + uint32_t(i) * APGD_THREADS + threadIdx.x) * 4;
}

enum ApgdPhase : uint32_t { FIRST = 0, WITHIN = 1, LAST = 2 };

struct ApgdStepParams {
    Global<const float> images;          // batch x 3072
    Global<const uint32_t> labels;       // batch, as all up to the images below
    Global<const float> losses;
    Global<const uint32_t> predictions;
    Global<float> step_size;
    Global<float> best_loss;
    Global<float> checked_loss;
    Global<float> last_loss;
    Global<uint32_t> increases;
    Global<uint32_t> halved;
    Global<uint32_t> broken;
    Global<const float> gradient;        // batch x 3072
    Global<float> perturbed;
    Global<float> previous;
    Global<float> best;
    Global<float> best_gradient;
    Global<float> adversarial;
    float epsilon;
    uint32_t phase;
    uint32_t window;  // of the checkpoint; 0 for none
    uint32_t padding;
};

struct ApgdMove {
    float epsilon;
    float size;
    bool first;

    DEVICE float project(float moved, float x) const {
        return fminf(fmaxf(fminf(fmaxf(moved, x - epsilon), x + epsilon), 0.0f), 1.0f);
    }
    DEVICE float operator()(float x, float point, float gradient, float previous) const {
        const float sign = float(gradient > 0.0f) - float(gradient < 0.0f);
        const float target = project(point + product(size, sign), x);
        const float pull = product(target - point, first ? 1.0f : 0.75f);
        const float momentum = product(point - previous, first ? 0.0f : 0.25f);
        return project(point + pull + momentum, x);
    }
};

/// Ends the attack: the moved image becomes the last wrongly predicted one.
DEVICE void apgd_last(const ApgdStepParams& p, bool wrong) {
    const bool broken = p.broken[blockIdx.x] != 0;
    syncthreads();
    if (threadIdx.x == 0 && wrong) p.broken[blockIdx.x] = 1;
    if (wrong || !broken) return;
#pragma unroll
    for (int i = 0; i < QUADS_PER_THREAD; ++i) {
        store_vector(p.perturbed, quad_of(i), load_vector<Float4>(p.adversarial, quad_of(i)));
    }
}

KERNEL(apgd_step, ApgdStepParams, 256, NoShared) {
    const uint32_t n = blockIdx.x;
    const bool wrong = p.predictions[n] != p.labels[n];
    if (p.phase == LAST) {
        apgd_last(p, wrong);
        return;
    }
    const bool first = p.phase == FIRST;
    const float loss = p.losses[n];
    const bool improved = first || loss > p.best_loss[n];
    const float best_loss = improved ? loss : p.best_loss[n];
    float checked_loss = first ? loss : p.checked_loss[n];
    // The start's own loss is not one of the iterations.
    const float last_loss = first ? 0.0f : loss;
    uint32_t increases = first ? 0 : p.increases[n] + uint32_t(loss > p.last_loss[n]);
    bool halved = first || p.halved[n] != 0;
    float size = first ? 2.0f * p.epsilon : p.step_size[n];
    bool back = false;
    if (p.window > 0) {
        const bool stuck = !halved && checked_loss >= best_loss;
        back = halved = float(increases) <= 0.75f * float(p.window) || stuck;
        checked_loss = best_loss;
        increases = 0;
        if (back) size *= 0.5f;
    }
    const bool broken = wrong || (!first && p.broken[n] != 0);
    syncthreads();
    if (threadIdx.x == 0) {
        p.step_size[n] = size;
        p.best_loss[n] = best_loss;
        p.checked_loss[n] = checked_loss;
        p.last_loss[n] = last_loss;
        p.increases[n] = increases;
        p.halved[n] = halved;
        p.broken[n] = broken;
    }

    const ApgdMove move{p.epsilon, size, first};
#pragma unroll
    for (int i = 0; i < QUADS_PER_THREAD; ++i) {
        const int64_t at = quad_of(i);
        const Float4 x = load_vector<Float4>(p.images, at);
        Float4 point = load_vector<Float4>(p.perturbed, at), gradient = load_vector<Float4>(p.gradient, at);
        if (wrong) store_vector(p.adversarial, at, point);
        if (improved) {
            store_vector(p.best, at, point);
            store_vector(p.best_gradient, at, gradient);
        } else if (back) {
            point = load_vector<Float4>(p.best, at);
            gradient = load_vector<Float4>(p.best_gradient, at);
        }
        const Float4 previous = first ? point : load_vector<Float4>(p.previous, at);
        store_vector(p.previous, at, point);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            point.value[k] = move(x.value[k], point.value[k], gradient.value[k], previous.value[k]);
        }
        store_vector(p.perturbed, at, point);
    }
}

}  // namespace secateur
