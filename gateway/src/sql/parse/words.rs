//! A statement's words, taken one after the other: what the small front parses with.
//!
//! Pure over the tokens without blanks; lives for one statement.

use std::sync::Arc;

use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::tokenizer::Token;

use super::ParsedStatement;
use crate::sql::error::SqlError;

pub(super) struct Words<'a> {
    pub(super) text: &'a str,
    pub(super) tokens: &'a [Token],
    pub(super) at: usize,
}

pub(super) type Parsed<T> = Result<T, SqlError>;

impl Words<'_> {
    pub(super) fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    pub(super) fn word(&self) -> String {
        match self.peek() {
            Some(Token::Word(word)) if word.quote_style.is_none() => word.value.to_ascii_uppercase(),
            _ => String::new(),
        }
    }

    pub(super) fn take(&mut self, word: &str) -> bool {
        let found = self.word() == word;
        self.at += usize::from(found);
        found
    }

    pub(super) fn take_all(&mut self, words: &[&str]) -> bool {
        let start = self.at;
        let found = words.iter().all(|word| self.take(word));
        if !found {
            self.at = start;
        }
        found
    }

    pub(super) fn take_token(&mut self, token: &Token) -> bool {
        let found = self.peek() == Some(token);
        self.at += usize::from(found);
        found
    }

    pub(super) fn end(&self) -> bool {
        self.at >= self.tokens.len()
    }

    pub(super) fn fail<T>(&self) -> Parsed<T> {
        Err(match self.peek() {
            Some(token) => SqlError::syntax(format!("syntax error at or near \"{token}\"")),
            None => SqlError::syntax("syntax error at end of input"),
        })
    }

    pub(super) fn finish<T>(&self, value: T) -> Parsed<T> {
        if self.end() { Ok(value) } else { self.fail() }
    }

    pub(super) fn identifier(&mut self) -> Parsed<String> {
        match self.peek() {
            Some(Token::Word(word)) => {
                let name = if word.quote_style.is_some() { word.value.clone() } else { word.value.to_lowercase() };
                self.at += 1;
                Ok(name)
            }
            _ => self.fail(),
        }
    }

    pub(super) fn object_name(&mut self) -> Parsed<ast::ObjectName> {
        let mut parts = Vec::new();
        loop {
            match self.peek() {
                Some(Token::Word(word)) => {
                    let ident = ast::Ident {
                        value: word.value.clone(),
                        quote_style: word.quote_style,
                        span: ast::helpers::attached_token::AttachedToken::empty().0.span,
                    };
                    parts.push(ast::ObjectNamePart::Identifier(ident));
                    self.at += 1;
                }
                _ => return self.fail(),
            }
            if !self.take_token(&Token::Period) {
                return Ok(ast::ObjectName(parts));
            }
        }
    }

    pub(super) fn object_names(&mut self) -> Parsed<Vec<ast::ObjectName>> {
        let mut names = vec![self.object_name()?];
        while self.take_token(&Token::Comma) {
            names.push(self.object_name()?);
        }
        Ok(names)
    }

    pub(super) fn column_list(&mut self) -> Parsed<Vec<String>> {
        let mut names = Vec::new();
        if self.take_token(&Token::LParen) {
            loop {
                names.push(self.identifier()?);
                if !self.take_token(&Token::Comma) {
                    break;
                }
            }
            if !self.take_token(&Token::RParen) {
                return self.fail();
            }
        }
        Ok(names)
    }

    pub(super) fn string(&mut self) -> Parsed<String> {
        match self.peek() {
            Some(Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text)) => {
                let text = text.clone();
                self.at += 1;
                Ok(text)
            }
            _ => self.fail(),
        }
    }

    pub(super) fn integer(&mut self) -> Parsed<i64> {
        let negative = self.take_token(&Token::Minus);
        if !negative {
            self.take_token(&Token::Plus);
        }
        match self.peek() {
            Some(Token::Number(digits, _)) => {
                let signed = if negative { format!("-{digits}") } else { digits.clone() };
                let value = signed.parse();
                self.at += 1;
                value.map_err(|_| SqlError::syntax(format!("\"{signed}\" is no integer in range")))
            }
            _ => self.fail(),
        }
    }

    /// The rest as a statement of its own.
    pub(super) fn rest(&self) -> Parsed<Arc<ParsedStatement>> {
        let tokens = &self.tokens[self.at..];
        if tokens.is_empty() {
            return self.fail();
        }
        super::parse(&join(tokens))?.pop().map(Arc::new).ok_or_else(|| SqlError::syntax("syntax error at end of input"))
    }
}

fn join(tokens: &[Token]) -> String {
    let mut out = String::new();
    for token in tokens {
        if !out.is_empty() {
            out.push(' ');
        }
        match token {
            // Unescaped when it was read, so it is written back as a plain string.
            Token::EscapedStringLiteral(text) | Token::SingleQuotedString(text) => {
                out.push('\'');
                out.push_str(&text.replace('\'', "''"));
                out.push('\'');
            }
            other => out.push_str(&other.to_string()),
        }
    }
    out
}
