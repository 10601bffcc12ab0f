//! Requests and replies as bytes, little-endian. `docs/formats.md` draws them.
//!
//! Pure functions over copies of what came: any bytes decode to a message or to an error, and nothing is reserved for a
//! count before the bytes for it are there.

use std::fmt;

/// Longest message.
pub const MESSAGE_BYTES_MAX: usize = 256 << 10;
/// Most values of a row or key.
pub const VALUES_MAX: usize = 1600;
/// Longest table name, with its schema.
pub const NAME_BYTES_MAX: usize = 256;
/// Most rows of a reply.
pub const ROWS_MAX: u32 = 4096;

/// One value of a row. Types that have no variant of their own travel as text, in PostgreSQL's form.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// NULL.
    Null,
    /// `boolean`.
    Bool(bool),
    /// `smallint`, `integer`, `bigint`.
    Int(i64),
    /// `real`, `double precision`.
    Float(f64),
    /// `text` and its relatives, and every type not named here.
    Text(String),
    /// `bytea`.
    Bytes(Vec<u8>),
}

impl From<i64> for Value {
    fn from(value: i64) -> Value {
        Value::Int(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Value {
        Value::Text(value.to_owned())
    }
}

/// How transactions are kept apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Isolation {
    /// Each request sees what was committed before it.
    #[default]
    ReadCommitted,
    /// All requests see what was committed before the first.
    RepeatableRead,
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Begins a transaction; without one each request is its own.
    Begin(Isolation),
    /// Commits it.
    Commit,
    /// Gives it up.
    Rollback,
    /// The row of a key.
    Get {
        /// `name` or `schema.name`.
        table: String,
        /// The primary key's values, in its order.
        key: Vec<Value>,
    },
    /// Adds or replaces a row.
    Put {
        /// As above.
        table: String,
        /// All columns' values, in the table's order.
        row: Vec<Value>,
    },
    /// Takes a row away.
    Delete {
        /// As above.
        table: String,
        /// As above.
        key: Vec<Value>,
    },
    /// Rows in the order of the primary key.
    Scan {
        /// As above.
        table: String,
        /// Smallest value of the key's first column; nothing: from the beginning.
        lower: Option<Value>,
        /// The values of the first column stay below it; nothing: to the end.
        upper: Option<Value>,
        /// Most rows, at most [`ROWS_MAX`].
        limit: u32,
    },
}

/// What the server answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// Done; so many rows were changed.
    Done(u64),
    /// The row of a key, if there is one.
    Row(Option<Vec<Value>>),
    /// Rows of a scan; whether there are more in the range.
    Rows {
        /// In the key's order.
        rows: Vec<Vec<Value>>,
        /// The limit, or the longest message, ended them.
        more: bool,
    },
    /// It was not done.
    Refused {
        /// Five characters.
        sqlstate: String,
        /// One line.
        message: String,
    },
}

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMessage(&'static str);

impl fmt::Display for NoMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "what came is no message of this version: {}", self.0)
    }
}

impl std::error::Error for NoMessage {}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.push(0),
        Value::Bool(value) => out.extend_from_slice(&[1, u8::from(*value)]),
        Value::Int(value) => {
            out.push(2);
            out.extend_from_slice(&value.to_le_bytes());
        }
        Value::Float(value) => {
            out.push(3);
            out.extend_from_slice(&value.to_le_bytes());
        }
        Value::Text(value) => {
            out.push(4);
            put_bytes(out, value.as_bytes());
        }
        Value::Bytes(value) => {
            out.push(5);
            put_bytes(out, value);
        }
    }
}

fn put_values(out: &mut Vec<u8>, values: &[Value]) {
    out.extend_from_slice(&(values.len() as u16).to_le_bytes());
    values.iter().for_each(|value| put_value(out, value));
}

fn put_bound(out: &mut Vec<u8>, bound: Option<&Value>) {
    out.push(u8::from(bound.is_some()));
    bound.into_iter().for_each(|value| put_value(out, value));
}

/// A row's bytes in a message.
#[must_use]
pub fn row_bytes(row: &[Value]) -> usize {
    let value = |value: &Value| match value {
        Value::Null => 1,
        Value::Bool(_) => 2,
        Value::Int(_) | Value::Float(_) => 9,
        Value::Text(text) => 5 + text.len(),
        Value::Bytes(bytes) => 5 + bytes.len(),
    };
    2 + row.iter().map(value).sum::<usize>()
}

impl Request {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        match self {
            Request::Begin(isolation) => out.extend_from_slice(&[1, u8::from(*isolation == Isolation::RepeatableRead)]),
            Request::Commit => out.push(2),
            Request::Rollback => out.push(3),
            Request::Get { table, key } | Request::Delete { table, key } => {
                out.push(if matches!(self, Request::Get { .. }) { 4 } else { 6 });
                put_bytes(&mut out, table.as_bytes());
                put_values(&mut out, key);
            }
            Request::Put { table, row } => {
                out.push(5);
                put_bytes(&mut out, table.as_bytes());
                put_values(&mut out, row);
            }
            Request::Scan { table, lower, upper, limit } => {
                out.push(7);
                put_bytes(&mut out, table.as_bytes());
                put_bound(&mut out, lower.as_ref());
                put_bound(&mut out, upper.as_ref());
                out.extend_from_slice(&limit.to_le_bytes());
            }
        }
        out
    }

    /// From bytes.
    ///
    /// # Errors
    /// [`NoMessage`].
    pub fn decode(bytes: &[u8]) -> Result<Request, NoMessage> {
        let mut from = Input(bytes);
        let request = match from.byte()? {
            1 => Request::Begin(match from.byte()? {
                0 => Isolation::ReadCommitted,
                1 => Isolation::RepeatableRead,
                _ => return Err(NoMessage("an unknown isolation")),
            }),
            2 => Request::Commit,
            3 => Request::Rollback,
            4 => Request::Get { table: from.name()?, key: from.values()? },
            5 => Request::Put { table: from.name()?, row: from.values()? },
            6 => Request::Delete { table: from.name()?, key: from.values()? },
            7 => Request::Scan { table: from.name()?, lower: from.bound()?, upper: from.bound()?, limit: from.u32()? },
            _ => return Err(NoMessage("an unknown request")),
        };
        from.end(request)
    }
}

impl Reply {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        match self {
            Reply::Done(count) => {
                out.push(1);
                out.extend_from_slice(&count.to_le_bytes());
            }
            Reply::Row(row) => {
                out.extend_from_slice(&[2, u8::from(row.is_some())]);
                row.iter().for_each(|row| put_values(&mut out, row));
            }
            Reply::Rows { rows, more } => {
                out.extend_from_slice(&[3, u8::from(*more)]);
                out.extend_from_slice(&(rows.len() as u32).to_le_bytes());
                rows.iter().for_each(|row| put_values(&mut out, row));
            }
            Reply::Refused { sqlstate, message } => {
                out.push(4);
                put_bytes(&mut out, sqlstate.as_bytes());
                put_bytes(&mut out, message.as_bytes());
            }
        }
        out
    }

    /// From bytes.
    ///
    /// # Errors
    /// [`NoMessage`].
    pub fn decode(bytes: &[u8]) -> Result<Reply, NoMessage> {
        let mut from = Input(bytes);
        let reply = match from.byte()? {
            1 => Reply::Done(u64::from_le_bytes(from.array()?)),
            2 => Reply::Row(if from.flag()? { Some(from.values()?) } else { None }),
            3 => {
                let more = from.flag()?;
                let count = from.u32()?;
                if count > ROWS_MAX {
                    return Err(NoMessage("more rows than a reply has"));
                }
                let rows = (0..count).map(|_| from.values()).collect::<Result<_, _>>()?;
                Reply::Rows { rows, more }
            }
            4 => Reply::Refused { sqlstate: from.text()?, message: from.text()? },
            _ => return Err(NoMessage("an unknown reply")),
        };
        from.end(reply)
    }
}

/// What is left of a message.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take(&mut self, count: usize) -> Result<&[u8], NoMessage> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(NoMessage("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], NoMessage> {
        self.take(N).map(|bytes| bytes.try_into().expect("as many as asked for"))
    }

    fn byte(&mut self) -> Result<u8, NoMessage> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn flag(&mut self) -> Result<bool, NoMessage> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(NoMessage("neither yes nor no")),
        }
    }

    fn u32(&mut self) -> Result<u32, NoMessage> {
        self.array().map(u32::from_le_bytes)
    }

    fn bytes(&mut self) -> Result<Vec<u8>, NoMessage> {
        let count = self.u32()? as usize;
        self.take(count).map(<[u8]>::to_vec)
    }

    fn text(&mut self) -> Result<String, NoMessage> {
        String::from_utf8(self.bytes()?).map_err(|_| NoMessage("a text that is not UTF-8"))
    }

    fn name(&mut self) -> Result<String, NoMessage> {
        let name = self.text()?;
        if name.len() > NAME_BYTES_MAX { Err(NoMessage("a table's name that is too long")) } else { Ok(name) }
    }

    fn value(&mut self) -> Result<Value, NoMessage> {
        Ok(match self.byte()? {
            0 => Value::Null,
            1 => Value::Bool(self.flag()?),
            2 => Value::Int(i64::from_le_bytes(self.array()?)),
            3 => Value::Float(f64::from_le_bytes(self.array()?)),
            4 => Value::Text(self.text()?),
            5 => Value::Bytes(self.bytes()?),
            _ => return Err(NoMessage("a value of an unknown type")),
        })
    }

    fn values(&mut self) -> Result<Vec<Value>, NoMessage> {
        let count = usize::from(u16::from_le_bytes(self.array()?));
        if count > VALUES_MAX {
            return Err(NoMessage("more values than a row has"));
        }
        (0..count).map(|_| self.value()).collect()
    }

    fn bound(&mut self) -> Result<Option<Value>, NoMessage> {
        if self.flag()? { self.value().map(Some) } else { Ok(None) }
    }

    fn end<T>(self, message: T) -> Result<T, NoMessage> {
        if self.0.is_empty() { Ok(message) } else { Err(NoMessage("bytes behind its end")) }
    }
}
