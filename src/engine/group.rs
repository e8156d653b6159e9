//! An engine as one rank of a group that trains one network together: what it sums, averages and gathers.
//!
//! Every rank has the same weights. Each works on its share of a batch ([`Engine::share`]), with losses that are means over the whole
//! batch, so that the gradients of all shares add up to those of the batch. An engine of its own is a group of one, for which
//! nothing here does anything.

use std::ops::Range;
use std::rc::Rc;

use super::{Element, Engine, Result, Tensor};
use crate::collective::{Collective, CollectiveError, share, shared_items, values};

/// Values of the parameters that ranks make the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduced {
    /// Their sum.
    Gradients,
    /// Their mean, of the live weights.
    RunningStatistics,
}

impl Engine {
    /// Makes this engine a rank of `group`, whose other ranks join at the same time.
    ///
    /// # Errors
    /// [`Error::Collective`](super::Error::Collective) where their devices differ in kind or code, and so in their bits;
    /// [`Error::Unavailable`](super::Error::Unavailable) for GPUs without NCCL.
    pub fn join(&mut self, group: Rc<dyn Collective>) -> Result<()> {
        let info = self.device();
        let own = format!("{} ({})", info.kind, info.code);
        let all = group.all_gather("devices", own.clone().into_bytes())?;
        if let Some(rank) = all.iter().position(|theirs| ***theirs != *own.as_bytes()) {
            let actual = format!("results of {}", String::from_utf8_lossy(&all[rank]));
            let mismatch = CollectiveError::Mismatch { rank, actual, own: group.rank(), expected: own };
            return Err(mismatch.into());
        }
        if group.ranks() > 1 {
            self.device.backend_mut().join(&*group)?;
        }
        self.group = Some(group);
        Ok(())
    }

    /// The group that it is a rank of.
    pub fn group(&self) -> Option<&Rc<dyn Collective>> {
        self.group.as_ref()
    }
    /// Its rank; 0 without a group.
    pub fn rank(&self) -> usize {
        self.group.as_ref().map_or(0, |group| group.rank())
    }
    /// Ranks of the group; 1 without one.
    pub fn ranks(&self) -> usize {
        self.group.as_ref().map_or(1, |group| group.ranks())
    }

    /// The items of `whole` that are this rank's: see [`share`].
    pub fn share(&self, whole: Range<usize>) -> Range<usize> {
        share(whole, self.rank(), self.ranks())
    }
    /// Items of all shares of `items` items: what a mean over them divides by.
    pub fn shared_items(&self, items: usize) -> usize {
        shared_items(items, self.ranks())
    }

    /// Replaces the gradients of the parameters by their sum over all ranks.
    ///
    /// # Errors
    /// Where there are none; where a rank has ended.
    pub fn sum_gradients(&mut self) -> Result<()> {
        self.life.expect_set(super::WeightSet::Gradients)?;
        self.reduce(Reduced::Gradients)
    }

    /// Replaces the running statistics by their mean over all ranks, whose train passes had batch statistics of their own.
    ///
    /// # Errors
    /// Where there are no weights; where a rank has ended.
    pub fn average_statistics(&mut self) -> Result<()> {
        self.life.expect_weights()?;
        self.reduce(Reduced::RunningStatistics)?;
        if self.ranks() > 1 {
            self.life.statistics_changed();
        }
        Ok(())
    }

    fn reduce(&mut self, what: Reduced) -> Result<()> {
        let Some(group) = self.group.clone().filter(|group| group.ranks() > 1) else { return Ok(()) };
        let reduced = self.device.backend_mut().all_reduce(what, &*group);
        reduced.inspect_err(|_| self.device.backend().abandon_group())
    }

    /// What every rank gives, in the order of ranks; `own` alone without a group.
    ///
    /// # Errors
    /// Where a rank has ended, or exchanges something else.
    pub fn all_gather<T: bytemuck::Pod>(&self, what: &'static str, own: Vec<T>) -> Result<Vec<Vec<T>>> {
        let Some(group) = &self.group else { return Ok(vec![own]) };
        let all = self.exchanged(group.all_gather(what, bytemuck::cast_slice(&own).to_vec()))?;
        Ok(all.iter().map(|theirs| values(theirs).collect()).collect())
    }

    /// Whether `flag` is set on any rank.
    ///
    /// # Errors
    /// Where a rank has ended.
    pub fn on_any_rank(&self, flag: bool) -> Result<bool> {
        match &self.group {
            None => Ok(flag),
            Some(group) => self.exchanged(group.any(flag)),
        }
    }

    /// Fills the rows of a tensor, of `row_len` elements each, that are other ranks' shares of it.
    ///
    /// # Errors
    /// Where a rank has ended.
    pub fn gather_rows<T: Element>(&self, tensor: &Tensor<T>, row_len: usize) -> Result<()> {
        if self.group.is_none() || tensor.is_empty() {
            return Ok(());
        }
        let rows = tensor.len() / row_len;
        let own = self.read(&tensor.rows(self.share(0..rows), row_len))?;
        let all = self.all_gather(tensor.name(), own)?;
        // Fewer rows than ranks are all of them on each.
        let given = if rows < self.ranks() { 1 } else { self.ranks() };
        self.write(tensor, &all[..given].concat())
    }

    fn exchanged<T>(&self, exchanged: Result<T, CollectiveError>) -> Result<T> {
        exchanged.map_err(|error| {
            self.device.backend().abandon_group();
            error.into()
        })
    }
}
