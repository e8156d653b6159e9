//! The kernels of APGD against the rules written out for one image at a time: every number bit for bit, in every phase, both
//! orders of warps, with poisoned outputs.

use secateur::model::layers::IMAGE_LEN;
use secateur::ops::ApgdPhase;
use secateur::ops::apgd::*;

use crate::common::*;

const EPSILON: f32 = 8.0 / 255.0;

/// One image's state and points.
#[derive(Clone, Debug)]
struct Image {
    x: Vec<f32>,
    label: u32,
    prediction: u32,
    loss: f32,
    step_size: f32,
    best_loss: f32,
    checked_loss: f32,
    last_loss: f32,
    increases: u32,
    halved: u32,
    broken: u32,
    gradient: Vec<f32>,
    perturbed: Vec<f32>,
    previous: Vec<f32>,
    best: Vec<f32>,
    best_gradient: Vec<f32>,
    adversarial: Vec<f32>,
}

fn project(moved: f32, x: f32) -> f32 {
    moved.max(x - EPSILON).min(x + EPSILON).clamp(0.0, 1.0)
}

impl Image {
    /// What the trait's documentation says.
    fn step(&mut self, phase: ApgdPhase) {
        let wrong = self.prediction != self.label;
        if phase == ApgdPhase::Last {
            match (wrong, self.broken) {
                (true, _) => self.broken = 1,
                (false, 0) => {}
                (false, _) => self.perturbed = self.adversarial.clone(),
            }
            return;
        }
        let first = phase == ApgdPhase::First;
        if first {
            (self.step_size, self.best_loss, self.checked_loss) = (2.0 * EPSILON, self.loss, self.loss);
            (self.last_loss, self.increases, self.halved, self.broken) = (0.0, 0, 1, 0);
        } else {
            self.increases += u32::from(self.loss > self.last_loss);
            self.last_loss = self.loss;
        }
        if wrong {
            self.broken = 1;
            self.adversarial = self.perturbed.clone();
        }
        if first || self.loss > self.best_loss {
            self.best_loss = self.loss;
            (self.best, self.best_gradient) = (self.perturbed.clone(), self.gradient.clone());
        }
        let (mut point, mut gradient) = (self.perturbed.clone(), self.gradient.clone());
        if let ApgdPhase::Checkpoint { window } = phase {
            let oscillates = 4 * self.increases <= 3 * window;
            let stuck = self.halved == 0 && self.checked_loss >= self.best_loss;
            self.halved = u32::from(oscillates || stuck);
            self.checked_loss = self.best_loss;
            self.increases = 0;
            if self.halved == 1 {
                self.step_size /= 2.0;
                (point, gradient) = (self.best.clone(), self.best_gradient.clone());
            }
        }
        for i in 0..IMAGE_LEN {
            let sign = if gradient[i] > 0.0 {
                1.0
            } else if gradient[i] < 0.0 {
                -1.0
            } else {
                0.0
            };
            let target = project(point[i] + self.step_size * sign, self.x[i]);
            let moved = match first {
                true => target,
                false => point[i] + (target - point[i]) * 0.75 + (point[i] - self.previous[i]) * 0.25,
            };
            // The first step is written as the others are: point + (target - point), which rounds.
            let moved = if first { point[i] + (moved - point[i]) } else { moved };
            self.perturbed[i] = project(moved, self.x[i]);
        }
        self.previous = point;
    }
}

/// Images whose state stands at every side of every rule.
fn images() -> Vec<Image> {
    let mut images = Vec::new();
    let mut random = Random::new(2);
    for (loss, best_loss, checked_loss) in
        [(0.5, 0.7, 0.7), (0.5, 0.7, 0.6), (0.9, 0.7, 0.7), (-0.3, -0.3, -0.3)]
    {
        for (increases, halved) in [(16, 0), (16, 1), (15, 0), (17, 0), (17, 1), (0, 1)] {
            let wrong = random.word() % 2;
            let x: Vec<f32> =
                random.uniforms(IMAGE_LEN, -0.1, 1.1).iter().map(|v| v.clamp(0.0, 1.0)).collect();
            let near = |random: &mut Random| -> Vec<f32> {
                x.iter().map(|x| (x + random.uniform(-EPSILON, EPSILON)).clamp(0.0, 1.0)).collect()
            };
            let perturbed = near(&mut random);
            let previous = near(&mut random);
            let (best, adversarial) = (near(&mut random), near(&mut random));
            let mut gradient = random.normals(IMAGE_LEN, 1e-3);
            gradient[5] = 0.0;
            images.push(Image {
                x: x.clone(),
                label: 3,
                prediction: 3 + wrong,
                loss,
                step_size: EPSILON / 2.0,
                best_loss,
                checked_loss,
                last_loss: if random.word().is_multiple_of(2) { loss - 0.1 } else { loss },
                increases,
                halved,
                broken: random.word() % 2,
                gradient,
                perturbed,
                previous,
                best,
                best_gradient: random.normals(IMAGE_LEN, 1e-3),
                adversarial,
            });
        }
    }
    images
}

#[test]
fn every_phase_follows_the_rules() {
    let phases = [
        ApgdPhase::First,
        ApgdPhase::Within,
        ApgdPhase::Checkpoint { window: 22 },
        ApgdPhase::Checkpoint { window: 7 },
        ApgdPhase::Last,
    ];
    for phase in phases {
        let given = images();
        let mut expected = given.clone();
        for image in &mut expected {
            image.step(phase);
        }
        if phase == (ApgdPhase::Checkpoint { window: 22 }) {
            let halved = expected.iter().filter(|image| image.halved == 1).count();
            assert!((4..expected.len() - 3).contains(&halved), "{halved} of {} halved", expected.len());
        }
        let floats = |of: fn(&Image) -> f32| given.iter().map(of).collect::<Vec<_>>();
        let counts = |of: fn(&Image) -> u32| given.iter().map(of).collect::<Vec<_>>();
        let points = |of: fn(&Image) -> &Vec<f32>| {
            given.iter().flat_map(|image| of(image).clone()).collect::<Vec<_>>()
        };
        on_every_driver(&format!("{phase:?}"), |driver| {
            let first = phase == ApgdPhase::First;
            // The first phase must not read what is not there yet.
            let book = |name, values: Vec<f32>| match first {
                true => Output::new::<f32>(driver, name, values.len()),
                false => Output::holding(driver, name, &values),
            };
            let count = |name, values: Vec<u32>| match first {
                true => Output::new::<u32>(driver, name, values.len()),
                false => Output::holding(driver, name, &values),
            };
            let images_at = input(driver, "images", &points(|image| &image.x));
            let labels = input(driver, "labels", &counts(|image| image.label));
            let predictions = input(driver, "predictions", &counts(|image| image.prediction));
            let losses = input(driver, "losses", &floats(|image| image.loss));
            let gradient = input(driver, "gradient", &points(|image| &image.gradient));
            let state = [
                book("step sizes", floats(|image| image.step_size)),
                book("best losses", floats(|image| image.best_loss)),
                book("checked losses", floats(|image| image.checked_loss)),
                book("last losses", floats(|image| image.last_loss)),
            ];
            let flags = [
                count("increases", counts(|image| image.increases)),
                count("halved", counts(|image| image.halved)),
                count("broken", counts(|image| image.broken)),
            ];
            let perturbed = Output::holding(driver, "perturbed", &points(|image| &image.perturbed));
            let kept = [
                book("previous", points(|image| &image.previous)),
                book("best", points(|image| &image.best)),
                book("best gradient", points(|image| &image.best_gradient)),
                book("adversarial", points(|image| &image.adversarial)),
            ];
            let operands = ApgdOperands {
                images: images_at.address(),
                labels: labels.address(),
                losses: losses.address(),
                predictions: predictions.address(),
                step_size: state[0].address(),
                best_loss: state[1].address(),
                checked_loss: state[2].address(),
                last_loss: state[3].address(),
                increases: flags[0].address(),
                halved: flags[1].address(),
                broken: flags[2].address(),
                gradient: gradient.address(),
                perturbed: perturbed.address(),
                previous: kept[0].address(),
                best: kept[1].address(),
                best_gradient: kept[2].address(),
                adversarial: kept[3].address(),
            };
            apgd_step(&**driver, EPSILON, phase, given.len(), &operands).unwrap();

            let mut bits = Vec::new();
            let mut same = |name: &str, actual: Vec<u32>, expected: Vec<u32>| {
                let differs = actual.iter().zip(&expected).position(|(actual, expected)| actual != expected);
                assert_eq!(differs, None, "{phase:?}: {name} differs at this element, seed {SEED}");
                bits.extend(actual);
            };
            let of =
                |of: fn(&Image) -> f32| expected.iter().map(|image| of(image).to_bits()).collect::<Vec<_>>();
            same("step sizes", state[0].read(), of(|image| image.step_size));
            same("best losses", state[1].read(), of(|image| image.best_loss));
            same("checked losses", state[2].read(), of(|image| image.checked_loss));
            same("last losses", state[3].read(), of(|image| image.last_loss));
            let of = |of: fn(&Image) -> u32| expected.iter().map(of).collect::<Vec<_>>();
            same("increases", flags[0].read(), of(|image| image.increases));
            same("halved", flags[1].read(), of(|image| image.halved));
            same("broken", flags[2].read(), of(|image| image.broken));
            let of = |of: fn(&Image) -> &Vec<f32>| {
                expected.iter().flat_map(|image| words(of(image))).collect::<Vec<u32>>()
            };
            same("perturbed", perturbed.read(), of(|image| &image.perturbed));
            if phase != ApgdPhase::Last {
                same("previous", kept[0].read(), of(|image| &image.previous));
                same("best", kept[1].read(), of(|image| &image.best));
                same("best gradient", kept[2].read(), of(|image| &image.best_gradient));
                let actual: Vec<u32> = kept[3].read();
                for (n, image) in
                    expected.iter().enumerate().filter(|(_, image)| image.prediction != image.label)
                {
                    let actual = &actual[n * IMAGE_LEN..][..IMAGE_LEN];
                    assert_eq!(actual, words(&image.adversarial), "{phase:?}: adversarial {n}, seed {SEED}");
                }
                bits.extend(actual);
            }
            bits
        });
    }
}
