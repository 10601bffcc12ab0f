//! Fencing without a device of its own: layouts, keys, the reservation method on a model of a device, commands and
//! processes for real. The same method on real SCSI devices is in hw-tests/.

pub(super) mod lease;
mod process;
mod reservation;

use std::time::{Duration, Instant};

use super::persistent::*;
use super::*;

fn life(node: u8, incarnation: u64) -> Life {
    Life { node: NodeId(node), incarnation: Incarnation(incarnation) }
}

fn victim(node: u8, incarnation: u64) -> Victim {
    Victim { life: life(node, incarnation), address: None, pid: None, evicted_ago: None }
}

/// The numbers are what a C compiler makes of linux/pr.h and scsi/sg.h on x86-64 and aarch64.
#[test]
fn requests_are_laid_out_as_the_kernel_reads_them() {
    assert_eq!(IOC_PR_REGISTER, 0x4018_70c8);
    assert_eq!(IOC_PR_RESERVE, 0x4010_70c9);
    assert_eq!(IOC_PR_PREEMPT_ABORT, 0x4018_70cc);
    assert_eq!(IOC_PR_READ_KEYS, 0xc010_70ce);
    assert_eq!(IOC_PR_READ_RESERVATION, 0x8010_70cf);
    assert_eq!((size_of::<SgHeader>(), align_of::<SgHeader>()), (88, 8));
    let offsets = (std::mem::offset_of!(PrPreempt, new_key), std::mem::offset_of!(PrPreempt, kind));
    assert_eq!(offsets, (8, 16));
    assert_eq!((std::mem::offset_of!(PrReservation, kind), std::mem::offset_of!(PrRegistration, flags)), (8, 16));
    assert_eq!(std::mem::offset_of!(PrReadKeys, keys_ptr), 8);
}

#[test]
fn answers_of_scsi_devices_are_read() {
    let mut keys = vec![0, 0, 0, 9, 0, 0, 0, 16];
    keys.extend(0xab00_0000_0000_0001u64.to_be_bytes());
    keys.extend(2u64.to_be_bytes());
    keys.extend([0xff; 8]);
    assert_eq!(parse_keys(&keys).unwrap(), [0xab00_0000_0000_0001, 2]);
    assert!(parse_keys(&keys[..16]).is_err(), "a key is cut off");
    let mut held = vec![0, 0, 0, 9, 0, 0, 0, 16];
    held.extend(7u64.to_be_bytes());
    held.extend([0, 0, 0, 0, 0, 5, 0, 0]);
    assert_eq!(parse_reservation(&held).unwrap(), Some(Reservation { key: 7, registrants_only: true, kind: 5 }));
    held[21] = 1;
    assert!(!parse_reservation(&held).unwrap().unwrap().registrants_only);
    assert_eq!(parse_reservation(&[0; 8]).unwrap(), None);
}

#[test]
fn a_key_names_cluster_node_and_life() {
    let cluster = 0x1234_5678_9abc_def0_0fed_cba9_8765_4321;
    let key = Key::new(cluster, life(127, u64::from(u32::MAX)));
    assert_eq!(key.life(cluster), Some(life(127, u64::from(u32::MAX))));
    assert_eq!(key.life(cluster + 1), None, "another cluster's");
    assert_ne!(Key::new(cluster, life(1, 2)), Key::new(cluster, life(2, 1)));
}

fn sh(script: &str, limit_ms: u64) -> CommandMethod {
    let words = ["/bin/sh", "-c", script, "fence", "{node}", "{incarnation}", "at {address}", "{pid}"];
    CommandMethod::new(words.iter().map(ToString::to_string).collect(), Duration::from_millis(limit_ms))
}

fn known_victim() -> Victim {
    Victim { address: Some("127.0.0.3:7433".parse().unwrap()), pid: Some(77), ..victim(3, 9) }
}

#[test]
fn a_command_is_told_whom_to_fence_and_its_status_decides() {
    let script = r#"[ "$1 $2 $3 $4" = "3 9 at 127.0.0.3:7433 77" ] || { echo "was told $*"; exit 4; }"#;
    let mut method = sh(script, 10_000);
    assert!(matches!(method.verify(&known_victim()), Err(FencingError::NotFenced { .. })));
    let proof = method.fence(&known_victim()).unwrap();
    assert_eq!((proof.life(), proof.strength()), (life(3, 9), Strength::Operator));
    assert!(method.verify(&victim(3, 8)).is_ok(), "a life before");
    assert!(method.verify(&victim(3, 10)).is_err(), "the next life is not fenced");

    let failed = method.fence(&Victim { pid: Some(78), ..known_victim() }).unwrap_err().to_string();
    assert!(failed.contains("exit status: 4") && failed.contains("was told 3 9 at 127.0.0.3:7433 78"), "{failed}");
    let unknown = method.fence(&Victim { address: None, ..known_victim() }).unwrap_err().to_string();
    assert!(unknown.contains("{address}"), "{unknown}");
    let missing = CommandMethod::new(vec!["/nonexistent/fence".into()], Duration::from_secs(1)).probe().unwrap_err();
    assert!(missing.to_string().contains("/nonexistent/fence"), "{missing}");
}

#[test]
fn a_command_that_takes_too_long_is_killed_with_its_children() {
    // The inner sleep would keep the pipe open and live on if only the shell were killed.
    let error = sh("echo pid $$; sleep 600; true", 300).fence(&known_victim()).unwrap_err().to_string();
    assert!(error.contains("longer than 300 ms"), "{error}");
    let pid: u32 = error.rsplit("wrote \"pid ").next().and_then(|rest| rest.split('"').next()).unwrap().parse().unwrap();
    let group_is_there = || {
        // Field 5 of /proc/PID/stat, behind the name in parentheses, is the process group; field 3 the state.
        let stats = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path().join("stat"));
        stats.filter_map(|stat| std::fs::read_to_string(stat).ok()).any(|stat| {
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
            fields.len() > 2 && fields[2] == pid.to_string() && fields[0] != "Z"
        })
    };
    let until = Instant::now() + Duration::from_secs(30);
    while group_is_there() {
        assert!(Instant::now() < until, "the command's group {pid} lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

type Fence = Box<dyn FnMut(&Victim) -> Result<Proof, FencingError> + Send>;

/// A method that does what the test says.
struct Scripted {
    method: FencingMethod,
    patience: Duration,
    fence: Fence,
    able: bool,
}

impl Method for Scripted {
    fn method(&self) -> FencingMethod {
        self.method
    }
    fn patience(&self) -> Duration {
        self.patience
    }
    fn probe(&mut self) -> Result<Ability, FencingError> {
        let reason = "scripted".to_owned();
        let ability = Ability { strength: Strength::Operator, detail: reason.clone() };
        if self.able { Ok(ability) } else { Err(FencingError::Unable { method: self.method, reason }) }
    }
    fn register(&mut self, _me: Life) -> Result<(), FencingError> {
        Ok(())
    }
    fn fence(&mut self, victim: &Victim) -> Result<Proof, FencingError> {
        (self.fence)(victim)
    }
    fn verify(&mut self, victim: &Victim) -> Result<Proof, FencingError> {
        (self.fence)(victim)
    }
}

fn scripted(
    method: FencingMethod,
    able: bool,
    fence: impl FnMut(&Victim) -> Result<Proof, FencingError> + Send + 'static,
) -> Box<dyn Method> {
    Box::new(Scripted { method, patience: Duration::from_millis(200), fence: Box::new(fence), able })
}

#[test]
fn methods_are_tried_in_their_order_until_one_proves_it() {
    use FencingMethod::{Command, Lease, PersistentReservation, Process};
    let (unblock, blocked) = std::sync::mpsc::channel::<()>();
    let proof = |victim: &Victim| Ok(Proof::new(victim.life, Process, Strength::Process, "scripted".into()));
    let methods = vec![
        scripted(PersistentReservation, false, |_| panic!("is not able to")),
        scripted(Command, true, move |_| {
            blocked.recv().ok();
            Err(FencingError::Ended)
        }),
        scripted(Process, true, proof),
        scripted(Lease, true, |_| panic!("is not asked after a proof")),
    ];
    let fencer = Fencer::start(methods, "a test's volume".into()).unwrap();
    // The second method hangs: it is left behind, and left alone while it does.
    for _ in 0..2 {
        let proof = fencer.fence(victim(2, 1)).wait().unwrap().unwrap();
        assert_eq!((proof.method(), proof.life()), (Process, life(2, 1)));
    }
    drop(unblock);

    let only = vec![scripted(Command, true, |_| Err(FencingError::Ended))];
    let error = Fencer::start(only, "a test's volume".into()).unwrap().fence(victim(2, 1)).wait().unwrap().unwrap_err();
    assert!(matches!(&error, FencingError::NoProof { attempts, .. } if attempts.len() == 1), "{error}");

    let fenced = vec![
        scripted(PersistentReservation, true, |_| Err(FencingError::SelfFenced { life: life(1, 1) })),
        scripted(Command, true, |_| panic!("who was fenced must not shoot by other means")),
    ];
    let error = Fencer::start(fenced, "a test's volume".into()).unwrap().fence(victim(2, 1)).wait().unwrap().unwrap_err();
    assert!(matches!(error, FencingError::SelfFenced { .. }), "{error}");
}
