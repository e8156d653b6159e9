//! Ranks of one process, a thread each.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::{Collective, CollectiveError, Gathered, Result};

/// One rank of a group of threads. It ends when it is dropped; what it was dropped for is [`Collective::leave`]'s, or a panic.
pub struct Threads {
    rank: usize,
    shared: Arc<Shared>,
}

struct Shared {
    round: Mutex<Round>,
    changed: Condvar,
}

/// The name of an exchange and what a rank gives in it.
type Given = (&'static str, Arc<Vec<u8>>);

/// One exchange after another.
struct Round {
    number: u64,
    /// What each rank gives in this round.
    given: Vec<Option<Given>>,
    /// What was given in the last one: no round can end before every rank has taken it.
    gathered: Vec<Given>,
    /// The first rank that ended, and why.
    ended: Option<(usize, String)>,
}

impl Threads {
    /// A group of `ranks` ranks, in order.
    pub fn group(ranks: usize) -> Vec<Self> {
        let round = Round { number: 0, given: vec![None; ranks], gathered: Vec::new(), ended: None };
        let shared = Arc::new(Shared { round: Mutex::new(round), changed: Condvar::new() });
        (0..ranks).map(|rank| Self { rank, shared: shared.clone() }).collect()
    }

    fn round(&self) -> MutexGuard<'_, Round> {
        // No thread panics while it holds the lock.
        self.shared.round.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, reason: &str) {
        let mut round = self.round();
        round.ended.get_or_insert_with(|| (self.rank, reason.into()));
        self.shared.changed.notify_all();
    }
}

impl Collective for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.round().given.len()
    }

    fn all_gather(&self, what: &'static str, own: Vec<u8>) -> Result<Gathered> {
        let mut round = self.round();
        let number = round.number;
        round.given[self.rank] = Some((what, Arc::new(own)));
        if round.given.iter().all(Option::is_some) {
            round.gathered = round.given.iter_mut().filter_map(Option::take).collect();
            round.number += 1;
            self.shared.changed.notify_all();
        }
        while round.number == number {
            if let Some((rank, reason)) = &round.ended {
                let ranks = round.given.len();
                return Err(CollectiveError::Ended { rank: *rank, ranks, reason: reason.clone() });
            }
            round = self.shared.changed.wait(round).unwrap_or_else(PoisonError::into_inner);
        }
        match round.gathered.iter().position(|(theirs, _)| *theirs != what) {
            Some(rank) => Err(CollectiveError::Mismatch {
                rank,
                actual: round.gathered[rank].0.into(),
                own: self.rank,
                expected: what.into(),
            }),
            None => Ok(round.gathered.iter().map(|(_, given)| given.clone()).collect()),
        }
    }

    fn leave(&self, reason: &str) {
        self.end(reason);
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.end(if std::thread::panicking() { "it panicked" } else { "its work is over" });
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// What each rank makes of its end of a group.
    fn on_ranks<T: Send>(ranks: usize, work: impl Fn(&Threads) -> T + Sync) -> Vec<thread::Result<T>> {
        thread::scope(|scope| {
            let work = &work;
            let started: Vec<_> =
                Threads::group(ranks).into_iter().map(|group| scope.spawn(move || work(&group))).collect();
            started.into_iter().map(|rank| rank.join()).collect()
        })
    }

    #[test]
    fn sums_are_in_the_order_of_ranks_and_the_same_on_each() {
        // Rounding tells the order: (1e8 + 3) + -1e8 and so on.
        let of_rank = |rank: usize| -> Vec<f32> {
            (0..37).map(|at| [1e8, 3.1, -1e8, 0.7][(rank + at) % 4] * (1.0 + at as f32)).collect()
        };
        for ranks in 1..=4 {
            let expected: Vec<f32> = (0..37)
                .map(|at| (1..ranks).fold(of_rank(0)[at], |sum, rank| sum + of_rank(rank)[at]))
                .collect();
            let done = on_ranks(ranks, |group| {
                let mut values = of_rank(group.rank());
                // More than once: no round mixes with the next.
                (0..3)
                    .map(|_| {
                        values = of_rank(group.rank());
                        group.all_reduce_sum("values", &mut values).map(|()| values.clone())
                    })
                    .collect::<Result<Vec<_>>>()
            });
            for sums in done {
                assert_eq!(sums.unwrap().unwrap(), vec![expected.clone(); 3], "{ranks} ranks");
            }
        }
    }

    #[test]
    fn every_rank_learns_what_one_gives() {
        let done = on_ranks(3, |group| {
            let all = group.all_gather("names", vec![group.rank() as u8; group.rank()]).unwrap();
            let first = group.broadcast("first", vec![7 + group.rank() as u8]).unwrap();
            group.barrier().unwrap();
            let any = [false, group.rank() == 2].map(|flag| group.any(flag).unwrap());
            (all, first, any)
        });
        for done in done {
            let (all, first, any) = done.unwrap();
            assert_eq!(
                all.iter().map(|theirs| theirs.to_vec()).collect::<Vec<_>>(),
                [vec![], vec![1], vec![2, 2]]
            );
            assert_eq!((first.to_vec(), any), (vec![7], [false, true]));
        }
    }

    #[test]
    fn a_rank_that_ends_ends_the_calls_of_the_others() {
        for panics in [false, true] {
            let done = on_ranks(3, |group| {
                group.barrier()?;
                if group.rank() == 1 {
                    assert!(!panics, "on purpose");
                    group.leave("no memory");
                    return Ok(());
                }
                group.barrier()
            });
            let reason = if panics { "it panicked" } else { "no memory" };
            let expected = CollectiveError::Ended { rank: 1, ranks: 3, reason: reason.into() };
            let [first, second, third] = &done[..] else { panic!("three ranks") };
            assert_eq!(second.is_err(), panics);
            for error in [first, third] {
                assert_eq!(error.as_ref().unwrap(), &Err(expected.clone()));
            }
        }
    }

    #[test]
    fn what_was_given_before_a_rank_ends_still_arrives() {
        let done = on_ranks(4, |group| {
            for round in 0..50u8 {
                let all = group.all_gather("rounds", vec![round])?;
                assert!(all.iter().all(|theirs| **theirs == [round]));
            }
            Ok::<_, CollectiveError>(())
        });
        assert!(done.into_iter().all(|done| done.unwrap().is_ok()));
    }

    #[test]
    fn different_calls_are_no_deadlock() {
        let done = on_ranks(2, |group| {
            let what = if group.rank() == 0 { "losses" } else { "scores" };
            group.all_gather(what, Vec::new()).map(|_| ())
        });
        for (rank, done) in done.into_iter().enumerate() {
            let error = done.unwrap().unwrap_err();
            assert!(matches!(error, CollectiveError::Mismatch { own, .. } if own == rank), "{error}");
        }
        let done =
            on_ranks(2, |group| group.all_reduce_sum("sums of parts", &mut vec![0.0; 3 + group.rank()]));
        for done in done {
            let error = done.unwrap().unwrap_err();
            assert!(
                error.to_string().contains("16 bytes") || error.to_string().contains("12 bytes"),
                "{error}"
            );
        }
    }
}
