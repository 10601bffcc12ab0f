//! The interconnect by itself: a request and its answer with a block, without directory, cache and log.
//!
//! Registered in place of the transactions' service, which the measured nodes don't have. Owned by a node's shard.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::rc::Rc;

use rustydb::ids::{BLOCK_SIZE, NodeId, RequestId};
use rustydb::interconnect::rdma::Place;
use rustydb::interconnect::{Body, Handler, Header, Interconnect, Message, Service};
use rustydb::reactor::IoBuf;
use rustydb::reactor::sync::{OneshotSender, oneshot};

use crate::Outcome;

/// A header asks for a block.
const ASK: u8 = Service::Txn.base();
/// A block asks for a block.
const ECHO: u8 = Service::Txn.base() + 1;
/// The answer to either, with a block.
const ANSWER: u8 = Service::Txn.base() + 2;

/// Frames that blocks are received into, in turn: more memory than a processor's nearer caches hold, as in a node.
const FRAMES: usize = 4096;

/// How large the request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// 64 bytes there, 64 and a block back.
    Request,
    /// 64 and a block there, 64 and a block back.
    Echo,
}

/// See the module.
pub struct Bare {
    interconnect: Interconnect,
    next: Cell<u64>,
    open: RefCell<BTreeMap<u64, OneshotSender<()>>>,
    /// The frames, and behind them what every block that is sent holds; that is never changed.
    memory: Rc<IoBuf>,
    next_frame: Cell<usize>,
}

impl Bare {
    /// For a shard's interconnect, to be registered with it.
    #[must_use]
    pub fn new(interconnect: &Interconnect) -> Rc<Bare> {
        let memory = Rc::new(IoBuf::aligned((FRAMES + 1) * BLOCK_SIZE));
        // A device may be told of it, and then it has to stay.
        std::mem::forget(memory.clone());
        let (next, open) = (Cell::new(0), RefCell::default());
        Rc::new(Bare { interconnect: interconnect.clone(), next, open, memory, next_frame: Cell::new(0) })
    }

    /// Where the blocks lie: its start and its bytes. Stays mapped until the process ends.
    #[must_use]
    pub fn memory(&self) -> (*mut u8, usize) {
        (self.memory.as_ptr().cast_mut(), self.memory.len())
    }

    /// The memory of a frame as a buffer of its own.
    ///
    /// # Safety
    /// As [`IoBuf::from_raw`]: nobody uses it otherwise meanwhile, but for reading where it is only read.
    unsafe fn lend(&self, frame: usize) -> IoBuf {
        assert!(frame <= FRAMES);
        let start = NonNull::new(self.memory.as_ptr().cast_mut()).expect("memory is never at address 0");
        // SAFETY: within the memory, a clone of which goes along; the rest is the caller's promise.
        unsafe { IoBuf::from_raw(start.add(frame * BLOCK_SIZE), BLOCK_SIZE, self.memory.clone()) }
    }

    /// The frame that is next in turn.
    fn next_frame(&self) -> IoBuf {
        let next = self.next_frame.get();
        self.next_frame.set((next + 1) % FRAMES);
        // SAFETY: a block that has come is dropped at once (`on_message`), and far fewer are under way than there are frames: none
        // is lent twice before some thousand others are.
        unsafe { self.lend(next) }
    }

    fn block(&self) -> IoBuf {
        // SAFETY: the block is only ever read.
        unsafe { self.lend(FRAMES) }
    }

    /// Asks a node for a block and waits until it is there.
    ///
    /// # Errors
    /// When the node is not connected.
    pub async fn ask(&self, node: NodeId, shape: Shape) -> Outcome<()> {
        let request = self.next.get();
        self.next.set(request + 1);
        let (answered, answer) = oneshot();
        self.open.borrow_mut().insert(request, answered);
        let (kind, body) = match shape {
            Shape::Request => (ASK, Body::Empty),
            Shape::Echo => (ECHO, Body::Block(self.block())),
        };
        let request = RequestId(request);
        let could = self.interconnect.could_expose();
        let place = if could { self.interconnect.expose(request, self.next_frame()) } else { None };
        let message = Message { kind, request, argument: place.unwrap_or_default().0, ..Message::default() };
        self.interconnect.send(node, message, body)?;
        answer.await.map_err(|_| "the connection is lost")?;
        Ok(())
    }
}

impl Handler for Bare {
    fn on_message(&self, from: NodeId, header: &Header, _body: Body) {
        match header.kind {
            ASK | ECHO => {
                let answer = Message { kind: ANSWER, request: header.request, ..Message::default() };
                // Whoever asked hears of a lost connection by itself.
                self.interconnect.send_block(from, answer, self.block(), Place(header.argument)).ok();
            }
            ANSWER => {
                let open = self.open.borrow_mut().remove(&header.request.0);
                // Whoever asked may have given up.
                let _ = open.expect("nobody answers what was not asked").send(());
            }
            kind => panic!("a message of kind {kind:#04x}, which no benchmark sends"),
        }
    }

    fn frame_for(&self, _header: &Header) -> Option<IoBuf> {
        Some(self.next_frame())
    }

    fn on_peer_down(&self, _node: NodeId) {
        self.open.borrow_mut().clear();
    }
}
