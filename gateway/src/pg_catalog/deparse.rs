//! Expressions of DEFAULT and CHECK written out as PostgreSQL's ruleutils write them: operators in parentheses (or, pretty,
//! only where precedence asks for them), literals with the type that they were given, keywords in capitals.
//!
//! Pure over the text that the catalog holds. What it does not know is written as the parser writes it.

use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr, UnaryOperator, Value};

use super::definitions::quoted;
use crate::sql::catalog::Column;
use crate::sql::parse::{fold, parse_expression};
use crate::sql::rewrite::arguments;
use crate::sql::sqltypes::sql_type;
use crate::sql::types::PgType;

/// A DEFAULT of a column of type `kind`.
#[must_use]
pub fn default(text: &str, kind: PgType) -> String {
    let Ok(expr) = parse_expression(text) else { return text.to_owned() };
    let writer = Writer { columns: &[], pretty: false };
    writer.operand(&expr, literal_type(kind)).text
}

/// A CHECK over a table's columns, without the parentheses that constraints put around it.
#[must_use]
pub fn check(text: &str, columns: &[Column], pretty: bool) -> String {
    let Ok(expr) = parse_expression(text) else { return text.to_owned() };
    Writer { columns, pretty }.operand(&expr, None).text
}

/// The type that an untyped literal beside a value of this type gets.
fn literal_type(kind: PgType) -> Option<PgType> {
    (kind != PgType::Unknown).then_some(kind)
}

/// A piece of text: what binds its parts (higher binds tighter, [`ATOM`] for none), and its type where it is known.
struct Piece {
    text: String,
    binding: u8,
    kind: Option<PgType>,
}

const ATOM: u8 = 100;

struct Writer<'a> {
    columns: &'a [Column],
    pretty: bool,
}

fn binding(op: &BinaryOperator) -> u8 {
    match op {
        BinaryOperator::Or => 1,
        BinaryOperator::And => 2,
        BinaryOperator::Eq
        | BinaryOperator::NotEq
        | BinaryOperator::Lt
        | BinaryOperator::LtEq
        | BinaryOperator::Gt
        | BinaryOperator::GtEq => 5,
        BinaryOperator::Plus | BinaryOperator::Minus => 8,
        BinaryOperator::Multiply | BinaryOperator::Divide | BinaryOperator::Modulo => 9,
        _ => 7,
    }
}

fn is_number(kind: PgType) -> bool {
    kind.category() == 'N'
}

impl Writer<'_> {
    fn atom(text: impl Into<String>, kind: Option<PgType>) -> Piece {
        Piece { text: text.into(), binding: ATOM, kind }
    }

    /// The piece, in parentheses unless it stands alone or, pretty, binds tighter than what is around it.
    fn within(&self, piece: Piece, around: u8) -> String {
        let bare = piece.binding == ATOM || around == 0 || (self.pretty && piece.binding > around);
        // Outside pretty mode operators bring their own parentheses.
        if bare || !self.pretty { piece.text } else { format!("({})", piece.text) }
    }

    fn operator(&self, text: String, binding: u8, kind: Option<PgType>) -> Piece {
        if self.pretty { Piece { text, binding, kind } } else { Self::atom(format!("({text})"), kind) }
    }

    fn converted(&self, piece: &Piece, to: PgType) -> String {
        // A cast of anything but a name or a plain call is in parentheses; pretty, of operators only.
        let plain = piece.binding == ATOM && (self.pretty || piece.text.ends_with(')') && !piece.text.starts_with('('));
        let plain = plain || piece.text.starts_with('(') && piece.text.ends_with(')') && !self.pretty;
        let inner = if plain { piece.text.clone() } else { format!("({})", piece.text) };
        format!("{inner}::{}", to.sql_name())
    }

    fn literal(&self, value: &Value, wanted: Option<PgType>, negative: bool) -> Option<Piece> {
        Some(match value {
            Value::Number(digits, _) => {
                let kind = if digits.contains(['.', 'e', 'E']) {
                    PgType::Numeric
                } else if digits.parse::<i32>().is_ok() {
                    PgType::Int4
                } else if digits.parse::<i64>().is_ok() {
                    PgType::Int8
                } else {
                    PgType::Numeric
                };
                match (negative, kind) {
                    (true, kind) => Self::atom(format!("'-{digits}'::{}", kind.sql_name()), Some(kind)),
                    (false, PgType::Int8) => Self::atom(format!("'{digits}'::bigint"), Some(kind)),
                    (false, kind) => Self::atom(digits.clone(), Some(kind)),
                }
            }
            Value::SingleQuotedString(text) | Value::EscapedStringLiteral(text) if !negative => {
                let kind = wanted.unwrap_or(PgType::Text);
                let quotes = text.replace('\'', "''");
                if kind == PgType::Bool {
                    let yes = text.to_lowercase().starts_with(['t', 'y', '1']) || text.eq_ignore_ascii_case("on");
                    return Some(Self::atom(if yes { "true" } else { "false" }, Some(kind)));
                }
                Self::atom(format!("'{quotes}'::{}", kind.sql_name().trim_end_matches("()")), Some(kind))
            }
            Value::Boolean(value) if !negative => Self::atom(if *value { "true" } else { "false" }, Some(PgType::Bool)),
            Value::Null if !negative => match wanted {
                Some(kind) if kind != PgType::Text => Self::atom(format!("NULL::{}", kind.sql_name()), wanted),
                _ => Self::atom("NULL", None),
            },
            _ => return None,
        })
    }

    /// Two operands of an operator: literals take the other's type, an integer beside a numeric or a float its cast.
    fn pair(&self, left: &Expr, right: &Expr) -> (Piece, Piece) {
        let (a, b) = (self.operand(left, None), self.operand(right, None));
        let is_literal = |e: &Expr| matches!(e, Expr::Value(v) if matches!(v.value, Value::SingleQuotedString(_)));
        let textual = |kind: PgType| if kind == PgType::Varchar { PgType::Text } else { kind };
        let mut a = match (is_literal(left), b.kind) {
            (true, Some(kind)) => self.operand(left, Some(textual(kind))),
            _ => a,
        };
        let mut b = match (is_literal(right), a.kind) {
            (true, Some(kind)) => self.operand(right, Some(textual(kind))),
            _ => b,
        };
        let kinds = (a.kind, b.kind);
        for (one, other) in [(&mut a, kinds.1), (&mut b, kinds.0)] {
            let Some(kind) = one.kind else { continue };
            if kind == PgType::Varchar {
                *one = Self::atom(self.converted(one, PgType::Text), Some(PgType::Text));
            }
            if let Some(other @ (PgType::Numeric | PgType::Float8)) = other
                && is_number(kind)
                && kind != other
                && kind != PgType::Float8
            {
                *one = Self::atom(self.converted(one, other), Some(other));
            }
        }
        (a, b)
    }

    fn binary(&self, left: &Expr, symbol: &str, right: &Expr, level: u8) -> Piece {
        let (a, b) = self.pair(left, right);
        let kind = match level {
            1 | 2 | 5 | 6 => Some(PgType::Bool),
            _ => match (a.kind, b.kind) {
                (Some(PgType::Int2), Some(PgType::Int4)) => Some(PgType::Int4),
                (kind, _) => kind,
            },
        };
        // An operand on the left that binds as tightly needs no parentheses in arithmetic and in AND and OR.
        let left_around = if matches!(level, 1 | 2 | 8 | 9) { level - 1 } else { level };
        let right_around = if matches!(level, 1 | 2) { level - 1 } else { level };
        let text = format!("{} {symbol} {}", self.within(a, left_around.max(1)), self.within(b, right_around.max(1)));
        self.operator(text, level, kind)
    }

    fn operand(&self, expr: &Expr, wanted: Option<PgType>) -> Piece {
        match expr {
            Expr::Nested(inner) => self.operand(inner, wanted),
            Expr::Value(value) => self.literal(&value.value, wanted, false).unwrap_or_else(|| Self::atom(expr.to_string(), None)),
            Expr::UnaryOp { op: UnaryOperator::Minus, expr: inner } => match &**inner {
                Expr::Value(value) => {
                    self.literal(&value.value, wanted, true).unwrap_or_else(|| Self::atom(expr.to_string(), None))
                }
                other => {
                    let piece = self.operand(other, None);
                    let kind = piece.kind;
                    self.operator(format!("- {}", self.within(piece, 11)), 11, kind)
                }
            },
            Expr::UnaryOp { op: UnaryOperator::Not, expr: inner } => {
                let piece = self.operand(inner, None);
                self.operator(format!("NOT {}", self.within(piece, 3)), 3, Some(PgType::Bool))
            }
            Expr::Identifier(name) => {
                let name = fold(name);
                if name == "current_timestamp" || name == "current_date" || name == "current_user" {
                    return Self::atom(name.to_uppercase(), None);
                }
                let kind = self.columns.iter().find(|c| c.name == name && !c.dropped).map(|c| c.kind);
                Self::atom(quoted(&name), kind)
            }
            Expr::CompoundIdentifier(parts) if parts.len() == 2 => self.operand(&Expr::Identifier(parts[1].clone()), wanted),
            Expr::BinaryOp { left, op: op @ (BinaryOperator::And | BinaryOperator::Or), right } => {
                // A chain of the same word is one list.
                let mut all = Vec::new();
                chain(left, op, &mut all);
                chain(right, op, &mut all);
                let level = binding(op);
                let parts: Vec<String> = all.iter().map(|e| self.within(self.operand(e, None), level)).collect();
                self.operator(parts.join(&format!(" {op} ")), level, Some(PgType::Bool))
            }
            Expr::BinaryOp { left, op, right } => {
                let symbol = match op {
                    BinaryOperator::NotEq => "<>".to_owned(),
                    other => other.to_string(),
                };
                self.binary(left, &symbol, right, binding(op))
            }
            Expr::IsNull(inner) => {
                let piece = self.operand(inner, None);
                self.operator(format!("{} IS NULL", self.within(piece, 4)), 4, Some(PgType::Bool))
            }
            Expr::IsNotNull(inner) => {
                let piece = self.operand(inner, None);
                self.operator(format!("{} IS NOT NULL", self.within(piece, 4)), 4, Some(PgType::Bool))
            }
            Expr::Between { expr, negated: false, low, high } => {
                let (a, b) = (self.binary(expr, ">=", low, 5), self.binary(expr, "<=", high, 5));
                let text = format!("{} AND {}", self.within(a, 2), self.within(b, 2));
                self.operator(text, 2, Some(PgType::Bool))
            }
            Expr::Like { negated, expr, pattern, escape_char: None, .. } => {
                self.binary(expr, if *negated { "!~~" } else { "~~" }, pattern, 7)
            }
            Expr::InList { expr, list, negated } if list.len() > 1 => {
                let first = self.operand(expr, None);
                let wide = first.kind == Some(PgType::Varchar);
                let items: Vec<String> = list.iter().map(|item| self.pair(expr, item).1).map(|p| p.text).collect();
                let (array, left) = if wide {
                    let items = list.iter().map(|i| self.operand(i, Some(PgType::Varchar)).text).collect::<Vec<_>>();
                    let array = format!("ARRAY[{}]", items.join(", "));
                    let array = if self.pretty { array } else { format!("({array})") };
                    (format!("{array}::text[]"), self.converted(&first, PgType::Text))
                } else {
                    (format!("ARRAY[{}]", items.join(", ")), self.within(first, 5))
                };
                let (op, word) = if *negated { ("<>", "ALL") } else { ("=", "ANY") };
                self.operator(format!("{left} {op} {word} ({array})"), 5, Some(PgType::Bool))
            }
            Expr::Cast { expr: inner, data_type, .. } => match sql_type(data_type) {
                Ok(to) => {
                    let shown = to.kind.display_name(to.typmod);
                    match &**inner {
                        Expr::Value(v) if matches!(v.value, Value::SingleQuotedString(_)) => {
                            let Value::SingleQuotedString(text) = &v.value else { return Self::atom(expr.to_string(), None) };
                            Self::atom(format!("'{}'::{shown}", text.replace('\'', "''")), Some(to.kind))
                        }
                        other => {
                            let piece = self.operand(other, None);
                            let whole = self.converted(&piece, to.kind);
                            let bare = whole.rsplit_once("::").map_or(whole.as_str(), |(bare, _)| bare);
                            Self::atom(format!("{bare}::{shown}"), Some(to.kind))
                        }
                    }
                }
                Err(_) => Self::atom(expr.to_string(), None),
            },
            Expr::Function(function) => {
                let name = function.name.to_string().to_lowercase();
                let name = name.strip_prefix("pg_catalog.").unwrap_or(&name);
                let given = arguments(function);
                if matches!(name, "current_timestamp" | "current_date" | "current_time" | "localtimestamp" | "current_user")
                    && given.is_empty()
                {
                    return Self::atom(name.to_uppercase(), None);
                }
                let (wanted, kind) = match name {
                    "length" | "char_length" | "octet_length" => (Some(PgType::Text), Some(PgType::Int4)),
                    "upper" | "lower" | "btrim" | "trim" => (Some(PgType::Text), Some(PgType::Text)),
                    _ => (None, None),
                };
                let shown: Vec<String> = given
                    .iter()
                    .map(|argument| {
                        let piece = self.operand(argument, wanted);
                        match (piece.kind, wanted) {
                            (Some(PgType::Varchar), Some(PgType::Text)) => self.converted(&piece, PgType::Text),
                            _ => piece.text,
                        }
                    })
                    .collect();
                Self::atom(format!("{name}({})", shown.join(", ")), kind)
            }
            other => Self::atom(other.to_string(), None),
        }
    }
}

fn chain<'a>(expr: &'a Expr, op: &BinaryOperator, out: &mut Vec<&'a Expr>) {
    match expr {
        Expr::BinaryOp { left, op: inner, right } if inner == op => {
            chain(left, op, out);
            chain(right, op, out);
        }
        Expr::Nested(inner) if matches!(&**inner, Expr::BinaryOp { op: o, .. } if o == op) => chain(inner, op, out),
        other => out.push(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, kind: PgType) -> Column {
        Column::new(1, name.to_owned(), kind, -1)
    }

    #[test]
    fn defaults_are_written_as_postgresql_writes_them() {
        for (text, kind, shown) in [
            ("'x'", PgType::Varchar, "'x'::character varying"),
            ("'it''s'", PgType::Text, "'it''s'::text"),
            ("0", PgType::Numeric, "0"),
            ("-1", PgType::Int4, "'-1'::integer"),
            ("current_timestamp", PgType::Timestamptz, "CURRENT_TIMESTAMP"),
            ("now()", PgType::Timestamptz, "now()"),
            ("'{}'", PgType::Jsonb, "'{}'::jsonb"),
            ("1 + 2", PgType::Int4, "(1 + 2)"),
        ] {
            assert_eq!(default(text, kind), shown);
        }
    }

    #[test]
    fn checks_are_written_as_postgresql_writes_them() {
        let columns = [column("price", PgType::Numeric), column("s", PgType::Int2), column("code", PgType::Varchar)];
        for (text, plain, pretty) in [
            ("price > 0", "(price > (0)::numeric)", "price > 0::numeric"),
            ("s > 0 and s < 100", "((s > 0) AND (s < 100))", "s > 0 AND s < 100"),
            ("s = 1 or (s > 3 and s < 5)", "((s = 1) OR ((s > 3) AND (s < 5)))", "s = 1 OR s > 3 AND s < 5"),
            ("code <> ''", "((code)::text <> ''::text)", "code::text <> ''::text"),
            ("length(code) > 2", "(length((code)::text) > 2)", "length(code::text) > 2"),
            ("s in (1, 2)", "(s = ANY (ARRAY[1, 2]))", "s = ANY (ARRAY[1, 2])"),
            ("code is not null", "(code IS NOT NULL)", "code IS NOT NULL"),
            ("s between 1 and 9", "((s >= 1) AND (s <= 9))", "s >= 1 AND s <= 9"),
        ] {
            assert_eq!(check(text, &columns, false), plain);
            assert_eq!(check(text, &columns, true), pretty);
        }
    }
}
