//! All checks, in the order in which they are shown.

mod config;
mod cpu;
mod disk;
mod fence;
mod io;
mod memory;
mod net;
mod rdma;

use crate::check::{Check, Finding};
use crate::host::Host;

pub use self::rdma::{roce_netdev, roce_payload_bytes};

/// Every check there is.
pub fn all() -> impl Iterator<Item = &'static Check> {
    let groups =
        [config::CHECKS, io::CHECKS, memory::CHECKS, cpu::CHECKS, net::CHECKS, rdma::CHECKS, disk::CHECKS, fence::CHECKS];
    groups.into_iter().flatten()
}

/// Runs those that are wanted.
pub fn run(host: &Host, wanted: impl Fn(&Check) -> bool) -> Vec<(&'static Check, Finding)> {
    let found = all().filter(|check| wanted(check)).flat_map(|check| {
        let findings = (check.run)(host);
        assert!(!findings.is_empty(), "{} says nothing", check.id);
        findings.into_iter().map(move |finding| (check, finding))
    });
    found.collect()
}

/// A number of bytes for people: no more than one digit after the point.
fn bytes(count: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, size)| count >= *size) {
        Some((unit, size)) if count.is_multiple_of(*size) => format!("{} {unit}", count / size),
        Some((unit, size)) => format!("{:.1} {unit}", count as f64 / *size as f64),
        None => format!("{count} bytes"),
    }
}

/// The chosen one of a list such as `none [mq-deadline] bfq`.
fn chosen(list: &str) -> &str {
    list.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or(list, |(chosen, _)| chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_choices_are_read_as_people_write_them() {
        assert_eq!([bytes(512), bytes(2 << 20), bytes(1_610_612_736)], ["512 bytes", "2 MiB", "1.5 GiB"]);
        assert_eq!([chosen("always [madvise] never"), chosen("none")], ["madvise", "none"]);
    }
}
