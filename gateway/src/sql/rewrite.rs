//! Changes to a query between the parser and DataFusion: PostgreSQL's output names, functions that depend on the session,
//! parameters, casts that Arrow does not know.
//!
//! Pure over a syntax tree. A suffix of [`MARK`] and a number keeps equal output names apart; clients never see it.

use std::collections::HashSet;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    self, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectName, ObjectNamePart, Query, SelectItem,
    SetExpr, TableFactor, Value, VisitMut, VisitorMut,
};

use super::catalog::{Catalog, Relation};
use super::error::{SqlError, code};
use super::parse::fold;
use super::pgisms::call;
use super::sqltypes::sql_type;
use super::types::{Datum, Numeric, PgType};

/// Stands between an output name and what keeps it apart from its equals.
pub const MARK: char = '\u{1}';

/// What of a session and statement an expression may ask for.
#[derive(Clone, Debug)]
pub struct Env {
    /// Database.
    pub database: String,
    /// User.
    pub user: String,
    /// Schemas that names are looked for in.
    pub search_path: Vec<String>,
    /// Start of the transaction, microseconds since 1970.
    pub transaction_micros: i64,
    /// Start of the statement.
    pub statement_micros: i64,
    /// The session's number.
    pub backend_pid: i32,
    /// The settings, by name.
    pub settings: std::sync::Arc<std::collections::BTreeMap<String, String>>,
}

/// version().
pub const VERSION: &str =
    concat!("PostgreSQL 15.8 (RustyDB ", env!("CARGO_PKG_VERSION"), ") on x86_64-linux, compiled by rustc, 64-bit");

fn string(text: &str) -> Expr {
    Expr::Value(Value::SingleQuotedString(text.to_owned()).into())
}

fn number(digits: impl ToString) -> Expr {
    Expr::Value(Value::Number(digits.to_string(), false).into())
}

fn cast(expr: Expr, kind: PgType) -> Expr {
    let name = ObjectName(vec![ObjectNamePart::Identifier(Ident::new(kind.name()))]);
    Expr::Cast {
        kind: ast::CastKind::DoubleColon,
        expr: Box::new(expr),
        data_type: ast::DataType::Custom(name, Vec::new()),
        array: false,
        format: None,
    }
}

/// A value as a literal of its type.
#[must_use]
pub fn literal(value: Option<&Datum>, kind: PgType) -> Expr {
    match value {
        None => cast(Expr::Value(Value::Null.into()), if kind == PgType::Unknown { PgType::Text } else { kind }),
        Some(Datum::Bool(v)) => Expr::Value(Value::Boolean(*v).into()),
        Some(Datum::Int8(v)) => number(v),
        Some(Datum::Int2(v)) => cast(number(v), PgType::Int2),
        Some(Datum::Int4(v)) => cast(number(v), PgType::Int4),
        Some(Datum::Numeric(v)) if v.scale > 0 => number(v),
        Some(Datum::Text(v))
            if matches!(kind, PgType::Text | PgType::Varchar | PgType::Bpchar | PgType::Unknown | PgType::Name) =>
        {
            string(v)
        }
        Some(Datum::Bytea(v)) => {
            let hex: String = v.iter().map(|b| format!("{b:02x}")).collect();
            Expr::Value(Value::HexStringLiteral(hex).into())
        }
        Some(Datum::Array(element, values)) => {
            let items = values.iter().map(|v| literal(v.as_ref(), *element)).collect();
            cast(Expr::Array(ast::Array { elem: items, named: true }), PgType::array_of(*element).unwrap_or(PgType::TextArray))
        }
        Some(other) => cast(string(&other.to_text(kind, -1)), kind),
    }
}

/// The name that PostgreSQL gives an output column without an alias.
#[must_use]
pub fn output_name(expr: &Expr) -> String {
    named(expr).unwrap_or_else(|| "?column?".to_owned())
}

/// Whether the name that an expression gives is only that of a type, which an outer cast's goes before.
fn is_weak(expr: &Expr) -> bool {
    match expr {
        Expr::Cast { expr, .. } => is_weak(expr),
        Expr::Nested(inner) => is_weak(inner),
        Expr::TypedString(_) | Expr::Interval(_) | Expr::Value(_) => true,
        Expr::Case { else_result, .. } => else_result.as_deref().is_none_or(is_weak),
        other => named(other).is_none(),
    }
}

fn named(expr: &Expr) -> Option<String> {
    Some(match expr {
        Expr::Identifier(ident) => fold(ident),
        Expr::CompoundIdentifier(parts) => fold(parts.last()?),
        Expr::Function(function) => fold(function.name.0.last()?.as_ident()?),
        Expr::Nested(inner) => return named(inner),
        Expr::Collate { expr, .. } | Expr::CompoundFieldAccess { root: expr, .. } => return named(expr),
        Expr::Cast { expr, data_type, .. } => {
            let strong = if is_weak(expr) { None } else { named(expr) };
            return strong.or_else(|| sql_type(data_type).ok().map(|t| t.kind.name().trim_start_matches('_').to_owned()));
        }
        Expr::TypedString(typed) => sql_type(&typed.data_type).ok()?.kind.name().to_owned(),
        Expr::Interval(_) => "interval".to_owned(),
        Expr::Case { else_result, .. } => else_result.as_deref().and_then(named).unwrap_or_else(|| "case".to_owned()),
        Expr::Exists { .. } => "exists".to_owned(),
        Expr::Array(_) => "array".to_owned(),
        Expr::Extract { .. } => "extract".to_owned(),
        Expr::Ceil { .. } => "ceil".to_owned(),
        Expr::Floor { .. } => "floor".to_owned(),
        Expr::Position { .. } => "position".to_owned(),
        Expr::Substring { .. } => "substring".to_owned(),
        Expr::Overlay { .. } => "overlay".to_owned(),
        Expr::Trim { trim_where, .. } => match trim_where {
            Some(ast::TrimWhereField::Leading) => "ltrim".to_owned(),
            Some(ast::TrimWhereField::Trailing) => "rtrim".to_owned(),
            _ => "btrim".to_owned(),
        },
        Expr::AtTimeZone { .. } => "timezone".to_owned(),
        Expr::Value(value) if matches!(value.value, Value::Boolean(_)) => "bool".to_owned(),
        Expr::Subquery(query) => match &*query.body {
            SetExpr::Select(select) => match select.projection.first()? {
                SelectItem::UnnamedExpr(expr) => return named(expr),
                SelectItem::ExprWithAlias { alias, .. } => fold(alias),
                _ => return None,
            },
            _ => return None,
        },
        _ => return None,
    })
}

fn quoted(name: &str) -> Ident {
    Ident::with_quote('"', name)
}

/// Gives every output column of a SELECT its name and keeps equal ones apart.
fn name_outputs(select: &mut ast::Select, top: bool) {
    let mut seen: HashSet<String> = HashSet::new();
    let wildcard = select.projection.iter().any(|i| matches!(i, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..)));
    for (at, item) in select.projection.iter_mut().enumerate() {
        let (name, bare) = match item {
            SelectItem::UnnamedExpr(expr) => {
                (output_name(expr), matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_)))
            }
            SelectItem::ExprWithAlias { alias, .. } => (fold(alias), false),
            _ => continue,
        };
        let clash = !seen.insert(name.clone()) || (wildcard && top);
        let shown = if clash { format!("{name}{MARK}{at}") } else { name };
        match item {
            SelectItem::UnnamedExpr(expr) if !bare || clash => {
                let expr = std::mem::replace(expr, Expr::Value(Value::Null.into()));
                *item = SelectItem::ExprWithAlias { expr, alias: quoted(&shown) };
            }
            SelectItem::ExprWithAlias { alias, .. } if clash => *alias = quoted(&shown),
            _ => {}
        }
    }
}

fn name_body(body: &mut SetExpr, top: bool) {
    match body {
        SetExpr::Select(select) => name_outputs(select, top),
        SetExpr::Query(query) => name_body(&mut query.body, top),
        SetExpr::SetOperation { left, right, .. } => {
            name_body(left, top);
            name_body(right, top);
        }
        _ => {}
    }
}

/// The plain arguments of a function call.
pub fn arguments(function: &Function) -> Vec<&Expr> {
    match &function.args {
        FunctionArguments::List(list) => list
            .args
            .iter()
            .filter_map(|arg| match arg {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// The text of a string literal, also under a cast.
pub fn string_literal(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) | Value::EscapedStringLiteral(text) => Some(text),
            _ => None,
        },
        Expr::Cast { expr, .. } | Expr::Nested(expr) => string_literal(expr),
        _ => None,
    }
}

fn number_literal(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::Number(digits, _) => Some(digits.clone()),
            _ => None,
        },
        Expr::Nested(inner) => number_literal(inner),
        Expr::UnaryOp { op: ast::UnaryOperator::Minus, expr } => match &**expr {
            Expr::Value(value) => match &value.value {
                Value::Number(digits, _) => Some(format!("-{digits}")),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

struct Rewriter<'a> {
    env: &'a Env,
    catalog: &'a Catalog,
    parameters: &'a [(PgType, Option<Datum>)],
    fault: Option<SqlError>,
}

impl Rewriter<'_> {
    fn function(&mut self, function: &mut Function) -> Option<Expr> {
        let parts: Vec<String> = function.name.0.iter().filter_map(|p| p.as_ident()).map(fold).collect();
        let name = match parts.as_slice() {
            [name] => name.clone(),
            [schema, name] if schema == "pg_catalog" => {
                function.name = ObjectName(vec![ObjectNamePart::Identifier(quoted(name))]);
                name.clone()
            }
            _ => return None,
        };
        let env = self.env;
        Some(match name.as_str() {
            "now" | "transaction_timestamp" | "current_timestamp" => {
                literal(Some(&Datum::Timestamp(env.transaction_micros)), PgType::Timestamptz)
            }
            "statement_timestamp" => literal(Some(&Datum::Timestamp(env.statement_micros)), PgType::Timestamptz),
            "localtimestamp" => literal(Some(&Datum::Timestamp(env.transaction_micros)), PgType::Timestamp),
            "current_date" => {
                literal(Datum::Timestamp(env.transaction_micros).cast(PgType::Date, -1).ok().as_ref(), PgType::Date)
            }
            "current_time" | "localtime" => {
                literal(Datum::Timestamp(env.transaction_micros).cast(PgType::Time, -1).ok().as_ref(), PgType::Time)
            }
            "current_user" | "session_user" | "user" | "current_role" => cast(string(&env.user), PgType::Name),
            "current_database" | "current_catalog" => cast(string(&env.database), PgType::Name),
            "current_schema" => match env.search_path.iter().find(|s| *s != "pg_catalog" && self.catalog.schema(s).is_some()) {
                Some(schema) => cast(string(schema), PgType::Name),
                None => cast(Expr::Value(Value::Null.into()), PgType::Name),
            },
            "current_schemas" => {
                let implicit = !matches!(arguments(function).first(), Some(Expr::Value(v)) if v.value == Value::Boolean(false));
                let schemas =
                    env.search_path.iter().filter(|s| (implicit || *s != "pg_catalog") && self.catalog.schema(s).is_some());
                let items = schemas.map(|s| string(s)).collect();
                cast(Expr::Array(ast::Array { elem: items, named: true }), PgType::TextArray)
            }
            "version" => string(VERSION),
            "pg_typeof" => match arguments(function).as_slice() {
                [Expr::Value(value)] if matches!(value.value, Value::SingleQuotedString(_) | Value::Null) => string("unknown"),
                _ => return None,
            },
            "mod" => match arguments(function).as_slice() {
                [a, b] => {
                    let nested = |e: &Expr| Box::new(Expr::Nested(Box::new(e.clone())));
                    Expr::Nested(Box::new(Expr::BinaryOp { left: nested(a), op: ast::BinaryOperator::Modulo, right: nested(b) }))
                }
                _ => return None,
            },
            "octet_length" => match arguments(function).as_slice() {
                [value] => call("byte_length", vec![(*value).clone()]),
                _ => return None,
            },
            "gen_random_uuid" => call("uuid", Vec::new()),
            "pg_backend_pid" => cast(number(env.backend_pid), PgType::Int4),
            "txid_current" | "pg_current_xact_id" => number(env.transaction_micros / 1000),
            "current_setting" => {
                let setting = arguments(function).first().and_then(|e| string_literal(e))?.to_lowercase();
                match env.settings.get(&setting) {
                    Some(value) => string(value),
                    None if arguments(function).len() > 1 => cast(Expr::Value(Value::Null.into()), PgType::Text),
                    None => {
                        let message = format!("unrecognized configuration parameter \"{setting}\"");
                        self.fault = Some(SqlError::new(code::UNDEFINED_OBJECT, message));
                        return None;
                    }
                }
            }
            _ => return None,
        })
    }

    fn cast(&mut self, expr: &Expr, data_type: &ast::DataType) -> Option<Expr> {
        let kind = sql_type(data_type).ok()?;
        if let Some(digits) = number_literal(expr) {
            // Computed here, because DataFusion goes by way of types that round.
            let value = Numeric::parse(&digits).ok()?;
            return match kind.kind {
                PgType::Float4 | PgType::Float8 => Some(cast(string(&digits), kind.kind)),
                PgType::Int2 | PgType::Int4 | PgType::Int8 => match Datum::Numeric(value).cast(kind.kind, -1) {
                    Ok(value) => Some(literal(Some(&value), kind.kind)).filter(|_| digits.contains(['.', 'e', 'E'])),
                    Err(fault) => {
                        self.fault.get_or_insert(fault);
                        None
                    }
                },
                _ => None,
            };
        }
        let limited = matches!(kind.kind, PgType::Varchar | PgType::Bpchar) && kind.typmod >= 4;
        let text = match expr {
            Expr::Value(_) => string_literal(expr)?,
            // An explicit cast to a string type of a length cuts off.
            _ if limited => {
                let whole = cast(expr.clone(), PgType::Text);
                let cut = call("left", vec![whole, number(kind.typmod - 4)]);
                return Some(Expr::Cast {
                    kind: ast::CastKind::Cast,
                    expr: Box::new(cut),
                    data_type: data_type.clone(),
                    array: false,
                    format: None,
                });
            }
            _ => return None,
        };
        if limited {
            let cut: String = text.chars().take((kind.typmod - 4) as usize).collect();
            return (cut != text).then(|| Expr::Cast {
                kind: ast::CastKind::Cast,
                expr: Box::new(string(&cut)),
                data_type: data_type.clone(),
                array: false,
                format: None,
            });
        }
        if kind.kind.element().is_some() {
            return match Datum::parse(kind.kind, kind.typmod, text) {
                Ok(value) => Some(literal(Some(&value), kind.kind)),
                Err(fault) => {
                    self.fault.get_or_insert(fault);
                    None
                }
            };
        }
        match kind.kind {
            PgType::Regclass => {
                let parts: Vec<&str> = text.split('.').map(|p| p.trim_matches('"')).collect();
                let (schema, name) = match parts.as_slice() {
                    [name] => (None, *name),
                    [schema, name] => (Some(*schema), *name),
                    _ => return None,
                };
                if let Ok(oid) = name.parse::<u32>() {
                    return Some(cast(number(oid), PgType::Oid));
                }
                let found = self.catalog.resolve(schema, name, &self.env.search_path).map(Relation::oid).or_else(|| {
                    let schemas = schema.map_or_else(|| self.env.search_path.clone(), |s| vec![s.to_owned()]);
                    schemas
                        .iter()
                        .filter_map(|s| self.catalog.schema(s))
                        .find_map(|s| Some(self.catalog.find_index(s.oid, name)?.1.oid))
                });
                // System tables are resolved by the system schemas' own rewriting.
                found.map(|oid| cast(number(oid), PgType::Oid))
            }
            // Arrow's own reading of these differs from PostgreSQL's.
            PgType::Bytea
            | PgType::Bool
            | PgType::Uuid
            | PgType::Jsonb
            | PgType::Json
            | PgType::Date
            | PgType::Time
            | PgType::Timestamp
            | PgType::Timestamptz
            | PgType::Interval => match Datum::parse(kind.kind, kind.typmod, text) {
                Ok(Datum::Bytea(bytes)) => Some(literal(Some(&Datum::Bytea(bytes)), PgType::Bytea)),
                Ok(Datum::Bool(value)) => Some(Expr::Value(Value::Boolean(value).into())),
                Ok(Datum::Timestamp(i64::MAX | i64::MIN)) | Ok(Datum::Date(i32::MAX | i32::MIN)) => None,
                Ok(value) => {
                    let normal = value.to_text(kind.kind, -1);
                    (normal != text).then(|| cast(string(&normal), kind.kind))
                }
                Err(fault) => {
                    self.fault.get_or_insert(fault);
                    None
                }
            },
            PgType::Int2 | PgType::Int4 | PgType::Int8 | PgType::Float4 | PgType::Float8 | PgType::Numeric => {
                match Datum::parse(kind.kind, kind.typmod, text) {
                    Ok(_) => {
                        let trimmed = text.trim();
                        (trimmed != text).then(|| cast(string(trimmed), kind.kind))
                    }
                    Err(fault) => {
                        self.fault.get_or_insert(fault);
                        None
                    }
                }
            }
            _ => None,
        }
    }
}

impl VisitorMut for Rewriter<'_> {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        // A function in FROM is a table of one column, and both bear the alias or the function's name.
        let (name, alias) = match factor {
            TableFactor::Table { name, alias, args: Some(_), .. } => (name, alias),
            TableFactor::Function { name, alias, .. } => (name, alias),
            _ => return ControlFlow::Continue(()),
        };
        let Some(function) = name.0.last().and_then(|p| p.as_ident()).map(fold) else { return ControlFlow::Continue(()) };
        if matches!(function.as_str(), "generate_series" | "range") {
            let alias = alias.get_or_insert_with(|| ast::TableAlias {
                explicit: true,
                name: quoted(&function),
                columns: Vec::new(),
                at: None,
            });
            if alias.columns.is_empty() {
                alias.columns.push(ast::TableAliasColumnDef { name: quoted(&fold(&alias.name)), data_type: None });
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        if let Some(fetch) = query.fetch.take() {
            let one = || number(1);
            let limit = Some(fetch.quantity.unwrap_or_else(one));
            match &mut query.limit_clause {
                Some(ast::LimitClause::LimitOffset { limit: old, .. }) => *old = limit,
                _ => {
                    query.limit_clause = Some(ast::LimitClause::LimitOffset { limit, offset: None, limit_by: Vec::new() });
                }
            }
        }
        name_body(&mut query.body, false);
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let new = match expr {
            Expr::Function(function) => self.function(function),
            Expr::Identifier(ident) if ident.quote_style.is_none() => match ident.value.to_ascii_lowercase().as_str() {
                "current_schema" => {
                    let mut call = Function {
                        name: ObjectName(vec![ObjectNamePart::Identifier(ident.clone())]),
                        uses_odbc_syntax: false,
                        parameters: FunctionArguments::None,
                        args: FunctionArguments::None,
                        filter: None,
                        null_treatment: None,
                        over: None,
                        within_group: Vec::new(),
                    };
                    self.function(&mut call)
                }
                _ => None,
            },
            Expr::Cast { expr: inner, data_type, .. } => self.cast(inner, data_type),
            Expr::TypedString(typed) => {
                let inner = Expr::Value(typed.value.clone());
                let new = self.cast(&inner, &typed.data_type);
                Some(new.unwrap_or_else(|| Expr::Cast {
                    kind: ast::CastKind::DoubleColon,
                    expr: Box::new(inner),
                    data_type: typed.data_type.clone(),
                    array: false,
                    format: None,
                }))
            }
            Expr::Value(value) => match &value.value {
                Value::Placeholder(name) => {
                    let at = name.strip_prefix('$').and_then(|n| n.parse::<usize>().ok()).unwrap_or(0);
                    self.parameters.get(at.wrapping_sub(1)).map(|(kind, value)| literal(value.as_ref(), *kind))
                }
                _ => None,
            },
            _ => None,
        };
        if let Some(new) = new {
            *expr = new;
        }
        if self.fault.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// Makes a query ready for DataFusion. `parameters` replace their `$n`; those beyond stay.
///
/// # Errors
/// Those of literals under casts, and of unknown settings.
pub fn query(query: &mut Query, env: &Env, catalog: &Catalog, parameters: &[(PgType, Option<Datum>)]) -> Result<(), SqlError> {
    name_body(&mut query.body, true);
    let mut rewriter = Rewriter { env, catalog, parameters, fault: None };
    let _ = VisitMut::visit(query, &mut rewriter);
    rewriter.fault.map_or(Ok(()), Err)
}

/// The same for an expression that stands alone.
///
/// # Errors
/// As [`query`].
pub fn expression(expr: &mut Expr, env: &Env, catalog: &Catalog, parameters: &[(PgType, Option<Datum>)]) -> Result<(), SqlError> {
    let mut rewriter = Rewriter { env, catalog, parameters, fault: None };
    let _ = VisitMut::visit(expr, &mut rewriter);
    rewriter.fault.map_or(Ok(()), Err)
}
