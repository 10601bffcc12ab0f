//! The first words with a client: encryption refused, who it is, or a request to cancel somebody else's query.
//!
//! Runs in the client's task, within [`PATIENCE`]: a connection that says nothing does not hold a place for long.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::BufMut;
use pgwire::messages::PgWireFrontendMessage;
use pgwire::messages::startup::{Authentication, BackendKeyData, NegotiateProtocolVersion, ParameterStatus, SecretKey};
use tokio::io::{AsyncRead, AsyncWrite};

use super::framing::{Connection, FramingError};

/// How long a client may take to say who it is (PostgreSQL's authentication_timeout).
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Names a connection to those who want to cancel its query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CancelKey {
    /// What the protocol calls the backend's process.
    pub pid: i32,
    /// Known to the client only.
    pub secret: i32,
}

/// What a new connection turned out to be.
#[derive(Debug)]
pub enum Opening {
    /// A session with the client's parameters (`user`, `database`, `application_name`, …).
    Session(BTreeMap<String, String>),
    /// A request to cancel.
    Cancel(CancelKey),
}

/// Reads up to the client's startup packet and answers what comes before it.
///
/// # Errors
/// [`FramingError`].
pub async fn open<S: AsyncRead + AsyncWrite + Unpin>(connection: &mut Connection<S>) -> Result<Opening, FramingError> {
    loop {
        match connection.next().await? {
            PgWireFrontendMessage::SslNegotiation(_) => {
                // Clients reach a node over loopback or a trusted network; encryption comes with the security work.
                connection.output().put_u8(b'N');
                connection.flush().await?;
            }
            PgWireFrontendMessage::CancelRequest(request) => {
                let secret = request.secret_key.as_i32().unwrap_or(0);
                return Ok(Opening::Cancel(CancelKey { pid: request.pid, secret }));
            }
            PgWireFrontendMessage::Startup(startup) => {
                if startup.protocol_number_major != 3 {
                    return Err(FramingError::Violation(format!(
                        "unsupported frontend protocol {}.{}: server supports 3.0",
                        startup.protocol_number_major, startup.protocol_number_minor
                    )));
                }
                let unknown: Vec<String> = startup.parameters.keys().filter(|name| name.starts_with("_pq_.")).cloned().collect();
                if startup.protocol_number_minor > 0 || !unknown.is_empty() {
                    connection.put(&NegotiateProtocolVersion::new(0, unknown));
                }
                let context = connection.context_mut();
                context.awaiting_frontend_startup = false;
                context.protocol_version = pgwire::messages::ProtocolVersion::PROTOCOL3_0;
                return Ok(Opening::Session(startup.parameters));
            }
            other => return Err(FramingError::Violation(format!("unexpected message before startup: {other:?}"))),
        }
    }
}

/// Lets the client in: authentication is done, here are the settings that it must know, and the key to cancel with.
pub fn welcome<S: AsyncRead + AsyncWrite + Unpin>(connection: &mut Connection<S>, settings: &[(String, String)], key: CancelKey) {
    connection.put(&Authentication::Ok);
    for (name, value) in settings {
        connection.put(&ParameterStatus::new(name.clone(), value.clone()));
    }
    connection.put(&BackendKeyData::new(key.pid, SecretKey::I32(key.secret)));
}
