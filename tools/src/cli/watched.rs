//! Nodes as their live statistics show them: those of this host by their files, others by their HTTP ports.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustydb_shm::statistics::{Liveness, ReadError, Reader, Snapshot, find};

use crate::http;

/// How long a node may take to send its statistics.
const PATIENCE: Duration = Duration::from_secs(1);

/// Which nodes to look at.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Which {
    /// Folder of the statistics files: server.statistics_folder of the nodes
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    pub(super) folder: PathBuf,
    /// A statistics file, also one of a node that has died; may be given several times
    #[arg(long, value_name = "FILE")]
    pub(super) file: Vec<PathBuf>,
    /// HTTP address of a node on another host; may be given several times
    #[arg(long, value_name = "ADDRESS")]
    pub(super) http: Vec<SocketAddr>,
    /// Only nodes of this cluster
    #[arg(long, value_name = "NAME")]
    pub(super) cluster: Option<String>,
}

/// A node, as far as its statistics could be read.
#[derive(Debug, Clone)]
pub(super) struct Watched {
    /// The file, or the address.
    pub(super) source: String,
    /// What it said, or why it says nothing.
    pub(super) found: Result<(Snapshot, Liveness), Unread>,
}

/// Why a node's statistics can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unread {
    /// There is no such file, any more perhaps.
    Gone,
    /// Another reason, in words.
    Because(String),
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unread::Gone => write!(f, "its statistics file is not there: the node was tidied up after, or somebody removed it"),
            Unread::Because(why) => write!(f, "{why}"),
        }
    }
}

/// Now, in milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

impl Which {
    /// All nodes, in the order of cluster and number; what could not be read last.
    pub(super) fn look(&self) -> Result<Vec<Watched>, String> {
        let mut files = self.file.clone();
        if files.is_empty() && self.http.is_empty() {
            let found = find(&self.folder).map_err(|error| format!("{}: {error}", self.folder.display()))?;
            files.extend(found);
        }
        let mut nodes: Vec<Watched> = files.iter().map(|path| of_file(path)).collect();
        nodes.extend(self.http.iter().map(|address| of_port(*address)));
        if let Some(cluster) = &self.cluster {
            nodes.retain(|node| node.found.as_ref().map_or(true, |(snapshot, _)| snapshot.header.cluster == *cluster));
        }
        nodes.sort_by_key(|node| match &node.found {
            Ok((snapshot, _)) => (0, snapshot.header.cluster.clone(), snapshot.header.cluster_id, snapshot.header.node),
            Err(_) => (1, node.source.clone(), 0, 0),
        });
        Ok(nodes)
    }
}

fn of_file(path: &Path) -> Watched {
    let found = Reader::open(path).and_then(|reader| reader.snapshot());
    let found = found.map(|snapshot| {
        let liveness = Liveness::of(&snapshot, now_ms());
        (snapshot, liveness)
    });
    let unread = |error| match error {
        ReadError::Io(error) if error.kind() == io::ErrorKind::NotFound => Unread::Gone,
        other => Unread::Because(other.to_string()),
    };
    Watched { source: path.display().to_string(), found: found.map_err(unread) }
}

fn of_port(address: SocketAddr) -> Watched {
    let image = http::statistics(address, PATIENCE);
    let found = image.and_then(|image| Snapshot::parse(&image).map_err(|error| error.to_string()));
    // Another machine's processes and clock are not to be compared with ours; it has just answered.
    let found = found.map(|snapshot| {
        let liveness = if snapshot.state.stage.is_end() { Liveness::Ended } else { Liveness::Running };
        (snapshot, liveness)
    });
    Watched { source: address.to_string(), found: found.map_err(Unread::Because) }
}

/// A node's state in one word.
pub(super) fn word(snapshot: &Snapshot, liveness: Liveness) -> &'static str {
    match liveness {
        Liveness::Running | Liveness::Ended => snapshot.state.stage.word(),
        Liveness::Silent(_) => "silent",
        Liveness::Dead(_) => "down",
    }
}

/// The nodes of a set: `1-3,5`.
pub(super) fn nodes_of(set: u128) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for node in (0..128).filter(|node| set >> node & 1 == 1) {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == node => *last = node,
            _ => parts.push((node, node)),
        }
    }
    let parts = parts.iter().map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") });
    parts.collect::<Vec<_>>().join(",")
}

/// A duration as people read it: `12 s`, `3 min`, `5 h`, `2 d`.
pub(super) fn span(ms: u64) -> String {
    match ms / 1000 {
        0 => format!("{ms} ms"),
        s @ 1..120 => format!("{s} s"),
        s @ 120..7_200 => format!("{} min", s / 60),
        s @ 7_200..172_800 => format!("{} h", s / 3_600),
        s => format!("{} d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_and_spans_are_written_as_people_read_them() {
        assert_eq!((nodes_of(0).as_str(), nodes_of(0b1110).as_str(), nodes_of(0b10_0110).as_str()), ("", "1-3", "1-2,5"));
        assert_eq!(nodes_of(1 << 127 | 2), "1,127");
        assert_eq!([span(40), span(61_000), span(121_000), span(9_000_000)], ["40 ms", "61 s", "2 min", "2 h"]);
    }
}
