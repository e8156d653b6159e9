//! Last-layer gradients in factored form (`engine::LastLayer`): both engines against gradients built in full, in f64, and
//! against each other; against the gradient that the backward pass gives; and what is refused, in the same words.

use secateur::engine::{DeviceChoice, Engine, Error, GradRequest, Pass, Sgd, Tensor, WeightSet, open};
use secateur::model::layers::IMAGE_LEN;
use secateur::model::{ResNet, initialise};
use secateur::ops::{
    CrossEntropy, GradientProducts, GradientSum, LastLayerGradients, LossOutputs, RowNorms, StepLogits, Term,
};

use crate::common::{self, Bound, F32, Random, SEED, assert_close};

const NETWORKS: [ResNet; 4] =
    [ResNet::resnet18(16, 10), ResNet::resnet18(16, 100), ResNet::resnet18(64, 10), ResNet::resnet18(16, 7)];
const SMALL: ResNet = NETWORKS[0];

type Device = Engine;

/// The reference engine, then the kernels.
fn engines(network: ResNet, max_batch: usize) -> [(&'static str, Device); 2] {
    println!("seed {SEED}");
    let kernels = common::cuda_engine();
    [
        ("reference", open(DeviceChoice::Cpu, network, max_batch).unwrap()),
        ("kernels", open(kernels, network, max_batch).unwrap()),
    ]
}

fn f64_bound(expected: &[f64]) -> Bound {
    let square = expected.iter().map(|v| v * v).sum::<f64>() / expected.len().max(1) as f64;
    Bound { absolute: 1e-13 * square.sqrt(), relative: 1e-13, whole: 2e-14 }
}

const ROUNDED_TO_F32: Bound = Bound { absolute: 1e-11, relative: 6.0e-8, whole: 6.0e-8 };

fn near(what: &str, actual: &[f64], expected: &[f64]) {
    assert_close(what, actual, expected, f64_bound(expected));
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Random factors, (logit gradient, features) a term, and the gradients in full.
struct Factors {
    network: ResNet,
    len: usize,
    terms: Vec<(Vec<f32>, Vec<f32>)>,
    explicit: Vec<Vec<f64>>,
}

impl Factors {
    fn new(network: ResNet, len: usize, terms: usize) -> Self {
        let (classes, features) = (network.classes, network.features());
        let mut random = Random::new((len * 10 + terms) as u32);
        let mut term = || (random.normals(len * classes, 0.1), random.uniforms(len * features, 0.0, 2.0));
        let terms: Vec<_> = (0..terms).map(|_| term()).collect();
        let gradient = |i: usize| {
            let mut vector = Vec::new();
            for c in 0..classes {
                for f in 0..=features {
                    let of_term = |(dz, h): &(Vec<f32>, Vec<f32>)| {
                        let h = if f < features { h[i * features + f] } else { 1.0 };
                        f64::from(dz[i * classes + c]) * f64::from(h)
                    };
                    vector.push(terms.iter().map(of_term).sum());
                }
            }
            vector
        };
        let explicit = (0..len).map(gradient).collect();
        Self { network, len, terms, explicit }
    }

    fn vector_len(&self) -> usize {
        vector_len(self.network)
    }

    fn upload(&self, engine: &Engine) -> LastLayerGradients {
        let term = |(dz, h): &(Vec<f32>, Vec<f32>)| Term {
            logit_gradient: engine.upload("logit gradient", dz).unwrap(),
            features: engine.upload("features", h).unwrap(),
        };
        LastLayerGradients { terms: self.terms.iter().map(term).collect(), len: self.len }
    }
}

fn vector_len(network: ResNet) -> usize {
    network.classes * (network.features() + 1)
}

/// Numbers with more bits than an f32 has.
fn numbers(stream: u32, len: usize) -> Vec<f64> {
    let values = Random::new(stream).normals(len, 1.0);
    values.into_iter().map(|v| f64::from(v) * std::f64::consts::FRAC_1_SQRT_2).collect()
}

#[test]
fn the_algebra_equals_explicit_gradients() {
    for network in NETWORKS {
        for (len, terms) in [(1, 1), (37, 2), (70, 1), (129, 2)] {
            let factors = Factors::new(network, len, terms);
            let (weights, vector) = (numbers(1, len), numbers(2, factors.vector_len()));
            let sum = |weight: &dyn Fn(usize) -> f64| -> Vec<f64> {
                let at = |k: usize| (0..len).map(|i| weight(i) * factors.explicit[i][k]).sum();
                (0..factors.vector_len()).map(at).collect()
            };
            let expected = [
                ("sum", sum(&|_| 1.0)),
                ("weighted sum", sum(&|i| weights[i])),
                ("products", factors.explicit.iter().map(|g| dot(g, &vector)).collect()),
            ];
            let actual = engines(network, 1).map(|(name, mut engine)| {
                let gradients = factors.upload(&engine);
                let weights = engine.upload("weights", &weights).unwrap();
                let vector = engine.upload("vector", &vector).unwrap();
                let out: Vec<Tensor<f64>> =
                    expected.iter().map(|(what, v)| engine.alloc(what, v.len()).unwrap()).collect();
                engine.run(&GradientSum { gradients: &gradients, weights: None, sum: &out[0] }).unwrap();
                engine
                    .run(&GradientSum { gradients: &gradients, weights: Some(&weights), sum: &out[1] })
                    .unwrap();
                engine
                    .run(&GradientProducts { gradients: &gradients, vector: &vector, products: &out[2] })
                    .unwrap();
                let actual: Vec<Vec<f64>> = out.iter().map(|out| engine.read(out).unwrap()).collect();
                for (actual, (what, expected)) in actual.iter().zip(&expected) {
                    near(
                        &format!("{name}, {network:?}, {len} samples, {terms} terms: {what}"),
                        actual,
                        expected,
                    );
                }
                actual
            });
            for ((reference, kernels), (what, _)) in actual[0].iter().zip(&actual[1]).zip(&expected) {
                near(&format!("engines on {network:?}, {len} samples: {what}"), kernels, reference);
            }
        }
    }
}

#[test]
fn a_part_of_the_samples_is_a_view() {
    let factors = Factors::new(SMALL, 20, 2);
    let vector = numbers(2, factors.vector_len());
    let expected: Vec<f64> = factors.explicit[5..12].iter().map(|g| dot(g, &vector)).collect();
    for (name, mut engine) in engines(SMALL, 1) {
        let gradients = factors.upload(&engine).rows(5..12);
        let vector = engine.upload("vector", &vector).unwrap();
        let products = engine.alloc("products", 7).unwrap();
        engine
            .run(&GradientProducts { gradients: &gradients, vector: &vector, products: &products })
            .unwrap();
        near(&format!("{name}: products of a part"), &engine.read(&products).unwrap(), &expected);
    }
}

#[test]
fn norms_of_rows_equal_plain_loops() {
    for (count, len) in [(1, 1), (5, 33), (40, 1_290), (17, 16_400), (9, 16_401)] {
        let values = Random::new(4).normals(count * len, 1.0);
        let norm = |row: &[f32]| row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let norms: Vec<f64> = values.chunks_exact(len).map(norm).collect();
        for (name, mut engine) in engines(SMALL, 1) {
            let values = engine.upload("values", &values).unwrap();
            let out = engine.alloc("norms", count).unwrap();
            engine.run(&RowNorms { values: &values, row_len: len, norms: &out }).unwrap();
            let what = format!("{name}, {count} rows of {len}");
            assert_close(&what, &engine.read(&out).unwrap(), &norms, ROUNDED_TO_F32);
        }
    }
}

/// One forward pass of `batch` random images; their images and logits.
fn forward(engine: &mut Engine, pass: Pass, batch: usize) -> (Tensor<f32>, Tensor<f32>) {
    let images = Random::new(5).uniforms(batch * IMAGE_LEN, 0.0, 1.0);
    let images = engine.upload("images", &images).unwrap();
    let logits = engine.alloc("logits", batch * engine.network().classes).unwrap();
    engine.forward(pass, &images, &logits).unwrap();
    (images, logits)
}

/// Logit gradients of cross-entropy, a mean over the batch.
fn logit_gradient(engine: &mut Engine, logits: &Tensor<f32>) -> Tensor<f32> {
    let batch = logits.len() / engine.network().classes;
    let labels: Vec<u32> = (0..batch as u32).map(|i| i * 3 % 10).collect();
    let labels = engine.upload("labels", &labels).unwrap();
    let (losses, predictions) =
        (engine.alloc("losses", batch).unwrap(), engine.alloc("predictions", batch).unwrap());
    let gradient = engine.alloc("logit gradient", logits.len()).unwrap();
    let outputs = LossOutputs { losses: &losses, predictions: &predictions, logit_gradient: &gradient };
    engine
        .run(&CrossEntropy {
            smoothing: 0.1,
            scale: 1.0 / batch as f32,
            logits,
            labels: &labels,
            weights: None,
            outputs,
        })
        .unwrap();
    gradient
}

/// Weight and bias of the last layer as one vector, from file layout.
fn last_layer(weights: &secateur::model::Weights) -> Vec<f64> {
    let (classes, features) = (SMALL.classes, SMALL.features());
    let weight = weights.get("linear.weight", &[classes, features]).unwrap();
    let bias = weights.get("linear.bias", &[classes]).unwrap();
    let rows = weight.chunks_exact(features).zip(bias);
    rows.flat_map(|(row, bias)| row.iter().chain([bias])).map(|v| f64::from(*v)).collect()
}

#[test]
fn sums_equal_the_gradient_of_the_backward_pass() {
    for batch in [1, 3] {
        for (name, mut engine) in engines(SMALL, batch) {
            engine.load_weights(&initialise(SMALL, SEED)).unwrap();
            // The second slot as well: its features are its own.
            for slot in [0, 1] {
                let pass = Pass::Train { slot };
                let (_, logits) = forward(&mut engine, pass, batch);
                let features = engine.alloc("features", batch * SMALL.features()).unwrap();
                engine.features(pass, 0, &features).unwrap();
                let logit_gradient = logit_gradient(&mut engine, &logits);
                engine.backward(pass, &logit_gradient, GradRequest::PARAMETERS).unwrap();
                let expected = last_layer(&engine.weights(WeightSet::Gradients).unwrap());
                let gradients =
                    LastLayerGradients { terms: vec![Term { logit_gradient, features }], len: batch };
                let sum = engine.alloc("sum", expected.len()).unwrap();
                engine.run(&GradientSum { gradients: &gradients, weights: None, sum: &sum }).unwrap();
                let actual = engine.read(&sum).unwrap();
                assert_close(&format!("{name}, batch {batch}, slot {slot}"), &actual, &expected, F32);
            }
        }
    }
}

#[test]
fn features_are_what_the_last_layer_saw() {
    let batch = 3;
    let features = engines(SMALL, batch).map(|(name, mut engine)| {
        engine.load_weights(&initialise(SMALL, SEED)).unwrap();
        engine.fold_batch_norm(WeightSet::Live).unwrap();
        let (_, logits) = forward(&mut engine, Pass::Eval, batch);
        let features = engine.alloc("features", batch * SMALL.features()).unwrap();
        engine.features(Pass::Eval, 0, &features).unwrap();
        // A step of rate -1 from zero along the layer itself is the layer.
        let layer = last_layer(&engine.weights(WeightSet::Live).unwrap());
        let layer = engine.upload("last layer", &layer).unwrap();
        let zero = engine.upload("zero", &vec![0.0f32; logits.len()]).unwrap();
        engine
            .run(&StepLogits { features: &features, vector: &layer, rate: -1.0, logits: &zero, moved: &zero })
            .unwrap();
        let expected: Vec<f64> = engine.read(&logits).unwrap().into_iter().map(f64::from).collect();
        let bound = Bound { absolute: 1e-5, relative: 1e-5, whole: 2e-6 };
        assert_close(
            &format!("{name}: logits from features"),
            &engine.read(&zero).unwrap(),
            &expected,
            bound,
        );
        engine.read(&features).unwrap()
    });
    let reference: Vec<f64> = features[0].iter().map(|v| f64::from(*v)).collect();
    // Seventeen layers in bf16.
    let bound = Bound { absolute: 0.05, relative: 0.05, whole: 0.02 };
    assert_close("features of the two engines", &features[1], &reference, bound);
}

#[test]
fn steps_equal_plain_loops() {
    for (network, len) in [(SMALL, 1), (NETWORKS[1], 67), (NETWORKS[2], 130), (NETWORKS[3], 5)] {
        let (classes, width) = (network.classes, network.features());
        let vector = numbers(1, vector_len(network));
        let (features, logits) =
            (Random::new(2).uniforms(len * width, 0.0, 1.0), Random::new(3).normals(len * classes, 2.0));
        let at = |i: usize| {
            let row = &vector[i % classes * (width + 1)..][..width + 1];
            let h = features[i / classes * width..][..width].iter().chain(&[1.0]);
            let step: f64 = row.iter().zip(h).map(|(v, h)| v * f64::from(*h)).sum();
            f64::from(logits[i]) - 0.3 * step
        };
        let expected: Vec<f64> = (0..logits.len()).map(at).collect();
        for (name, mut engine) in engines(network, 1) {
            let vector = engine.upload("vector", &vector).unwrap();
            let features = engine.upload("features", &features).unwrap();
            let logits = engine.upload("logits", &logits).unwrap();
            let moved = engine.alloc("moved", logits.len()).unwrap();
            engine
                .run(&StepLogits {
                    features: &features,
                    vector: &vector,
                    rate: 0.3,
                    logits: &logits,
                    moved: &moved,
                })
                .unwrap();
            let moved = engine.read(&moved).unwrap();
            assert_close(&format!("{name}, {network:?}: step"), &moved, &expected, ROUNDED_TO_F32);
            engine
                .run(&StepLogits {
                    features: &features,
                    vector: &vector,
                    rate: 0.3,
                    logits: &logits,
                    moved: &logits,
                })
                .unwrap();
            assert_eq!(engine.read(&logits).unwrap(), moved, "{name}: in place");
        }
    }
}

#[test]
fn nothing_has_a_defined_answer() {
    for (name, mut engine) in engines(SMALL, 1) {
        let none = Factors::new(SMALL, 0, 1).upload(&engine);
        let empty: Tensor<f64> = engine.alloc("empty", 0).unwrap();
        let sum = engine.upload("sum", &vec![7.0; vector_len(SMALL)]).unwrap();
        engine.run(&GradientSum { gradients: &none, weights: Some(&empty), sum: &sum }).unwrap();
        assert!(engine.read(&sum).unwrap().iter().all(|v| *v == 0.0), "{name}: the sum of nothing");
        engine.run(&GradientProducts { gradients: &none, vector: &sum, products: &empty }).unwrap();
        let no_floats = engine.alloc("no floats", 0).unwrap();
        engine
            .run(&StepLogits {
                features: &no_floats,
                vector: &sum,
                rate: 1.0,
                logits: &no_floats,
                moved: &engine.alloc("moved", 0).unwrap(),
            })
            .unwrap();
        engine
            .run(&RowNorms { values: &no_floats, row_len: 3, norms: &engine.alloc("norms", 0).unwrap() })
            .unwrap();
    }
}

/// What each faulty call says.
fn refusals(engine: &mut Engine, foreign: &Engine) -> Vec<String> {
    let mut said = Vec::new();
    let mut refused = |result: Result<(), Error>| {
        said.push(result.expect_err("a faulty call succeeded").to_string());
    };
    let factors = Factors::new(SMALL, 4, 1);
    let (good, strange) = (factors.upload(engine), factors.upload(foreign));
    let vector = engine.upload("vector", &vec![1.0; vector_len(SMALL)]).unwrap();
    let other_vector = foreign.upload("foreign vector", &vec![1.0; vector_len(SMALL)]).unwrap();
    let short = vector.slice(0..vector.len() - 1);
    let [four, three]: [Tensor<f64>; 2] = [4, 3].map(|len| engine.alloc("some numbers", len).unwrap());
    let other_four: Tensor<f64> = foreign.alloc("foreign numbers", 4).unwrap();

    // Lengths.
    let shorter = LastLayerGradients { len: 3, ..good.clone() };
    let no_terms = LastLayerGradients { terms: Vec::new(), len: 4 };
    refused(engine.run(&GradientSum { gradients: &good, weights: None, sum: &short }));
    refused(engine.run(&GradientSum { gradients: &good, weights: Some(&three), sum: &vector }));
    refused(engine.run(&GradientSum { gradients: &shorter, weights: None, sum: &vector }));
    refused(engine.run(&GradientProducts { gradients: &good, vector: &short, products: &four }));
    refused(engine.run(&GradientProducts { gradients: &good, vector: &vector, products: &three }));
    refused(engine.run(&GradientProducts { gradients: &no_terms, vector: &vector, products: &four }));
    let (logits, features) = (&good.terms[0].logit_gradient, &good.terms[0].features);
    let moved = engine.alloc("moved", logits.len()).unwrap();
    refused(engine.run(&StepLogits { features, vector: &short, rate: 1.0, logits, moved: &moved }));
    refused(engine.run(&StepLogits { features: logits, vector: &vector, rate: 1.0, logits, moved: &moved }));
    refused(engine.run(&StepLogits {
        features,
        vector: &vector,
        rate: 1.0,
        logits,
        moved: &moved.slice(0..30),
    }));
    refused(engine.run(&StepLogits {
        features,
        vector: &vector,
        rate: 1.0,
        logits: &logits.slice(0..39),
        moved: &moved.slice(0..39),
    }));
    refused(engine.run(&RowNorms { values: logits, row_len: 0, norms: &moved }));
    refused(engine.run(&RowNorms { values: logits, row_len: 3, norms: &moved }));

    // Memory of another engine.
    refused(engine.run(&GradientSum { gradients: &strange, weights: None, sum: &vector }));
    refused(engine.run(&GradientSum { gradients: &good, weights: None, sum: &other_vector }));
    refused(engine.run(&GradientSum { gradients: &good, weights: Some(&other_four), sum: &vector }));
    refused(engine.run(&GradientProducts { gradients: &good, vector: &other_vector, products: &four }));
    refused(engine.run(&StepLogits { features, vector: &other_vector, rate: 1.0, logits, moved: &moved }));
    refused(engine.run(&RowNorms {
        values: logits,
        row_len: 10,
        norms: &foreign.alloc("foreign norms", 4).unwrap(),
    }));

    // Read and written by one call.
    refused(engine.run(&RowNorms { values: &moved, row_len: 10, norms: &moved.slice(0..4) }));
    said
}

#[test]
fn both_engines_refuse_alike() {
    let [reference, kernels] = engines(SMALL, 1).map(|(_, mut engine)| {
        // Its own kind of memory, but of another engine.
        let kind = if engine.device().kind == "cpu" { DeviceChoice::Cpu } else { common::cuda_engine() };
        let other = open(kind, SMALL, 1).unwrap();
        refusals(&mut engine, &other)
    });
    println!("{}", reference.join("\n"));
    assert_eq!(kernels, reference);
}

#[test]
fn features_need_a_forward_pass_on_the_present_weights() {
    let refused = |engine: &mut Engine, pass: Pass, len: usize| -> String {
        let features = engine.alloc("features", len).unwrap();
        engine.features(pass, 0, &features).expect_err("features of nothing").to_string()
    };
    let said = engines(SMALL, 2).map(|(name, mut engine)| {
        let engine = &mut engine;
        let (train, len) = (Pass::Train { slot: 0 }, 2 * SMALL.features());
        engine.load_weights(&initialise(SMALL, SEED)).unwrap();
        let mut said = vec![
            refused(engine, Pass::Eval, len),
            refused(engine, train, len),
            refused(engine, Pass::Train { slot: 2 }, len),
        ];
        engine.fold_batch_norm(WeightSet::Live).unwrap();
        forward(engine, Pass::Eval, 2);
        said.push(refused(engine, Pass::Eval, len - 1));
        let (_, logits) = forward(engine, train, 2);
        said.push(refused(engine, train, len / 2));
        // The train pass moved the running statistics, but what the evaluation pass computed still stands.
        let features = engine.alloc("features", len).unwrap();
        engine.features(Pass::Eval, 0, &features).unwrap();

        let logit_gradient = logit_gradient(engine, &logits);
        engine.backward(train, &logit_gradient, GradRequest::PARAMETERS).unwrap();
        let sgd = Sgd { learning_rate: 0.1, momentum: 0.9, weight_decay: 0.0, ..Sgd::ZERO };
        engine.step(&sgd).unwrap();
        said.extend([refused(engine, Pass::Eval, len), refused(engine, train, len)]);
        engine.fold_batch_norm(WeightSet::Live).unwrap();
        said.push(refused(engine, Pass::Eval, len));
        println!("{name}: {said:#?}");
        said
    });
    assert_eq!(said[0], said[1]);
}
