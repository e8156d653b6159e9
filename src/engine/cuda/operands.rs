//! From tensors to addresses: whose memory it is, how long, and whether one call would read what it writes.
//!
//! Called by every operation of the engine; checked by tests/engine_state.rs and tests/last_layer.rs.

use std::rc::Rc;

use super::driver::{Address, Buffer};
use super::engine::Cuda;
use crate::engine::{Element, Error, Result, Storage, Tensor};

impl Cuda {
    pub(super) fn buffer<'a>(&self, storage: &'a Storage) -> Result<&'a Buffer> {
        match storage.memory::<Buffer>() {
            Some(buffer) if Rc::ptr_eq(buffer.driver(), &self.driver) => Ok(buffer),
            _ => Err(Error::ForeignTensor { tensor: storage.name() }),
        }
    }

    /// The device address of a tensor of this engine.
    pub(super) fn address<T: Element>(&self, tensor: &Tensor<T>) -> Result<Address> {
        Ok(self.buffer(tensor.storage())?.address() + tensor.byte_offset())
    }

    /// The same, where exactly `wanted` elements are needed.
    pub(super) fn sized<T: Element>(&self, tensor: &Tensor<T>, wanted: usize) -> Result<Address> {
        if tensor.len() != wanted {
            return Err(Error::Length { tensor: tensor.name(), met: tensor.len(), wanted });
        }
        self.address(tensor)
    }

    /// Refuses two tensors of one storage.
    pub(super) fn separate<A: Element, B: Element>(
        &self,
        read: &Tensor<A>,
        written: &Tensor<B>,
    ) -> Result<()> {
        if self.buffer(read.storage())?.address() == self.buffer(written.storage())?.address() {
            return Err(in_use(written.name()));
        }
        Ok(())
    }

    /// Refuses two tensors that share an element.
    pub(super) fn disjoint<A: Element, B: Element>(
        &self,
        read: &Tensor<A>,
        written: &Tensor<B>,
    ) -> Result<()> {
        let (from, to) = (self.address(read)?.0, self.address(written)?.0);
        let (from_end, to_end) =
            (from + (read.len() * size_of::<A>()) as u64, to + (written.len() * size_of::<B>()) as u64);
        if from.max(to) < from_end.min(to_end) {
            return Err(in_use(written.name()));
        }
        Ok(())
    }

    /// The same, unless they are one and the same.
    pub(super) fn disjoint_or_same<T: Element>(&self, read: &Tensor<T>, written: &Tensor<T>) -> Result<()> {
        if self.address(read)? == self.address(written)? && read.len() == written.len() {
            return Ok(());
        }
        self.disjoint(read, written)
    }
}

fn in_use(name: &str) -> Error {
    Error::Invalid(format!("{name}: the storage is read and written by one call; use separate tensors"))
}
