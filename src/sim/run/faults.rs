//! What goes wrong, when the plan says so, and how it is mended.

use std::path::Path;
use std::time::Duration;

use super::supervisor::host;
use super::{Due, Run, VOLUME};
use crate::reactor::driver::sim::{HostId, Spoiling, Straying};
use crate::sim::plan::Fault;

/// A crash comes within so many steps of the world.
const DOOM_STEPS_MAX: u64 = 5_000;

/// The end of a fault that lasts.
pub(super) enum Mend {
    Disk(HostId),
    Path(HostId, HostId),
    Network,
    Pause(HostId),
    Drained(usize),
}

impl Run {
    pub(super) fn schedule_next_fault(&mut self) {
        if !self.plan.faults.is_empty() {
            let pause = self.dice.around(self.plan.fault_interval);
            self.schedule(pause, Due::Fault);
        }
    }

    fn any_node(&self) -> usize {
        self.dice.pick(&self.present())
    }

    /// Two nodes, if there are two.
    fn any_pair(&self) -> Option<(usize, usize)> {
        let present = self.present();
        let count = present.len();
        let (one, further) = (self.dice.below(count as u64) as usize, self.dice.below(count as u64 - 1) as usize + 1);
        (count > 1).then(|| (present[one], present[(one + further) % count]))
    }

    /// One of the plan's faults happens.
    pub(super) fn strike(&mut self) {
        let fault = self.dice.pick(&self.plan.faults);
        self.faults += 1;
        let node = self.any_node();
        let name = format!("node{}", node + 1);
        match fault {
            Fault::Crash => {
                let step = self.world.steps() + self.dice.below(DOOM_STEPS_MAX);
                self.doomed = Some((step, node));
            }
            Fault::PowerOff => self.end(node, "loses its power", |run| run.world.power_off(host(node))),
            Fault::PowerLoss => {
                self.events.note("everything loses its power");
                let hosts: Vec<HostId> = (0..self.members.len()).map(host).collect();
                self.world.power_loss_of(&hosts);
                (0..self.members.len()).for_each(|node| self.end(node, "is off", |_| ()));
            }
            Fault::DiskErrors => {
                let time = self.dice.spread_ms(1, 3_000);
                self.events.note(format_args!("{name}'s disk gives errors for {time:?}"));
                self.world.set_disk_error(host(node), Some(libc::EIO));
                self.schedule(time, Due::Mend(Mend::Disk(host(node))));
            }
            Fault::DiskStall => {
                let time = self.dice.spread_ms(10, 10_000);
                self.events.note(format_args!("{name}'s disk hangs for {time:?}"));
                self.world.stall_disk(host(node), time);
            }
            Fault::SpoiledReads | Fault::SpoiledLogReads => {
                let log = fault == Fault::SpoiledLogReads;
                let spoiling = Spoiling {
                    reads: self.dice.between(1, 3) as u32,
                    from_offset: if log { self.redo_offset } else { self.data_offset },
                    misdirected: self.dice.chance(50),
                };
                self.events.note(format_args!("{name}'s next reads are spoiled: {spoiling:?}"));
                self.world.spoil_reads(host(node), spoiling);
            }
            Fault::Rot => {
                let at = self.world.rot(Path::new(VOLUME), self.data_offset);
                self.events.note(format_args!("a bit turns around on the disk: {at:?}"));
            }
            Fault::StrayWrites => {
                let straying = Straying { writes: self.dice.between(1, 3) as u32, from_offset: self.data_offset };
                self.events.note(format_args!("{name}'s next writes go astray: {straying:?}"));
                self.world.stray_writes(host(node), straying);
            }
            Fault::ClockJump => {
                let most = self.dice.pick(&[100, 10_000, 3_600_000]);
                let by = self.dice.between(0, 2 * most) as i64 - most as i64;
                self.events.note(format_args!("{name}'s clock jumps by {by} ms"));
                self.world.jump_clock(host(node), by);
            }
            Fault::Pause => {
                let (least, most) = self.plan.pause_ms;
                let time = self.dice.spread_ms(least, most);
                self.events.note(format_args!("{name} stands still for {time:?}"));
                self.world.pause(host(node));
                self.schedule(time, Due::Mend(Mend::Pause(host(node))));
            }
            Fault::CleanStop => self.ask_to_stop(node),
            Fault::Join => self.add_a_node(),
            Fault::Leave => self.remove(node),
            Fault::Drain => {
                let time = self.dice.spread_ms(10, 5_000);
                if self.drain(node) {
                    self.events.note(format_args!("{name} is drained for {time:?}"));
                    self.schedule(time, Due::Mend(Mend::Drained(node)));
                }
            }
            Fault::SlowNetwork => {
                let (most, time) = (self.dice.between(2_000, 50_000), self.dice.spread_ms(100, 10_000));
                self.events.note(format_args!("messages take up to {most} us for {time:?}"));
                self.world.set_network_us((10, most));
                self.schedule(time, Due::Mend(Mend::Network));
            }
            Fault::Break | Fault::Partition | Fault::OneWay => {
                let Some((one, other)) = self.any_pair() else { return };
                self.disconnect(fault, one, other);
            }
        }
    }

    fn disconnect(&mut self, fault: Fault, one: usize, other: usize) {
        let names = format!("node{} and node{}", one + 1, other + 1);
        let (one, other) = (host(one), host(other));
        let time: Duration = self.dice.spread_ms(20, 15_000);
        match fault {
            Fault::Break => {
                self.events.note(format_args!("the connections between {names} break"));
                self.world.break_connections(one, other);
                return;
            }
            Fault::OneWay => {
                self.events.note(format_args!("{names}: the second does not hear the first for {time:?}"));
                self.world.part_one_way(one, other);
            }
            _ => {
                self.events.note(format_args!("{names} do not hear each other for {time:?}"));
                self.world.part(one, other);
            }
        }
        self.schedule(time, Due::Mend(Mend::Path(one, other)));
    }

    pub(super) fn mend(&mut self, mend: &Mend) {
        match mend {
            Mend::Disk(host) => self.world.set_disk_error(*host, None),
            Mend::Path(one, other) => self.world.heal_pair(*one, *other),
            Mend::Network => self.world.set_network_us(self.plan.world.network_us),
            Mend::Pause(host) => self.world.resume(*host),
            Mend::Drained(node) => self.undrain(*node),
        }
    }

    /// No more faults, and those that last are over.
    pub(super) fn calm_down(&mut self) {
        self.agenda.retain(|_, due| !matches!(due, Due::Fault | Due::Mend(_)));
        self.doomed = None;
        self.world.heal();
        self.mend(&Mend::Network);
        for node in 0..self.members.len() {
            let host = host(node);
            self.mend(&Mend::Disk(host));
            self.mend(&Mend::Pause(host));
            self.mend(&Mend::Drained(node));
            self.world.stall_disk(host, Duration::ZERO);
            self.world.spare_reads(host);
            self.world.straighten_writes(host);
        }
        self.events.note("everything is mended");
    }
}
