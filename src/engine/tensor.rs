//! Tensors: typed views of storage that only the engine which made it can look into.

use std::any::Any;
use std::marker::PhantomData;
use std::ops::Range;
use std::rc::Rc;

use super::{Error, Result};

/// Element types of tensors.
pub trait Element: bytemuck::Pod {}
impl Element for f32 {}
impl Element for f64 {}
impl Element for u32 {}
impl Element for u8 {}

/// Elements of four bytes, which operations may move without knowing what they mean.
pub trait Word: Element {}
impl Word for f32 {}
impl Word for u32 {}

/// Memory of one engine, freed when the last view of it is dropped.
#[derive(Clone)]
pub struct Storage {
    memory: Rc<dyn Any>,
    name: &'static str,
    bytes: usize,
    engine: u64,
}

impl Storage {
    pub(super) fn new(name: &'static str, bytes: usize, engine: u64, memory: Rc<dyn Any>) -> Self {
        Self { memory, name, bytes, engine }
    }
    /// The memory as its backend made it.
    ///
    /// # Errors
    /// [`Error::ForeignTensor`] where another backend made it.
    pub(crate) fn memory<M: Any>(&self) -> Result<&M> {
        self.memory.downcast_ref().ok_or(Error::ForeignTensor { tensor: self.name })
    }
    pub fn name(&self) -> &'static str {
        self.name
    }
    pub fn bytes(&self) -> usize {
        self.bytes
    }
    /// The engine that it belongs to.
    pub(super) fn engine(&self) -> u64 {
        self.engine
    }
    /// The same for every view of one allocation.
    pub(crate) fn id(&self) -> usize {
        Rc::as_ptr(&self.memory).cast::<()>() as usize
    }
}

/// Bytes of one allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// [`Storage::id`].
    pub(crate) storage: usize,
    pub(crate) bytes: Range<usize>,
    pub(crate) name: &'static str,
}

impl View {
    /// Whether they share a byte.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.storage == other.storage
            && self.bytes.start.max(other.bytes.start) < self.bytes.end.min(other.bytes.end)
    }
}

/// A flat view of `len` elements; shapes are in the contracts of the operations.
#[derive(Clone)]
pub struct Tensor<T> {
    storage: Storage,
    offset: usize,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Element> Tensor<T> {
    pub(super) fn new(storage: Storage, len: usize) -> Self {
        Self { storage, offset: 0, len, element: PhantomData }
    }
    pub fn len(&self) -> usize {
        self.len
    }
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    pub fn name(&self) -> &'static str {
        self.storage.name
    }
    pub fn storage(&self) -> &Storage {
        &self.storage
    }
    /// First element of the view, counted in its storage.
    pub fn offset(&self) -> usize {
        self.offset
    }
    pub fn byte_offset(&self) -> usize {
        self.offset * size_of::<T>()
    }
    /// The bytes that it covers.
    pub(crate) fn view(&self) -> View {
        let start = self.byte_offset();
        View {
            storage: self.storage.id(),
            bytes: start..start + self.len * size_of::<T>(),
            name: self.name(),
        }
    }
    /// The same memory, narrowed to `range`.
    ///
    /// # Panics
    /// If the range does not lie inside the view: a fault of the caller, as with slices.
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "{}: {range:?} of {}",
            self.name(),
            self.len
        );
        Self { offset: self.offset + range.start, len: range.len(), ..self.clone() }
    }
    /// Rows `range` of a tensor of rows of `row` elements each.
    pub fn rows(&self, range: Range<usize>, row: usize) -> Self {
        self.slice(range.start * row..range.end * row)
    }
}

impl<T: Word> Tensor<T> {
    /// The same memory as plain words.
    pub fn words(&self) -> Tensor<u32> {
        Tensor { storage: self.storage.clone(), offset: self.offset, len: self.len, element: PhantomData }
    }
}

impl<T> std::fmt::Debug for Tensor<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}[{}..{}]", self.storage.name, self.offset, self.offset + self.len)
    }
}
