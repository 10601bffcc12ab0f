//! As much of PostgreSQL's wire protocol (version 3) as a benchmark needs: statements by the simple protocol or prepared, in
//! text, one at a time. Blocking, one connection, no TLS and no passwords. A library for this would bring an asynchronous
//! runtime, whose features would have the server's libraries built anew.

use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

/// Longest message that is read: a server sends none such to this client.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// A connection.
pub struct Connection {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
    out: Vec<u8>,
}

fn bad(words: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, words.into())
}

impl Connection {
    /// Connects and introduces itself.
    ///
    /// # Errors
    /// The system's, what the server says, or that it wants a password.
    pub fn open(address: SocketAddr, user: &str, database: &str) -> io::Result<Connection> {
        let writer = TcpStream::connect(address)?;
        writer.set_nodelay(true)?;
        let mut connection = Connection { reader: BufReader::new(writer.try_clone()?), writer, out: Vec::new() };
        let mut body = 196_608u32.to_be_bytes().to_vec();
        for text in ["user", user, "database", database, ""] {
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
        connection.out.extend((body.len() as u32 + 4).to_be_bytes());
        connection.out.extend(body);
        connection.flush()?;
        connection.until_ready()?;
        Ok(connection)
    }

    fn message(&mut self, kind: u8, body: &[&[u8]]) {
        let length = 4 + body.iter().map(|part| part.len()).sum::<usize>();
        self.out.push(kind);
        self.out.extend((length as u32).to_be_bytes());
        body.iter().for_each(|part| self.out.extend_from_slice(part));
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    /// Reads until the server is ready for the next statement; how many rows came.
    fn until_ready(&mut self) -> io::Result<u64> {
        let (mut rows, mut error) = (0, None);
        loop {
            let mut head = [0; 5];
            self.reader.read_exact(&mut head)?;
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let length = length.checked_sub(4).filter(|length| *length <= MESSAGE_BYTES_MAX);
            let mut body = vec![0; length.ok_or_else(|| bad("a message of impossible length"))?];
            self.reader.read_exact(&mut body)?;
            match head[0] {
                b'D' => rows += 1,
                b'E' => error = Some(server_error(&body)),
                b'R' if body.get(..4) != Some(&[0; 4]) => {
                    return Err(bad("the server wants a password; allow this client's address without one"));
                }
                b'Z' => return error.map_or(Ok(rows), Err),
                _ => {}
            }
            // Before the server is ready for the first time an error is its last word.
            if head[0] == b'E' && body.starts_with(b"SFATAL") {
                return Err(error.expect("just set"));
            }
        }
    }

    /// Runs statements by the simple protocol; how many rows came.
    ///
    /// # Errors
    /// What the server says, with its SQLSTATE.
    pub fn query(&mut self, sql: &str) -> io::Result<u64> {
        self.message(b'Q', &[sql.as_bytes(), &[0]]);
        self.flush()?;
        self.until_ready()
    }

    /// Prepares a statement under a name.
    ///
    /// # Errors
    /// What the server says.
    pub fn prepare(&mut self, name: &str, sql: &str) -> io::Result<()> {
        self.message(b'P', &[name.as_bytes(), &[0], sql.as_bytes(), &[0], &0u16.to_be_bytes()]);
        self.message(b'S', &[]);
        self.flush()?;
        self.until_ready().map(|_| ())
    }

    /// Runs a prepared statement with these parameters; how many rows came.
    ///
    /// # Errors
    /// What the server says.
    pub fn execute(&mut self, name: &str, parameters: &[&str]) -> io::Result<u64> {
        let count = (parameters.len() as u16).to_be_bytes();
        let mut values = Vec::new();
        for parameter in parameters {
            values.extend((parameter.len() as u32).to_be_bytes());
            values.extend_from_slice(parameter.as_bytes());
        }
        // Unnamed portal; parameters and results in text.
        let none = 0u16.to_be_bytes();
        self.message(b'B', &[&[0], name.as_bytes(), &[0], &none, &count, &values, &none]);
        self.message(b'E', &[&[0], &0u32.to_be_bytes()]);
        self.message(b'S', &[]);
        self.flush()?;
        self.until_ready()
    }
}

/// Fields of an ErrorResponse: severity, SQLSTATE, message.
fn server_error(body: &[u8]) -> io::Error {
    let fields = body.split(|byte| *byte == 0);
    let field = |kind: u8| {
        let found = fields.clone().find(|field| field.first() == Some(&kind));
        String::from_utf8_lossy(found.and_then(|field| field.get(1..)).unwrap_or_default()).into_owned()
    };
    io::Error::other(format!("{} {}: {}", field(b'S'), field(b'C'), field(b'M')))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A server that plays its part from a list, and shows what it was sent.
    fn server(answers: Vec<Vec<u8>>) -> (SocketAddr, std::thread::JoinHandle<Vec<Vec<u8>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("the client connects");
            let mut heard = Vec::new();
            for answer in answers {
                let mut bytes = vec![0; 4096];
                let read = stream.read(&mut bytes).expect("the client sends");
                bytes.truncate(read);
                heard.push(bytes);
                stream.write_all(&answer).expect("the client listens");
            }
            heard
        });
        (address, thread)
    }

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![kind];
        out.extend((body.len() as u32 + 4).to_be_bytes());
        out.extend(body);
        out
    }

    #[test]
    fn it_speaks_as_servers_expect_and_passes_their_errors_on() {
        let ready = message(b'Z', b"I");
        let hello = [message(b'R', &[0; 4]), message(b'S', b"a\0b\0"), ready.clone()].concat();
        let rows = [message(b'T', &[0, 0]), message(b'D', &[0, 0]), message(b'D', &[0, 0]), ready.clone()].concat();
        let error = [message(b'E', b"SERROR\0C40001\0Mtry again\0\0"), ready].concat();
        let (address, thread) = server(vec![hello, rows, error]);
        let mut connection = Connection::open(address, "someone", "db").expect("it lets us in");
        assert_eq!(connection.query("select 1").expect("two rows"), 2);
        let refused = connection.execute("get", &["5"]).expect_err("it refuses").to_string();
        assert_eq!(refused, "ERROR 40001: try again");
        let heard = thread.join().expect("the server ends");
        assert_eq!(heard[0], b"\0\0\0\x22\0\x03\0\0user\0someone\0database\0db\0\0");
        assert_eq!(heard[1], b"Q\0\0\0\x0dselect 1\0");
        assert_eq!(heard[2], b"B\0\0\0\x14\0get\0\0\0\0\x01\0\0\0\x015\0\0E\0\0\0\x09\0\0\0\0\0S\0\0\0\x04");
        let (address, _thread) = server(vec![message(b'R', &[0, 0, 0, 10])]);
        let refused = Connection::open(address, "someone", "db").err().expect("it wants a password").to_string();
        assert!(refused.contains("password"), "{refused}");
    }
}
