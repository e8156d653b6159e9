// Mean and variance of two sets of numbers together, by Chan, Golub and LeVeque's update ("Updating formulae and a
// pairwise algorithm for computing sample variances", 1979).
#pragma once

#include "portable/portable.h"

namespace secateur {

/// Count, mean and sum of squared differences from the mean.
struct Moments {
    float count;
    float mean;
    float squares;
};

DEVICE Moments merged(const Moments& a, const Moments& b) {
    const float count = a.count + b.count;
    if (b.count == 0.0f) return a;
    const float difference = b.mean - a.mean;
    const float share = b.count / count;
    return {count, a.mean + difference * share, a.squares + b.squares + difference * difference * a.count * share};
}

}  // namespace secateur
