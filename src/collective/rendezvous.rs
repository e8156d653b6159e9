//! How the processes of a run find each other: rank 0 listens, every other connects and says who it is.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use super::{CollectiveError, RankInfo, Result};

/// First bytes of a connection; other connections to the port are closed.
const HELLO: &[u8; 16] = b"secateur ranks 1";
/// Between two tries to connect.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a connection may take to send its rank.
const PATIENCE: Duration = Duration::from_secs(5);
/// Idle time of a connection after which the system probes whether the other machine is up.
const SILENCE: Duration = Duration::from_secs(60);

/// Connections to the other ranks, all within `patience`: on rank 0 those of ranks 1, 2, ..., on any other the one to rank 0.
///
/// # Errors
/// [`CollectiveError::Link`], which names the ranks that did not connect.
pub fn links(info: &RankInfo, patience: Duration) -> Result<Vec<TcpStream>> {
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
        prepare().map_err(|error| link_error(info, &error))?;
    }
    Ok(links)
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

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_rank_that_does_not_connect_is_named_and_other_programs_are_ignored() {
        let [first, second, _] = &RankInfo::local(3)[..] else { panic!("three ranks") };
        let waiting = thread::scope(|scope| {
            let first = scope.spawn(|| links(first, Duration::from_secs(2)).err().unwrap());
            let joined = scope.spawn(|| links(second, Duration::from_secs(20)).map(|_| ()));
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
}
