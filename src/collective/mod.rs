//! Ranks: engines that train one network together, each on its share of every batch, and what they exchange.
//!
//! A [`Collective`] is what one rank holds of the group. Two carriers exist: [`Threads`], ranks of one process, and [`Processes`],
//! over TCP. Both move memory of the host; GPUs sum gradients among themselves through NCCL ([`crate::cuda::driver`]) and use a
//! carrier for all that is small. Every rank makes the same calls in the same order; a rank that ends makes the calls of all
//! others fail with its number.

mod processes;
mod rank_info;
mod rendezvous;
mod threads;

pub use processes::Processes;
pub use rank_info::RankInfo;
pub use threads::Threads;

use std::ops::Range;
use std::sync::Arc;

/// Why ranks cannot go on together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CollectiveError {
    #[error("rank {rank} of {ranks} has ended: {reason}")]
    Ended { rank: usize, ranks: usize, reason: String },
    #[error("rank {rank} exchanges {actual}, expected {expected} as on rank {own}")]
    Mismatch { rank: usize, actual: String, own: usize, expected: String },
    /// A rank that means nothing, or a connection that cannot be made.
    #[error("{0}")]
    Link(String),
}

pub type Result<T, E = CollectiveError> = std::result::Result<T, E>;

/// What each rank gave, in the order of ranks.
pub type Gathered = Vec<Arc<Vec<u8>>>;

/// One rank's end of a group.
pub trait Collective {
    /// This rank, from 0.
    fn rank(&self) -> usize;
    /// How many there are.
    fn ranks(&self) -> usize;

    /// What every rank gives, of any length each. `what` names it, and must be the same on every rank.
    ///
    /// # Errors
    /// [`CollectiveError::Ended`] where a rank has ended, [`CollectiveError::Mismatch`] where one exchanges something else.
    fn all_gather(&self, what: &'static str, own: Vec<u8>) -> Result<Gathered>;

    /// Tells the other ranks why this one ends. A rank that is dropped without has ended for no known reason.
    fn leave(&self, reason: &str);

    /// The sum over all ranks of each of `values`, which is as long on every rank: `((v0 + v1) + v2) + ...`, the same bits on each.
    ///
    /// # Errors
    /// As [`Collective::all_gather`].
    fn all_reduce_sum(&self, what: &'static str, values: &mut [f32]) -> Result<()> {
        // Each rank sums a part, so that no rank sums all.
        let all = self.all_gather(what, bytemuck::cast_slice(values).to_vec())?;
        let own = cut(0..values.len(), self.rank(), self.ranks());
        let mut sums = vec![0.0; own.len()];
        for (rank, theirs) in all.iter().enumerate() {
            expect_len(what, (rank, theirs.len()), (self.rank(), size_of_val(values)))?;
            let theirs = self::values::<f32>(&theirs[own.start * 4..own.end * 4]);
            match rank {
                0 => sums.iter_mut().zip(theirs).for_each(|(sum, value)| *sum = value),
                _ => sums.iter_mut().zip(theirs).for_each(|(sum, value)| *sum += value),
            }
        }
        drop(all);
        let parts = self.all_gather("sums", bytemuck::cast_slice(&sums).to_vec())?;
        let sums = parts.iter().flat_map(|part| self::values::<f32>(part));
        values.iter_mut().zip(sums).for_each(|(value, sum)| *value = sum);
        Ok(())
    }

    /// [`Collective::all_reduce_sum`], divided by the number of ranks.
    ///
    /// # Errors
    /// As [`Collective::all_gather`].
    fn all_reduce_mean(&self, what: &'static str, values: &mut [f32]) -> Result<()> {
        self.all_reduce_sum(what, values)?;
        let ranks = self.ranks() as f32;
        values.iter_mut().for_each(|value| *value /= ranks);
        Ok(())
    }

    /// What rank 0 gives.
    ///
    /// # Errors
    /// As [`Collective::all_gather`].
    fn broadcast(&self, what: &'static str, own: Vec<u8>) -> Result<Arc<Vec<u8>>> {
        let own = if self.rank() == 0 { own } else { Vec::new() };
        Ok(self.all_gather(what, own)?.swap_remove(0))
    }

    /// Waits for every rank.
    ///
    /// # Errors
    /// As [`Collective::all_gather`].
    fn barrier(&self) -> Result<()> {
        self.all_gather("barrier", Vec::new()).map(|_| ())
    }

    /// Whether `flag` is set on any rank: the same on all.
    ///
    /// # Errors
    /// As [`Collective::all_gather`].
    fn any(&self, flag: bool) -> Result<bool> {
        let all = self.all_gather("a request to stop", vec![flag.into()])?;
        Ok(all.iter().any(|theirs| theirs.contains(&1)))
    }
}

/// Refuses values of a rank that are not as many bytes as those of this one: (rank, bytes) of each.
fn expect_len(what: &str, (rank, actual): (usize, usize), (own, expected): (usize, usize)) -> Result<()> {
    match actual == expected {
        true => Ok(()),
        false => Err(CollectiveError::Mismatch {
            rank,
            actual: format!("{what} of {actual} bytes"),
            own,
            expected: format!("{expected} bytes"),
        }),
    }
}

/// The items of `whole` that rank `rank` of `ranks` works on: contiguous, in the order of ranks, and as many on each within one.
/// Where there are fewer items than ranks, every rank works on all of them, which [`shared_items`] counts.
pub fn share(whole: Range<usize>, rank: usize, ranks: usize) -> Range<usize> {
    if whole.len() < ranks { whole } else { cut(whole, rank, ranks) }
}

/// Items of all shares together, of `items` items.
pub fn shared_items(items: usize, ranks: usize) -> usize {
    if items < ranks { items * ranks } else { items }
}

/// Part `at` of `parts`.
fn cut(whole: Range<usize>, at: usize, parts: usize) -> Range<usize> {
    let cut = |at: usize| whole.start + whole.len() * at / parts;
    cut(at)..cut(at + 1)
}

/// What a rank gave, as values.
pub fn values<T: bytemuck::Pod>(bytes: &[u8]) -> impl Iterator<Item = T> + '_ {
    // Bytes of any alignment.
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_a_batch_in_order() {
        for (whole, ranks) in [(0..16, 4), (3..20, 4), (5..8, 3), (7..8, 1), (10..137, 8)] {
            let shares: Vec<_> = (0..ranks).map(|rank| share(whole.clone(), rank, ranks)).collect();
            assert_eq!(
                shares.iter().cloned().flatten().collect::<Vec<_>>(),
                whole.clone().collect::<Vec<_>>()
            );
            let lens = shares.iter().map(|share| share.len());
            assert!(lens.clone().max().unwrap() - lens.min().unwrap() <= 1, "{shares:?}");
            assert_eq!(shared_items(whole.len(), ranks), whole.len());
        }
        // Two images, three ranks: each has both.
        assert!((0..3).all(|rank| share(4..6, rank, 3) == (4..6)));
        assert_eq!(shared_items(2, 3), 6);
    }
}
