//! Which rank of a run a process is, as its launcher says.

use super::{CollectiveError, Result};

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

    /// The ranks of a group of this machine, at a port that was free a moment ago.
    #[cfg(test)]
    pub fn local(ranks: usize) -> Vec<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let info = |rank| Self { rank, ranks, local_rank: rank, address: format!("127.0.0.1:{port}") };
        (0..ranks).map(info).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
