//! What a device must be able to do for an engine, besides the operations of [`crate::ops`].

use std::any::Any;
use std::rc::Rc;

use super::{
    DeviceInfo, GradRequest, Pass, Reduced, Result, Sgd, StopFlag, Storage, Tensor, View, WeightSet,
};
use crate::collective::Collective;
use crate::cuda::driver::Driver;
use crate::model::Weights;

/// One network on one device. [`Engine`](super::Engine) has checked every argument and the order of the calls.
///
/// Lists of tensors hold one for each set of images: two for [`Pass::Pair`], else one.
pub(crate) trait Backend {
    fn info(&self) -> &DeviceInfo;
    /// See [`Engine::micro_batch`](super::Engine::micro_batch).
    fn micro_batch(&self) -> usize;

    /// Memory of `bytes` bytes; what it holds reads as NaN or is undefined.
    fn alloc(&self, name: &'static str, bytes: usize) -> Result<Rc<dyn Any>>;
    fn write(&self, storage: &Storage, offset: usize, bytes: &[u8]) -> Result<()>;
    fn read(&self, storage: &Storage, offset: usize, bytes: &mut [u8]) -> Result<()>;
    /// Waits for all work; reports an error that happened on the way.
    fn synchronize(&self) -> Result<()>;
    /// Called before a call that writes these views: copies of what they hold are stale.
    fn written(&self, views: &[View]);

    /// Replaces a set of weights. Live weights clear momentum and average; `None` drops the average.
    fn load(&mut self, set: WeightSet, weights: Option<&Weights>) -> Result<()>;
    fn weights(&self, set: WeightSet) -> Result<Weights>;
    fn step(&mut self, sgd: &Sgd) -> Result<()>;
    /// Called after an operation wrote the live weights: copies of them are stale.
    fn weights_changed(&mut self) -> Result<()>;

    fn fold(&mut self, set: WeightSet) -> Result<()>;
    fn forward(&mut self, pass: Pass, images: &[&Tensor<f32>], logits: &[&Tensor<f32>]) -> Result<()>;
    fn backward(&mut self, pass: Pass, logit_gradients: &[&Tensor<f32>], request: &GradRequest)
    -> Result<()>;
    fn features(&mut self, pass: Pass, set: usize, features: &Tensor<f32>) -> Result<()>;
    /// Called when the engine becomes a rank, before it is one.
    fn join(&mut self, group: &dyn Collective) -> Result<()>;
    /// Reduces values of the parameters over all ranks.
    fn all_reduce(&mut self, what: Reduced, group: &dyn Collective) -> Result<()>;
    /// Called where the group has failed: gives up reductions that are under way.
    fn abandon_group(&self);
    /// A request that attacks of many passes check between two of them.
    fn stop_on(&mut self, stop: Option<StopFlag>);
    /// What launches are made through; `None` for the CPU.
    fn driver(&self) -> Option<&Rc<dyn Driver>>;
}
