//! Ranks of several processes, on one machine or many, connected through rank 0 over TCP.
//!
//! A message is its kind, the lengths of a name and of a body, and both. Every other rank sends its values to rank 0, which
//! replies with those of all ranks, or with the rank that has ended. A process that dies closes its connection, and so is found in the next
//! exchange.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use super::{
    Collective, CollectiveError, Gathered, RankInfo, Result, expect_len, rendezvous, values as values_of,
};

/// One rank of a group of processes. It ends when it is dropped.
pub struct Processes {
    rank: usize,
    ranks: usize,
    /// On rank 0 those to ranks 1, 2, ...; on any other the one to rank 0.
    links: Vec<TcpStream>,
    /// Why the group cannot go on, from its first failure on.
    over: RefCell<Option<CollectiveError>>,
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    /// The name of an exchange and what this rank gives, or what all gave.
    Values = 1,
    /// The number of a rank that has ended, and why.
    Ended = 2,
}

impl Processes {
    /// Connects to the other ranks; all must do so within `patience`.
    ///
    /// # Errors
    /// [`CollectiveError::Link`], which names the ranks that did not connect.
    pub fn connect(info: &RankInfo, patience: Duration) -> Result<Self> {
        let links = rendezvous::links(info, patience)?;
        Ok(Self { rank: info.rank, ranks: info.ranks, links, over: RefCell::new(None) })
    }

    /// The rank at the other end of a link.
    fn peer(&self, link: usize) -> usize {
        if self.rank == 0 { link + 1 } else { 0 }
    }

    /// Keeps the first failure, and tells the other ranks, which wait for rank 0.
    fn fail(&self, error: CollectiveError) -> CollectiveError {
        let mut over = self.over.borrow_mut();
        if let Some(first) = &*over {
            return first.clone();
        }
        let (rank, reason) = match &error {
            CollectiveError::Ended { rank, reason, .. } => (*rank, reason.clone()),
            other => (self.rank, other.to_string()),
        };
        self.tell_ended(rank, &reason);
        over.insert(error).clone()
    }

    fn tell_ended(&self, rank: usize, reason: &str) {
        for link in &self.links {
            // To a rank that is gone this fails.
            let _ = send(link, Kind::Ended, reason, &(rank as u64).to_le_bytes());
        }
    }

    /// What the rank at `link` sends in the exchange `what`.
    fn receive(&self, link: usize, what: &'static str) -> Result<Vec<u8>> {
        let ended = |rank: usize, reason: String| CollectiveError::Ended { rank, ranks: self.ranks, reason };
        match receive(&self.links[link]) {
            Ok((Kind::Values, name, body)) if name == what => Ok(body),
            Ok((Kind::Values, name, _)) => Err(CollectiveError::Mismatch {
                rank: self.peer(link),
                actual: name,
                own: self.rank,
                expected: what.into(),
            }),
            Ok((Kind::Ended, reason, body)) => {
                let rank =
                    body.try_into().map_or(self.peer(link), |bytes| u64::from_le_bytes(bytes) as usize);
                Err(ended(rank, reason))
            }
            Err(error) => Err(ended(self.peer(link), format!("its connection is closed ({error})"))),
        }
    }

    fn send(&self, link: usize, what: &'static str, body: &[u8]) -> Result<()> {
        // A message that the rank sent before it closed its connection says more than the failure to send.
        match send(&self.links[link], Kind::Values, what, body) {
            Ok(()) => Ok(()),
            Err(_) => self.receive(link, what).map(|_| ()),
        }
    }

    /// Rank 0 makes one reply from the values of all ranks; every rank returns it.
    fn through_first(
        &self,
        what: &'static str,
        own: Vec<u8>,
        reply: impl FnOnce(Vec<u8>, &dyn Fn(usize) -> Result<Vec<u8>>) -> Result<Vec<u8>>,
    ) -> Result<Vec<u8>> {
        if let Some(error) = &*self.over.borrow() {
            return Err(error.clone());
        }
        let exchange = || {
            if self.rank > 0 {
                self.send(0, what, &own)?;
                return self.receive(0, what);
            }
            let reply = reply(own.clone(), &|rank| self.receive(rank - 1, what))?;
            (0..self.links.len()).try_for_each(|link| self.send(link, what, &reply))?;
            Ok(reply)
        };
        exchange().map_err(|error| self.fail(error))
    }
}

impl Collective for Processes {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn all_gather(&self, what: &'static str, own: Vec<u8>) -> Result<Gathered> {
        let all = self.through_first(what, own, |own, of_rank| {
            let mut all = Vec::new();
            for rank in 0..self.ranks {
                let given = if rank == 0 { own.clone() } else { of_rank(rank)? };
                all.extend((given.len() as u64).to_le_bytes());
                all.extend(given);
            }
            Ok(all)
        })?;
        let mut rest = &all[..];
        let mut given = Vec::with_capacity(self.ranks);
        while let Some((len, after)) = rest.split_first_chunk::<8>() {
            let Some((body, after)) = after.split_at_checked(u64::from_le_bytes(*len) as usize) else {
                break;
            };
            given.push(Arc::new(body.to_vec()));
            rest = after;
        }
        match given.len() == self.ranks && rest.is_empty() {
            true => Ok(given),
            false => Err(self.fail(CollectiveError::Link(format!(
                "{what}: {} of {} parts in the reply of rank 0",
                given.len(),
                self.ranks
            )))),
        }
    }

    fn all_reduce_sum(&self, what: &'static str, values: &mut [f32]) -> Result<()> {
        let bytes = size_of_val(values);
        let own = bytemuck::cast_slice(values).to_vec();
        let reply = self.through_first(what, own, |own, of_rank| {
            let mut sums: Vec<f32> = values_of(&own).collect();
            for rank in 1..self.ranks {
                let theirs = of_rank(rank)?;
                expect_len(what, (rank, theirs.len()), (self.rank, bytes))?;
                sums.iter_mut().zip(values_of::<f32>(&theirs)).for_each(|(sum, value)| *sum += value);
            }
            Ok(bytemuck::cast_slice(&sums).to_vec())
        })?;
        expect_len(what, (0, reply.len()), (self.rank, bytes)).map_err(|error| self.fail(error))?;
        values.iter_mut().zip(values_of(&reply)).for_each(|(value, sum)| *value = sum);
        Ok(())
    }

    fn leave(&self, reason: &str) {
        let mut over = self.over.borrow_mut();
        if over.is_none() {
            self.tell_ended(self.rank, reason);
            let (rank, ranks, reason) = (self.rank, self.ranks, reason.into());
            *over = Some(CollectiveError::Ended { rank, ranks, reason });
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.leave(if std::thread::panicking() { "it panicked" } else { "its work is over" });
    }
}

fn send(mut link: &TcpStream, kind: Kind, name: &str, body: &[u8]) -> io::Result<()> {
    let mut head = vec![kind as u8];
    head.extend((name.len() as u32).to_le_bytes());
    head.extend((body.len() as u64).to_le_bytes());
    head.extend(name.as_bytes());
    link.write_all(&head)?;
    link.write_all(body)
}

fn receive(mut link: &TcpStream) -> io::Result<(Kind, String, Vec<u8>)> {
    let mut head = [0; 13];
    link.read_exact(&mut head)?;
    let kind = match head[0] {
        1 => Kind::Values,
        2 => Kind::Ended,
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    let name_len = u32::from_le_bytes(head[1..5].try_into().expect("four bytes"));
    let body_len = u64::from_le_bytes(head[5..].try_into().expect("eight bytes"));
    let bytes = |len: u64| -> io::Result<Vec<u8>> {
        // Grows with what arrives, and not by what a length says.
        let mut bytes = Vec::new();
        link.take(len).read_to_end(&mut bytes)?;
        if bytes.len() as u64 == len { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    };
    let name = String::from_utf8_lossy(&bytes(name_len.into())?).into_owned();
    Ok((kind, name, bytes(body_len)?))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    fn on_ranks<T: Send>(ranks: usize, work: impl Fn(Processes) -> T + Sync) -> Vec<T> {
        thread::scope(|scope| {
            let work = &work;
            let start = |info: RankInfo| scope.spawn(move || work(Processes::connect(&info, SOON).unwrap()));
            // Rank 0 last: the others try again until it is there.
            let mut started: Vec<_> = RankInfo::local(ranks).into_iter().rev().map(start).collect();
            started.reverse();
            started.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn processes_exchange_what_threads_do() {
        for ranks in 1..=3 {
            let done = on_ranks(ranks, |group| {
                let all = group.all_gather("names", vec![group.rank() as u8; group.rank()]).unwrap();
                // Rounding tells the order.
                let of_rank = |rank: usize| [1e8, 3.1, -1e8][rank];
                let mut values = vec![of_rank(group.rank()); 70_000];
                group.all_reduce_sum("values", &mut values).unwrap();
                let expected = (1..ranks).fold(of_rank(0), |sum, rank| sum + of_rank(rank));
                assert!(values.iter().all(|&value| value == expected), "{} of {ranks}", values[0]);
                assert!(group.any(group.rank() + 1 == ranks).unwrap());
                all.iter().map(|theirs| theirs.to_vec()).collect::<Vec<_>>()
            });
            let expected: Vec<Vec<u8>> = (0..ranks).map(|rank| vec![rank as u8; rank]).collect();
            assert!(done.iter().all(|all| *all == expected), "{done:?}");
        }
    }

    #[test]
    fn a_rank_that_ends_is_named_on_every_other() {
        for ends in 0..3 {
            let done = on_ranks(3, |group| {
                group.barrier().unwrap();
                if group.rank() == ends {
                    group.leave("no memory");
                    return None;
                }
                // The connection is closed; the message before that counts.
                let error = group.barrier().unwrap_err();
                assert_eq!(group.barrier().unwrap_err(), error, "the second time");
                Some(error)
            });
            let expected = CollectiveError::Ended { rank: ends, ranks: 3, reason: "no memory".into() };
            for (rank, error) in done.into_iter().enumerate() {
                assert_eq!(error, (rank != ends).then(|| expected.clone()), "rank {rank}");
            }
        }
    }

    #[test]
    fn a_closed_connection_is_a_rank_that_has_ended() {
        let done = on_ranks(3, |group| {
            if group.rank() == 2 {
                for link in &group.links {
                    link.shutdown(std::net::Shutdown::Both).unwrap();
                }
                return None;
            }
            Some(group.barrier().unwrap_err())
        });
        for error in done.into_iter().flatten() {
            assert!(matches!(error, CollectiveError::Ended { rank: 2, .. }), "{error}");
        }
    }
}
