//! The ports of clients whose machines may vanish without a word: so that their transactions, and their places, don't stay for
//! ever, the system asks after silent ones and gives up what is not acknowledged.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;

use rustydb::config::ServerConfig;

/// Clients that may wait to be accepted, as far as the system allows (`net.core.somaxconn`).
const BACKLOG: libc::c_int = 1024;

/// Listens at `address`; all that is set for the listener, its connections inherit.
///
/// # Errors
/// The system's, with the address and `whom` it is for.
pub(super) fn listen(address: SocketAddr, whom: &str, config: &ServerConfig) -> io::Result<TcpListener> {
    let about = |error: io::Error| io::Error::new(error.kind(), format!("can't listen for {whom} on {address}: {error}"));
    let listener = TcpListener::bind(address).map_err(about)?;
    for (level, option, value) in options(config) {
        let place = (&raw const value).cast();
        // SAFETY: a descriptor that we own, and a number that outlives the call, of the size said.
        let set = unsafe { libc::setsockopt(listener.as_raw_fd(), level, option, place, size_of_val(&value) as libc::socklen_t) };
        if set != 0 {
            return Err(about(io::Error::last_os_error()));
        }
    }
    // SAFETY: a descriptor that we own; said again, it only changes how many may wait.
    match unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) } {
        0 => Ok(listener),
        _ => Err(about(io::Error::last_os_error())),
    }
}

/// What is set on a socket, with level and number; what is 0 in the configuration stays the system's.
fn options(config: &ServerConfig) -> Vec<(libc::c_int, libc::c_int, libc::c_int)> {
    let keepalive = [
        (libc::TCP_KEEPIDLE, config.tcp_keepalives_idle),
        (libc::TCP_KEEPINTVL, config.tcp_keepalives_interval),
        (libc::TCP_KEEPCNT, config.tcp_keepalives_count),
        (libc::TCP_USER_TIMEOUT, config.tcp_user_timeout),
    ];
    let tcp = keepalive.into_iter().filter(|(_, value)| *value > 0);
    let tcp = tcp.map(|(option, value)| (libc::IPPROTO_TCP, option, value as libc::c_int));
    std::iter::once((libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)).chain(tcp).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn a_client_that_vanishes_is_asked_after_and_given_up() {
        let config = ServerConfig { tcp_keepalives_count: 7, ..ServerConfig::default() };
        let listener = listen(([127, 0, 0, 1], 0).into(), "tests", &config).expect("a port");
        let _client = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let (accepted, _) = listener.accept().expect("it came");
        for (level, option, wanted) in options(&config) {
            let (mut value, mut length) = (0, size_of::<libc::c_int>() as libc::socklen_t);
            // SAFETY: a descriptor that we own; both places are ours, of the size said, and outlive the call.
            let read = unsafe {
                libc::getsockopt(
                    accepted.as_raw_fd(),
                    level,
                    option,
                    (&raw mut value as *mut libc::c_int).cast(),
                    &raw mut length,
                )
            };
            assert_eq!((read, value), (0, wanted), "option {option}");
        }
        // An idle one is gone a minute after it was heard last, as is one that does not acknowledge what it is sent.
        assert_eq!((config.tcp_keepalives_idle, config.tcp_user_timeout), (30, 60_000));
    }

    #[test]
    fn what_is_the_systems_is_left_to_it() {
        let config = ServerConfig {
            tcp_keepalives_idle: 0,
            tcp_keepalives_interval: 0,
            tcp_keepalives_count: 0,
            tcp_user_timeout: 0,
            ..ServerConfig::default()
        };
        assert_eq!(options(&config), [(libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)]);
    }
}
