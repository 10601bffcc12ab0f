//! CREATE SEQUENCE and ALTER SEQUENCE, whose options sqlparser does not all know.
//!
//! Pure functions over a statement's words.

use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Token;

use super::Statement;
use super::front::SequenceChange;
use super::words::{Parsed, Words};
use crate::sql::error::SqlError;

/// CREATE SEQUENCE, its options in any order.
pub(super) fn create_sequence(words: &mut Words<'_>) -> Parsed<Statement> {
    let if_not_exists = words.take_all(&["IF", "NOT", "EXISTS"]);
    let name = words.object_name()?;
    let number = |words: &mut Words<'_>| -> Parsed<ast::Expr> {
        Ok(ast::Expr::Value(ast::Value::Number(words.integer()?.to_string(), false).into()))
    };
    let (mut options, mut data_type, mut owned_by) = (Vec::new(), None, None);
    while !words.end() {
        if words.take("AS") {
            let mut parser = Parser::new(&PostgreSqlDialect {}).with_tokens(words.tokens[words.at..].to_vec());
            data_type = Some(parser.parse_data_type().map_err(|fault| SqlError::syntax(fault.to_string()))?);
            words.at += parser.index();
        } else if words.take("START") {
            words.take("WITH");
            options.push(ast::SequenceOptions::StartWith(number(words)?, true));
        } else if words.take("INCREMENT") {
            words.take("BY");
            options.push(ast::SequenceOptions::IncrementBy(number(words)?, true));
        } else if words.take("MINVALUE") {
            options.push(ast::SequenceOptions::MinValue(Some(number(words)?)));
        } else if words.take("MAXVALUE") {
            options.push(ast::SequenceOptions::MaxValue(Some(number(words)?)));
        } else if words.take("CACHE") {
            options.push(ast::SequenceOptions::Cache(number(words)?));
        } else if words.take("CYCLE") {
            options.push(ast::SequenceOptions::Cycle(false));
        } else if words.take_all(&["OWNED", "BY"]) {
            owned_by = if words.take("NONE") { None } else { Some(words.object_name()?) };
        } else if !["MINVALUE", "MAXVALUE", "CYCLE"].iter().any(|word| words.take_all(&["NO", word])) {
            return words.fail();
        }
    }
    Ok(Statement::Ddl(Box::new(ast::Statement::CreateSequence {
        temporary: false,
        if_not_exists,
        name,
        data_type,
        sequence_options: options,
        owned_by,
    })))
}

pub(super) fn alter_sequence(words: &mut Words<'_>) -> Parsed<Statement> {
    let if_exists = words.take_all(&["IF", "EXISTS"]);
    let name = words.object_name()?;
    let mut changes = Vec::new();
    while !words.end() {
        changes.push(if words.take("RESTART") {
            let number = words.take("WITH") || matches!(words.peek(), Some(Token::Number(..) | Token::Minus));
            SequenceChange::Restart(if number { Some(words.integer()?) } else { None })
        } else if words.take("START") {
            words.take("WITH");
            SequenceChange::Start(words.integer()?)
        } else if words.take("INCREMENT") {
            words.take("BY");
            SequenceChange::Increment(words.integer()?)
        } else if words.take("MINVALUE") {
            SequenceChange::Min(words.integer()?)
        } else if words.take("MAXVALUE") {
            SequenceChange::Max(words.integer()?)
        } else if words.take("CACHE") {
            SequenceChange::Cache(words.integer()?)
        } else if words.take("CYCLE") {
            SequenceChange::Cycle(true)
        } else if words.take_all(&["NO", "CYCLE"]) {
            SequenceChange::Cycle(false)
        } else if words.take_all(&["NO", "MINVALUE"]) || words.take_all(&["NO", "MAXVALUE"]) {
            SequenceChange::Nothing
        } else if words.take_all(&["OWNED", "BY"]) {
            let mut parts = vec![words.identifier()?];
            while words.take_token(&Token::Period) {
                parts.push(words.identifier()?);
            }
            let column = parts.pop().unwrap_or_default();
            SequenceChange::OwnedBy((!parts.is_empty()).then_some((parts, column)))
        } else if words.take_all(&["OWNER", "TO"]) || words.take("AS") {
            words.identifier()?;
            SequenceChange::Nothing
        } else {
            return words.fail();
        });
    }
    Ok(Statement::AlterSequence { name, if_exists, changes })
}
