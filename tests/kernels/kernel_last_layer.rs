//! Last-layer gradients against explicit gradients in f64, and norms of rows (`kernels/ops/last_layer/`): the shapes of ResNet-18 at width 16 and 64, CIFAR-10 and -100, and sizes around the edges
//! of blocks. Bounds are near the rounding of f64.

use std::rc::Rc;

use secateur::cuda::driver::{Address, Buffer, Driver};
use secateur::engine::Error;
use secateur::ops::last_layer::*;

use crate::common::*;

/// Samples, classes, features, terms.
const SHAPES: [[usize; 4]; 8] = [
    [1, 10, 128, 1],
    [63, 10, 512, 2],
    [64, 100, 128, 1],
    [65, 100, 512, 2],
    [33, 7, 128, 2],
    [130, 11, 512, 1],
    [385, 10, 512, 1],
    [5_003, 10, 128, 2],
];

/// Near the rounding of f64 sums: per element of the tensor's root mean square, and for the tensor.
fn f64_bound(expected: &[f64]) -> Bound {
    let square = expected.iter().map(|v| v * v).sum::<f64>() / expected.len().max(1) as f64;
    Bound { absolute: 1e-13 * square.sqrt(), relative: 1e-13, whole: 2e-14 }
}

/// f64 arithmetic, then one rounding to f32.
const ROUNDED_TO_F32: Bound = Bound { absolute: 1e-11, relative: 6.0e-8, whole: 6.0e-8 };

fn widened(values: Vec<f32>) -> Vec<f64> {
    // More bits than an f32 has, so that a kernel which narrows somewhere is caught.
    values.into_iter().map(|v| f64::from(v) * std::f64::consts::FRAC_1_SQRT_2).collect()
}

/// Random gradients in factored form and in full.
struct Case {
    len: usize,
    classes: usize,
    width: usize,
    /// (logit gradient, features) of each term.
    terms: Vec<(Vec<f32>, Vec<f32>)>,
    /// `len` vectors of `classes x (width + 1)`.
    explicit: Vec<Vec<f64>>,
    random: Random,
}

impl Case {
    fn new([len, classes, width, terms]: [usize; 4]) -> Self {
        let mut random = Random::new((len * 131 + classes * 17 + width + terms) as u32);
        // Features after a ReLU and an average are positive; logit gradients are small and of both signs.
        let mut term = || (random.normals(len * classes, 0.1), random.uniforms(len * width, 0.0, 2.0));
        let terms: Vec<_> = (0..terms).map(|_| term()).collect();
        let gradient = |i: usize| {
            let mut vector = vec![0.0; classes * (width + 1)];
            for (dz, h) in &terms {
                let h = &h[i * width..][..width];
                for (row, dz) in vector.chunks_exact_mut(width + 1).zip(&dz[i * classes..]) {
                    for (sum, h) in row.iter_mut().zip(h.iter().chain(&[1.0])) {
                        *sum += f64::from(*dz) * f64::from(*h);
                    }
                }
            }
            vector
        };
        let explicit = (0..len).map(gradient).collect();
        Self { len, classes, width, terms, explicit, random }
    }

    fn vector_len(&self) -> usize {
        self.classes * (self.width + 1)
    }

    /// The factors on a device, and what the kernels are told of them.
    fn upload(&self, driver: &Rc<dyn Driver>) -> (Vec<[Buffer; 2]>, Gradients) {
        let upload = |(dz, h): &(Vec<f32>, Vec<f32>)| {
            [input(driver, "logit gradient", dz), input(driver, "features", h)]
        };
        let buffers: Vec<[Buffer; 2]> = self.terms.iter().map(upload).collect();
        let at = |operand: usize| {
            let mut addresses = [Address::NULL; 2];
            for (address, term) in addresses.iter_mut().zip(&buffers) {
                *address = term[operand].address();
            }
            addresses
        };
        let gradients = Gradients {
            logit_gradient: at(0),
            features: at(1),
            len: self.len as u32,
            terms: self.terms.len() as u32,
            classes: self.classes as u32,
            width: self.width as u32,
        };
        (buffers, gradients)
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Sums of four rounds of 32 samples in a part, which take turns in two buffers; and of 261 parts, each of the sixteen warps that
/// add them up taking more than two rounds of eight rows.
const LONG_SUMS: [[usize; 4]; 2] = [[127, 10, 512, 2], [25_003, 1, 128, 2]];

#[test]
fn sums_over_samples() {
    for shape in SHAPES.into_iter().chain(LONG_SUMS) {
        let mut case = Case::new(shape);
        let weights = widened(case.random.uniforms(case.len, 0.0, 3.0));
        for weights in [None, Some(&weights)] {
            let mut expected = vec![0.0; case.vector_len()];
            for (i, gradient) in case.explicit.iter().enumerate() {
                let weight = weights.map_or(1.0, |weights| weights[i]);
                expected.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += weight * g);
            }
            on_every_driver(&format!("sum of {shape:?}, weights: {}", weights.is_some()), |driver| {
                let (_factors, gradients) = case.upload(driver);
                let weights = weights.map(|weights| input(driver, "weights", weights));
                let weights_at = weights.as_ref().map_or(Address::NULL, Buffer::address);
                let Gradients { len, classes, width, .. } = gradients;
                let workspace =
                    Output::new::<f64>(driver, "workspace", gradient_sum_workspace(len, classes, width));
                let sum = Output::new::<f64>(driver, "sum", case.vector_len());
                gradient_sum(&**driver, &gradients, weights_at, workspace.address(), sum.address()).unwrap();
                let actual = sum.read::<f64>();
                assert_close(&format!("sum of {shape:?}"), &actual, &expected, f64_bound(&expected));
                let parts = workspace.read::<f64>();
                assert!(parts.iter().all(|v| v.is_finite()), "{shape:?}: every part is written whole");
                words(&actual)
            });
        }
    }
}

#[test]
fn the_sum_of_nothing_is_zero_and_parts_follow_the_shape() {
    let case = Case::new([0, 10, 128, 1]);
    on_every_driver("sum of nothing", |driver| {
        let (_factors, gradients) = case.upload(driver);
        let sum = Output::new::<f64>(driver, "sum", case.vector_len());
        gradient_sum(&**driver, &gradients, Address::NULL, Address::NULL, sum.address()).unwrap();
        let actual = sum.read::<f64>();
        assert!(actual.iter().all(|v| v.to_bits() == 0), "{actual:?}");
        words(&actual)
    });
    // One part needs no room; the largest sums of the two networks stay within a few megabytes.
    assert_eq!(gradient_sum_workspace(64, 10, 512), 0);
    for (classes, width) in [(10, 128), (10, 512), (100, 128), (100, 512)] {
        let workspace = gradient_sum_workspace(50_000, classes, width);
        let vector = classes as usize * (width as usize + 1);
        let parts = workspace / vector;
        assert_eq!(workspace, parts * vector);
        let blocks = parts * (width as usize / 128) * (classes as usize).div_ceil(10);
        assert!((264..=528).contains(&blocks), "{classes} classes, {width} features: {blocks} blocks");
    }
}

#[test]
fn products_with_a_vector() {
    for shape in SHAPES {
        let mut case = Case::new(shape);
        let vector = widened(case.random.normals(case.vector_len(), 1.0));
        let expected: Vec<f64> = case.explicit.iter().map(|gradient| dot(gradient, &vector)).collect();
        on_every_driver(&format!("products of {shape:?}"), |driver| {
            let (_factors, gradients) = case.upload(driver);
            let vector = input(driver, "vector", &vector);
            let products = Output::new::<f64>(driver, "products", case.len);
            gradient_products(&**driver, &gradients, vector.address(), products.address()).unwrap();
            let actual = products.read::<f64>();
            assert_close(&format!("products of {shape:?}"), &actual, &expected, f64_bound(&expected));
            words(&actual)
        });
    }
}

#[test]
fn steps_of_the_last_layer() {
    for [len, classes, width, _] in SHAPES {
        let mut case = Case::new([len, classes, width, 1]);
        let vector = widened(case.random.normals(case.vector_len(), 0.2));
        let logits = case.random.normals(len * classes, 3.0);
        let rate = 0.1;
        let features = &case.terms[0].1;
        let at = |i: usize| {
            let row = &vector[i % classes * (width + 1)..][..width + 1];
            let h = &features[i / classes * width..][..width];
            let step: f64 = row.iter().zip(h.iter().chain(&[1.0])).map(|(v, h)| v * f64::from(*h)).sum();
            f64::from(logits[i]) - rate * step
        };
        let expected: Vec<f64> = (0..logits.len()).map(at).collect();
        for in_place in [false, true] {
            let what = format!("step of {len} x {classes}, {width} features, in place: {in_place}");
            on_every_driver(&what, |driver| {
                let (features, vector) = (input(driver, "h", features), input(driver, "vector", &vector));
                let logits = Output::holding(driver, "logits", &logits);
                let other = Output::new::<f32>(driver, "moved", len * classes);
                let moved = if in_place { &logits } else { &other };
                let params = StepLogitsParams {
                    features: features.address(),
                    vector: vector.address(),
                    logits: logits.address(),
                    moved: moved.address(),
                    rate,
                    len: len as u32,
                    classes: classes as u32,
                    width: width as u32,
                    padding: 0,
                };
                step_logits(&**driver, &params).unwrap();
                let actual = moved.read::<f32>();
                assert_close(&what, &actual, &expected, ROUNDED_TO_F32);
                words(&actual)
            });
        }
    }
}

#[test]
fn norms_of_rows() {
    for (count, len) in [(1, 1), (7, 3), (8, 10), (9, 100), (50, 128), (17, 512), (5, 3_072), (3, 3_073)] {
        let mut random = Random::new((count * 7 + len) as u32);
        let mut values = random.normals(count * len, 2.0);
        // A row whose squares f32 cannot hold.
        values[..len].iter_mut().for_each(|v| *v *= 1e25);
        let norm = |row: &[f32]| row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let expected: Vec<f64> = values.chunks_exact(len).map(norm).collect();
        for skipped in [0, 1] {
            let what = format!("norms of {count} rows of {len}, {skipped} skipped");
            on_every_driver(&what, |driver| {
                let all = input(driver, "values", &[&vec![f32::NAN; skipped], &values[..]].concat());
                let norms = Output::new::<f32>(driver, "norms", count);
                let params = RowNormsParams {
                    values: all.address() + skipped * 4,
                    norms: norms.address(),
                    rows: count as u32,
                    len: len as u32,
                };
                row_norms(&**driver, &params).unwrap();
                let actual = norms.read::<f32>();
                assert_close(&what, &actual, &expected, ROUNDED_TO_F32);
                words(&actual)
            });
        }
    }
}

#[test]
fn what_the_kernels_cannot_do_is_refused() {
    let case = Case::new([4, 10, 128, 1]);
    for (kind, driver) in drivers() {
        let (_factors, gradients) = case.upload(&driver);
        let out = Output::new::<f64>(&driver, "vector", case.vector_len());
        let products = Output::new::<f64>(&driver, "products", case.len);
        let refused = |what: &str, result: Result<(), Error>| match result {
            Err(Error::Kernel { message, .. }) => assert!(message.contains(what), "{kind}: {message}"),
            other => panic!("{kind}, {what}: {other:?}"),
        };
        let vector = out.address();
        let products = |gradients| gradient_products(&*driver, &gradients, vector, products.address());
        refused("terms", products(Gradients { terms: 3, ..gradients }));
        refused("terms", products(Gradients { terms: 0, ..gradients }));
        refused("multiple of 128", products(Gradients { width: 64, ..gradients }));
        let beside = [gradients.features[0] + 4, Address::NULL];
        refused("16 bytes", products(Gradients { features: beside, ..gradients }));
    }
}
