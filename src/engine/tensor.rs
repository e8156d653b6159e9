//! Tensors: typed views of storage that only the engine which made it can look into.

use std::any::Any;
use std::marker::PhantomData;
use std::ops::Range;
use std::rc::Rc;

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

/// Memory of some engine, freed when the last view of it is dropped.
#[derive(Clone)]
pub struct Storage {
    memory: Rc<dyn Any>,
    name: &'static str,
}

impl Storage {
    pub fn new<M: Any>(name: &'static str, memory: M) -> Self {
        Self { memory: Rc::new(memory), name }
    }
    /// The engine's own memory type; `None` where another engine made it.
    pub fn memory<M: Any>(&self) -> Option<&M> {
        self.memory.downcast_ref()
    }
    pub fn name(&self) -> &'static str {
        self.name
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
