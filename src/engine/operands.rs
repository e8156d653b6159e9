//! The one check of every call: whose memory, how long, and whether it would read what it writes.

use super::{Element, Error, Result, Tensor, View, WeightSet};
use crate::model::ResNet;

/// Collects the operands of a call; refuses wrong ones in the same words on every device.
pub struct Operands {
    network: ResNet,
    engine: u64,
    reads: Vec<Read>,
    writes: Vec<View>,
    sets: Vec<WeightSet>,
    changes_weights: bool,
}

struct Read {
    view: View,
    /// The operand of `writes` that it may be: each element is read before that of the same index is written.
    in_place: Option<usize>,
}

impl Operands {
    pub(super) fn new(engine: u64, network: ResNet) -> Self {
        Self {
            network,
            engine,
            reads: Vec::new(),
            writes: Vec::new(),
            sets: Vec::new(),
            changes_weights: false,
        }
    }

    pub fn network(&self) -> ResNet {
        self.network
    }
    pub fn classes(&self) -> usize {
        self.network.classes
    }

    /// A tensor of exactly `len` elements that is read.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::ForeignTensor`].
    pub fn reads<T: Element>(&mut self, tensor: &Tensor<T>, len: usize) -> Result<()> {
        let view = self.admit(tensor, len)?;
        self.reads.push(Read { view, in_place: None });
        Ok(())
    }

    /// A tensor of exactly `len` elements that is written, whether or not it is read too.
    ///
    /// # Errors
    /// As [`Operands::reads`].
    pub fn writes<T: Element>(&mut self, tensor: &Tensor<T>, len: usize) -> Result<()> {
        let view = self.admit(tensor, len)?;
        self.writes.push(view);
        Ok(())
    }

    /// `to` is written from `from`, element by element, and may be the same tensor.
    ///
    /// # Errors
    /// As [`Operands::reads`].
    pub fn maps<T: Element>(&mut self, from: &Tensor<T>, to: &Tensor<T>, len: usize) -> Result<()> {
        let view = self.admit(from, len)?;
        self.reads.push(Read { view, in_place: Some(self.writes.len()) });
        self.writes(to, len)
    }

    /// A set of values of the parameters that is read; a call on an engine without it is refused.
    pub fn reads_set(&mut self, set: WeightSet) {
        self.sets.push(set);
    }

    /// The live weights or running statistics are written, whether or not they are read too: evaluation and backward passes need a
    /// new fold and a new forward pass.
    pub fn changes_weights(&mut self) {
        self.sets.push(WeightSet::Live);
        self.changes_weights = true;
    }

    pub(super) fn sets(&self) -> &[WeightSet] {
        &self.sets
    }
    pub(super) fn weights_change(&self) -> bool {
        self.changes_weights
    }

    /// Rows of `row_len` elements in a tensor that divides into them.
    ///
    /// # Errors
    /// Where `row_len` is 0 or does not divide the tensor.
    pub fn rows_of<T: Element>(&self, tensor: &Tensor<T>, row_len: usize) -> Result<usize> {
        if row_len == 0 {
            return Err(Error::Invalid(format!(
                "{}: rows of 0 elements, expected 1 at least",
                tensor.name()
            )));
        }
        let rows = tensor.len() / row_len;
        expect_len(tensor, rows * row_len)?;
        Ok(rows)
    }

    /// # Errors
    /// Where the network has fewer classes than `what` needs.
    pub fn at_least_classes(&self, what: &str, least: usize) -> Result<()> {
        if self.classes() >= least {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "{what} needs {least} classes at least, the network has {}",
            self.classes()
        )))
    }

    fn admit<T: Element>(&self, tensor: &Tensor<T>, len: usize) -> Result<View> {
        if tensor.storage().engine() != self.engine {
            return Err(Error::ForeignTensor { tensor: tensor.name() });
        }
        expect_len(tensor, len)?;
        Ok(tensor.view())
    }

    /// What is written, after a look for operands that overlap.
    pub(super) fn finish(self) -> Result<Vec<View>> {
        for (at, written) in self.writes.iter().enumerate() {
            let clash = |read: &Read| {
                read.view.overlaps(written) && !(read.in_place == Some(at) && read.view == *written)
            };
            if self.reads.iter().any(clash) || self.writes[..at].iter().any(|other| other.overlaps(written)) {
                return Err(Error::Invalid(format!(
                    "{}: the storage is read and written by one call; use separate tensors",
                    written.name
                )));
            }
        }
        Ok(self.writes)
    }
}

fn expect_len<T: Element>(tensor: &Tensor<T>, expected: usize) -> Result<()> {
    if tensor.len() == expected {
        return Ok(());
    }
    Err(Error::Length { tensor: tensor.name(), actual: tensor.len(), expected })
}
