//! Last-layer gradients by the kernels of `kernels/prune/`: checks lengths, finds addresses, calls the launches.
//!
//! Checked by `tests/last_layer.rs` against the reference engine.

use super::driver::{Address, Buffer};
use super::engine::Cuda;
use super::launch::last_layer::{
    self as launch, CombineRowsParams, Gradients, RowNormsParams, RowProductsParams, StepLogitsParams,
};
use crate::engine::{Element, Error, LastLayer, LastLayerGradients, Pass, Result, Tensor};

/// A length as the kernels count.
fn count(len: usize, what: &str) -> Result<u32> {
    let limit = i32::MAX as usize;
    match u32::try_from(len) {
        Ok(count) if len <= limit => Ok(count),
        _ => Err(Error::Invalid(format!("{what}: {len} elements, expected {limit} at most"))),
    }
}

impl Cuda {
    fn classes(&self) -> usize {
        self.parameters.layout.network.classes
    }

    /// Features of a sample.
    fn width(&self) -> usize {
        self.parameters.layout.network.features()
    }

    /// Numbers of a gradient.
    fn vector_len(&self) -> usize {
        self.classes() * (self.width() + 1)
    }

    /// Gradients as the kernels read them, none of which lies in `written`.
    fn gradients<T: Element>(
        &self,
        gradients: &LastLayerGradients,
        written: &Tensor<T>,
    ) -> Result<Gradients> {
        let (terms, len) = (&gradients.terms, gradients.len);
        if !(1..=2).contains(&terms.len()) {
            return Err(Error::Invalid(format!(
                "last-layer gradients of {} terms, expected 1 or 2",
                terms.len()
            )));
        }
        let mut params = Gradients {
            logit_gradient: [Address::NULL; 2],
            features: [Address::NULL; 2],
            len: count(len, "last-layer gradients")?,
            terms: terms.len() as u32,
            classes: self.classes() as u32,
            width: self.width() as u32,
        };
        for (at, term) in terms.iter().enumerate() {
            params.logit_gradient[at] = self.sized(&term.logit_gradient, len * self.classes())?;
            params.features[at] = self.sized(&term.features, len * self.width())?;
            self.disjoint(&term.logit_gradient, written)?;
            self.disjoint(&term.features, written)?;
        }
        Ok(params)
    }

    /// Room for the parts of a sum.
    fn sum_workspace(&mut self, gradients: &Gradients) -> Result<Address> {
        let Gradients { len, classes, width, .. } = *gradients;
        let bytes = launch::gradient_sum_workspace(len, classes, width) * size_of::<f64>();
        match &self.sums {
            Some(sums) if sums.bytes() >= bytes => Ok(sums.address()),
            _ if bytes == 0 => Ok(Address::NULL),
            _ => {
                let sums = Buffer::new(&self.driver, "parts of a sum of gradients", bytes)?;
                Ok(self.sums.insert(sums).address())
            }
        }
    }
}

impl LastLayer for Cuda {
    fn features(&mut self, pass: Pass, features: &Tensor<f32>) -> Result<()> {
        let kept = match pass {
            Pass::Eval => self.eval.features(),
            Pass::Train { slot } => {
                self.train.get(slot).and_then(Option::as_ref).and_then(|train| train.features())
            }
        };
        let Some((batch, from)) = kept else {
            return Err(Error::Invalid(format!(
                "{pass:?}: features without a forward pass on the present weights"
            )));
        };
        let to = self.sized(features, batch * self.width())?;
        self.driver().copy(from, to, features.len() * size_of::<f32>())
    }

    fn gradient_sum(
        &mut self,
        gradients: &LastLayerGradients,
        weights: Option<&Tensor<f64>>,
        sum: &Tensor<f64>,
    ) -> Result<()> {
        let to = self.sized(sum, self.vector_len())?;
        let weights = match weights {
            Some(weights) => {
                let address = self.sized(weights, gradients.len)?;
                self.disjoint(weights, sum)?;
                address
            }
            None => Address::NULL,
        };
        let gradients = self.gradients(gradients, sum)?;
        let workspace = self.sum_workspace(&gradients)?;
        launch::gradient_sum(self.driver(), &gradients, weights, workspace, to)
    }

    fn gradient_products(
        &mut self,
        gradients: &LastLayerGradients,
        vector: &Tensor<f64>,
        products: &Tensor<f64>,
    ) -> Result<()> {
        let from = self.sized(vector, self.vector_len())?;
        let to = self.sized(products, gradients.len)?;
        self.disjoint(vector, products)?;
        let gradients = self.gradients(gradients, products)?;
        launch::gradient_products(self.driver(), &gradients, from, to)
    }

    fn gradient_column(
        &mut self,
        gradients: &LastLayerGradients,
        sample: usize,
        column: &Tensor<f64>,
    ) -> Result<()> {
        let to = self.sized(column, gradients.len)?;
        if sample >= gradients.len {
            return Err(Error::Invalid(format!("gradient {sample} of {}", gradients.len)));
        }
        let gradients = self.gradients(gradients, column)?;
        launch::gradient_column(self.driver(), &gradients, sample as u32, to)
    }

    fn gradient_squares(&mut self, gradients: &LastLayerGradients, squares: &Tensor<f64>) -> Result<()> {
        let to = self.sized(squares, gradients.len)?;
        let gradients = self.gradients(gradients, squares)?;
        launch::gradient_squares(self.driver(), &gradients, to)
    }

    fn step_logits(
        &mut self,
        features: &Tensor<f32>,
        vector: &Tensor<f64>,
        rate: f64,
        logits: &Tensor<f32>,
        moved: &Tensor<f32>,
    ) -> Result<()> {
        let (classes, width) = (self.classes(), self.width());
        let len = logits.len() / classes;
        let params = StepLogitsParams {
            logits: self.sized(logits, len * classes)?,
            moved: self.sized(moved, logits.len())?,
            features: self.sized(features, len * width)?,
            vector: self.sized(vector, self.vector_len())?,
            rate,
            len: count(len, logits.name())?,
            classes: classes as u32,
            width: width as u32,
            padding: 0,
        };
        self.separate(features, moved)?;
        self.disjoint(vector, moved)?;
        self.disjoint_or_same(logits, moved)?;
        launch::step_logits(self.driver(), &params)
    }

    fn row_products(
        &mut self,
        rows: &Tensor<f64>,
        vector: &Tensor<f64>,
        products: &Tensor<f64>,
    ) -> Result<()> {
        let params = RowProductsParams {
            rows: self.sized(rows, products.len() * vector.len())?,
            vector: self.address(vector)?,
            products: self.address(products)?,
            len: count(vector.len(), vector.name())?,
            padding: 0,
        };
        self.separate(rows, products)?;
        self.disjoint(vector, products)?;
        launch::row_products(self.driver(), count(products.len(), products.name())?, &params)
    }

    fn subtract_rows(
        &mut self,
        rows: &Tensor<f64>,
        factors: &Tensor<f64>,
        from: &Tensor<f64>,
        to: &Tensor<f64>,
    ) -> Result<()> {
        let len = from.len();
        let params = CombineRowsParams {
            to: self.sized(to, len)?,
            rows: self.sized(rows, factors.len() * len)?,
            factors: self.address(factors)?,
            from: self.address(from)?,
            count: count(factors.len(), factors.name())?,
            len: count(len, from.name())?,
        };
        self.separate(rows, to)?;
        self.disjoint(factors, to)?;
        self.disjoint_or_same(from, to)?;
        launch::subtract_rows(self.driver(), &params)
    }

    fn row_norms(&mut self, values: &Tensor<f32>, row_len: usize, norms: &Tensor<f32>) -> Result<()> {
        if row_len == 0 {
            return Err(Error::Invalid(format!(
                "{}: rows of 0 elements, expected 1 at least",
                values.name()
            )));
        }
        let params = RowNormsParams {
            values: self.sized(values, norms.len() * row_len)?,
            norms: self.address(norms)?,
            rows: count(norms.len(), norms.name())?,
            len: count(row_len, values.name())?,
        };
        self.separate(values, norms)?;
        launch::row_norms(self.driver(), &params)
    }
}
