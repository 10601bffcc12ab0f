//! From text to statements: sqlparser for queries, DML and DDL, our own small front for session control and for what
//! sqlparser does not know.
//!
//! Pure functions. Bounded by [`STATEMENT_BYTES_MAX`] and sqlparser's recursion limit.

mod copy;
mod ctes;
mod front;
mod sequence;
mod words;

use std::sync::Arc;

use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

pub use copy::{CopyDirection, CopyFormat, CopyOptions, CopySource, CopyStatement};
pub use front::{FetchHow, SequenceChange};

use super::error::{SqlError, code};

/// Longest text that is parsed.
pub const STATEMENT_BYTES_MAX: usize = 64 << 20;
const RECURSION_MAX: usize = 200;

/// BEGIN's and SET TRANSACTION's modes; `None`: not said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransactionModes {
    /// REPEATABLE READ (true; SERIALIZABLE counts as it) or READ COMMITTED.
    pub repeatable_read: Option<bool>,
    /// READ ONLY.
    pub read_only: Option<bool>,
    /// SERIALIZABLE was asked for.
    pub serializable: bool,
}

/// A statement.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is the SQL statement of that name")]
pub enum Statement {
    Empty,
    Query(Box<ast::Query>),
    Insert(Box<ast::Insert>),
    Update(Box<ast::Update>),
    Delete(Box<ast::Delete>),
    /// CREATE, DROP, ALTER, TRUNCATE
    Ddl(Box<ast::Statement>),
    Begin(TransactionModes),
    Commit {
        chain: bool,
    },
    Rollback {
        chain: bool,
    },
    Savepoint(String),
    Release(String),
    RollbackTo(String),
    SetTransaction {
        modes: TransactionModes,
        session: bool,
    },
    Set {
        local: bool,
        name: String,
        value: Option<String>,
    },
    Show(String),
    Reset(String),
    Prepare {
        name: String,
        types: Vec<ast::DataType>,
        statement: Arc<ParsedStatement>,
    },
    Execute {
        name: String,
        parameters: Vec<ast::Expr>,
    },
    Deallocate(Option<String>),
    Declare {
        name: String,
        hold: bool,
        query: Arc<ParsedStatement>,
    },
    Fetch {
        name: String,
        how: FetchHow,
        only_move: bool,
    },
    Close(Option<String>),
    Explain {
        analyze: bool,
        verbose: bool,
        statement: Arc<ParsedStatement>,
    },
    Copy(Box<CopyStatement>),
    Vacuum(Vec<ast::ObjectName>),
    Lock {
        tables: Vec<ast::ObjectName>,
        mode: String,
        nowait: bool,
    },
    AlterSequence {
        name: ast::ObjectName,
        if_exists: bool,
        changes: Vec<SequenceChange>,
    },
    Discard(String),
    /// Understood and of no consequence here; the tag that says so
    Accepted(&'static str),
}

/// A parsed statement with its text.
#[derive(Clone, Debug)]
pub struct ParsedStatement {
    /// The text of this statement alone.
    pub text: Arc<str>,
    /// What it says.
    pub statement: Statement,
    /// The highest `$n` in it.
    pub parameters: usize,
}

impl ParsedStatement {
    /// Whether it may run in a failed transaction.
    #[must_use]
    pub fn ends_transaction(&self) -> bool {
        matches!(self.statement, Statement::Commit { .. } | Statement::Rollback { .. } | Statement::RollbackTo(_))
    }
}

/// Parses a text of any number of statements.
///
/// # Errors
/// `42601` with the place, `54000` when it is too long or too deep.
pub fn parse(sql: &str) -> Result<Vec<ParsedStatement>, SqlError> {
    if sql.len() > STATEMENT_BYTES_MAX {
        return Err(SqlError::new(
            code::PROGRAM_LIMIT_EXCEEDED,
            format!("a statement may have {STATEMENT_BYTES_MAX} bytes at most"),
        ));
    }
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, sql)
        .with_unescape(true)
        .tokenize_with_location()
        .map_err(|fault| SqlError::syntax(fault.message.clone()))?;
    let lines = line_starts(sql);
    let mut statements = Vec::new();
    let mut group: Vec<TokenWithSpan> = Vec::new();
    // `semicolon`: the one behind the statement, if there is one.
    let mut flush = |group: &mut Vec<TokenWithSpan>, semicolon: Option<&TokenWithSpan>| -> Result<(), SqlError> {
        let meaningful = |t: &TokenWithSpan| !matches!(t.token, Token::Whitespace(_) | Token::EOF);
        if let (Some(first), Some(last)) = (group.iter().position(meaningful), group.iter().rposition(meaningful)) {
            let start = offset(sql, &lines, group[first].span.start.line, group[first].span.start.column);
            let end = offset(sql, &lines, group[last].span.end.line, group[last].span.end.column);
            let text = sql.get(start..end.max(start)).unwrap_or(sql);
            let parsed = parse_one(text, group[first..=last].to_vec(), sql, &lines).map_err(|fault| match semicolon {
                Some(semicolon) if fault.fields().message == "syntax error at end of input" => {
                    let at = offset(sql, &lines, semicolon.span.start.line, semicolon.span.start.column);
                    SqlError::syntax("syntax error at or near \";\"").at(char_position(sql, at))
                }
                _ => fault,
            });
            statements.push(parsed?);
        }
        group.clear();
        Ok(())
    };
    for token in tokens {
        if token.token == Token::SemiColon {
            flush(&mut group, Some(&token))?;
        } else {
            group.push(token);
        }
    }
    flush(&mut group, None)?;
    Ok(statements)
}

fn parse_one(text: &str, tokens: Vec<TokenWithSpan>, sql: &str, lines: &[usize]) -> Result<ParsedStatement, SqlError> {
    let parameters = tokens
        .iter()
        .filter_map(|t| match &t.token {
            Token::Placeholder(name) => name.strip_prefix('$').and_then(|n| n.parse::<usize>().ok()),
            _ => None,
        })
        .max()
        .unwrap_or(0);
    if parameters > usize::from(u16::MAX) {
        return Err(SqlError::new(code::UNDEFINED_PARAMETER, format!("there is no parameter ${parameters}")));
    }
    let plain: Vec<Token> = tokens.iter().filter(|t| !matches!(t.token, Token::Whitespace(_))).map(|t| t.token.clone()).collect();
    let statement = match front::parse(text, &plain)? {
        Some(statement) => statement,
        None => {
            let mut parser =
                Parser::new(&PostgreSqlDialect {}).with_recursion_limit(RECURSION_MAX).with_tokens_with_locations(tokens);
            let parsed = parser.parse_statement().map_err(|fault| syntax_error(&fault, sql, lines))?;
            let next = parser.peek_token();
            if next.token != Token::EOF {
                let at = offset(sql, lines, next.span.start.line, next.span.start.column);
                let fault = SqlError::syntax(format!("syntax error at or near \"{}\"", next.token));
                return Err(fault.at(char_position(sql, at)));
            }
            classify(parsed)?
        }
    };
    // The parameters of PREPARE's statement are EXECUTE's to give.
    let parameters = if matches!(statement, Statement::Prepare { .. }) { 0 } else { parameters };
    Ok(ParsedStatement { text: text.into(), statement, parameters })
}

fn classify(parsed: ast::Statement) -> Result<Statement, SqlError> {
    Ok(match parsed {
        ast::Statement::Query(query) => match *query.body {
            // WITH ... INSERT/UPDATE/DELETE arrive as queries.
            ast::SetExpr::Insert(_) | ast::SetExpr::Update(_) | ast::SetExpr::Delete(_) if query.with.is_none() => {
                match *query.body {
                    ast::SetExpr::Insert(inner) | ast::SetExpr::Update(inner) | ast::SetExpr::Delete(inner) => {
                        return classify(inner);
                    }
                    _ => unreachable!("matched above"),
                }
            }
            ast::SetExpr::Insert(ast::Statement::Insert(mut insert)) => {
                // The common table expressions serve the source alone.
                match &mut insert.source {
                    Some(source) if source.with.is_none() => source.with = query.with,
                    _ => return Err(SqlError::unsupported("WITH before this kind of INSERT")),
                }
                Statement::Insert(Box::new(insert))
            }
            ast::SetExpr::Update(ast::Statement::Update(mut update)) => {
                if let Some(with) = query.with {
                    ctes::inline_in_update(with, &mut update)?;
                }
                Statement::Update(Box::new(update))
            }
            ast::SetExpr::Delete(ast::Statement::Delete(mut delete)) => {
                if let Some(with) = query.with {
                    ctes::inline_in_delete(with, &mut delete)?;
                }
                Statement::Delete(Box::new(delete))
            }
            ast::SetExpr::Insert(_) | ast::SetExpr::Update(_) | ast::SetExpr::Delete(_) => {
                return Err(SqlError::unsupported("WITH before this kind of statement"));
            }
            _ => Statement::Query(query),
        },
        ast::Statement::Insert(insert) => Statement::Insert(Box::new(insert)),
        ast::Statement::Update(update) => Statement::Update(Box::new(update)),
        ast::Statement::Delete(delete) => Statement::Delete(Box::new(delete)),
        ast::Statement::Grant(_) => Statement::Accepted("GRANT"),
        ast::Statement::Revoke(_) => Statement::Accepted("REVOKE"),
        other @ (ast::Statement::CreateTable(_)
        | ast::Statement::CreateView(_)
        | ast::Statement::CreateIndex(_)
        | ast::Statement::CreateSchema { .. }
        | ast::Statement::CreateSequence { .. }
        | ast::Statement::AlterTable(_)
        | ast::Statement::AlterIndex { .. }
        | ast::Statement::Drop { .. }
        | ast::Statement::Truncate(_)) => Statement::Ddl(Box::new(other)),
        ast::Statement::CreateExtension(extension) => {
            return Err(SqlError::unsupported(format_args!("CREATE EXTENSION {}", extension.name)));
        }
        other => {
            let text = other.to_string();
            let words: Vec<&str> = text.split_whitespace().take(2).collect();
            return Err(SqlError::unsupported(words.join(" ")));
        }
    })
}

fn line_starts(sql: &str) -> Vec<usize> {
    std::iter::once(0).chain(sql.match_indices('\n').map(|(at, _)| at + 1)).collect()
}

/// Byte offset of a line and column, both counted from 1 and in characters.
fn offset(sql: &str, lines: &[usize], line: u64, column: u64) -> usize {
    let start = lines.get(line.saturating_sub(1) as usize).copied().unwrap_or(sql.len());
    let rest = &sql[start..];
    rest.char_indices().nth(column.saturating_sub(1) as usize).map_or(sql.len(), |(at, _)| start + at)
}

fn char_position(sql: &str, byte: usize) -> u32 {
    sql[..byte].chars().count() as u32 + 1
}

/// PostgreSQL's words for what sqlparser says ("Expected: X, found: Y at Line: 1, Column: 5").
fn syntax_error(fault: &ParserError, sql: &str, lines: &[usize]) -> SqlError {
    let message = match fault {
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => message,
        ParserError::RecursionLimitExceeded => {
            return SqlError::new("54001", "stack depth limit exceeded").with_hint("The statement is nested too deeply.");
        }
    };
    let Some((said, place)) = message.rsplit_once(" at Line: ") else {
        let word = message.rsplit_once("found: ").map(|(_, w)| w);
        return match word {
            Some("EOF") => SqlError::syntax("syntax error at end of input"),
            Some(word) => SqlError::syntax(format!("syntax error at or near \"{word}\"")),
            None => SqlError::syntax(message.clone()),
        };
    };
    let mut numbers = place.split(", Column: ").map(|n| n.trim().parse::<u64>().unwrap_or(1));
    let (line, column) = (numbers.next().unwrap_or(1), numbers.next().unwrap_or(1));
    let position = char_position(sql, offset(sql, lines, line, column));
    match said.rsplit_once("found: ") {
        Some((_, "EOF")) => SqlError::syntax("syntax error at end of input").at(position),
        Some((_, word)) => SqlError::syntax(format!("syntax error at or near \"{word}\"")).at(position),
        None => SqlError::syntax(said.to_owned()).at(position),
    }
}

/// Parses an expression that the catalog holds.
///
/// # Errors
/// `42601`.
pub fn parse_expression(sql: &str) -> Result<ast::Expr, SqlError> {
    let mut parser = Parser::new(&PostgreSqlDialect {})
        .with_recursion_limit(RECURSION_MAX)
        .try_with_sql(sql)
        .map_err(|fault| syntax_error(&fault, sql, &line_starts(sql)))?;
    parser.parse_expr().map_err(|fault| syntax_error(&fault, sql, &line_starts(sql)))
}

/// Parses a query that the catalog holds.
///
/// # Errors
/// `42601`.
pub fn parse_query(sql: &str) -> Result<Box<ast::Query>, SqlError> {
    let mut parser = Parser::new(&PostgreSqlDialect {})
        .with_recursion_limit(RECURSION_MAX)
        .try_with_sql(sql)
        .map_err(|fault| syntax_error(&fault, sql, &line_starts(sql)))?;
    parser.parse_query().map_err(|fault| syntax_error(&fault, sql, &line_starts(sql)))
}

/// An identifier as PostgreSQL folds it: lower case unless quoted.
#[must_use]
pub fn fold(ident: &ast::Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

/// Schema and name out of a possibly qualified name; a database in front is left out.
///
/// # Errors
/// `42601` on more parts.
pub fn split_name(name: &ast::ObjectName) -> Result<(Option<String>, String), SqlError> {
    let parts: Option<Vec<String>> = name.0.iter().map(|part| part.as_ident().map(fold)).collect();
    match parts.as_deref() {
        Some([name]) => Ok((None, name.clone())),
        Some([schema, name]) | Some([_, schema, name]) => Ok((Some(schema.clone()), name.clone())),
        _ => Err(SqlError::syntax(format!("improper qualified name (too many dotted names): {name}"))),
    }
}
