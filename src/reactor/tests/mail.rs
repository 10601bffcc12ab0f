//! Mail between two reactors, on every driver.

use super::*;
use crate::reactor::mail::{MAILBOX_CAPACITY, RING_CAPACITY};

/// Calls in both directions, one at a time (each end sleeps between them) and many at once, in their order.
pub(super) fn shards_call_each_other<S: Stage>() {
    S::run_beside(|reactor, neighbour, stop| async move {
        let _stop = stop;
        let own = reactor.remote();
        for round in 0..200u64 {
            let back = own.clone();
            let call = move |_| async move { back.call(Class::Normal, "back", move |_| async move { round * 2 }).unwrap().await };
            assert_eq!(neighbour.call(Class::Normal, "there", call).unwrap().await.unwrap(), Ok(round * 2));
        }
        for _ in 0..20 {
            let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
            let answers: Vec<_> = (0..500)
                .map(|number| {
                    let seen = seen.clone();
                    let note = move |_: Reactor| async move { seen.lock().unwrap().push(number) };
                    neighbour.call(Class::Normal, "note", note).unwrap()
                })
                .collect();
            for answer in answers {
                answer.await.unwrap();
            }
            assert!(seen.lock().unwrap().iter().copied().eq(0..500), "in the order of their sending");
        }
        assert_eq!(reactor.stats().mail_received, 200);
    });
}

/// Takes a call that keeps the neighbour from reading on until the returned sender is used (where it has a thread).
fn stop_reading(reactor: &Reactor, neighbour: &Remote) -> std::sync::mpsc::Sender<()> {
    let (go_on, gate) = std::sync::mpsc::channel();
    let simulated = reactor.driver_name() == "sim";
    let (reads, reading) = std::sync::mpsc::channel();
    neighbour
        .post(Box::new(move |_| {
            if !simulated {
                reads.send(()).unwrap();
                gate.recv().unwrap();
            }
        }))
        .unwrap();
    // A neighbour in another thread is told only at the end of the turn: do without.
    if !simulated {
        reactor.0.outbox.announce(|wake_up| wake_up.wake_up());
        reading.recv().unwrap();
    }
    go_on
}

pub(super) fn a_full_ring_refuses_and_room_is_awaited<S: Stage>() {
    S::run_beside(|reactor, neighbour, stop| async move {
        let _stop = stop;
        let go_on = stop_reading(&reactor, &neighbour);
        let simulated = reactor.driver_name() == "sim";
        let run = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = |run: &std::sync::Arc<std::sync::atomic::AtomicUsize>| {
            let run = run.clone();
            move |_: &Reactor| _ = run.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
        };
        // In the simulation the first letter is still in the ring.
        let taken = RING_CAPACITY - usize::from(simulated);
        for _ in 0..taken {
            neighbour.post(Box::new(count(&run))).unwrap();
        }
        assert_eq!(neighbour.post(Box::new(count(&run))), Err(MailError::Full));
        // Three times as many as there is room for, and some who give up.
        let answered = Rc::new(Cell::new(0));
        let mut waiting = Vec::new();
        for number in 0..3 * RING_CAPACITY {
            let (neighbour, run, answered) = (neighbour.clone(), run.clone(), answered.clone());
            waiting.push(reactor.spawn(Class::Normal, "wait", async move {
                let call = move |reactor: Reactor| async move { count(&run)(&reactor) };
                neighbour.call_when_room(Class::Normal, "count", call).await.unwrap().await.unwrap();
                answered.set(answered.get() + 1);
            }));
            if number % 64 == 0 {
                reactor.yield_now().await;
            }
        }
        let others = reactor.clone();
        others.yield_now().await;
        if !simulated {
            assert_eq!(answered.get(), 0);
            waiting.iter().step_by(3).for_each(TaskHandle::abort);
            _ = go_on.send(());
        }
        for task in &waiting {
            task.join().await;
        }
        let expected = if simulated { 3 * RING_CAPACITY } else { 2 * RING_CAPACITY };
        assert_eq!(answered.get(), expected);
        assert_eq!(run.load(std::sync::atomic::Ordering::Relaxed), taken + expected);
    });
}

pub(super) fn a_full_mailbox_takes_what_ends_something<S: Stage>() {
    S::run(|reactor| async move {
        // To itself: as from a thread without a reactor, there is no ring.
        let (own, run) = (reactor.remote(), std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0)));
        let count = || {
            let run = run.clone();
            Box::new(move |_: &Reactor| _ = run.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
        };
        for _ in 0..MAILBOX_CAPACITY {
            own.post(count()).unwrap();
        }
        assert_eq!(own.post(count()), Err(MailError::Full));
        own.post_owed(count()).unwrap();
        while run.load(std::sync::atomic::Ordering::Relaxed) <= MAILBOX_CAPACITY {
            reactor.yield_now().await;
        }
    });
}

/// Letters that were on their way when the neighbour ended are dropped, and so their callers hear of it.
pub(super) fn callers_learn_that_a_shard_has_ended<S: Stage>() {
    S::run_beside(|reactor, neighbour, stop| async move {
        let never = neighbour.call(Class::Low, "never", |_| std::future::pending::<()>()).unwrap();
        reactor.yield_now().await;
        stop.send(());
        // Some before it ends, some while it does, some after.
        let mut calls = vec![never];
        let error = loop {
            match neighbour.call(Class::Low, "never", |_| std::future::pending::<()>()) {
                Ok(call) => calls.push(call),
                Err(MailError::Full) => reactor.sleep(Duration::from_micros(50)).await,
                Err(error) => break error,
            }
            if calls.len() % 100 == 0 {
                reactor.yield_now().await;
            }
        };
        assert_eq!(error, MailError::Closed);
        for call in calls {
            assert_eq!(call.await, Err(sync::Closed));
        }
        let late = neighbour.call_when_room(Class::Low, "late", |_| std::future::pending::<()>()).await;
        assert_eq!(late.map(|_| ()), Err(MailError::Closed));
    });
}

/// A reactor that ends leaves its letters to their reader, and an answer that nobody waits for harms nobody.
pub(super) fn letters_of_an_ended_shard_are_still_read<S: Stage>() {
    S::run_beside(|reactor, neighbour, stop| async move {
        let (own, (sender, received)) = (reactor.remote(), sync::cross_oneshot());
        let send_back = move |_: Reactor| async move {
            own.post(Box::new(move |_| sender.send(7))).unwrap();
            drop(stop);
        };
        let answer = neighbour.call(Class::Normal, "send back", send_back).unwrap();
        drop(answer);
        assert_eq!(received.await, Ok(7));
    });
}
