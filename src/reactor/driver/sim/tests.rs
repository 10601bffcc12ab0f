//! The simulator keeps its promises: same seed, same run; crashes lose what was not synced and nothing else.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use super::*;
use crate::reactor::{Class, IoBuf, Reactor};

const SERVER: HostId = HostId(1);
const CLIENT: HostId = HostId(2);

fn filled(byte: u8) -> IoBuf {
    let mut buffer = IoBuf::aligned(4096);
    buffer.as_mut_slice().fill(byte);
    buffer
}

fn address() -> SocketAddr {
    "10.1.0.1:7000".parse().unwrap()
}

async fn serve(reactor: Reactor) {
    let file = reactor.open(Path::new("log"), OpenOptions::CREATE).await.unwrap();
    let listener = reactor.listen(address()).await.unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let task = reactor.clone();
        reactor.spawn(Class::Normal, "serve", async move {
            loop {
                let (result, buffer) = stream.recv_exact(IoBuf::aligned(4096)).await;
                if result.is_err() {
                    return;
                }
                let offset = u64::from(buffer.as_slice()[0]) * 4096;
                let (result, buffer) = task.write_durable(file, offset, buffer).await;
                result.unwrap();
                if stream.send(buffer.slice(0..1)).await.0.is_err() {
                    return;
                }
            }
        });
    }
}

/// Three tasks write through a server that may crash on the way. Returns the trace and which pages were acknowledged.
fn run_world(seed: u64, crash_after: Option<Duration>) -> (u64, Vec<u8>, Vec<u8>) {
    let world = SimWorld::new(seed);
    let server = world.reactor(SERVER);
    server.spawn(Class::Normal, "server", serve(server.clone()));
    let client = world.reactor(CLIENT);
    let acknowledged = Rc::new(RefCell::new(Vec::new()));
    for task in 0..3u8 {
        let (client, acknowledged) = (client.clone(), acknowledged.clone());
        client.clone().spawn(Class::Normal, "client", async move {
            let stream = loop {
                match client.connect(address()).await {
                    Ok(stream) => break stream,
                    Err(_) => client.sleep(Duration::from_millis(1)).await,
                }
            };
            for round in 0..20u8 {
                let page = task * 20 + round;
                if stream.send(filled(page)).await.0.is_err() || stream.recv_exact(IoBuf::aligned(1)).await.0.is_err() {
                    return;
                }
                acknowledged.borrow_mut().push(page);
            }
        });
    }
    match crash_after {
        Some(time) => {
            world.run_for(time);
            world.crash(SERVER);
            world.run_for(Duration::from_secs(1));
        }
        None => world.run_for(Duration::from_secs(5)),
    }
    let again = world.reactor(SERVER);
    let task = again.clone();
    let found = world.block_on(&again, async move {
        let file = task.open(Path::new("log"), OpenOptions::CREATE).await.unwrap();
        let mut found = Vec::new();
        for page in 1..60u8 {
            let (result, buffer) = task.read(file, u64::from(page) * 4096, IoBuf::aligned(4096)).await;
            if result.unwrap() == 4096 && buffer.as_slice().iter().all(|byte| *byte == page) {
                found.push(page);
            }
        }
        found
    });
    (world.trace(), acknowledged.take(), found)
}

#[test]
fn the_same_seed_runs_the_same_way() {
    for seed in 0..5 {
        let crash = (seed % 2 == 0).then(|| Duration::from_micros(3000));
        assert_eq!(run_world(seed, crash), run_world(seed, crash), "seed {seed}");
    }
    assert_ne!(run_world(1, None).0, run_world(2, None).0, "another seed is another run");
}

#[test]
fn what_was_acknowledged_survives_a_crash() {
    let mut partial = 0;
    for seed in 0..50 {
        let (_, acknowledged, found) = run_world(seed, Some(Duration::from_micros(500 + seed * 100)));
        for page in &acknowledged {
            assert!(*page == 0 || found.contains(page), "seed {seed}: page {page} was acknowledged and is lost");
        }
        partial += usize::from(!acknowledged.is_empty() && acknowledged.len() < 60);
    }
    assert!(partial > 25, "most crashes come in the middle, {partial} did");
}

#[test]
fn a_crash_loses_and_tears_unsynced_writes_only() {
    let (mut lost, mut torn, mut kept) = (0, 0, 0);
    for seed in 0..40 {
        let world = SimWorld::new(seed);
        let writer = world.reactor(SERVER);
        let task = writer.clone();
        world.block_on(&writer, async move {
            let file = task.open(Path::new("disk"), OpenOptions::CREATE).await.unwrap();
            task.write(file, 0, filled(1)).await.0.unwrap();
            task.sync(file).await.unwrap();
            task.write(file, 0, filled(2)).await.0.unwrap();
        });
        let reader = world.reactor(CLIENT);
        let read = |world: &SimWorld| {
            let task = reader.clone();
            world.block_on(&reader, async move {
                let file = task.open(Path::new("disk"), OpenOptions::READ).await.unwrap();
                let (result, buffer) = task.read(file, 0, IoBuf::aligned(4096)).await;
                assert_eq!(result.unwrap(), 4096);
                buffer.as_slice().to_vec()
            })
        };
        assert!(read(&world).iter().all(|byte| *byte == 2), "seen before it is synced");
        world.crash(SERVER);
        let after = read(&world);
        assert!(after.chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0])), "sectors are whole");
        match after.iter().filter(|byte| **byte == 1).count() {
            4096 => lost += 1,
            0 => kept += 1,
            _ => torn += 1,
        }
        assert!(after.iter().all(|byte| *byte == 1 || *byte == 2), "what was synced is there beneath");
    }
    assert!(lost > 0 && torn > 0 && kept > 0, "lost {lost}, torn {torn}, kept {kept}");
}

#[test]
fn a_parted_pair_hears_nothing_until_it_is_healed() {
    let world = SimWorld::new(3);
    let (server, client) = (world.reactor(SERVER), world.reactor(CLIENT));
    server.spawn(Class::Normal, "server", serve(server.clone()));
    let task = client.clone();
    let stream = world.block_on(&client, async move {
        task.sleep(Duration::from_millis(5)).await;
        task.connect(address()).await.unwrap()
    });
    world.part(SERVER, CLIENT);
    let answered = Rc::new(Cell::new(false));
    let (flag, task) = (answered.clone(), client.clone());
    client.spawn(Class::Normal, "ask", async move {
        stream.send(filled(7)).await.0.unwrap();
        stream.recv_exact(IoBuf::aligned(1)).await.0.unwrap();
        flag.set(true);
    });
    let refused = world.block_on(&client, async move { task.connect(address()).await.map(|_| ()).unwrap_err() });
    assert_eq!(refused.kind(), std::io::ErrorKind::TimedOut);
    assert!(!answered.get());
    world.heal();
    world.run_until(|| answered.get()).unwrap();
}

#[test]
fn peers_of_a_killed_process_see_a_reset_and_of_a_dead_machine_nothing() {
    for (silent, expected) in [(false, Some(std::io::ErrorKind::ConnectionReset)), (true, None)] {
        let world = SimWorld::new(4);
        let (server, client) = (world.reactor(SERVER), world.reactor(CLIENT));
        server.spawn(Class::Normal, "server", serve(server.clone()));
        let task = client.clone();
        let stream = world.block_on(&client, async move {
            task.sleep(Duration::from_millis(5)).await;
            task.connect(address()).await.unwrap()
        });
        world.run_for(Duration::from_millis(5));
        if silent {
            world.power_off(SERVER)
        } else {
            world.crash(SERVER)
        }
        let task = client.clone();
        let heard = world.block_on(&client, async move {
            let waiting = task.timeout(Duration::from_secs(1), stream.recv(IoBuf::aligned(1))).await;
            waiting.ok().map(|(result, _)| result.unwrap_err().kind())
        });
        assert_eq!(heard, expected);
    }
}

#[test]
fn a_paused_host_goes_on_where_it_was_and_a_failing_disk_says_so() {
    let world = SimWorld::new(5);
    let reactor = world.reactor(SERVER);
    let task = reactor.clone();
    let ticks = Rc::new(Cell::new(0));
    let count = ticks.clone();
    reactor.spawn(Class::Normal, "tick", async move {
        loop {
            task.sleep(Duration::from_millis(1)).await;
            count.set(count.get() + 1);
        }
    });
    world.run_for(Duration::from_millis(10));
    let before = ticks.get();
    world.pause(SERVER);
    world.run_for(Duration::from_millis(100));
    assert_eq!(ticks.get(), before);
    world.resume(SERVER);
    world.run_for(Duration::from_millis(10));
    assert!(ticks.get() > before);
    let task = reactor.clone();
    world.set_disk_error(SERVER, Some(libc::EIO));
    let error = world.block_on(&reactor, async move {
        let file = task.open(Path::new("disk"), OpenOptions::CREATE).await.unwrap();
        task.write_durable(file, 0, filled(1)).await.0.unwrap_err()
    });
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
}

#[test]
fn a_fenced_life_writes_nothing_more_and_the_next_one_does() {
    let mut aborted = 0;
    for seed in 0..20 {
        let world = SimWorld::new(seed);
        let victim = world.reactor(SERVER);
        let task = victim.clone();
        let file = world.block_on(&victim, async move {
            let file = task.open(Path::new("disk"), OpenOptions::CREATE).await.unwrap();
            task.write_durable(file, 0, filled(1)).await.0.unwrap();
            file
        });
        let told = Rc::new(Cell::new(None));
        let (task, telling) = (victim.clone(), told.clone());
        victim.spawn(Class::Normal, "in flight", async move {
            telling.set(Some(task.write_durable(file, 0, filled(2)).await.0.is_ok()));
        });
        world.run_for(Duration::from_micros(seed * 10));
        let (gates, life) = (world.gates(), world.gates().life_of(SERVER));
        assert!(!gates.is_refused(SERVER, life));
        gates.refuse_writes(SERVER, life);
        assert!(gates.is_refused(SERVER, life));
        let read = |reactor: &Reactor| {
            let task = reactor.clone();
            world.block_on(reactor, async move {
                let file = task.open(Path::new("disk"), OpenOptions::READ).await.unwrap();
                task.read(file, 0, IoBuf::aligned(4096)).await.1.as_slice().to_vec()
            })
        };
        let survivor = world.reactor(CLIENT);
        let when_fenced = read(&survivor);
        world.run_for(Duration::from_millis(50));
        aborted += usize::from(told.get() == Some(false));
        let task = victim.clone();
        let refused = world.block_on(&victim, async move {
            let written = task.write_durable(file, 0, filled(3)).await.0.unwrap_err();
            (written.raw_os_error(), task.sync(file).await.unwrap_err().raw_os_error())
        });
        assert_eq!(refused, (Some(libc::EBADE), Some(libc::EBADE)));
        assert_eq!(read(&victim), when_fenced, "it reads, and what it writes after the fence is not there");
        world.crash(SERVER);
        let next = world.reactor(SERVER);
        assert_eq!(gates.life_of(SERVER), life + 1);
        gates.refuse_writes(SERVER, life);
        let task = next.clone();
        world.block_on(&next, async move {
            let file = task.open(Path::new("disk"), OpenOptions::CREATE).await.unwrap();
            task.write_durable(file, 0, filled(4)).await.0.unwrap();
        });
        assert!(read(&survivor).iter().all(|byte| *byte == 4));
    }
    assert!(aborted > 0, "some fences meet a write in flight");
}

#[test]
fn a_sync_covers_what_an_ended_life_left_in_the_disks_cache() {
    let world = SimWorld::with_options(6, SimOptions { crash_loses_unsynced: false, ..SimOptions::default() });
    for round in 1..20u8 {
        let writer = world.reactor(SERVER);
        let task = writer.clone();
        world.block_on(&writer, async move {
            let file = task.open(Path::new("disk"), OpenOptions::CREATE).await.unwrap();
            task.write(file, 0, filled(round)).await.0.unwrap();
        });
        world.crash(SERVER);
        let survivor = world.reactor(CLIENT);
        let task = survivor.clone();
        world.block_on(&survivor, async move {
            let file = task.open(Path::new("disk"), OpenOptions::CREATE).await.unwrap();
            task.sync(file).await.unwrap();
        });
        world.power_loss();
        let reader = world.reactor(CLIENT);
        let task = reader.clone();
        let content = world.block_on(&reader, async move {
            let file = task.open(Path::new("disk"), OpenOptions::READ).await.unwrap();
            task.read(file, 0, IoBuf::aligned(4096)).await.1
        });
        assert!(content.as_slice().iter().all(|byte| *byte == round));
    }
}

/// What interrupted writes are given back for.
#[test]
fn an_interrupted_write_is_tried_again_no_longer_than_writes_are_allowed() {
    let world = SimWorld::new(1);
    let reactor = world.reactor(SERVER);
    world.set_disk_error(SERVER, Some(libc::EINTR));
    let write = |until: Option<Duration>| {
        let task = reactor.clone();
        let main = async move {
            let file = task.open(Path::new("log"), OpenOptions::CREATE).await.unwrap();
            task.write_until(until.map(|until| task.now() + until));
            let result = task.write_durable(file, 0, filled(1)).await.0;
            task.close(file);
            result
        };
        world.block_on(&reactor, main)
    };
    let error = write(Some(Duration::from_nanos(1))).unwrap_err();
    assert!(error.get_ref().is_some_and(|why| why.is::<crate::reactor::LeaseOver>()), "{error}");
    assert_eq!(write(None).unwrap_err().kind(), io::ErrorKind::Interrupted, "not for ever");
    world.set_disk_error(SERVER, None);
    assert_eq!(write(Some(Duration::from_secs(60))).unwrap(), 4096);
}
