//! A host as the checks see it: files under a root, what only system calls tell ([`Facts`]), and what is asked of it
//! ([`Needs`]). Tests make all three up; a real host's root is `/`.

use std::path::{Path, PathBuf};

use crate::facts::Facts;
use crate::needs::Needs;

/// See the module.
pub struct Host {
    root: PathBuf,
    /// What system calls told.
    pub facts: Facts,
    /// What a node with this configuration needs.
    pub needs: Needs,
}

impl Host {
    /// The host whose files lie under `root`.
    #[must_use]
    pub fn new(root: &Path, facts: Facts, needs: Needs) -> Host {
        Host { root: root.to_owned(), facts, needs }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A file's text without surrounding white space; `None` when there is none, or it can't be read.
    #[must_use]
    pub fn read(&self, path: &str) -> Option<String> {
        std::fs::read(self.path(path)).ok().map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// A file that holds one number.
    #[must_use]
    pub fn number(&self, path: &str) -> Option<u64> {
        self.read(path)?.parse().ok()
    }

    /// The names in a folder, sorted; none when there is no such folder.
    #[must_use]
    pub fn list(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(folder)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        // nvme2 before nvme10.
        names.sort_by_key(|name| (name.len(), name.clone()));
        names
    }

    /// Whether there is such a file or folder.
    #[must_use]
    pub fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// A sysctl by its name: `vm.swappiness`.
    #[must_use]
    pub fn sysctl(&self, name: &str) -> Option<String> {
        self.read(&format!("/proc/sys/{}", name.replace('.', "/")))
    }

    /// A sysctl that is one number.
    #[must_use]
    pub fn sysctl_number(&self, name: &str) -> Option<u64> {
        self.sysctl(name)?.parse().ok()
    }

    /// A line `key: value` of a file such as `/proc/meminfo`.
    #[must_use]
    pub fn field(&self, path: &str, key: &str) -> Option<String> {
        let text = self.read(path)?;
        let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
        pairs.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().to_owned())
    }

    /// A line of `/proc/meminfo`, in bytes.
    #[must_use]
    pub fn memory_bytes(&self, key: &str) -> Option<u64> {
        let kib: u64 = self.field("/proc/meminfo", key)?.trim_end_matches("kB").trim().parse().ok()?;
        Some(kib << 10)
    }

    /// Whether the process has a capability, by its number in linux/capability.h.
    #[must_use]
    pub fn has_capability(&self, number: u32) -> bool {
        let effective = self.field("/proc/self/status", "CapEff");
        effective.and_then(|bits| u64::from_str_radix(&bits, 16).ok()).is_some_and(|bits| bits >> number & 1 == 1)
    }

    /// The folder of a control group's controller that this process is in: version 2's, or version 1's own hierarchy.
    #[must_use]
    pub fn control_group(&self, controller: &str) -> Option<String> {
        let groups = self.read("/proc/self/cgroup")?;
        let mut unified = None;
        for line in groups.lines() {
            let mut parts = line.splitn(3, ':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let path = path.trim_end_matches('/');
            if controllers.split(',').any(|name| name == controller) {
                return Some(format!("/sys/fs/cgroup/{controller}{path}"));
            }
            if controllers.is_empty() {
                unified = Some(format!("/sys/fs/cgroup{path}"));
            }
        }
        unified
    }

    /// The folder of a block device's queue and of the device, by its numbers. A partition's queue is its disk's.
    #[must_use]
    pub fn block_device(&self, (major, minor): (u32, u32)) -> Option<BlockDevice> {
        let folder = format!("/sys/dev/block/{major}:{minor}");
        let name = self.read(&format!("{folder}/uevent"))?;
        let name = name.lines().find_map(|line| line.strip_prefix("DEVNAME="))?.to_owned();
        let queue = [format!("{folder}/queue"), format!("{folder}/../queue")];
        let queue = queue.into_iter().find(|queue| self.exists(queue))?;
        Some(BlockDevice { name, folder, queue })
    }

    /// The devices that the volume lies on: itself, or what its device-mapper or md device is made of.
    #[must_use]
    pub fn volume_devices(&self) -> Vec<BlockDevice> {
        let Some(number) = self.facts.volume.as_ref().and_then(|volume| volume.device) else { return Vec::new() };
        let mut found = Vec::new();
        self.gather_devices(number, 4, &mut found);
        found
    }

    fn gather_devices(&self, number: (u32, u32), depth: u8, found: &mut Vec<BlockDevice>) {
        let Some(device) = self.block_device(number) else { return };
        let below = self.list(&format!("{}/slaves", device.folder));
        let numbers: Vec<(u32, u32)> = below
            .iter()
            .filter_map(|name| {
                let text = self.read(&format!("{}/slaves/{name}/dev", device.folder))?;
                let (major, minor) = text.split_once(':')?;
                Some((major.parse().ok()?, minor.parse().ok()?))
            })
            .collect();
        if numbers.is_empty() || depth == 0 {
            found.push(device);
            return;
        }
        numbers.into_iter().for_each(|number| self.gather_devices(number, depth - 1, found));
    }
}

/// A block device's place in sysfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockDevice {
    /// `nvme0n1`, `sda`
    pub name: String,
    /// Its folder.
    pub folder: String,
    /// Its queue's folder.
    pub queue: String,
}

impl BlockDevice {
    /// Whether it is an NVMe namespace.
    #[must_use]
    pub fn is_nvme(&self) -> bool {
        self.name.starts_with("nvme")
    }

    /// `nvme0` of `nvme0n1` and `nvme0n1p1`.
    #[must_use]
    pub fn nvme_controller(&self) -> Option<&str> {
        let digits = self.name.strip_prefix("nvme")?.find(|letter: char| !letter.is_ascii_digit())?;
        (digits > 0).then(|| &self.name[..4 + digits])
    }
}
