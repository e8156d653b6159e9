//! Ranks of several processes, on one machine or many, connected through rank 0 over TCP.
//!
//! A message is its kind, the lengths of a name and of a body, and both. Every other rank sends its values to rank 0, which
//! replies with those of all ranks, or with the rank that has ended. A process that dies closes its connection, and so is found in the next
//! exchange.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use super::{Collective, CollectiveError, Gathered, Result, values as values_of};

/// First bytes of a connection; other connections to the port are closed.
const HELLO: &[u8; 16] = b"secateur ranks 1";
/// Between two tries to connect.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a connection may take to send its rank.
const PATIENCE: Duration = Duration::from_secs(5);
/// Idle time of a connection after which the system probes whether the other machine is up.
const SILENCE: Duration = Duration::from_secs(60);

/// Which rank of a run a process is, and how it finds the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankInfo {
    pub rank: usize,
    pub ranks: usize,
    /// Among the ranks of this machine: the number of its GPU.
    pub local_rank: usize,
    /// Where rank 0 is reached: `host:port`.
    pub address: String,
}

impl RankInfo {
    /// What torchrun or Slurm's srun put into the environment of this process.
    ///
    /// # Errors
    /// [`CollectiveError::Link`] for what is missing or means nothing.
    pub fn from_environment() -> Result<Self> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// From RANK, WORLD_SIZE and LOCAL_RANK, or else from SLURM_PROCID, SLURM_NTASKS and SLURM_LOCALID; MASTER_ADDR and MASTER_PORT
    /// name rank 0 for both. An agent of torchrun that listens on that port itself leaves the next one to its ranks.
    ///
    /// # Errors
    /// [`CollectiveError::Link`] for what is missing or means nothing.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let link = |text: String| CollectiveError::Link(format!("--devices env: {text}"));
        let number = |name: &str| -> Result<usize> {
            let text = variable(name).ok_or_else(|| {
                link(format!(
                    "{name} is not set; start the ranks with torchrun or srun, or set RANK, WORLD_SIZE, LOCAL_RANK, \
                     MASTER_ADDR and MASTER_PORT"
                ))
            })?;
            text.parse().map_err(|_| link(format!("{name} = '{text}', expected a whole number")))
        };
        let names = match variable("RANK").is_none() && variable("SLURM_PROCID").is_some() {
            true => ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"],
            false => ["RANK", "WORLD_SIZE", "LOCAL_RANK"],
        };
        let [rank, ranks, local_rank] = [number(names[0])?, number(names[1])?, number(names[2])?];
        if rank >= ranks {
            return Err(link(format!(
                "{} = {rank} and {} = {ranks}, expected a smaller rank",
                names[0], names[1]
            )));
        }
        let host = variable("MASTER_ADDR")
            .ok_or_else(|| link("MASTER_ADDR is not set: the host of rank 0".into()))?;
        let agent_listens = variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True");
        let port = number("MASTER_PORT")? + usize::from(agent_listens);
        let port = u16::try_from(port)
            .map_err(|_| link(format!("MASTER_PORT: port {port}, expected 65535 at most")))?;
        let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        Ok(Self { rank, ranks, local_rank, address })
    }
}

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
        let until = Instant::now() + patience;
        let links = match info.rank {
            0 => accept(info, until)?,
            _ => vec![connect_to_first(info, until)?],
        };
        for link in &links {
            let prepare = || -> io::Result<()> {
                link.set_nodelay(true)?;
                link.set_read_timeout(None)?;
                sockopt::set_socket_keepalive(link, true)?;
                Ok(sockopt::set_tcp_keepidle(link, SILENCE)?)
            };
            prepare().map_err(|error| CollectiveError::Link(format!("{}: {error}", info.address)))?;
        }
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
        let expected = |rank: usize, theirs: &[u8]| match theirs.len() == bytes {
            true => Ok(()),
            false => Err(CollectiveError::Mismatch {
                rank,
                actual: format!("{what} of {} bytes", theirs.len()),
                own: self.rank,
                expected: format!("{bytes} bytes"),
            }),
        };
        let own = bytemuck::cast_slice(values).to_vec();
        let reply = self.through_first(what, own, |own, of_rank| {
            let mut sums: Vec<f32> = values_of(&own).collect();
            for rank in 1..self.ranks {
                let theirs = of_rank(rank)?;
                expected(rank, &theirs)?;
                sums.iter_mut().zip(values_of::<f32>(&theirs)).for_each(|(sum, value)| *sum += value);
            }
            Ok(bytemuck::cast_slice(&sums).to_vec())
        })?;
        expected(0, &reply).map_err(|error| self.fail(error))?;
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

fn link_error(info: &RankInfo, error: &dyn std::fmt::Display) -> CollectiveError {
    CollectiveError::Link(format!("{} (MASTER_ADDR and MASTER_PORT): {error}", info.address))
}

/// The connections of ranks 1, 2, ..., on rank 0.
fn accept(info: &RankInfo, until: Instant) -> Result<Vec<TcpStream>> {
    let failed = |error: io::Error| link_error(info, &error);
    let listener = listen(&info.address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let mut links: Vec<Option<TcpStream>> = (1..info.ranks).map(|_| None).collect();
    while links.iter().any(Option::is_none) {
        match listener.accept() {
            // A connection without our first bytes is of another program.
            Ok((link, _)) => {
                let Ok((rank, ranks)) = read_hello(&link) else { continue };
                let slot = rank.checked_sub(1).and_then(|at| links.get_mut(at));
                match slot {
                    Some(slot) if slot.is_none() && ranks == info.ranks => *slot = Some(link),
                    _ => {
                        let what = format!(
                            "a process says it is rank {rank} of {ranks}, expected one of 1 to {}, each once, of {}",
                            info.ranks - 1,
                            info.ranks
                        );
                        return Err(link_error(info, &what));
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() > until {
                    let missing = links.iter().zip(1..).filter(|(link, _)| link.is_none());
                    let missing: Vec<String> =
                        missing.map(|(_, rank): (_, usize)| rank.to_string()).collect();
                    let what = format!("no connection from rank {} of {}", missing.join(", "), info.ranks);
                    return Err(link_error(info, &what));
                }
                sleep(PAUSE);
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(links.into_iter().flatten().collect())
}

/// At an address, or on every interface for a name: this machine may know its own as a loopback address.
fn listen(address: &str) -> io::Result<TcpListener> {
    let port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    match port.filter(|_| address.parse::<SocketAddr>().is_err() && !address.starts_with("localhost:")) {
        None => TcpListener::bind(address),
        Some(port) => TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
            .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))),
    }
}

fn read_hello(mut link: &TcpStream) -> io::Result<(usize, usize)> {
    link.set_nonblocking(false)?;
    link.set_read_timeout(Some(PATIENCE))?;
    let mut hello = [0; HELLO.len() + 16];
    link.read_exact(&mut hello)?;
    let (name, numbers) = hello.split_at(HELLO.len());
    if name != HELLO {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let number =
        |at: usize| u64::from_le_bytes(numbers[at..at + 8].try_into().expect("eight bytes")) as usize;
    Ok((number(0), number(8)))
}

/// The connection to rank 0, which may not be there yet.
fn connect_to_first(info: &RankInfo, until: Instant) -> Result<TcpStream> {
    let hello = || -> io::Result<TcpStream> {
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in info.address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(mut link) => {
                    let [rank, ranks] = [info.rank, info.ranks].map(|number| (number as u64).to_le_bytes());
                    link.write_all(&[&HELLO[..], &rank, &ranks].concat())?;
                    return Ok(link);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    };
    loop {
        match hello() {
            Ok(link) => return Ok(link),
            Err(error) if Instant::now() > until => {
                return Err(link_error(info, &format!("rank {} cannot reach rank 0: {error}", info.rank)));
            }
            Err(_) => sleep(PAUSE),
        }
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

    /// A port that was free a moment ago.
    fn infos(ranks: usize) -> Vec<RankInfo> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let info = |rank| RankInfo { rank, ranks, local_rank: rank, address: format!("127.0.0.1:{port}") };
        (0..ranks).map(info).collect()
    }

    fn on_ranks<T: Send>(ranks: usize, work: impl Fn(Processes) -> T + Sync) -> Vec<T> {
        thread::scope(|scope| {
            let work = &work;
            let start = |info: RankInfo| scope.spawn(move || work(Processes::connect(&info, SOON).unwrap()));
            // Rank 0 last: the others try again until it is there.
            let mut started: Vec<_> = infos(ranks).into_iter().rev().map(start).collect();
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

    #[test]
    fn a_rank_that_does_not_connect_is_named_and_other_programs_are_ignored() {
        let [first, second, _] = &infos(3)[..] else { panic!("three ranks") };
        let waiting = thread::scope(|scope| {
            let first = scope.spawn(|| Processes::connect(first, Duration::from_secs(2)).err().unwrap());
            let joined = scope.spawn(|| Processes::connect(second, SOON).map(|_| ()));
            let stranger = scope.spawn(|| {
                sleep(Duration::from_millis(200));
                let mut stranger = TcpStream::connect(&second.address).unwrap();
                stranger.write_all(b"GET / HTTP/1.1\r\nHost: nobody at all\r\n\r\n").unwrap();
            });
            stranger.join().unwrap();
            joined.join().unwrap().unwrap();
            first.join().unwrap()
        });
        assert!(waiting.to_string().contains("no connection from rank 2 of 3"), "{waiting}");
    }

    #[test]
    fn a_name_is_listened_to_on_every_interface() {
        for (address, all) in
            [("127.0.0.1:0", false), ("localhost:0", false), ("node-1:0", true), ("[::1]:0", false)]
        {
            // A machine may have no IPv6.
            let Ok(listener) = listen(address) else { continue };
            assert_eq!(listener.local_addr().unwrap().ip().is_unspecified(), all, "{address}");
        }
    }

    #[test]
    fn ranks_are_those_of_torchrun_and_of_slurm() {
        let info = |variables: &[(&str, &str)]| {
            RankInfo::from_variables(|name| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string())
            })
        };
        let torchrun = [
            ("RANK", "5"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "1"),
            ("MASTER_ADDR", "node-1"),
            ("MASTER_PORT", "29500"),
        ];
        let expected = RankInfo { rank: 5, ranks: 8, local_rank: 1, address: "node-1:29500".into() };
        assert_eq!(info(&torchrun).unwrap(), expected);
        let agent = [&torchrun[..], &[("TORCHELASTIC_USE_AGENT_STORE", "True")]].concat();
        assert_eq!(info(&agent).unwrap().address, "node-1:29501");
        let slurm = [
            ("SLURM_PROCID", "0"),
            ("SLURM_NTASKS", "2"),
            ("SLURM_LOCALID", "0"),
            ("MASTER_ADDR", "fe80::1"),
            ("MASTER_PORT", "1"),
        ];
        let expected = RankInfo { rank: 0, ranks: 2, local_rank: 0, address: "[fe80::1]:1".into() };
        assert_eq!(info(&slurm).unwrap(), expected);
        for (variables, expected) in [
            (&torchrun[1..], "RANK is not set"),
            (&torchrun[..3], "MASTER_ADDR is not set"),
            (&[&[("RANK", "8")], &torchrun[1..]].concat(), "RANK = 8 and WORLD_SIZE = 8"),
            (&[&torchrun[..4], &[("MASTER_PORT", "66000")]].concat(), "port 66000"),
            (&[&[("RANK", "two")], &torchrun[1..]].concat(), "RANK = 'two'"),
        ] {
            let error = info(variables).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
