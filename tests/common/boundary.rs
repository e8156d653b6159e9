//! Steps to a linearised decision boundary in f64, by bisection: the oracle of kernels and engines, and images to try it on.

use secateur::model::layers::IMAGE_LEN;

use super::Random;

/// The shortest way from a point to a hyperplane inside of the box.
pub struct Way {
    pub way: Vec<f64>,
    /// The largest move.
    pub norm: f64,
    /// How far `norm` may be off where the excess and the sums behind it are rounded to f32.
    pub error: f64,
}

/// From `t` to where `w . (t + d) = w . t - excess`, `excess` itself known to within `slack`.
pub fn shortest_way(w: &[f64], t: &[f64], excess: f64, slack: f64) -> Way {
    let moved = |i: usize, length: f64| {
        let weight = w[i] * excess.signum();
        match weight.partial_cmp(&0.0) {
            Some(std::cmp::Ordering::Greater) => -length.min(t[i]),
            Some(std::cmp::Ordering::Less) => length.min(1.0 - t[i]),
            _ => 0.0,
        }
    };
    let covered = |length: f64| (0..w.len()).map(|i| (w[i] * moved(i, length)).abs()).sum::<f64>();
    let expected = excess.abs();
    // Beyond 1 every element is at its wall.
    let (mut low, mut high) = (0.0, 1.0);
    if covered(1.0) > expected {
        for _ in 0..100 {
            let middle = 0.5 * (low + high);
            if covered(middle) < expected { low = middle } else { high = middle }
        }
    }
    let way: Vec<f64> = (0..w.len()).map(|i| moved(i, high)).collect();
    let norm = way.iter().fold(0.0, |most: f64, d| most.max(d.abs()));
    let free: f64 =
        (0..w.len()).filter(|&i| way[i].abs() == high && moved(i, 2.0) != way[i]).map(|i| w[i].abs()).sum();
    let error = if free > 0.0 { (slack + 4e-6 * expected) / free } else { 0.0 };
    Way { way, norm, error }
}

/// One image of a step.
pub struct Case {
    pub what: &'static str,
    pub gradient: Vec<f32>,
    pub clean: Vec<f32>,
    pub current: Vec<f32>,
    /// The target's logit less the label's.
    pub difference: f32,
}

/// Gradients, images and distances of every kind.
pub fn cases() -> Vec<Case> {
    let mut random = Random::new(31);
    let kinds: [(&'static str, f32); 12] = [
        ("dense", -20.0),
        ("on the far side", 12.0),
        ("on the boundary", 0.0),
        ("no gradient", -0.5),
        ("one element", -0.3),
        ("out of reach", -1e5),
        ("out of reach on the far side", 1e5),
        ("weights of all sizes", -60.0),
        ("on the walls", -300.0),
        ("half without gradient", -100.0),
        ("a long way", -900.0),
        ("small weights", -1e-5),
    ];
    kinds
        .into_iter()
        .map(|(what, difference)| {
            let mut gradient = random.normals(IMAGE_LEN, 1.0);
            let mut clean = random.uniforms(IMAGE_LEN, 0.0, 1.0);
            match what {
                "no gradient" => gradient.fill(0.0),
                "one element" => {
                    gradient.fill(0.0);
                    (gradient[1234], clean[1234]) = (0.7, 0.2);
                }
                "weights of all sizes" => {
                    gradient.iter_mut().for_each(|w| *w *= 10f32.powf(random.uniform(-6.0, 0.0)));
                }
                "on the walls" => clean.iter_mut().for_each(|x| *x = x.round()),
                "half without gradient" => gradient.iter_mut().step_by(2).for_each(|w| *w = 0.0),
                "small weights" => gradient.iter_mut().for_each(|w| *w *= 1e-7),
                _ => {}
            }
            let near = |x: &f32| (x + random.uniform(-0.03, 0.03)).clamp(0.0, 1.0);
            let current = clean.iter().map(near).collect();
            Case { what, gradient, clean, current, difference }
        })
        .collect()
}

impl Case {
    /// Where the step ends, and how far an f32 result may be off.
    pub fn step(&self, step: &Shares) -> (Vec<f64>, f64) {
        let [w, x, from] = [&self.gradient, &self.clean, &self.current]
            .map(|v| v.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
        let difference = f64::from(self.difference);
        let changes = || w.iter().zip(&x).zip(&from).map(|((w, x), t)| w * (x - t));
        let slack = 2e-6 * (difference.abs() + changes().map(f64::abs).sum::<f64>());
        let here = shortest_way(&w, &from, difference, 0.0);
        let there = shortest_way(&w, &x, difference + changes().sum::<f64>(), slack);
        let (a, b) = (here.norm.max(1e-8), there.norm.max(1e-8));
        let share = (a / (a + b)).min(f64::from(step.largest_share));
        let overshoot = f64::from(step.overshoot);
        let near = |i: usize| from[i] + overshoot * here.way[i];
        let far = |i: usize| x[i] + overshoot * there.way[i];
        let end = |i: usize| ((1.0 - share) * near(i) + share * far(i)).clamp(0.0, 1.0);
        // Both ways are off, and with their norms the share of the mixture.
        let off = here.error + there.error;
        let apart = (0..IMAGE_LEN).map(|i| (near(i) - far(i)).abs()).fold(0.0, f64::max);
        ((0..IMAGE_LEN).map(end).collect(), 1e-6 + 1.1 * off + apart * off / (a + b))
    }

    /// Panics unless `actual` is where the step ends.
    pub fn check(&self, step: &Shares, actual: &[f32]) {
        let (expected, error) = self.step(step);
        assert!(error < 1e-4, "{}: a bound of {error} shows nothing", self.what);
        for (i, (actual, expected)) in actual.iter().zip(expected).enumerate() {
            let off = (f64::from(*actual) - expected).abs();
            assert!(
                off <= error,
                "{}, {step:?}, element {i}: {actual}, expected {expected} within {error:e}",
                self.what
            );
        }
    }
}

/// `largest_share` and `overshoot` of a FAB step.
#[derive(Clone, Copy, Debug)]
pub struct Shares {
    pub largest_share: f32,
    pub overshoot: f32,
}

/// Steps with and without overshoot and mixture.
pub const STEPS: [Shares; 3] = [
    Shares { largest_share: 0.0, overshoot: 1.0 },
    Shares { largest_share: 0.1, overshoot: 1.05 },
    Shares { largest_share: 1.0, overshoot: 1.0 },
];
