//! Asks a real host by system calls. Nothing is changed, unless [`Options::writes`] allows what it names.

mod nvme;
mod uring;
mod volume;

use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};

use rustydb::cluster::fencing::{self, FencingError, ReservationDevice};

use crate::facts::{ClockSync, Facts, Limit, Limits, Listen, VolumeFormat, VolumeKind};
use crate::host::Host;
use crate::needs::Needs;

/// The key that `--probe-writes` registers with the volume's device for a moment: "RDB" and "PREF" in ASCII.
const PROBE_KEY: u64 = 0x0052_4442_5052_4546;

/// How far probing may go.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// A temporary file beside the volume's is written; a key is registered with the volume's device and removed again.
    pub writes: bool,
}

/// What there is at a path that is, or could be, a volume's.
#[must_use]
pub fn volume_facts(path: &Path) -> crate::facts::VolumeFacts {
    volume::look(path)
}

/// Gathers everything.
#[must_use]
pub fn gather(needs: &Needs, options: Options) -> Facts {
    let volume = needs.volume.as_deref().map(volume::look);
    let mut facts = Facts {
        // SAFETY: the call has no arguments and always succeeds.
        user_id: unsafe { libc::geteuid() },
        uring: Some(uring::probe()),
        limits: limits(),
        processors_allowed: processors_allowed(),
        clock: Some(clock()),
        addresses: addresses(),
        listens: needs.listens.iter().map(|(setting, address)| listen(setting, *address)).collect(),
        server: server(),
        statistics_folder: volume::access(&needs.statistics_folder, libc::W_OK | libc::X_OK).err().map(|error| error.to_string()),
        volume,
        ..Facts::default()
    };
    if let Some(volume) = &facts.volume
        && matches!(volume.kind, VolumeKind::File | VolumeKind::Device)
    {
        // The keys of other clusters are told apart by an identifier that only the volume knows; foreign ones are counted.
        facts.fencing = fencing_methods(needs, &volume.path);
        if options.writes {
            match volume.kind {
                VolumeKind::File => facts.durable = Some(volume::durable_writes(&volume.path)),
                _ => facts.registration = Some(register(&volume.path, &volume.format)),
            }
        }
    }
    let host = Host::new(Path::new("/"), facts.clone(), needs.clone());
    let namespaces: Vec<_> = host.volume_devices().into_iter().filter(|device| device.is_nvme()).collect();
    facts.nvme = namespaces.iter().map(|device| (device.name.clone(), nvme::identify(&device.name))).collect();
    if needs.nvme_passthrough {
        facts.passthrough =
            namespaces.iter().map(|device| (device.name.clone(), nvme::open_for_commands(&device.name))).collect();
    }
    facts
}

fn limits() -> Limits {
    let get = |which| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the call writes to the structure that it is given, which lives here.
        if unsafe { libc::getrlimit(which, &raw mut limit) } != 0 {
            return Limit::default();
        }
        let bounded = |value| (value != libc::RLIM_INFINITY).then_some(value);
        Limit { soft: bounded(limit.rlim_cur), hard: bounded(limit.rlim_max) }
    };
    Limits {
        locked_memory: get(libc::RLIMIT_MEMLOCK),
        open_files: get(libc::RLIMIT_NOFILE),
        file_size: get(libc::RLIMIT_FSIZE),
        address_space: get(libc::RLIMIT_AS),
        threads: get(libc::RLIMIT_NPROC),
        core: get(libc::RLIMIT_CORE),
    }
}

fn processors_allowed() -> usize {
    // SAFETY: all bits zero are an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the call fills the set that it is given, of the size that it is told.
    let code = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
    // SAFETY: the set lives here.
    if code == 0 { unsafe { libc::CPU_COUNT(&set) as usize } } else { 0 }
}

fn clock() -> Result<ClockSync, String> {
    // SAFETY: all bits zero are a request that changes nothing (modes = 0).
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the call reads and fills the structure that it is given; without modes it sets nothing.
    let code = unsafe { libc::adjtimex(&raw mut state) };
    if code < 0 {
        return Err(io::Error::last_os_error().to_string());
    }
    Ok(ClockSync { synchronised: code != libc::TIME_ERROR && state.status & libc::STA_UNSYNC == 0, error_us_max: state.maxerror })
}

fn addresses() -> Vec<(String, IpAddr)> {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: the call stores a list, which is freed below and not used afterwards.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut next = list;
    // SAFETY: `next` is null or an element of the list, which is not freed yet.
    while let Some(element) = unsafe { next.as_ref() } {
        next = element.ifa_next;
        // SAFETY: the address is null or a socket address of the family that it names.
        let family = unsafe { element.ifa_addr.as_ref() }.map(|address| i32::from(address.sa_family));
        let address = match family {
            Some(libc::AF_INET) => {
                // SAFETY: an address of this family is a sockaddr_in.
                let address = unsafe { &*element.ifa_addr.cast::<libc::sockaddr_in>() };
                IpAddr::V4(Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes()))
            }
            Some(libc::AF_INET6) => {
                // SAFETY: an address of this family is a sockaddr_in6.
                let address = unsafe { &*element.ifa_addr.cast::<libc::sockaddr_in6>() };
                IpAddr::V6(Ipv6Addr::from(address.sin6_addr.s6_addr))
            }
            _ => continue,
        };
        // SAFETY: every element has a name that ends with a zero byte.
        let name = unsafe { CStr::from_ptr(element.ifa_name) };
        found.push((name.to_string_lossy().into_owned(), address));
    }
    // SAFETY: the list came from getifaddrs, and nothing of it is used any more.
    unsafe { libc::freeifaddrs(list) };
    found
}

/// Binds the address and lets it go again at once: nobody can have connected.
fn listen(setting: &str, address: std::net::SocketAddr) -> Listen {
    let refused = TcpListener::bind(address).err().map(|error| error.to_string());
    Listen { setting: setting.to_owned(), address, refused }
}

/// Asks the server beside this program, or the one in PATH, what it is.
fn server() -> Option<Result<String, String>> {
    const NAME: &str = "rusty-db-server";
    let beside = std::env::current_exe().ok().map(|program| program.with_file_name(NAME)).filter(|path| path.exists());
    let program = beside.unwrap_or_else(|| NAME.into());
    match Command::new(program).arg("--version").stdin(Stdio::null()).output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(Err(error.to_string())),
        Ok(output) if output.status.success() => Some(Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Some(Err(said.lines().next().map_or_else(|| output.status.to_string(), |line| line.trim().to_owned())))
        }
    }
}

fn fencing_methods(needs: &Needs, volume: &Path) -> Vec<(&'static str, Result<String, String>)> {
    let methods = fencing::methods(&needs.ha, volume, 0);
    let probe = |mut method: Box<dyn fencing::Method>| {
        let found = method.probe().map(|ability| ability.detail).map_err(|error| match error {
            FencingError::Unable { reason, .. } => plainly(reason),
            error => error.to_string(),
        });
        (fencing::name(method.method()), found)
    };
    methods.into_iter().map(probe).collect()
}

/// What the kernel's numbers mean when it was asked for reservations.
fn plainly(reason: String) -> String {
    let unknown = [libc::EINVAL, libc::EOPNOTSUPP, libc::ENOTTY].iter().any(|number| {
        // The whole text, not a part of a longer sentence.
        reason == io::Error::from_raw_os_error(*number).to_string()
    });
    if unknown { format!("the device knows no reservations ({reason})") } else { reason }
}

/// Registers a key that is no node's and removes it. A path that has a key already keeps it.
fn register(volume: &Path, format: &VolumeFormat) -> Result<(), String> {
    if matches!(format, VolumeFormat::Unread) {
        return Err("the device can't be read".into());
    }
    let mut device = fencing::PersistentReservations::new(volume);
    let words = |error: fencing::DeviceError| match error {
        fencing::DeviceError::Conflict => {
            "this host's path to the device has a key already: a node runs here, or ran; nothing was changed".to_owned()
        }
        fencing::DeviceError::Unsupported(reason) => plainly(reason),
        fencing::DeviceError::System(error) => error.to_string(),
    };
    device.open().map_err(words)?;
    device.register(0, PROBE_KEY).map_err(words)?;
    let seen = device.keys().map(|keys| keys.contains(&PROBE_KEY));
    device.register(PROBE_KEY, 0).map_err(words)?;
    match seen.map_err(words)? {
        true => Ok(()),
        false => Err("the device took a key and does not show it".into()),
    }
}
