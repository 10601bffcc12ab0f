//! The interconnect by itself: a request and its answer with a block, without directory, cache and log.
//!
//! Registered in place of the transactions' service, which the measured nodes don't have. Owned by a node's shard.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::rc::Rc;

use rustydb::ids::{BLOCK_SIZE, NodeId, RequestId};
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
    /// What every block that is sent holds; never changed.
    block: Rc<IoBuf>,
    next: Cell<u64>,
    open: RefCell<BTreeMap<u64, OneshotSender<()>>>,
    frames: Vec<Rc<IoBuf>>,
    next_frame: Cell<usize>,
}

/// The memory of `buffer` as a buffer of its own.
///
/// # Safety
/// As [`IoBuf::from_raw`]: nobody uses the memory otherwise meanwhile, but for reading where it is only read.
unsafe fn lend(buffer: &Rc<IoBuf>) -> IoBuf {
    let start = NonNull::new(buffer.as_ptr().cast_mut()).expect("memory is never at address 0");
    // SAFETY: the memory lives as long as `buffer`, a clone of which goes along; the rest is the caller's promise.
    unsafe { IoBuf::from_raw(start, buffer.len(), buffer.clone()) }
}

impl Bare {
    /// For a shard's interconnect, to be registered with it.
    #[must_use]
    pub fn new(interconnect: &Interconnect) -> Rc<Bare> {
        Rc::new(Bare {
            interconnect: interconnect.clone(),
            block: Rc::new(IoBuf::aligned(BLOCK_SIZE)),
            next: Cell::new(0),
            open: RefCell::default(),
            frames: (0..FRAMES).map(|_| Rc::new(IoBuf::aligned(BLOCK_SIZE))).collect(),
            next_frame: Cell::new(0),
        })
    }

    fn block(&self) -> Body {
        // SAFETY: the block is only ever read.
        Body::Block(unsafe { lend(&self.block) })
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
            Shape::Echo => (ECHO, self.block()),
        };
        self.interconnect.send(node, Message { kind, request: RequestId(request), ..Message::default() }, body)?;
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
                self.interconnect.send(from, answer, self.block()).ok();
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
        let next = self.next_frame.get();
        self.next_frame.set((next + 1) % FRAMES);
        // SAFETY: a block that has come is dropped at once (`on_message`), and a peer's connection receives one at a time: no
        // frame is lent twice before some thousand others are.
        Some(unsafe { lend(&self.frames[next]) })
    }

    fn on_peer_down(&self, _node: NodeId) {
        self.open.borrow_mut().clear();
    }
}
