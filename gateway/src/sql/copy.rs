//! COPY's two directions: a sink that the wire layer feeds, and a source that it drains. Text and CSV.
//!
//! The sink holds an unfinished line and at most [`ROWS_HELD`] rows; the source a batch of rows.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use datafusion::sql::sqlparser::ast;

use super::api::{ColumnDesc, Execution, RowStream};
use super::catalog::Column;
use super::context::Context;
use super::dml::insert::{Defaults, target_columns};
use super::dml::references;
use super::dml::write::Writer;
use super::error::{SqlError, code};
use super::parse::{CopyFormat, CopyOptions, CopySource, CopyStatement, Statement};
use super::plan::target_table;
use super::types::{Datum, Row};

/// Most rows that wait to go into the store.
pub const ROWS_HELD: usize = 2048;
/// Longest line.
pub const LINE_BYTES_MAX: usize = 256 << 20;

/// The receiving end of COPY FROM STDIN.
pub struct CopyIn {
    context: Context,
    writer: Writer,
    defaults: Defaults,
    /// Column numbers - 1, in the order of the data's fields.
    targets: Vec<usize>,
    options: CopyOptions,
    single: bool,
    rest: Vec<u8>,
    in_quotes: bool,
    scanned: usize,
    rows: Vec<Row>,
    kept: Vec<Row>,
    count: u64,
    line: u64,
    ended: bool,
}

/// The sending end of COPY TO STDOUT.
pub struct CopyOut {
    rows: RowStream,
    options: CopyOptions,
    header: bool,
    count: u64,
    /// For each column, whether FORCE_QUOTE names it.
    force_quote: Vec<bool>,
}

/// What an error shows of a value or a line: its first 100 characters.
fn excerpt(text: &str) -> String {
    match text.char_indices().nth(100) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

/// Starts COPY FROM STDIN. The table is locked already.
///
/// # Errors
/// `42703`, `0A000` for the binary format.
pub fn copy_in(context: &Context, copy: &CopyStatement, single: bool) -> Result<Execution, SqlError> {
    let CopySource::Table(name, names) = &copy.source else { return Err(SqlError::syntax("COPY FROM takes a table")) };
    if copy.options.format == CopyFormat::Binary {
        return Err(SqlError::unsupported("COPY in binary format"));
    }
    let table = target_table(&context.catalog, &context.env, name)?;
    let targets = target_columns(&table, names)?.iter().map(|c| c.number as usize - 1).collect();
    Ok(Execution::CopyIn(CopyIn {
        writer: Writer::new(context, &table)?,
        defaults: Defaults::new(context, &table)?,
        context: context.clone(),
        targets,
        options: copy.options.clone(),
        single,
        rest: Vec::new(),
        in_quotes: false,
        scanned: 0,
        rows: Vec::new(),
        kept: Vec::new(),
        count: 0,
        line: 0,
        ended: false,
    }))
}

impl CopyIn {
    /// Number of the data's columns.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.targets.len()
    }

    /// Takes data as it comes, cut anywhere.
    ///
    /// # Errors
    /// `22P04` for malformed data, and those of INSERT; the COPY has failed then.
    pub async fn feed(&mut self, data: &[u8]) -> Result<(), SqlError> {
        let result = self.feed_inner(data).await;
        self.settle(result).await
    }

    async fn feed_inner(&mut self, data: &[u8]) -> Result<(), SqlError> {
        self.context.core.check_canceled()?;
        self.rest.extend_from_slice(data);
        if self.rest.len() > LINE_BYTES_MAX {
            return Err(SqlError::new(code::PROGRAM_LIMIT_EXCEEDED, format!("a line of COPY may have {LINE_BYTES_MAX} bytes")));
        }
        let mut start = 0;
        while let Some(end) = self.line_end() {
            let next = end + 1;
            let mut line = self.rest[start..end].to_vec();
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            start = next;
            self.scanned = next;
            self.take_line(&line).await?;
        }
        self.rest.drain(..start);
        self.scanned -= start;
        Ok(())
    }

    /// Where the line ends that begins what has not been looked at; quotes in CSV may hold line breaks.
    fn line_end(&mut self) -> Option<usize> {
        let csv = self.options.format == CopyFormat::Csv;
        while self.scanned < self.rest.len() {
            let byte = self.rest[self.scanned];
            if csv && byte == self.options.quote {
                self.in_quotes = !self.in_quotes;
            } else if csv && self.in_quotes && byte == self.options.escape && self.scanned + 1 < self.rest.len() {
                self.scanned += 1;
            } else if byte == b'\n' && !self.in_quotes {
                return Some(self.scanned);
            }
            self.scanned += 1;
        }
        None
    }

    async fn take_line(&mut self, line: &[u8]) -> Result<(), SqlError> {
        self.line += 1;
        if self.ended || (self.line == 1 && self.options.header) {
            return Ok(());
        }
        if line == b"\\." {
            self.ended = true;
            return Ok(());
        }
        let row = match self.parse_line(line).await {
            Ok(row) => row,
            Err(fault) => {
                let place = format!("COPY {}, line {}", self.writer.table().name, self.line);
                // A value's error says its column; any other shows the line.
                return Err(match fault.fields().context.clone() {
                    Some(column) => fault.with_context(format!("{place}, {column}")),
                    None => fault.with_context(format!("{place}: \"{}\"", excerpt(&String::from_utf8_lossy(line)))),
                });
            }
        };
        self.rows.push(row);
        if self.rows.len() >= ROWS_HELD { self.flush().await } else { Ok(()) }
    }

    async fn parse_line(&self, line: &[u8]) -> Result<Row, SqlError> {
        let table = self.writer.table();
        let fields = match self.options.format {
            CopyFormat::Csv => split_csv(line, &self.options)?,
            _ => split_text(line, &self.options)?,
        };
        let mut row: Row = vec![None; table.columns.len()];
        if fields.len() > self.targets.len() {
            return Err(SqlError::new(code::BAD_COPY_FILE_FORMAT, "extra data after last expected column"));
        }
        for (at, target) in self.targets.iter().enumerate() {
            let column = &table.columns[*target];
            let Some((text, quoted)) = fields.get(at) else {
                return Err(SqlError::new(code::BAD_COPY_FILE_FORMAT, format!("missing data for column \"{}\"", column.name)));
            };
            let null = text.as_ref().is_none_or(|t| {
                let forced = if *quoted {
                    self.options.force_null.contains(&column.name)
                } else {
                    !self.options.force_not_null.contains(&column.name)
                };
                self.options.format == CopyFormat::Csv && forced && *t == self.options.null
            });
            row[*target] = match text {
                Some(text) if !null => Some(
                    Datum::parse(column.kind, column.typmod, text)
                        .map_err(|fault| fault.with_context(format!("column {}: \"{}\"", column.name, excerpt(text))))?,
                ),
                _ => None,
            };
        }
        if self.targets.len() < table.live_columns().count() {
            for column in table.live_columns().filter(|c| !self.targets.contains(&(c.number as usize - 1))) {
                row[column.number as usize - 1] = self.defaults.value(&self.context, column).await?;
            }
        }
        Ok(row)
    }

    async fn flush(&mut self) -> Result<(), SqlError> {
        let rows = std::mem::take(&mut self.rows);
        self.writer.insert(&rows).await?;
        self.count += rows.len() as u64;
        if !self.writer.table().foreign_keys.is_empty() {
            self.kept.extend(rows);
        }
        Ok(())
    }

    /// The data is through. Returns the command tag. Outside a block this commits.
    ///
    /// # Errors
    /// As [`CopyIn::feed`], and the commit's.
    pub async fn finish(mut self) -> Result<String, SqlError> {
        let result = self.finish_inner().await;
        self.settle(result).await?;
        self.context.core.finish(true).await?;
        Ok(format!("COPY {}", self.count))
    }

    async fn finish_inner(&mut self) -> Result<(), SqlError> {
        if !self.rest.is_empty() {
            if self.in_quotes {
                return Err(SqlError::new(code::BAD_COPY_FILE_FORMAT, "unterminated CSV quoted field"));
            }
            let line = std::mem::take(&mut self.rest);
            self.take_line(line.strip_suffix(b"\r").unwrap_or(&line)).await?;
        }
        self.flush().await?;
        references::check_new(&self.context, self.writer.table(), self.kept.iter()).await
    }

    /// The client gives up.
    pub async fn fail(self, message: &str) -> SqlError {
        let fault = SqlError::new(code::QUERY_CANCELED, format!("COPY from stdin failed: {message}"));
        let _ = self.settle(Err(fault.clone())).await;
        fault
    }

    /// An error ends the statement's transaction, or fails the block.
    async fn settle(&self, result: Result<(), SqlError>) -> Result<(), SqlError> {
        if result.is_err() {
            if self.single {
                let _ = self.context.core.finish(false).await;
            } else {
                self.context.core.failed.store(true, Ordering::Release);
            }
        }
        result
    }
}

type Field = (Option<String>, bool);

fn utf8(bytes: Vec<u8>) -> Result<String, SqlError> {
    String::from_utf8(bytes).map_err(|_| SqlError::new("22021", "invalid byte sequence for encoding \"UTF8\""))
}

/// A line of the text format: NULL is decided before backslashes are taken out.
fn split_text(line: &[u8], options: &CopyOptions) -> Result<Vec<Field>, SqlError> {
    let mut fields = Vec::new();
    let mut start = 0;
    let mut at = 0;
    loop {
        match line.get(at) {
            Some(b'\\') => at += 2,
            Some(byte) if *byte != options.delimiter => at += 1,
            end => {
                let raw = &line[start..at.min(line.len())];
                if raw == options.null.as_bytes() {
                    fields.push((None, false));
                } else {
                    fields.push((Some(utf8(unescape(raw))?), false));
                }
                if end.is_none() {
                    return Ok(fields);
                }
                at += 1;
                start = at;
            }
        }
    }
}

fn unescape(raw: &[u8]) -> Vec<u8> {
    if !raw.contains(&b'\\') {
        return raw.to_vec();
    }
    let mut out = Vec::with_capacity(raw.len());
    let mut at = 0;
    while at < raw.len() {
        if raw[at] != b'\\' || at + 1 == raw.len() {
            out.push(raw[at]);
            at += 1;
            continue;
        }
        at += 1;
        let digits = |from: usize, most: usize, radix: u32| {
            let end = (from..raw.len().min(from + most))
                .find(|i| !(raw[*i] as char).is_digit(radix))
                .unwrap_or(raw.len().min(from + most));
            let value = std::str::from_utf8(&raw[from..end]).ok().and_then(|t| u32::from_str_radix(t, radix).ok());
            value.map(|v| (v as u8, end))
        };
        let (byte, next) = match raw[at] {
            b'b' => (8, at + 1),
            b'f' => (12, at + 1),
            b'n' => (b'\n', at + 1),
            b'r' => (b'\r', at + 1),
            b't' => (b'\t', at + 1),
            b'v' => (11, at + 1),
            b'0'..=b'7' => digits(at, 3, 8).unwrap_or((raw[at], at + 1)),
            b'x' => digits(at + 1, 2, 16).unwrap_or((b'x', at + 1)),
            other => (other, at + 1),
        };
        out.push(byte);
        at = next;
    }
    out
}

fn split_csv(line: &[u8], options: &CopyOptions) -> Result<Vec<Field>, SqlError> {
    let mut fields = Vec::new();
    let mut field = Vec::new();
    let (mut quoted, mut inside) = (false, false);
    let mut at = 0;
    loop {
        match line.get(at) {
            None if inside => return Err(SqlError::new(code::BAD_COPY_FILE_FORMAT, "unterminated CSV quoted field")),
            Some(byte) if inside => {
                let next = line.get(at + 1);
                if *byte == options.escape && next.is_some_and(|n| *n == options.quote || *n == options.escape) {
                    field.extend(next);
                    at += 1;
                } else if *byte == options.quote {
                    inside = false;
                } else {
                    field.push(*byte);
                }
            }
            Some(byte) if *byte == options.quote => {
                quoted = true;
                inside = true;
            }
            Some(byte) if *byte != options.delimiter => field.push(*byte),
            end => {
                fields.push((Some(utf8(std::mem::take(&mut field))?), quoted));
                quoted = false;
                if end.is_none() {
                    return Ok(fields);
                }
            }
        }
        at += 1;
    }
}

/// Starts COPY TO STDOUT.
///
/// # Errors
/// What is wrong with the table or query.
pub async fn copy_out(context: &Context, copy: &CopyStatement, single: bool) -> Result<Execution, SqlError> {
    if copy.options.format == CopyFormat::Binary {
        return Err(SqlError::unsupported("COPY in binary format"));
    }
    let query = match &copy.source {
        CopySource::Table(name, names) => {
            let table = target_table(&context.catalog, &context.env, name)?;
            let columns: Vec<&Column> = target_columns(&table, names)?;
            let list: Vec<String> = columns.iter().map(|c| ast::Ident::with_quote('"', &c.name).to_string()).collect();
            super::parse::parse_query(&format!("SELECT {} FROM {name}", list.join(", ")))?
        }
        CopySource::Query(inner) => match &inner.statement {
            Statement::Query(query) => query.clone(),
            _ => return Err(SqlError::unsupported("COPY of anything but a query")),
        },
    };
    let Execution::Rows(rows) = super::select::run(context, &query, single).await? else {
        return Err(SqlError::internal("a query without rows"));
    };
    let force_quote = rows
        .columns()
        .iter()
        .map(|c| copy.options.force_quote.as_ref().is_some_and(|names| names.is_empty() || names.contains(&c.name)))
        .collect();
    Ok(Execution::CopyOut(CopyOut { rows, options: copy.options.clone(), header: copy.options.header, count: 0, force_quote }))
}

impl CopyOut {
    /// The columns.
    #[must_use]
    pub fn columns(&self) -> &Arc<[ColumnDesc]> {
        self.rows.columns()
    }

    /// The next lines, each ended; `None` at the end.
    ///
    /// # Errors
    /// Those of the query.
    pub async fn next(&mut self) -> Result<Option<Vec<Vec<u8>>>, SqlError> {
        let mut lines = Vec::new();
        let columns = Arc::clone(self.rows.columns());
        if std::mem::take(&mut self.header) {
            let names: Vec<Option<String>> = columns.iter().map(|c| Some(c.name.clone())).collect();
            lines.push(self.line(&names, &vec![false; names.len()]));
        }
        match self.rows.next().await? {
            None if lines.is_empty() => Ok(None),
            None => Ok(Some(lines)),
            Some(rows) => {
                self.count += rows.len() as u64;
                for row in rows {
                    let texts: Vec<Option<String>> =
                        row.iter().zip(columns.iter()).map(|(v, c)| v.as_ref().map(|v| v.to_text(c.kind, c.typmod))).collect();
                    lines.push(self.line(&texts, &self.force_quote));
                }
                Ok(Some(lines))
            }
        }
    }

    /// The command tag, of the rows so far.
    #[must_use]
    pub fn tag(&self) -> String {
        format!("COPY {}", self.count)
    }

    fn line(&self, texts: &[Option<String>], force: &[bool]) -> Vec<u8> {
        let options = &self.options;
        let mut out = Vec::new();
        for (at, text) in texts.iter().enumerate() {
            if at > 0 {
                out.push(options.delimiter);
            }
            match (text, options.format) {
                (None, _) => out.extend(options.null.as_bytes()),
                (Some(text), CopyFormat::Csv) => {
                    let special = |b: u8| b == options.delimiter || b == options.quote || b == b'\n' || b == b'\r';
                    if force[at] || *text == options.null || text.bytes().any(special) || (texts.len() == 1 && text == "\\.") {
                        out.push(options.quote);
                        for byte in text.bytes() {
                            if byte == options.quote || byte == options.escape {
                                out.push(options.escape);
                            }
                            out.push(byte);
                        }
                        out.push(options.quote);
                    } else {
                        out.extend(text.as_bytes());
                    }
                }
                (Some(text), _) => {
                    for byte in text.bytes() {
                        match byte {
                            b'\\' => out.extend(b"\\\\"),
                            b'\n' => out.extend(b"\\n"),
                            b'\r' => out.extend(b"\\r"),
                            b'\t' => out.extend(b"\\t"),
                            8 => out.extend(b"\\b"),
                            11 => out.extend(b"\\v"),
                            12 => out.extend(b"\\f"),
                            byte if byte == options.delimiter => out.extend([b'\\', byte]),
                            byte => out.push(byte),
                        }
                    }
                }
            }
        }
        out.push(b'\n');
        out
    }
}
