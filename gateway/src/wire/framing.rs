//! One client's bytes: whole messages in, batches of messages out.
//!
//! Owned by the client's task. Bounded: a message longer than its kind allows is refused before it is read
//! ([`MESSAGE_BYTES_MAX`]), and what is to be sent is written out whenever it exceeds [`SEND_BATCH_BYTES`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use pgwire::messages::{DecodeContext, Message, PgWireFrontendMessage};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest message that a client may send: PostgreSQL's own limit.
pub const MESSAGE_BYTES_MAX: usize = (1 << 30) - 2;
/// Longest message before the client has said who it is.
pub const STARTUP_BYTES_MAX: usize = 10_000;
/// Output is handed to the kernel when it has grown to this, even in the middle of a result.
pub const SEND_BATCH_BYTES: usize = 64 << 10;
/// How much is read at once.
const READ_BYTES: usize = 16 << 10;

/// Why a connection can't go on.
#[derive(Debug)]
pub enum FramingError {
    /// The client is gone or the network failed.
    Io(std::io::Error),
    /// The client has hung up between two messages.
    Closed,
    /// What it sent is not the protocol; the text goes to the client and to the log.
    Violation(String),
}

impl From<std::io::Error> for FramingError {
    fn from(error: std::io::Error) -> Self {
        FramingError::Io(error)
    }
}

impl std::fmt::Display for FramingError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FramingError::Io(error) => write!(f, "{error}"),
            FramingError::Closed => write!(f, "the client hung up"),
            FramingError::Violation(what) => write!(f, "{what}"),
        }
    }
}

/// A connection to one client.
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    input: BytesMut,
    output: BytesMut,
    context: DecodeContext,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Over a stream on which nothing has been said yet.
    pub fn new(stream: S) -> Connection<S> {
        Connection {
            stream,
            input: BytesMut::with_capacity(READ_BYTES),
            output: BytesMut::with_capacity(READ_BYTES),
            context: DecodeContext::default(),
        }
    }

    /// What the next bytes are to be taken for.
    pub fn context_mut(&mut self) -> &mut DecodeContext {
        &mut self.context
    }

    /// The type of the message after this one, if it has arrived.
    #[must_use]
    pub fn next_kind(&self) -> Option<u8> {
        self.input.first().copied()
    }

    /// The next message; waits for it.
    ///
    /// # Errors
    /// [`FramingError`].
    pub async fn next(&mut self) -> Result<PgWireFrontendMessage, FramingError> {
        loop {
            if let Some(message) = self.take_message()? {
                return Ok(message);
            }
            self.input.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(if self.input.is_empty() {
                    FramingError::Closed
                } else {
                    FramingError::Io(std::io::ErrorKind::UnexpectedEof.into())
                });
            }
        }
    }

    fn take_message(&mut self) -> Result<Option<PgWireFrontendMessage>, FramingError> {
        if self.context.awaiting_frontend_ssl || self.context.awaiting_frontend_startup {
            return self.take_startup();
        }
        if self.input.len() < 5 {
            return Ok(None);
        }
        let length = (&self.input[1..5]).get_u32() as usize;
        if !(4..=MESSAGE_BYTES_MAX).contains(&length) {
            return Err(FramingError::Violation(format!(
                "invalid message length {length} of message type 0x{:02x}",
                self.input[0]
            )));
        }
        if self.input.len() < length + 1 {
            self.input.reserve((length + 1 - self.input.len()).min(1 << 20));
            return Ok(None);
        }
        let kind = self.input[0];
        let message = self.input.split_to(length + 1);
        self.decode(message, &format!("message of type 0x{kind:02x}"))
    }

    fn take_startup(&mut self) -> Result<Option<PgWireFrontendMessage>, FramingError> {
        if self.input.len() < 8 {
            return Ok(None);
        }
        let length = (&self.input[..4]).get_u32() as usize;
        if !(8..=STARTUP_BYTES_MAX).contains(&length) {
            return Err(FramingError::Violation(format!("invalid length of startup packet: {length}")));
        }
        if self.input.len() < length {
            return Ok(None);
        }
        if self.context.awaiting_frontend_ssl {
            let code = (&self.input[4..8]).get_u32();
            const SSL_REQUEST: u32 = 80_877_103;
            const GSS_REQUEST: u32 = 80_877_104;
            if code != SSL_REQUEST && code != GSS_REQUEST {
                self.context.awaiting_frontend_ssl = false;
            }
        }
        let message = self.input.split_to(length);
        self.decode(message, "startup packet")
    }

    /// The codec trusts counts inside a message; one that lies makes it panic, which must cost only this connection.
    fn decode(&self, mut message: BytesMut, what: &str) -> Result<Option<PgWireFrontendMessage>, FramingError> {
        match catch_unwind(AssertUnwindSafe(|| PgWireFrontendMessage::decode(&mut message, &self.context))) {
            Ok(Ok(Some(decoded))) => Ok(Some(decoded)),
            Ok(Ok(None)) | Err(_) => Err(FramingError::Violation(format!("malformed {what}"))),
            Ok(Err(error)) => Err(FramingError::Violation(format!("malformed {what}: {error}"))),
        }
    }

    /// Appends a message to what is to be sent.
    pub fn put(&mut self, message: &impl Message) {
        message.encode(&mut self.output).expect("our own messages are within the protocol's bounds");
    }

    /// Appends bytes to what is to be sent: a message written by the caller.
    pub fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// Sends what has gathered if it is much.
    ///
    /// # Errors
    /// When the client is gone.
    pub async fn flush_if_full(&mut self) -> Result<(), FramingError> {
        if self.output.len() >= SEND_BATCH_BYTES { self.flush().await } else { Ok(()) }
    }

    /// Says goodbye after the last message: what the client still sends is read and dropped, for so long at most. (A
    /// connection that is closed over unread bytes is reset, and the client may never see the last message.)
    pub async fn part(&mut self, patience: Duration) {
        let reading = async {
            self.stream.shutdown().await?;
            loop {
                self.input.clear();
                if self.stream.read_buf(&mut self.input).await? == 0 {
                    return std::io::Result::Ok(());
                }
            }
        };
        // Over, in whatever way.
        tokio::time::timeout(patience, reading).await.ok();
    }

    /// Sends what has gathered. Dropped half way it can be called again: what is sent is not sent twice.
    ///
    /// # Errors
    /// When the client is gone.
    pub async fn flush(&mut self) -> Result<(), FramingError> {
        while !self.output.is_empty() {
            if self.stream.write_buf(&mut self.output).await? == 0 {
                return Err(FramingError::Io(std::io::ErrorKind::WriteZero.into()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn violation(bytes: &[u8], after_startup: bool) -> String {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        client.write_all(bytes).await.unwrap();
        drop(client);
        let mut connection = Connection::new(server);
        if after_startup {
            connection.context_mut().awaiting_frontend_ssl = false;
            connection.context_mut().awaiting_frontend_startup = false;
        }
        connection.next().await.expect_err("must be refused").to_string()
    }

    #[tokio::test]
    async fn lengths_that_lie_are_refused_before_anything_is_allocated() {
        assert!(violation(&[0xff; 64], false).await.contains("length of startup packet"));
        assert!(violation(b"Q\xff\xff\xff\xffselect", true).await.contains("invalid message length"));
        assert!(violation(b"Q\0\0\0\x01select", true).await.contains("invalid message length 1"));
    }

    #[tokio::test]
    async fn counts_that_lie_cost_the_connection_and_nothing_else() {
        // A Bind that announces 32767 parameters and ends.
        let message = violation(b"B\0\0\0\x0a\0\0\x7f\xff\x7f\xff", true).await;
        assert!(message.starts_with("malformed message of type 0x42"), "{message}");
    }

    #[tokio::test]
    async fn a_message_may_arrive_byte_by_byte() {
        let (mut client, server) = tokio::io::duplex(1);
        let sender = tokio::spawn(async move { client.write_all(b"Q\0\0\0\x0dselect 1\0").await });
        let mut connection = Connection::new(server);
        connection.context_mut().awaiting_frontend_ssl = false;
        connection.context_mut().awaiting_frontend_startup = false;
        let PgWireFrontendMessage::Query(query) = connection.next().await.unwrap() else { panic!("not a query") };
        assert_eq!(query.query, "select 1");
        sender.await.unwrap().unwrap();
    }
}
