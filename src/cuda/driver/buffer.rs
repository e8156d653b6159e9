//! Device memory that is freed when its owner goes.

use std::rc::Rc;

use super::{Address, Driver};
use crate::engine::Result;

/// An allocation of some driver.
pub struct Buffer {
    driver: Rc<dyn Driver>,
    address: Address,
    bytes: usize,
    name: &'static str,
}

impl Buffer {
    /// Uninitialised memory; `name` appears in error messages.
    pub fn new(driver: &Rc<dyn Driver>, name: &'static str, bytes: usize) -> Result<Self> {
        let address = driver.alloc(name, bytes)?;
        Ok(Self { driver: driver.clone(), address, bytes, name })
    }
    /// New memory with these values.
    pub fn from_slice<T: bytemuck::Pod>(
        driver: &Rc<dyn Driver>,
        name: &'static str,
        values: &[T],
    ) -> Result<Self> {
        let buffer = Self::new(driver, name, size_of_val(values))?;
        driver.write(buffer.address, bytemuck::cast_slice(values))?;
        Ok(buffer)
    }
    /// The whole content as elements of T.
    pub fn to_vec<T: bytemuck::Pod>(&self) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); self.bytes / size_of::<T>()];
        self.driver.read(self.address, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }
    pub fn address(&self) -> Address {
        self.address
    }
    pub fn bytes(&self) -> usize {
        self.bytes
    }
    pub fn name(&self) -> &'static str {
        self.name
    }
    pub fn driver(&self) -> &Rc<dyn Driver> {
        &self.driver
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.driver.free(self.address);
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} ({} bytes at {:#x})", self.name, self.bytes, self.address.0)
    }
}
