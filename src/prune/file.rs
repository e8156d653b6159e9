//! Subsets, and what they were chosen from, as safetensors files that any other program can read.
//!
//! | tensor | type and shape | what |
//! |---|---|---|
//! | `indices` | I64, k | positions in the official order of the training set, ascending |
//! | `weights` | F32, k | factors on the losses: of mean 1, but for InfoBatch's |
//! | `residuals` | F64, choices | what the pursuits left of their targets, as shares of their norm; empty for other methods |
//! | each figure of [`Diagnosis`] | F64, 1 | under its name; absent where there is none |
//!
//! The factors of the candidates' last-layer gradients, `g_i = sum over terms of dz_i (x) [h_i, 1]`, one or two terms
//! (`clean` where the objective passes clean images, `adversarial`):
//!
//! | tensor | type and shape | what |
//! |---|---|---|
//! | `indices`, `labels` | I64, n | of each candidate |
//! | `TERM.logit_gradient` | F32, n x classes | dz |
//! | `TERM.features` | F32, n x features | h |
//! | `losses` | F32, n | of the objective |

use safetensors::tensor::{Dtype, TensorView};

use super::{Diagnosis, LastLayerView, Subset};
use crate::engine::{Engine, Result};

/// Tensors of several types, on their way into a file.
#[derive(Default)]
struct Tensors(Vec<(String, Dtype, Vec<usize>, Vec<u8>)>);

impl Tensors {
    fn insert(&mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) {
        self.0.push((name.into(), dtype, shape.to_vec(), bytes));
    }

    fn insert_i64(&mut self, name: &str, values: &[u32]) {
        let bytes = values.iter().flat_map(|&value| i64::from(value).to_le_bytes()).collect();
        self.insert(name, Dtype::I64, &[values.len()], bytes);
    }

    fn insert_f32(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.insert(name, Dtype::F32, shape, bytes);
    }

    fn insert_f64(&mut self, name: &str, values: &[f64]) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.insert(name, Dtype::F64, &[values.len()], bytes);
    }

    fn to_bytes(&self) -> Vec<u8> {
        let views = self.0.iter().map(|(name, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.clone(), bytes);
            (name.as_str(), view.expect("a tensor's values fill its shape"))
        });
        safetensors::serialize(views, None).expect("names and shapes always serialise")
    }
}

impl Subset {
    /// The bytes of a subset's file with its figures; the same subset gives the same bytes.
    pub fn to_bytes(&self, diagnosis: &Diagnosis) -> Vec<u8> {
        let mut tensors = Tensors::default();
        tensors.insert_i64("indices", &self.samples);
        tensors.insert_f32("weights", &[self.len()], &self.weights);
        tensors.insert_f64("residuals", &self.residuals);
        let figures = serde_json::to_value(diagnosis).expect("plain structs always serialise");
        for (name, figure) in figures.as_object().into_iter().flatten() {
            if let Some(figure) = figure.as_f64() {
                tensors.insert_f64(name, &[figure]);
            }
        }
        tensors.to_bytes()
    }
}

impl LastLayerView {
    /// The bytes of the factors' file; `samples` are the positions that the view was made of.
    pub fn to_bytes(&self, engine: &Engine, samples: &[u32]) -> Result<Vec<u8>> {
        let mut tensors = Tensors::default();
        tensors.insert_i64("indices", samples);
        tensors.insert_i64("labels", &engine.read(&self.labels)?);
        tensors.insert_f32("losses", &[samples.len()], &engine.read(&self.losses)?);
        let network = engine.network();
        let (clean, adversarial) = self.terms();
        let terms = clean.map(|term| ("clean", term)).into_iter().chain([("adversarial", adversarial)]);
        for (name, term) in terms {
            let gradient = engine.read(&term.logit_gradient)?;
            tensors.insert_f32(
                &format!("{name}.logit_gradient"),
                &[samples.len(), network.classes],
                &gradient,
            );
            let features = engine.read(&term.features)?;
            tensors.insert_f32(&format!("{name}.features"), &[samples.len(), network.features()], &features);
        }
        Ok(tensors.to_bytes())
    }
}
