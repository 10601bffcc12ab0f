//! The reservation method on a model of a device with the rules of SPC-4 that matter here.

use std::path::Path;
use std::sync::{Arc, Mutex};

use super::*;

#[derive(Default)]
struct Device {
    /// Key by path (nexus).
    registered: Vec<(usize, u64)>,
    /// The holder's path, or the type of somebody else's reservation.
    holder: Option<Result<usize, u32>>,
}

struct PathTo {
    device: Arc<Mutex<Device>>,
    nexus: usize,
}

impl Device {
    fn key(&self, nexus: usize) -> u64 {
        self.registered.iter().find(|(path, _)| *path == nexus).map_or(0, |(_, key)| *key)
    }

    fn takes_write(&self, nexus: usize) -> bool {
        self.holder.is_none() || self.key(nexus) != 0
    }

    fn remove(&mut self, nexus: usize) {
        self.registered.retain(|(path, _)| *path != nexus);
        if self.holder == Some(Ok(nexus)) {
            self.holder = None;
        }
    }
}

impl ReservationDevice for PathTo {
    fn open(&mut self) -> Result<Kind, DeviceError> {
        Ok(Kind::Scsi)
    }
    fn register(&mut self, old: u64, new: u64) -> Result<(), DeviceError> {
        let mut device = self.device.lock().unwrap();
        if device.key(self.nexus) != old {
            return Err(DeviceError::Conflict);
        }
        if new == 0 {
            device.remove(self.nexus);
        } else {
            device.registered.retain(|(path, _)| *path != self.nexus);
            device.registered.push((self.nexus, new));
        }
        Ok(())
    }
    fn reserve(&mut self, key: u64) -> Result<(), DeviceError> {
        let mut device = self.device.lock().unwrap();
        if device.key(self.nexus) != key || device.holder.is_some_and(|holder| holder != Ok(self.nexus)) {
            return Err(DeviceError::Conflict);
        }
        device.holder = Some(Ok(self.nexus));
        Ok(())
    }
    fn preempt_abort(&mut self, own: u64, victim: u64) -> Result<(), DeviceError> {
        let mut device = self.device.lock().unwrap();
        if device.key(self.nexus) != own || !device.registered.iter().any(|(_, key)| *key == victim) {
            return Err(DeviceError::Conflict);
        }
        let gone: Vec<usize> = device.registered.iter().filter(|(_, key)| *key == victim).map(|(path, _)| *path).collect();
        let held = gone.iter().any(|path| device.holder == Some(Ok(*path)));
        gone.into_iter().for_each(|path| device.remove(path));
        if held {
            device.holder = Some(Ok(self.nexus));
        }
        Ok(())
    }
    fn keys(&mut self) -> Result<Vec<u64>, DeviceError> {
        Ok(self.device.lock().unwrap().registered.iter().map(|(_, key)| *key).collect())
    }
    fn reservation(&mut self) -> Result<Option<Reservation>, DeviceError> {
        let device = self.device.lock().unwrap();
        Ok(device.holder.map(|holder| match holder {
            Ok(nexus) => Reservation { key: device.key(nexus), registrants_only: true, kind: 5 },
            Err(kind) => Reservation { key: 0xbad, registrants_only: false, kind },
        }))
    }
    fn path(&self) -> &Path {
        Path::new("/dev/model")
    }
}

const CLUSTER: u128 = 0x1111_2222_3333_4444_5555_6666_7777_8888;

fn node(device: &Arc<Mutex<Device>>, nexus: usize) -> ReservationMethod<PathTo> {
    ReservationMethod::new(PathTo { device: device.clone(), nexus }, CLUSTER, Duration::from_secs(1))
}

/// Three nodes on three paths, registered as lives 1.
fn three() -> (Arc<Mutex<Device>>, Vec<ReservationMethod<PathTo>>) {
    let device = Arc::new(Mutex::new(Device::default()));
    let nodes = (1..=3u8).map(|number| {
        let mut method = node(&device, number.into());
        method.register(life(number, 1)).unwrap();
        method
    });
    let nodes = nodes.collect();
    (device, nodes)
}

#[test]
fn a_fenced_node_writes_no_more_and_survivors_go_on() {
    // Each of the three in turn is the victim: the holder of the reservation and the others.
    for dead in 1..=3u8 {
        let (device, mut nodes) = three();
        let mut survivor = nodes.remove(usize::from(dead % 3));
        assert!(matches!(survivor.verify(&victim(dead, 1)), Err(FencingError::NotFenced { .. })));
        for _ in 0..2 {
            let proof = survivor.fence(&victim(dead, 1)).unwrap();
            assert_eq!((proof.life(), proof.strength()), (life(dead, 1), Strength::Device));
        }
        let device = device.lock().unwrap();
        let writers: Vec<u8> = (1..=4).filter(|number| device.takes_write(usize::from(*number))).collect();
        assert_eq!(writers, (1..=3).filter(|number| *number != dead).collect::<Vec<_>>());
    }
}

#[test]
fn who_was_fenced_finds_out_and_does_not_come_back_by_itself() {
    let (device, mut nodes) = three();
    assert!(nodes[0].fence(&victim(3, 1)).is_ok());
    assert_eq!(nodes[2].standing().unwrap(), Standing::Lost);
    assert!(matches!(nodes[2].register(life(3, 1)), Err(FencingError::SelfFenced { .. })));
    assert!(matches!(nodes[2].fence(&victim(1, 1)), Err(FencingError::SelfFenced { .. })), "it shoots back too late");
    assert!(nodes[0].verify(&victim(3, 1)).is_ok());
    let permit = Permit { life: life(3, 2), epoch: Epoch(9) };
    assert!(matches!(nodes[2].reregister(&permit), Err(FencingError::NotPermitted { .. })));

    // Somebody registers the dead life behind everybody's back: it is seen, and fenced again.
    let members = [life(1, 1), life(2, 1)];
    assert!(nodes[1].audit(&members).unwrap().is_empty());
    node(&device, 3).register(life(3, 1)).unwrap();
    assert_eq!(nodes[1].audit(&members).unwrap(), [Intruder::Life(life(3, 1))]);
    assert!(nodes[1].verify(&victim(3, 1)).is_err());
    assert!(nodes[1].fence(&victim(3, 1)).is_ok());
    assert!(!device.lock().unwrap().takes_write(3));
}

#[test]
fn a_device_that_forgets_is_registered_with_again() {
    let (device, mut nodes) = three();
    *device.lock().unwrap() = Device::default();
    assert_eq!(nodes[0].standing().unwrap(), Standing::Lost);
    for (number, method) in (1..=3u8).zip(&mut nodes) {
        method.reregister(&Permit { life: life(number, 1), epoch: Epoch(2) }).unwrap();
        assert_eq!(method.standing().unwrap(), Standing::Registered);
    }
    assert!(!device.lock().unwrap().takes_write(4), "the reservation is there again");
}

#[test]
fn the_next_life_takes_the_place_of_the_one_before() {
    let (device, nodes) = three();
    drop(nodes);
    let mut again = node(&device, 1);
    again.register(life(1, 2)).unwrap();
    assert_eq!(device.lock().unwrap().registered.len(), 3);
    // Fencing the life before does nothing to this one.
    let mut other = node(&device, 2);
    other.register(life(2, 2)).unwrap();
    assert!(other.fence(&victim(1, 1)).is_ok());
    assert_eq!(again.standing().unwrap(), Standing::Registered);
    // Two nodes of one machine have one path: the device couldn't tell their writes apart.
    assert!(matches!(node(&device, 1).register(life(2, 9)), Err(FencingError::PathTaken { .. })));
}

#[test]
fn a_holder_that_leaves_does_not_lift_the_fence() {
    let (device, mut nodes) = three();
    assert!(nodes[1].fence(&victim(3, 1)).is_ok());
    nodes[0].leave().unwrap();
    assert!(!device.lock().unwrap().takes_write(3));
    nodes[1].leave().unwrap();
    assert_eq!(device.lock().unwrap().registered.len(), 1, "who holds nothing unregisters");

    let foreign = Arc::new(Mutex::new(Device { registered: vec![(7, 0xbad)], holder: Some(Err(1)) }));
    assert!(matches!(node(&foreign, 1).register(life(1, 1)), Err(FencingError::Reserved { .. })));
    assert!(matches!(node(&foreign, 2).audit(&[life(1, 1)]).unwrap()[..], [Intruder::Foreign(0xbad)]));
}
