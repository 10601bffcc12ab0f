//! The small front: statements that control the session, and those that sqlparser cannot parse.
//!
//! Pure functions over a statement's tokens without blanks.

use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Token;

use super::sequence::{alter_sequence, create_sequence};
use super::words::{Parsed, Words};
use super::{Statement, TransactionModes};
use crate::sql::error::SqlError;

/// What FETCH moves to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchHow {
    /// That many rows on (0: the current one again).
    Forward(u64),
    /// All that are left.
    All,
    /// That many rows back.
    Backward(u64),
    /// To the row of that number, from 1; negative from the end.
    Absolute(i64),
    /// By that many rows.
    Relative(i64),
}

/// A clause of ALTER SEQUENCE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SequenceChange {
    /// RESTART [WITH n]
    Restart(Option<i64>),
    /// START WITH
    Start(i64),
    /// INCREMENT BY
    Increment(i64),
    /// MINVALUE
    Min(i64),
    /// MAXVALUE
    Max(i64),
    /// CACHE
    Cache(i64),
    /// CYCLE
    Cycle(bool),
    /// OWNED BY table.column, or NONE
    OwnedBy(Option<(Vec<String>, String)>),
    /// OWNER TO and what else has no consequence
    Nothing,
}

/// `None`: not one of these; sqlparser shall have it.
pub(super) fn parse(text: &str, tokens: &[Token]) -> Parsed<Option<Statement>> {
    let mut words = Words { text, tokens, at: 0 };
    let first = words.word();
    words.at = 1;
    let statement = match first.as_str() {
        "BEGIN" => {
            let _ = words.take("TRANSACTION") || words.take("WORK");
            Statement::Begin(transaction_modes(&mut words)?)
        }
        "START" if words.take("TRANSACTION") => Statement::Begin(transaction_modes(&mut words)?),
        "COMMIT" | "END" => {
            if words.word() == "PREPARED" {
                return Err(SqlError::unsupported("COMMIT PREPARED"));
            }
            Statement::Commit { chain: chain(&mut words)? }
        }
        "ABORT" => Statement::Rollback { chain: chain(&mut words)? },
        "ROLLBACK" => {
            if words.word() == "PREPARED" {
                return Err(SqlError::unsupported("ROLLBACK PREPARED"));
            }
            let _ = words.take("TRANSACTION") || words.take("WORK");
            if words.take("TO") {
                words.take("SAVEPOINT");
                let name = words.identifier()?;
                words.finish(Statement::RollbackTo(name))?
            } else {
                Statement::Rollback { chain: chain(&mut words)? }
            }
        }
        "SAVEPOINT" => {
            let name = words.identifier()?;
            words.finish(Statement::Savepoint(name))?
        }
        "RELEASE" => {
            words.take("SAVEPOINT");
            let name = words.identifier()?;
            words.finish(Statement::Release(name))?
        }
        "SET" => set(&mut words)?,
        "SHOW" => {
            let name = setting_name(&mut words)?;
            words.finish(Statement::Show(name))?
        }
        "RESET" => {
            let name = setting_name(&mut words)?;
            words.finish(Statement::Reset(name))?
        }
        "DEALLOCATE" => {
            words.take("PREPARE");
            let name = words.identifier()?;
            let all = name == "all" && matches!(tokens.last(), Some(Token::Word(w)) if w.quote_style.is_none());
            words.finish(Statement::Deallocate((!all).then_some(name)))?
        }
        "PREPARE" if words.word() == "TRANSACTION" => return Err(SqlError::unsupported("PREPARE TRANSACTION")),
        "PREPARE" => {
            let name = words.identifier()?;
            let types = if words.peek() == Some(&Token::LParen) { data_types(&mut words)? } else { Vec::new() };
            if !words.take("AS") {
                return words.fail();
            }
            Statement::Prepare { name, types, statement: words.rest()? }
        }
        "EXECUTE" => {
            let name = words.identifier()?;
            let parameters = if words.end() { Vec::new() } else { expressions(&mut words)? };
            words.finish(Statement::Execute { name, parameters })?
        }
        "DECLARE" => {
            let name = words.identifier()?;
            while ["BINARY", "INSENSITIVE", "ASENSITIVE", "NO", "SCROLL"].iter().any(|w| words.take(w)) {}
            if !words.take("CURSOR") {
                return words.fail();
            }
            let hold = words.take_all(&["WITH", "HOLD"]);
            words.take_all(&["WITHOUT", "HOLD"]);
            if !words.take("FOR") {
                return words.fail();
            }
            Statement::Declare { name, hold, query: words.rest()? }
        }
        "FETCH" | "MOVE" => fetch(&mut words, first == "MOVE")?,
        "CLOSE" => {
            let all = words.word() == "ALL";
            let name = words.identifier()?;
            words.finish(Statement::Close((!all).then_some(name)))?
        }
        "EXPLAIN" => explain(&mut words)?,
        "COPY" => Statement::Copy(Box::new(super::copy::copy(&mut words)?)),
        "VACUUM" => Statement::Vacuum(vacuum_tables(&mut words)?),
        "ANALYZE" | "ANALYSE" => Statement::Accepted("ANALYZE"),
        "CHECKPOINT" => Statement::Accepted("CHECKPOINT"),
        "REINDEX" => Statement::Accepted("REINDEX"),
        "CLUSTER" => Statement::Accepted("CLUSTER"),
        "COMMENT" => Statement::Accepted("COMMENT"),
        "GRANT" => Statement::Accepted("GRANT"),
        "REVOKE" => Statement::Accepted("REVOKE"),
        "LISTEN" => Statement::Accepted("LISTEN"),
        "UNLISTEN" => Statement::Accepted("UNLISTEN"),
        "NOTIFY" => Statement::Accepted("NOTIFY"),
        "SECURITY" => Statement::Accepted("SECURITY LABEL"),
        "DISCARD" => {
            let what = words.identifier()?.to_ascii_uppercase();
            words.finish(Statement::Discard(what))?
        }
        "LOCK" => {
            words.take("TABLE");
            words.take("ONLY");
            let tables = words.object_names()?;
            let mut mode = String::new();
            if words.take("IN") {
                while words.word() != "MODE" {
                    if !mode.is_empty() {
                        mode.push(' ');
                    }
                    mode += &words.identifier()?.to_ascii_uppercase();
                }
                words.take("MODE");
            }
            let nowait = words.take("NOWAIT");
            if mode.is_empty() {
                mode = "ACCESS EXCLUSIVE".to_owned();
            }
            words.finish(Statement::Lock { tables, mode, nowait })?
        }
        "CREATE" if words.word() == "SEQUENCE" => {
            words.at += 1;
            create_sequence(&mut words)?
        }
        "DO" => return Err(SqlError::unsupported("DO").with_hint("There are no procedural languages.")),
        "ALTER" => match words.word().as_str() {
            "SEQUENCE" => {
                words.at += 1;
                alter_sequence(&mut words)?
            }
            "SYSTEM" => return Err(SqlError::unsupported("this form of ALTER SYSTEM")),
            "DEFAULT" => Statement::Accepted("ALTER DEFAULT PRIVILEGES"),
            "DATABASE" => Statement::Accepted("ALTER DATABASE"),
            "ROLE" | "USER" => Statement::Accepted("ALTER ROLE"),
            _ => return Ok(None),
        },
        _ => return Ok(None),
    };
    Ok(Some(statement))
}

fn chain(words: &mut Words<'_>) -> Parsed<bool> {
    let _ = words.take("TRANSACTION") || words.take("WORK");
    let chain = words.take_all(&["AND", "CHAIN"]);
    words.take_all(&["AND", "NO", "CHAIN"]);
    words.finish(chain)
}

fn transaction_modes(words: &mut Words<'_>) -> Parsed<TransactionModes> {
    let mut modes = TransactionModes::default();
    while !words.end() {
        if words.take_all(&["ISOLATION", "LEVEL"]) {
            if words.take_all(&["READ", "COMMITTED"]) || words.take_all(&["READ", "UNCOMMITTED"]) {
                modes.repeatable_read = Some(false);
            } else if words.take_all(&["REPEATABLE", "READ"]) {
                modes.repeatable_read = Some(true);
            } else if words.take("SERIALIZABLE") {
                modes.repeatable_read = Some(true);
                modes.serializable = true;
            } else {
                return words.fail();
            }
        } else if words.take_all(&["READ", "ONLY"]) {
            modes.read_only = Some(true);
        } else if words.take_all(&["READ", "WRITE"]) {
            modes.read_only = Some(false);
        } else if !(words.take_all(&["NOT", "DEFERRABLE"]) || words.take("DEFERRABLE") || words.take_token(&Token::Comma)) {
            return words.fail();
        }
    }
    Ok(modes)
}

fn setting_name(words: &mut Words<'_>) -> Parsed<String> {
    if words.take_all(&["TRANSACTION", "ISOLATION", "LEVEL"]) {
        return Ok("transaction_isolation".to_owned());
    }
    if words.take_all(&["TIME", "ZONE"]) {
        return Ok("timezone".to_owned());
    }
    if words.take_all(&["SESSION", "AUTHORIZATION"]) {
        return Ok("session_authorization".to_owned());
    }
    let mut name = words.identifier()?;
    while words.take_token(&Token::Period) {
        name = format!("{name}.{}", words.identifier()?);
    }
    Ok(name.to_lowercase())
}

fn set(words: &mut Words<'_>) -> Parsed<Statement> {
    if words.take_all(&["SESSION", "CHARACTERISTICS", "AS", "TRANSACTION"]) {
        return Ok(Statement::SetTransaction { modes: transaction_modes(words)?, session: true });
    }
    if words.take("TRANSACTION") {
        return Ok(Statement::SetTransaction { modes: transaction_modes(words)?, session: false });
    }
    if words.word() == "CONSTRAINTS" {
        return Ok(Statement::Accepted("SET CONSTRAINTS"));
    }
    let local = words.take("LOCAL");
    if !local
        && words.word() == "SESSION"
        && !matches!(words.tokens.get(words.at + 1), Some(Token::Word(w)) if w.value.eq_ignore_ascii_case("AUTHORIZATION"))
    {
        words.at += 1;
    }
    let name = if words.word() == "NAMES" {
        words.at += 1;
        "client_encoding".to_owned()
    } else {
        let name = setting_name(words)?;
        if !(words.take_token(&Token::Eq)
            || words.take("TO")
            || matches!(name.as_str(), "timezone" | "role" | "session_authorization"))
        {
            return words.fail();
        }
        name
    };
    let mut values = Vec::new();
    loop {
        let value = match words.peek() {
            Some(Token::SingleQuotedString(_) | Token::EscapedStringLiteral(_)) => words.string()?,
            Some(Token::Number(..) | Token::Minus | Token::Plus) => {
                let negative = words.take_token(&Token::Minus);
                words.take_token(&Token::Plus);
                match words.peek() {
                    Some(Token::Number(digits, _)) => {
                        let value = format!("{}{digits}", if negative { "-" } else { "" });
                        words.at += 1;
                        value
                    }
                    _ => return words.fail(),
                }
            }
            _ => words.identifier()?,
        };
        values.push(value);
        if !words.take_token(&Token::Comma) {
            break;
        }
    }
    let default = values.len() == 1
        && matches!(words.tokens.last(), Some(Token::Word(w)) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case("default"));
    words.finish(Statement::Set { local, name, value: (!default).then(|| values.join(", ")) })
}

fn data_types(words: &mut Words<'_>) -> Parsed<Vec<ast::DataType>> {
    let mut parser = Parser::new(&PostgreSqlDialect {}).with_tokens(words.tokens[words.at..].to_vec());
    let broken = |fault: datafusion::sql::sqlparser::parser::ParserError| SqlError::syntax(fault.to_string());
    parser.expect_token(&Token::LParen).map_err(broken)?;
    let types = parser.parse_comma_separated(Parser::parse_data_type).map_err(broken)?;
    parser.expect_token(&Token::RParen).map_err(broken)?;
    words.at += parser.index();
    Ok(types)
}

fn expressions(words: &mut Words<'_>) -> Parsed<Vec<ast::Expr>> {
    let mut parser = Parser::new(&PostgreSqlDialect {}).with_tokens(words.tokens[words.at..].to_vec());
    let broken = |fault: datafusion::sql::sqlparser::parser::ParserError| SqlError::syntax(fault.to_string());
    parser.expect_token(&Token::LParen).map_err(broken)?;
    let list = if parser.peek_token().token == Token::RParen {
        Vec::new()
    } else {
        parser.parse_comma_separated(Parser::parse_expr).map_err(broken)?
    };
    parser.expect_token(&Token::RParen).map_err(broken)?;
    words.at += parser.index();
    Ok(list)
}

fn fetch(words: &mut Words<'_>, only_move: bool) -> Parsed<Statement> {
    let signed = |n: i64| if n < 0 { FetchHow::Backward(n.unsigned_abs()) } else { FetchHow::Forward(n as u64) };
    let how = match words.word().as_str() {
        "NEXT" => {
            words.at += 1;
            FetchHow::Forward(1)
        }
        "PRIOR" => {
            words.at += 1;
            FetchHow::Backward(1)
        }
        "FIRST" => {
            words.at += 1;
            FetchHow::Absolute(1)
        }
        "LAST" => {
            words.at += 1;
            FetchHow::Absolute(-1)
        }
        "ALL" => {
            words.at += 1;
            FetchHow::All
        }
        "ABSOLUTE" => {
            words.at += 1;
            FetchHow::Absolute(words.integer()?)
        }
        "RELATIVE" => {
            words.at += 1;
            FetchHow::Relative(words.integer()?)
        }
        "FORWARD" => {
            words.at += 1;
            if words.take("ALL") {
                FetchHow::All
            } else if matches!(words.peek(), Some(Token::Number(..) | Token::Minus)) {
                signed(words.integer()?)
            } else {
                FetchHow::Forward(1)
            }
        }
        "BACKWARD" => {
            words.at += 1;
            if words.take("ALL") {
                FetchHow::Backward(u64::MAX)
            } else if matches!(words.peek(), Some(Token::Number(..) | Token::Minus)) {
                signed(-words.integer()?)
            } else {
                FetchHow::Backward(1)
            }
        }
        _ if matches!(words.peek(), Some(Token::Number(..) | Token::Minus)) => signed(words.integer()?),
        _ => FetchHow::Forward(1),
    };
    let _ = words.take("FROM") || words.take("IN");
    let name = words.identifier()?;
    words.finish(Statement::Fetch { name, how, only_move })
}

fn explain(words: &mut Words<'_>) -> Parsed<Statement> {
    let (mut analyze, mut verbose) = (false, false);
    if words.take_token(&Token::LParen) {
        loop {
            let option = words.identifier()?;
            let on = if matches!(words.peek(), Some(Token::Comma | Token::RParen)) {
                true
            } else {
                let value = match words.peek() {
                    Some(Token::Number(n, _)) => n.clone(),
                    Some(Token::SingleQuotedString(s)) => s.clone(),
                    Some(Token::Word(w)) => w.value.to_lowercase(),
                    _ => return words.fail(),
                };
                words.at += 1;
                if option == "format" && value != "text" {
                    return Err(SqlError::unsupported(format_args!("EXPLAIN (FORMAT {value})")));
                }
                !matches!(value.as_str(), "off" | "false" | "0")
            };
            match option.as_str() {
                "analyze" => analyze = on,
                "verbose" => verbose = on,
                _ => {}
            }
            if !words.take_token(&Token::Comma) {
                break;
            }
        }
        if !words.take_token(&Token::RParen) {
            return words.fail();
        }
    } else {
        analyze = words.take("ANALYZE");
        verbose = words.take("VERBOSE");
    }
    Ok(Statement::Explain { analyze, verbose, statement: words.rest()? })
}

fn vacuum_tables(words: &mut Words<'_>) -> Parsed<Vec<ast::ObjectName>> {
    if words.take_token(&Token::LParen) {
        while !words.take_token(&Token::RParen) {
            if words.end() {
                return words.fail();
            }
            words.at += 1;
        }
    }
    while ["FULL", "FREEZE", "VERBOSE", "ANALYZE"].iter().any(|w| words.take(w)) {}
    if words.end() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    loop {
        names.push(words.object_name()?);
        words.column_list()?;
        if !words.take_token(&Token::Comma) {
            break;
        }
    }
    words.finish(names)
}
