//! COPY, with its options in the form of today and of old.
//!
//! Pure functions over a statement's tokens.

use std::sync::Arc;

use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::tokenizer::Token;

use super::ParsedStatement;
use super::words::{Parsed, Words};
use crate::sql::error::SqlError;

/// COPY's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyFormat {
    /// Tab-separated with backslash escapes.
    Text,
    /// Comma-separated with quotes.
    Csv,
    /// PostgreSQL's binary form.
    Binary,
}

/// COPY's options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyOptions {
    /// FORMAT
    pub format: CopyFormat,
    /// DELIMITER
    pub delimiter: u8,
    /// NULL
    pub null: String,
    /// HEADER
    pub header: bool,
    /// QUOTE
    pub quote: u8,
    /// ESCAPE
    pub escape: u8,
    /// FORCE_QUOTE: these columns, or all
    pub force_quote: Option<Vec<String>>,
    /// FORCE_NOT_NULL
    pub force_not_null: Vec<String>,
    /// FORCE_NULL
    pub force_null: Vec<String>,
}

/// What is copied.
#[derive(Clone, Debug)]
pub enum CopySource {
    /// A table and, unless empty, some columns of it.
    Table(ast::ObjectName, Vec<String>),
    /// A query's rows.
    Query(Arc<ParsedStatement>),
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyDirection {
    /// FROM STDIN
    In,
    /// TO STDOUT
    Out,
}

/// COPY.
#[derive(Clone, Debug)]
pub struct CopyStatement {
    /// What.
    pub source: CopySource,
    /// Which way.
    pub direction: CopyDirection,
    /// How.
    pub options: CopyOptions,
}

pub(super) fn copy(words: &mut Words<'_>) -> Parsed<CopyStatement> {
    let source = if words.take_token(&Token::LParen) {
        let start = words.at;
        let mut depth = 1;
        while depth > 0 {
            match words.peek() {
                Some(Token::LParen) => depth += 1,
                Some(Token::RParen) => depth -= 1,
                None => return words.fail(),
                _ => {}
            }
            words.at += 1;
        }
        let inner = Words { text: words.text, tokens: &words.tokens[start..words.at - 1], at: 0 };
        CopySource::Query(inner.rest()?)
    } else {
        words.take("BINARY");
        let name = words.object_name()?;
        CopySource::Table(name, words.column_list()?)
    };
    let direction = if words.take("FROM") {
        if !words.take("STDIN") {
            return Err(SqlError::new("42501", "COPY from a file or program is not offered")
                .with_hint("Use COPY FROM STDIN; psql's \\copy does."));
        }
        CopyDirection::In
    } else if words.take("TO") {
        if !words.take("STDOUT") {
            return Err(SqlError::new("42501", "COPY to a file or program is not offered")
                .with_hint("Use COPY TO STDOUT; psql's \\copy does."));
        }
        CopyDirection::Out
    } else {
        return words.fail();
    };
    if direction == CopyDirection::In && matches!(source, CopySource::Query(_)) {
        return words.fail();
    }
    let options = copy_options(words)?;
    words.finish(CopyStatement { source, direction, options })
}

fn one_byte(option: &str, text: &str) -> Parsed<u8> {
    match text.as_bytes() {
        [byte] if *byte != b'\n' && *byte != b'\r' => Ok(*byte),
        _ => Err(SqlError::unsupported(format_args!("COPY {option} of anything but one byte"))),
    }
}

fn copy_options(words: &mut Words<'_>) -> Parsed<CopyOptions> {
    let mut format = CopyFormat::Text;
    let (mut delimiter, mut null, mut header, mut quote, mut escape) = (None, None, false, None, None);
    let (mut force_quote, mut force_not_null, mut force_null) = (None, Vec::new(), Vec::new());
    words.take("WITH");
    if words.take_token(&Token::LParen) {
        loop {
            let option = words.identifier()?;
            match option.as_str() {
                "format" => {
                    let name = match words.peek() {
                        Some(Token::SingleQuotedString(_)) => words.string()?,
                        _ => words.identifier()?,
                    };
                    format = match name.to_lowercase().as_str() {
                        "text" => CopyFormat::Text,
                        "csv" => CopyFormat::Csv,
                        "binary" => CopyFormat::Binary,
                        _ => return Err(SqlError::new("22023", format!("COPY format \"{name}\" not recognized"))),
                    };
                }
                "delimiter" => delimiter = Some(one_byte("DELIMITER", &words.string()?)?),
                "null" => null = Some(words.string()?),
                "quote" => quote = Some(one_byte("QUOTE", &words.string()?)?),
                "escape" => escape = Some(one_byte("ESCAPE", &words.string()?)?),
                "header" | "freeze" => {
                    let value = match words.peek() {
                        Some(Token::Comma | Token::RParen) => true,
                        Some(Token::Number(n, _)) => n != "0",
                        Some(Token::Word(w)) => !matches!(w.value.to_lowercase().as_str(), "false" | "off"),
                        Some(Token::SingleQuotedString(s)) => !matches!(s.to_lowercase().as_str(), "false" | "off"),
                        _ => return words.fail(),
                    };
                    if !matches!(words.peek(), Some(Token::Comma | Token::RParen)) {
                        words.at += 1;
                    }
                    if option == "header" {
                        header = value;
                    }
                }
                "encoding" => {
                    words.string()?;
                }
                "force_quote" => {
                    force_quote = Some(if words.take_token(&Token::Mul) { Vec::new() } else { words.column_list()? });
                }
                "force_not_null" => force_not_null = words.column_list()?,
                "force_null" => force_null = words.column_list()?,
                _ => return Err(SqlError::syntax(format!("option \"{option}\" not recognized"))),
            }
            if !words.take_token(&Token::Comma) {
                break;
            }
        }
        if !words.take_token(&Token::RParen) {
            return words.fail();
        }
    } else {
        // The forms of old: [WITH] CSV HEADER DELIMITER AS ';' NULL AS ''.
        while !words.end() {
            if words.take("CSV") {
                format = CopyFormat::Csv;
            } else if words.take("BINARY") {
                format = CopyFormat::Binary;
            } else if words.take("HEADER") {
                header = true;
            } else if words.take("FREEZE") {
            } else if words.take("DELIMITER") || words.take("DELIMITERS") {
                words.take("AS");
                delimiter = Some(one_byte("DELIMITER", &words.string()?)?);
            } else if words.take("NULL") {
                words.take("AS");
                null = Some(words.string()?);
            } else if words.take("QUOTE") {
                words.take("AS");
                quote = Some(one_byte("QUOTE", &words.string()?)?);
            } else if words.take("ESCAPE") {
                words.take("AS");
                escape = Some(one_byte("ESCAPE", &words.string()?)?);
            } else {
                return words.fail();
            }
        }
    }
    let csv = format == CopyFormat::Csv;
    let quote = quote.unwrap_or(b'"');
    Ok(CopyOptions {
        format,
        delimiter: delimiter.unwrap_or(if csv { b',' } else { b'\t' }),
        null: null.unwrap_or_else(|| if csv { String::new() } else { "\\N".to_owned() }),
        header,
        quote,
        escape: escape.unwrap_or(quote),
        force_quote,
        force_not_null,
        force_null,
    })
}
