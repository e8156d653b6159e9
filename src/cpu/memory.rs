//! Memory of the CPU: storage of tensors, aligned buffers, and scratch of a thread.
//!
//! Tensors are bytes in a `RefCell`, so that an operation can read some allocations and write others.

use std::any::Any;
use std::cell::{Ref, RefCell, RefMut};
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use crate::engine::{Element, Error, Result, Storage, Tensor, View};

/// One cache line, which is also one vector of AVX-512.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A vector of f32 that starts on a cache line.
#[derive(Clone, Default)]
pub struct Aligned {
    lines: Vec<Line>,
    len: usize,
}

impl Aligned {
    pub fn zeros(len: usize) -> Self {
        Self { lines: vec![Line([0.0; 16]); len.div_ceil(16)], len }
    }

    /// At least `len` elements, all of them zero where it grows.
    pub fn reserve(&mut self, len: usize) {
        if self.len < len {
            *self = Self::zeros(len);
        }
    }
}

impl Deref for Aligned {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<Aligned>> = const { RefCell::new(Vec::new()) };
}

/// Lends `len` elements of unspecified value that this thread keeps for its next task.
pub fn with_scratch<R>(len: usize, task: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
    buffer.reserve(len);
    let result = task(&mut buffer[..len]);
    SCRATCH.with_borrow_mut(|free| free.push(buffer));
    result
}

/// What a [`Storage`] of the CPU holds.
struct Memory {
    /// Eight bytes an item, so that every element type is aligned.
    words: RefCell<Vec<u64>>,
    bytes: usize,
}

/// The memory of tensors.
#[derive(Default)]
pub struct Heap {
    /// Allocations that the present call writes.
    written: RefCell<Vec<usize>>,
}

/// What an operation reads: the elements themselves, or a copy where the call also writes their allocation.
pub enum Input<'a, T> {
    View(Ref<'a, [T]>),
    Copy(Vec<T>),
}

impl<T> Deref for Input<'_, T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        match self {
            Self::View(view) => view,
            Self::Copy(values) => values,
        }
    }
}

impl Heap {
    /// Fresh memory; every byte is 0xFF, which reads as NaN until it is written.
    pub fn alloc(&self, name: &'static str, bytes: usize) -> Result<Rc<dyn Any>> {
        let len = bytes.div_ceil(8);
        let mut words = Vec::new();
        let lack = |_| Error::OutOfMemory { what: name.into(), bytes };
        words.try_reserve_exact(len).map_err(lack)?;
        words.resize(len, u64::MAX);
        Ok(Rc::new(Memory { words: RefCell::new(words), bytes }))
    }

    /// A call begins that writes these views.
    pub fn begin(&self, views: &[View]) {
        *self.written.borrow_mut() = views.iter().map(|view| view.storage).collect();
    }

    pub fn write(&self, storage: &Storage, offset: usize, bytes: &[u8]) -> Result<()> {
        let memory: &Memory = storage.memory()?;
        let mut words = memory.words.try_borrow_mut().map_err(|_| in_use(storage.name()))?;
        bytemuck::cast_slice_mut::<u64, u8>(&mut words)[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    pub fn read(&self, storage: &Storage, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let memory: &Memory = storage.memory()?;
        let words = memory.words.try_borrow().map_err(|_| in_use(storage.name()))?;
        bytes.copy_from_slice(&bytemuck::cast_slice::<u64, u8>(&words)[offset..offset + bytes.len()]);
        Ok(())
    }

    /// The elements of a tensor, to read.
    pub fn input<'a, T: Element>(&self, tensor: &'a Tensor<T>) -> Result<Input<'a, T>> {
        let memory: &Memory = tensor.storage().memory()?;
        let words = memory.words.try_borrow().map_err(|_| in_use(tensor.name()))?;
        let range = tensor.offset()..tensor.offset() + tensor.len();
        let view = Ref::map(words, |words| &elements(words, memory.bytes)[range]);
        let written = self.written.borrow().contains(&tensor.storage().id());
        Ok(if written { Input::Copy(view.to_vec()) } else { Input::View(view) })
    }

    /// The elements of a tensor, to write.
    pub fn output<'a, T: Element>(&self, tensor: &'a Tensor<T>) -> Result<RefMut<'a, [T]>> {
        let memory: &Memory = tensor.storage().memory()?;
        let words = memory.words.try_borrow_mut().map_err(|_| in_use(tensor.name()))?;
        let range = tensor.offset()..tensor.offset() + tensor.len();
        Ok(RefMut::map(words, |words| {
            let len = memory.bytes / size_of::<T>();
            &mut bytemuck::cast_slice_mut::<u64, T>(words)[..len][range]
        }))
    }
}

/// All whole elements in the first `bytes` bytes.
fn elements<T: Element>(words: &[u64], bytes: usize) -> &[T] {
    &bytemuck::cast_slice(words)[..bytes / size_of::<T>()]
}

fn in_use(tensor: &str) -> Error {
    Error::Invalid(format!("{tensor}: the storage is read and written by one call; use separate tensors"))
}
