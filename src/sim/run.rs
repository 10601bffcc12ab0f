//! One simulation from its beginning to its verdict: the agenda, the supervisor that starts nodes again, and the phases of
//! a run. What goes wrong is in [`super::run::faults`].

mod failover;
mod faults;
mod fences;
mod nodes;
mod supervisor;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::Future;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::rc::Rc;
use std::sync::Once;
use std::time::Duration;

pub use self::failover::{Failover, failover};
use self::faults::Mend;
use self::fences::SimFences;
use self::supervisor::{Member, Place};
use super::check;
use super::dice::Dice;
use super::events::{Events, set_virtual_clock};
use super::plan::Plan;
use super::workload::{ACCOUNT_AT_FIRST, Clients, audit};
use super::{Failure, Options, Outcome};
use crate::fusion::gcs::contradictions;
use crate::ids::BLOCK_SIZE;
use crate::reactor::driver::sim::{HostId, SimWorld};
use crate::reactor::{Class, Instant, Reactor};
use crate::store::Store;
use crate::volume::{FormatOptions, Volume};

const VOLUME: &str = "volume";
const CLUSTER_NAME: &str = "simulated";
/// The machine of the clients.
const CLIENTS: HostId = HostId(1_000);
/// How often the supervisor looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Virtual time within which a cluster that nobody disturbs is open.
const OPEN_WITHIN: Duration = Duration::from_secs(180);
/// Virtual time within which clients of an undisturbed cluster come to their end.
const END_WITHIN: Duration = Duration::from_secs(180);

/// Virtual time within which a cluster in which nobody works has nothing under way any more.
const CONSISTENT_WITHIN: Duration = Duration::from_secs(30);

/// Virtual time that clients of a damaged cluster go on, and that they get to end.
const DAMAGED_WORK: Duration = Duration::from_secs(10);

/// What is due at some moment.
enum Due {
    Look,
    Start(usize),
    Fault,
    Mend(Mend),
    End,
}

struct Run {
    world: SimWorld,
    plan: Rc<Plan>,
    events: Rc<Events>,
    clients: Rc<Clients>,
    members: Vec<Member>,
    fences: Rc<SimFences>,
    dice: Dice,
    agenda: BTreeMap<(Instant, u64), Due>,
    agenda_serial: u64,
    /// A node that is to be killed when the world has done so many steps.
    doomed: Option<(u64, usize)>,
    /// The first byte of the redo areas.
    redo_offset: u64,
    /// The first byte behind them.
    data_offset: u64,
    faults: u64,
    lives: u64,
    /// Dead nodes are started again by themselves.
    supervised: bool,
}

thread_local! {
    /// Where and why the simulation of this thread panicked.
    static PANIC: Cell<Option<String>> = const { Cell::new(None) };
    static SIMULATES: Cell<bool> = const { Cell::new(false) };
}

/// Panics of simulations are results, not noise on the terminal.
fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if SIMULATES.get() {
                let trace = std::backtrace::Backtrace::capture();
                PANIC.set(Some(format!("{info}\n{trace}")));
            } else {
                before(info);
            }
        }));
    });
}

/// Runs one simulation.
#[must_use]
pub fn run(options: &Options) -> Outcome {
    run_plan(options, Plan::draw(options))
}

/// Runs one simulation by this plan.
pub(super) fn run_plan(options: &Options, plan: Plan) -> Outcome {
    begin(options, plan, |run| run.phases(options.duration)).1
}

/// Makes a world by this plan and does something in it; what came of it, and how it went.
fn begin<T>(options: &Options, plan: Plan, what: impl FnOnce(&mut Run) -> Result<T, Failure>) -> (Result<T, Failure>, Outcome) {
    catch_panics();
    let plan = Rc::new(plan);
    let world = SimWorld::with_options(options.seed, plan.world.clone());
    let clock = world.clock();
    set_virtual_clock(Some(Rc::new(move || clock().as_ns())));
    let events = Rc::new(Events::default());
    let clients = Clients::new(world.reactor(CLIENTS), plan.clone(), events.clone());
    let members = (0..usize::from(plan.nodes)).map(|node| Member::new(node, Place::Member)).collect();
    let fences = SimFences::new(world.gates());
    let dice = Dice::new(options.seed, 2);
    let mut run = ManuallyDrop::new(Run {
        world,
        plan: plan.clone(),
        events: events.clone(),
        clients: clients.clone(),
        members,
        fences,
        dice,
        agenda: BTreeMap::new(),
        agenda_serial: 0,
        doomed: None,
        redo_offset: 0,
        data_offset: 0,
        faults: 0,
        lives: 0,
        supervised: true,
    });
    SIMULATES.set(true);
    let ended = catch_unwind(AssertUnwindSafe(|| what(&mut run)));
    let result = ended.unwrap_or_else(|_| Err(Failure::Panic(PANIC.take().unwrap_or_default())));
    let outcome = Outcome {
        options: options.clone(),
        trace: run.world.trace() ^ events.hash(),
        virtual_time: run.world.now().since(Instant::default()),
        steps: run.world.steps(),
        plan: format!("{plan:?}"),
        faults: run.faults,
        lives: run.lives,
        committed: clients.ends.borrow().get("committed").copied().unwrap_or(0),
        ends: clients.ends.borrow().iter().map(|(end, count)| ((*end).to_owned(), *count)).collect(),
        events: events.last(),
        failure: result.as_ref().err().cloned(),
    };
    drop(clients);
    // After a panic the world is in the middle of something, and is left as it is.
    if !matches!(outcome.failure, Some(Failure::Panic(_))) {
        let run = ManuallyDrop::into_inner(run);
        if catch_unwind(AssertUnwindSafe(|| drop(run))).is_err() {
            let failure = Failure::Panic(format!("when the world ended: {}", PANIC.take().unwrap_or_default()));
            SIMULATES.set(false);
            return (Err(failure.clone()), Outcome { failure: Some(failure), ..outcome });
        }
    }
    SIMULATES.set(false);
    set_virtual_clock(None);
    (result, outcome)
}

impl Run {
    fn phases(&mut self, duration: Duration) -> Result<(), Failure> {
        self.events.note(format_args!("{:?}", self.plan));
        self.format();
        for node in 0..self.members.len() {
            let skew = self.dice.below(self.plan.clock_skew_ms + 1);
            self.start(node);
            self.world.jump_clock(supervisor::host(node), skew as i64);
        }
        self.schedule(LOOK_EVERY, Due::Look);
        self.wait_until_open("at first")?;
        let clients = self.clients.clone();
        let set_up = self.ask("set up the tables", async move { clients.set_up().await })?;
        set_up.map_err(|error| Failure::NoProgress(format!("the tables can't be made: {error}")))?;
        self.clients.start();

        self.disturb(duration)?;
        self.calm_down();
        if self.plan.damages {
            return self.look_at_the_damage();
        }
        self.wait_until_open("after the last fault")?;
        // Some undisturbed work, then the end.
        self.pass(self.world.now() + Duration::from_secs(2))?;
        self.clients.stopping.set(true);
        let clients = self.clients.clone();
        self.run_until("the clients end", END_WITHIN, move |_| clients.running.get() == 0)?;
        self.wait_until_open("after the clients' end")?;
        self.wait_until_consistent()?;
        let all = self.present();
        self.last_look(&all)?;
        if all.len() > 1 && self.dice.chance(50) {
            self.lose_one()?;
            self.last_look(&all)?;
        }
        if self.dice.chance(30) {
            self.stop_and_start_all()?;
            self.last_look(&all)?;
        }
        self.verdict()
    }

    fn format(&mut self) {
        let reactor = self.world.reactor(CLIENTS);
        let plan = self.plan.clone();
        let inside = reactor.clone();
        (self.redo_offset, self.data_offset) = self.world.block_on(&reactor, async move {
            let options = FormatOptions {
                nodes_max: plan.nodes + plan.spare_nodes,
                shards: plan.shards,
                volume_bytes: plan.volume_bytes,
                redo_area_bytes: Some(plan.redo_area_bytes),
                ..FormatOptions::new(CLUSTER_NAME)
            };
            let volume = Volume::format(&inside, Path::new(VOLUME), &options, &mut |_| {}).await;
            let geometry = *volume.expect("nothing disturbs the formatting").geometry();
            (geometry.redo_first.0 * BLOCK_SIZE as u64, geometry.extents_first.0 * BLOCK_SIZE as u64)
        });
    }

    fn schedule(&mut self, after: Duration, due: Due) {
        self.agenda_serial += 1;
        self.agenda.insert((self.world.now() + after, self.agenda_serial), due);
    }

    /// Faults and repairs, until the time is over.
    fn disturb(&mut self, duration: Duration) -> Result<(), Failure> {
        let end = self.world.now() + duration;
        self.schedule_next_fault();
        self.pass(end)
    }

    /// Lets time pass, with everything that is due.
    fn pass(&mut self, end: Instant) -> Result<(), Failure> {
        self.schedule(end.since(self.world.now()), Due::End);
        loop {
            if matches!(self.next()?, Due::End) {
                return Ok(());
            }
        }
    }

    /// Runs the world to the next thing that is due, and does it.
    fn next(&mut self) -> Result<Due, Failure> {
        let ((at, _), due) = self.agenda.pop_first().expect("the next look is always due");
        while self.world.step_within(at) {
            if let Some((step, node)) = self.doomed
                && self.world.steps() >= step
            {
                self.doomed = None;
                self.kill(node, "is killed");
            }
        }
        self.world.rest_until(at);
        match &due {
            Due::Look => {
                self.look()?;
                self.schedule(LOOK_EVERY, Due::Look);
                self.verdict()?;
            }
            Due::Start(node) => self.start(*node),
            Due::Fault => {
                self.strike();
                self.schedule_next_fault();
            }
            Due::Mend(mend) => self.mend(mend),
            Due::End => {}
        }
        Ok(due)
    }

    fn run_until(&mut self, what: &str, within: Duration, done: impl Fn(&Run) -> bool) -> Result<(), Failure> {
        let end = self.world.now() + within;
        while !done(self) {
            if self.world.now() > end {
                let states: Vec<String> = self.members.iter().map(Member::describe).collect();
                return Err(Failure::NoProgress(format!("{what}: not within {within:?} ({})", states.join("; "))));
            }
            self.next()?;
        }
        Ok(())
    }

    fn wait_until_open(&mut self, when: &str) -> Result<(), Failure> {
        let all_open = |run: &Run| run.members.iter().all(Member::is_settled);
        self.run_until(&format!("all nodes are open {when}"), OPEN_WITHIN, all_open)
    }

    /// Something that a client does once.
    fn ask<T: 'static>(&mut self, what: &str, work: impl Future<Output = T> + 'static) -> Result<T, Failure> {
        let output = Rc::new(Cell::new(None));
        let (slot, reactor): (_, Reactor) = (output.clone(), self.clients.reactor.clone());
        let task = reactor.spawn(Class::Normal, "ask", async move { slot.set(Some(work.await)) });
        let finished = self.run_until(what, END_WITHIN, |_| task.is_finished());
        task.abort();
        finished?;
        Ok(output.take().expect("the task has finished"))
    }

    fn store(&self, node: usize) -> Result<Store, Failure> {
        let store = self.clients.store(node);
        store.ok_or_else(|| Failure::NoProgress(format!("node{} has ended though nothing disturbs it", node + 1)))
    }

    /// A node dies and stays dead: the others have everything, and change everything, without it.
    fn lose_one(&mut self) -> Result<(), Failure> {
        self.supervised = false;
        let all = self.present();
        let lost = self.dice.pick(&all);
        if self.dice.chance(50) {
            self.kill(lost, "is killed, and stays so");
        } else {
            self.end(lost, "loses its power, and stays so", |run| run.world.power_off(supervisor::host(lost)));
        }
        let others: Vec<usize> = all.into_iter().filter(|node| *node != lost).collect();
        if let [alone] = others[..] {
            // One of two says so while it makes sure that it is the one that goes on. Of more, clients only wait.
            let goes_on = move |run: &Run| run.members[alone].is_open() && run.members[alone].sees() == 1;
            self.run_until("one of two goes on alone", OPEN_WITHIN, goes_on)?;
        }
        self.last_look(&others)?;
        self.supervised = true;
        self.start(lost);
        self.wait_until_open("after one has come back")?;
        self.pass(self.world.now() + Duration::from_millis(100))
    }

    /// Blocks are damaged, and nobody has them anywhere else: whatever is still shown must be right.
    fn look_at_the_damage(&mut self) -> Result<(), Failure> {
        self.pass(self.world.now() + DAMAGED_WORK)?;
        self.clients.stopping.set(true);
        self.pass(self.world.now() + DAMAGED_WORK)?;
        for node in 0..self.members.len() {
            let Some(store) = self.clients.store(node) else { continue };
            let (clients, who) = (self.clients.clone(), format!("the last look on node{}", node + 1));
            let look = async move {
                let patience = clients.reactor.clone();
                let audit = patience.timeout(DAMAGED_WORK, audit(&clients, &store, true, who)).await;
                let lists = patience.timeout(DAMAGED_WORK, clients.read_lists(&store)).await;
                (audit.ok().and_then(Result::ok), lists.ok().and_then(Result::ok))
            };
            let (audit, lists) = self.ask("look at what is left", look)?;
            if let Some(audit) = audit {
                let found = check::bank::check(&audit, &self.clients.transfers.borrow(), self.plan.accounts, ACCOUNT_AT_FIRST);
                if !found.is_empty() {
                    return Err(Failure::Broken(found));
                }
            }
            if let Some(lists) = lists {
                let broken = check::lists::check(&self.clients.lists.borrow(), &lists);
                if !broken.is_empty() {
                    return Err(Failure::Broken(broken));
                }
            }
        }
        self.verdict()
    }

    /// Nobody works any more: what each of these nodes shows must be what the clients were told.
    fn last_look(&mut self, nodes: &[usize]) -> Result<(), Failure> {
        let node = self.dice.pick(nodes);
        let (store, clients) = (self.store(node)?, self.clients.clone());
        let dropped = self.ask("drop what is left behind", async move { clients.drop_scratch(&store).await })?;
        dropped.map_err(|error| Failure::NoProgress(format!("a table can't be dropped: {error}")))?;
        let mut first = None;
        for node in nodes.iter().copied() {
            let name = format!("node{}", node + 1);
            let failed = |error| Failure::NoProgress(format!("{name} fails in the end: {error}"));
            let (store, clients) = (self.store(node)?, self.clients.clone());
            let who = format!("the last look on {name}");
            let seen = self.ask(&who, {
                let (store, who) = (store.clone(), who.clone());
                async move {
                    let audit = audit(&clients, &store, true, who).await?;
                    Ok::<_, crate::store::StoreError>((audit, clients.read_lists(&store).await?))
                }
            })?;
            let (audit, lists) = seen.map_err(failed)?;
            let found = check::bank::check(&audit, &self.clients.transfers.borrow(), self.plan.accounts, ACCOUNT_AT_FIRST);
            if !found.is_empty() {
                return Err(Failure::Broken(found));
            }
            let state = (audit.balances, audit.journal, lists);
            match &first {
                None => {
                    let broken = check::lists::check(&self.clients.lists.borrow(), &state.2);
                    if !broken.is_empty() {
                        return Err(Failure::Broken(broken));
                    }
                    first = Some(state);
                }
                Some(first) if *first != state => {
                    let message = format!("{name} does not see in the end what another does: {first:?} and {state:?}");
                    return Err(Failure::Broken(vec![message]));
                }
                Some(_) => {}
            }
            let clients = self.clients.clone();
            let touched =
                self.ask(&format!("{name} changes every row"), async move { clients.touch_everything(&store).await })?;
            touched.map_err(failed)?;
        }
        Ok(())
    }

    /// Nobody works any more, and what was under way comes to its end: then the directories say what the caches have.
    fn wait_until_consistent(&mut self) -> Result<(), Failure> {
        let until = self.world.now() + CONSISTENT_WITHIN;
        loop {
            let wrong = self.contradictions();
            if wrong.as_ref().is_some_and(Vec::is_empty) {
                return Ok(());
            }
            if self.world.now() > until {
                let wrong = wrong.unwrap_or_else(|| vec!["the nodes are not in one view".into()]);
                return Err(Failure::Broken(wrong));
            }
            self.pass(self.world.now() + LOOK_EVERY)?;
        }
    }

    fn contradictions(&self) -> Option<Vec<String>> {
        let nodes: Vec<_> = self.members.iter().filter_map(|member| Some(member.hosted.as_ref()?.inspect())).collect();
        let mut wrong = Vec::new();
        for shard in 0..usize::from(self.plan.shards) {
            let shards: Option<Vec<_>> = nodes.iter().map(|node| node.get(shard).cloned()).collect();
            wrong.extend(contradictions(&shards?)?);
        }
        Some(wrong)
    }

    fn verdict(&mut self) -> Result<(), Failure> {
        let broken = self.clients.take_broken();
        if broken.is_empty() { Ok(()) } else { Err(Failure::Broken(broken)) }
    }
}
