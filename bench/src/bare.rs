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

/// Frames kept for blocks to be received into; more are made when more are under way.
const FRAMES_KEPT: usize = 4096;

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
    frames: RefCell<Vec<IoBuf>>,
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
            frames: RefCell::default(),
        })
    }

    fn block(&self) -> Body {
        let start = NonNull::new(self.block.as_ptr().cast_mut()).expect("memory is never at address 0");
        // SAFETY: the block's memory lives as long as `block`, a clone of which goes along, and is only ever read.
        Body::Block(unsafe { IoBuf::from_raw(start, BLOCK_SIZE, self.block.clone()) })
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
    fn on_message(&self, from: NodeId, header: &Header, body: Body) {
        if let Body::Block(frame) = body
            && self.frames.borrow().len() < FRAMES_KEPT
        {
            self.frames.borrow_mut().push(frame);
        }
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
        self.frames.borrow_mut().pop()
    }

    fn on_peer_down(&self, _node: NodeId) {
        self.open.borrow_mut().clear();
    }
}
