//! What a last-layer gradient pass gives of samples, against the passes that it stands for.

use secateur::engine::{DeviceChoice, Engine, GradRequest, Pass, StopFlag};
use secateur::model::layers::IMAGE_LEN;
use secateur::ops::Term;
use secateur::prune::{GradPass, PruneError};

use crate::common::grad_pass::Subject;
use crate::common::{Bound, assert_close};

const SAMPLES: [u32; 21] = [1, 2, 3, 5, 8, 13, 21, 22, 23, 24, 25, 34, 35, 36, 40, 41, 55, 60, 70, 80, 89];

fn read(engine: &Engine, term: &Term) -> (Vec<f32>, Vec<f32>) {
    (engine.read(&term.logit_gradient).unwrap(), engine.read(&term.features).unwrap())
}

/// Rows of the last layer's product: `h W^T + b`.
fn linear(features: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f64> {
    let rows = features.chunks_exact(weight.len() / bias.len());
    rows.flat_map(|features| {
        let classes = weight.chunks_exact(features.len()).zip(bias);
        classes.map(|(weight, bias)| {
            let product: f64 = features.iter().zip(weight).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            product + f64::from(*bias)
        })
    })
    .collect()
}

/// Features and logits belong together, and the gradients are those of TRADES at these logits.
#[test]
fn features_logits_and_gradients_belong_together() {
    let mut subject = Subject::new(DeviceChoice::Cpu, &[]);
    let labels = subject.labels(&SAMPLES);
    subject.grad_pass(|engine, pass| {
        let view = pass.last_layer(engine, &SAMPLES).unwrap();
        assert_eq!(engine.read(&view.labels).unwrap(), labels);
        let weights = engine.weights(secateur::engine::WeightSet::Live).unwrap();
        let (weight, bias) =
            (&weights.tensors["linear.weight"].values, &weights.tensors["linear.bias"].values);
        let bound = Bound { absolute: 1e-5, relative: 1e-5, whole: 1e-6 };
        for (term, logits) in view.gradients.terms.iter().zip(&view.logits) {
            let (_, features) = read(engine, term);
            assert_close("logits", &engine.read(logits).unwrap(), &linear(&features, weight, bias), bound);
        }
        let softmax = |logits: &[f32]| -> Vec<f64> {
            let powers: Vec<f64> = logits.iter().map(|&logit| f64::from(logit).exp()).collect();
            let sum: f64 = powers.iter().sum();
            powers.iter().map(|power| power / sum).collect()
        };
        let [clean, adversarial] = [0, 1].map(|term| engine.read(&view.logits[term]).unwrap());
        let (mut clean_gradient, mut adversarial_gradient, mut losses) = (Vec::new(), Vec::new(), Vec::new());
        for (row, &label) in labels.iter().enumerate() {
            let (p, q) = (softmax(&clean[row * 10..][..10]), softmax(&adversarial[row * 10..][..10]));
            let divergence: f64 = p.iter().zip(&q).map(|(p, q)| p * (p.ln() - q.ln())).sum();
            losses.push(-p[label as usize].ln() + 6.0 * divergence);
            for class in 0..10 {
                let hot = f64::from(u8::from(class == label as usize));
                let (p, q) = (p[class], q[class]);
                clean_gradient.push((p - hot) + 6.0 * p * (p.ln() - q.ln() - divergence));
                adversarial_gradient.push(6.0 * (q - p));
            }
        }
        // The adversarial gradient is a small difference of two probabilities.
        let bound = Bound { absolute: 2e-6, relative: 1e-3, whole: 1e-3 };
        assert_close("losses", &engine.read(&view.losses).unwrap(), &losses, bound);
        assert_close("clean", &read(engine, &view.gradients.terms[0]).0, &clean_gradient, bound);
        assert_close("adversarial", &read(engine, &view.gradients.terms[1]).0, &adversarial_gradient, bound);
    });
}

/// A sample's row does not depend on which others pass with it.
#[test]
fn rows_do_not_depend_on_their_neighbours() {
    let mut subject =
        Subject::new(DeviceChoice::Cpu, &["objective.method=pgd-at", "accelerate.method=bullet-train"]);
    let state = subject.objective.state();
    subject.grad_pass(|engine, pass| {
        let all = pass.last_layer(engine, &SAMPLES).unwrap();
        let some = pass.last_layer(engine, &SAMPLES[7..12]).unwrap();
        assert_eq!(all.gradients.terms.len(), 1);
        let part = all.gradients.rows(7..12);
        let (actual, expected) = (read(engine, &some.gradients.terms[0]), read(engine, &part.terms[0]));
        // Sums inside a product may be cut otherwise in a batch of another size.
        let bound = Bound { absolute: 1e-4, relative: 1e-3, whole: 1e-3 };
        let f64s = |values: &[f32]| -> Vec<f64> { values.iter().map(|&value| value.into()).collect() };
        assert_close("gradients", &actual.0, &f64s(&expected.0), bound);
        assert_close("features", &actual.1, &f64s(&expected.1), bound);
    });
    assert_eq!(
        subject.objective.state(),
        state,
        "a last-layer gradient pass leaves no trace in the objective"
    );
}

/// The norms are those of the gradient of each image's own loss.
#[test]
fn input_gradient_norms_are_of_the_sample_alone() {
    let mut subject = Subject::new(DeviceChoice::Cpu, &[]);
    subject.grad_pass(|engine, pass| {
        let norms = pass.input_gradient_norms(engine, &SAMPLES).unwrap();
        let norms = engine.read(&norms).unwrap();
        for (place, &sample) in SAMPLES.iter().enumerate().step_by(5) {
            let batch = pass.scratch.rows(0..1);
            engine.write(&batch.samples, &[sample]).unwrap();
            engine.run(&batch.gather(pass.set, None)).unwrap();
            engine.forward(Pass::Eval, &batch.images, &batch.logits).unwrap();
            engine.run(&batch.cross_entropy(1.0)).unwrap();
            let gradient = engine.alloc("gradient", IMAGE_LEN).unwrap();
            engine.backward(Pass::Eval, &batch.logit_gradient, GradRequest::images(&gradient)).unwrap();
            let values = engine.read(&gradient).unwrap();
            let norm = values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
            let error = (f64::from(norms[place]) - norm).abs();
            assert!(norm > 0.0 && error < 1e-5 * norm, "image {sample}: {} and {norm}", norms[place]);
        }
    });
}

/// Correct are the clean images whose largest logit is their class's.
#[test]
fn correct_images_are_counted_without_an_attack() {
    let mut subject = Subject::new(DeviceChoice::Cpu, &[]);
    let labels = subject.labels(&SAMPLES);
    subject.grad_pass(|engine, pass| {
        let view = pass.last_layer(engine, &SAMPLES).unwrap();
        let logits = engine.read(&view.logits[0]).unwrap();
        let right = logits.chunks_exact(10).zip(&labels).filter(|(row, label)| {
            let own = row[**label as usize];
            row.iter().all(|&other| other <= own)
        });
        let expected = right.count();
        assert!(expected > 0 && expected < SAMPLES.len(), "{expected} of {}", SAMPLES.len());
        assert_eq!(pass.correct(engine, &SAMPLES).unwrap(), expected);
    });
}

/// A last-layer gradient pass that is asked to stop says so.
#[test]
fn a_grad_pass_can_be_stopped() {
    let mut subject = Subject::new(DeviceChoice::Cpu, &[]);
    subject.grad_pass(|engine, pass| {
        let mut asked = 0;
        let mut watch = |done: usize, total: usize| {
            asked += 1;
            assert!(done <= total && total == SAMPLES.len());
            false
        };
        let mut pass =
            GradPass { watch: &mut watch, objective: &mut *pass.objective, seconds: None, ..*pass };
        let error = pass.last_layer(engine, &SAMPLES).unwrap_err();
        assert!(matches!(error, PruneError::Stopped), "{error}");
        assert_eq!(asked, 1);
    });
}

/// And so does one whose engine stops in the attack on its first batch.
#[test]
fn a_grad_pass_can_be_stopped_within_a_batch() {
    let mut subject = Subject::new(DeviceChoice::Cpu, &[]);
    subject.grad_pass(|engine, pass| {
        let stop = StopFlag::default();
        engine.stop_on(Some(stop.clone()));
        assert!(pass.last_layer(engine, &SAMPLES).is_ok());
        stop.request();
        let mut watch = |_: usize, _: usize| panic!("no batch is done");
        let mut pass =
            GradPass { watch: &mut watch, objective: &mut *pass.objective, seconds: None, ..*pass };
        let error = pass.last_layer(engine, &SAMPLES).unwrap_err();
        assert!(matches!(error, PruneError::Stopped), "{error}");
        let error = pass.input_gradient_norms(engine, &SAMPLES).unwrap_err();
        assert!(matches!(error, PruneError::Stopped), "{error}");
    });
}
