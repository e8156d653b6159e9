//! Memory of the reference engine: storage behind tensors, aligned buffers, and scratch of a thread.
//!
//! Tensors are bytes in a `RefCell`, so that an operation can read some views and write another; a view that would
//! be read and written at once is an error, not a panic. Checked by `tests/reference_engine.rs`; called by every
//! operation of the engine.

use std::cell::{Ref, RefCell, RefMut};
use std::ops::{Deref, DerefMut};

use crate::engine::{Element, Error, Result, Storage, Tensor};

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

    /// At least `len` elements, of unspecified value where it grows.
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

/// What a [`Storage`] of this engine holds.
struct Memory {
    engine: u64,
    /// Eight bytes an item, so that every element type is aligned.
    words: RefCell<Vec<u64>>,
    bytes: usize,
}

/// The owner of tensors: one a engine, so that tensors of another engine are refused.
#[derive(Clone, Copy)]
pub struct Heap {
    engine: u64,
}

impl Heap {
    pub fn new() -> Self {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { engine: NEXT.fetch_add(1, Ordering::Relaxed) }
    }

    /// Fresh storage; every byte is 0xFF, which reads as NaN until it is written.
    pub fn alloc(&self, name: &'static str, bytes: usize) -> Result<Storage> {
        let len = bytes.div_ceil(8);
        let mut words = Vec::new();
        let lack = |_| Error::OutOfMemory { what: name.into(), bytes };
        words.try_reserve_exact(len).map_err(lack)?;
        words.resize(len, u64::MAX);
        Ok(Storage::new(name, Memory { engine: self.engine, words: RefCell::new(words), bytes }))
    }

    fn memory<'a>(&self, storage: &'a Storage) -> Result<&'a Memory> {
        storage
            .memory::<Memory>()
            .filter(|memory| memory.engine == self.engine)
            .ok_or(Error::ForeignTensor { tensor: storage.name() })
    }

    pub fn write(&self, storage: &Storage, offset: usize, bytes: &[u8]) -> Result<()> {
        let memory = self.memory(storage)?;
        let end = checked_end(storage, memory, offset, bytes.len())?;
        let mut words = memory.words.try_borrow_mut().map_err(|_| in_use(storage.name()))?;
        bytemuck::cast_slice_mut::<u64, u8>(&mut words)[offset..end].copy_from_slice(bytes);
        Ok(())
    }

    pub fn read(&self, storage: &Storage, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let memory = self.memory(storage)?;
        let end = checked_end(storage, memory, offset, bytes.len())?;
        let words = memory.words.try_borrow().map_err(|_| in_use(storage.name()))?;
        bytes.copy_from_slice(&bytemuck::cast_slice::<u64, u8>(&words)[offset..end]);
        Ok(())
    }

    /// The elements of a tensor, to read.
    pub fn view<'a, T: Element>(&self, tensor: &'a Tensor<T>) -> Result<Ref<'a, [T]>> {
        let memory = self.memory(tensor.storage())?;
        let words = memory.words.try_borrow().map_err(|_| in_use(tensor.name()))?;
        let range = tensor.offset()..tensor.offset() + tensor.len();
        Ok(Ref::map(words, |words| &elements(words, memory.bytes)[range]))
    }

    /// The elements of a tensor, to write.
    pub fn view_mut<'a, T: Element>(&self, tensor: &'a Tensor<T>) -> Result<RefMut<'a, [T]>> {
        let memory = self.memory(tensor.storage())?;
        let words = memory.words.try_borrow_mut().map_err(|_| in_use(tensor.name()))?;
        let range = tensor.offset()..tensor.offset() + tensor.len();
        Ok(RefMut::map(words, |words| {
            let len = memory.bytes / size_of::<T>();
            &mut bytemuck::cast_slice_mut::<u64, T>(words)[..len][range]
        }))
    }

    /// A copy of the elements, free of any borrow: inputs may then share storage with outputs.
    pub fn copy<T: Element>(&self, tensor: &Tensor<T>) -> Result<Vec<T>> {
        Ok(self.view(tensor)?.to_vec())
    }
}

/// All whole elements in the first `bytes` bytes.
fn elements<T: Element>(words: &[u64], bytes: usize) -> &[T] {
    &bytemuck::cast_slice(words)[..bytes / size_of::<T>()]
}

fn checked_end(storage: &Storage, memory: &Memory, offset: usize, len: usize) -> Result<usize> {
    offset.checked_add(len).filter(|&end| end <= memory.bytes).ok_or_else(|| {
        let size = memory.bytes;
        Error::Invalid(format!("{}: {len} bytes at {offset} of a storage of {size} bytes", storage.name()))
    })
}

fn in_use(tensor: &str) -> Error {
    Error::Invalid(format!("{tensor}: the storage is read and written by one call; use separate tensors"))
}

/// Refuses a tensor that does not have `wanted` elements.
pub fn expect_len<T: Element>(tensor: &Tensor<T>, wanted: usize) -> Result<()> {
    if tensor.len() == wanted {
        return Ok(());
    }
    Err(Error::Length { tensor: tensor.name(), met: tensor.len(), wanted })
}
