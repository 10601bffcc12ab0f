//! What PostgreSQL's own tools write and DataFusion does not plan: `OPERATOR(pg_catalog.~)`, casts to `regclass` and its
//! like, `ARRAY(SELECT ...)`, correlated subqueries without an aggregate, LATERAL expressions, questions about features
//! that are not here.
//!
//! Pure over a syntax tree; runs before [`super::rewrite`].

use std::collections::HashMap;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    self, BinaryOperator, CaseWhen, DataType, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectName,
    ObjectNamePart, Query, Select, SelectItem, SetExpr, TableFactor, Value, Visit, VisitMut, Visitor, VisitorMut,
};

use super::parse::{fold, split_name};

/// Catalog tables of features that RustyDB does not have: always empty.
const EMPTY: &[&str] = &[
    "pg_publication",
    "pg_publication_rel",
    "pg_publication_namespace",
    "pg_policy",
    "pg_statistic_ext",
    "pg_trigger",
    "pg_event_trigger",
    "pg_foreign_table",
    "pg_subscription",
];

const AGGREGATES: &[&str] = &["count", "sum", "min", "max", "avg", "string_agg", "array_agg", "bool_or", "bool_and", "every"];

pub(super) fn name_of(function: &Function) -> String {
    function.name.0.last().and_then(|p| p.as_ident()).map(fold).unwrap_or_default()
}

pub(super) fn call(name: &str, arguments: Vec<Expr>) -> Expr {
    Expr::Function(Function {
        name: ObjectName(vec![ObjectNamePart::Identifier(Ident::new(name))]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(ast::FunctionArgumentList {
            duplicate_treatment: None,
            args: arguments.into_iter().map(|e| FunctionArg::Unnamed(FunctionArgExpr::Expr(e))).collect(),
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

fn null() -> Expr {
    Expr::Value(Value::Null.into())
}

fn parse(sql: &str) -> Expr {
    super::parse::parse_expression(sql).expect("an expression of our own making parses")
}

/// The reg type that a cast names.
fn reg_type(data_type: &DataType) -> Option<&'static str> {
    match data_type {
        DataType::Regclass => Some("regclass"),
        DataType::Custom(name, _) => {
            let last = name.0.last().and_then(|p| p.as_ident()).map(fold)?;
            ["regclass", "regtype", "regproc", "regprocedure", "regnamespace", "regrole"].into_iter().find(|t| *t == last)
        }
        _ => None,
    }
}

fn relation_names(select: &Select) -> Vec<(String, String, bool)> {
    let mut out = Vec::new();
    let mut push = |factor: &TableFactor, inner: bool| {
        if let TableFactor::Table { name, alias, .. } = factor
            && let Ok((_, name)) = split_name(name)
        {
            let alias = alias.as_ref().map_or_else(|| name.clone(), |a| fold(&a.name));
            out.push((name, alias, inner));
        } else if let TableFactor::Derived { alias: Some(alias), .. } | TableFactor::Function { alias: Some(alias), .. } = factor
        {
            out.push((String::new(), fold(&alias.name), false));
        }
    };
    for from in &select.from {
        push(&from.relation, true);
        for join in &from.joins {
            let inner = matches!(
                join.join_operator,
                ast::JoinOperator::Join(_) | ast::JoinOperator::Inner(_) | ast::JoinOperator::CrossJoin(_)
            );
            push(&join.relation, inner);
        }
    }
    out
}

/// Looks for aggregates outside of subqueries.
struct Aggregates {
    depth: usize,
    found: bool,
}

impl Visitor for Aggregates {
    type Break = ();

    fn pre_visit_query(&mut self, _query: &Query) -> ControlFlow<()> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _query: &Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        self.found |= self.depth == 0 && matches!(expr, Expr::Function(f) if AGGREGATES.contains(&name_of(f).as_str()));
        ControlFlow::Continue(())
    }
}

fn has_aggregate(items: &[SelectItem]) -> bool {
    let mut search = Aggregates { depth: 0, found: false };
    for item in items {
        if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item {
            let _ = Visit::visit(expr, &mut search);
        }
    }
    search.found
}

/// EXISTS in a select list counts instead: DataFusion plans it in conditions only.
fn count_exists(select: &mut Select) {
    for item in &mut select.projection {
        let (SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) = item else { continue };
        if !expr.to_string().contains("EXISTS") {
            continue;
        }
        let alias = Ident::with_quote('"', super::rewrite::output_name(expr));
        let _ = ast::visit_expressions_mut(expr, |e| {
            if let Expr::Exists { subquery, negated } = e {
                let mut query = subquery.clone();
                if let SetExpr::Select(inner) = &mut *query.body
                    && !has_aggregate(&inner.projection)
                {
                    let count = parse("count(*)");
                    inner.projection = vec![SelectItem::ExprWithAlias { expr: count, alias: Ident::new("n") }];
                    let op = if *negated { BinaryOperator::Eq } else { BinaryOperator::Gt };
                    let zero = Expr::Value(Value::Number("0".to_owned(), false).into());
                    *e = Expr::BinaryOp { left: Box::new(Expr::Subquery(query)), op, right: Box::new(zero) };
                }
            }
            ControlFlow::<()>::Continue(())
        });
        if let SelectItem::UnnamedExpr(expr) = item {
            *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias };
        }
    }
}

/// Whether a query can have no rows because it reads a table that never has any.
fn always_empty(body: &SetExpr) -> bool {
    match body {
        SetExpr::Select(select) => {
            relation_names(select).iter().any(|(name, _, inner)| *inner && EMPTY.contains(&name.as_str()))
                && !has_aggregate(&select.projection)
        }
        SetExpr::Query(query) => always_empty(&query.body),
        SetExpr::SetOperation { left, right, op: ast::SetOperator::Union, .. } => always_empty(left) && always_empty(right),
        _ => false,
    }
}

fn first_select(body: &SetExpr) -> Option<&Select> {
    match body {
        SetExpr::Select(select) => Some(select),
        SetExpr::Query(query) => first_select(&query.body),
        SetExpr::SetOperation { left, .. } => first_select(left),
        _ => None,
    }
}

/// The same columns, as text, and no rows.
fn without_rows(query: &mut Query) {
    let Some(select) = first_select(&query.body) else { return };
    let names: Option<Vec<String>> = select
        .projection
        .iter()
        .map(|item| match item {
            SelectItem::UnnamedExpr(expr) => Some(super::rewrite::output_name(expr)),
            SelectItem::ExprWithAlias { alias, .. } => Some(fold(alias)),
            _ => None,
        })
        .collect();
    let Some(names) = names else { return };
    let columns: Vec<String> =
        names.iter().map(|name| format!("CAST(NULL AS text) AS {}", Ident::with_quote('"', name))).collect();
    if let Ok(empty) = super::parse::parse_query(&format!("SELECT {} WHERE false", columns.join(", "))) {
        *query = *empty;
    }
}

fn conjuncts(expr: Expr, out: &mut Vec<Expr>) {
    match expr {
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
            conjuncts(*left, out);
            conjuncts(*right, out);
        }
        other => out.push(other),
    }
}

fn all_of(list: Vec<Expr>) -> Option<Expr> {
    list.into_iter().reduce(|a, b| Expr::BinaryOp { left: Box::new(a), op: BinaryOperator::And, right: Box::new(b) })
}

/// Which side an expression's qualified columns are on: (inner, outer).
fn sides(expr: &Expr, inner: &[String]) -> (bool, bool) {
    let (mut inside, mut outside) = (false, false);
    let _ = ast::visit_expressions(expr, |e| {
        match e {
            Expr::CompoundIdentifier(parts) if parts.len() > 1 => {
                if inner.contains(&fold(&parts[parts.len() - 2])) {
                    inside = true
                } else {
                    outside = true
                }
            }
            Expr::Identifier(_) => inside = true,
            _ => {}
        }
        ControlFlow::<()>::Continue(())
    });
    (inside, outside)
}

/// A correlated scalar subquery without an aggregate gets one (it has one row at most, or PostgreSQL would refuse it too),
/// and conditions on the outer row alone go outside.
fn decorrelate(query: &mut Query) -> Option<Expr> {
    if query.with.is_some() {
        return None;
    }
    let SetExpr::Select(select) = &mut *query.body else { return None };
    let relations = relation_names(select);
    if relations.iter().any(|(name, _, _)| name == "pg_collation") {
        // All collations are the default one.
        return Some(super::rewrite::literal(None, super::types::PgType::Name));
    }
    let inner: Vec<String> = relations.into_iter().map(|(_, alias, _)| alias).collect();
    let grouped = match &select.group_by {
        ast::GroupByExpr::Expressions(list, _) => !list.is_empty(),
        ast::GroupByExpr::All(_) => true,
    };
    let correlated = select.selection.as_ref().is_some_and(|s| sides(s, &inner).1);
    if inner.is_empty() || grouped || !correlated || has_aggregate(&select.projection) || select.projection.len() != 1 {
        return None;
    }
    let mut list = Vec::new();
    conjuncts(select.selection.take()?, &mut list);
    let (outer, rest): (Vec<Expr>, Vec<Expr>) = list.into_iter().partition(|e| sides(e, &inner) == (false, true));
    select.selection = all_of(rest);
    let (SelectItem::UnnamedExpr(item) | SelectItem::ExprWithAlias { expr: item, .. }) = &mut select.projection[0] else {
        return None;
    };
    let item = std::mem::replace(item, null());
    let order = query.order_by.take();
    let limited = query.limit_clause.take().is_some();
    // The catalogs' own questions are for one row by their keys.
    let of_catalogs = query_relations(query).iter().all(|name| name.starts_with("pg_"));
    let mut outer = outer;
    let subquery = if sides(&item, &inner).1 {
        // The expression mixes both queries' columns: it is evaluated outside, over a subquery for each inner column.
        outer.push(Expr::BinaryOp {
            left: Box::new(Expr::Subquery(Box::new(selecting(query, parse("count(*)"), "n")?))),
            op: BinaryOperator::Gt,
            right: Box::new(Expr::Value(Value::Number("0".to_owned(), false).into())),
        });
        let mut whole = item;
        let done = ast::visit_expressions_mut(&mut whole, |e| {
            if let Expr::CompoundIdentifier(parts) = e
                && parts.len() > 1
                && inner.contains(&fold(&parts[parts.len() - 2]))
            {
                let column = call("max", vec![e.clone()]);
                match selecting(query, column, "value") {
                    Some(own) => *e = Expr::Subquery(Box::new(own)),
                    None => return ControlFlow::Break(()),
                }
            }
            ControlFlow::Continue(())
        });
        if done.is_break() {
            return None;
        }
        whole
    } else {
        let name = super::rewrite::output_name(&item);
        let mut value = call("max", vec![item.clone()]);
        if let (true, Some(ast::OrderByKind::Expressions(list))) = (limited, order.map(|order| order.kind)) {
            // The first of an order.
            value = call("first_value", vec![item]);
            if let Expr::Function(function) = &mut value
                && let FunctionArguments::List(arguments) = &mut function.args
            {
                arguments.clauses.push(ast::FunctionArgumentClause::OrderBy(list));
            }
        }
        let value = Expr::Subquery(Box::new(selecting(query, value, &name)?));
        if limited || of_catalogs {
            value
        } else {
            let count = Expr::Subquery(Box::new(selecting(query, parse("count(*)"), "n")?));
            call("one_row", vec![value, count])
        }
    };
    // CASE forgets that text was JSON.
    let is_json = matches!(&subquery, Expr::Function(function) if name_of(function) == "json_build_object");
    let retyped = |expr: Expr| match is_json {
        true => {
            Expr::Cast { kind: ast::CastKind::Cast, expr: Box::new(expr), data_type: DataType::JSON, array: false, format: None }
        }
        false => expr,
    };
    Some(match all_of(outer) {
        None => subquery,
        Some(condition) => retyped(Expr::Case {
            case_token: ast::helpers::attached_token::AttachedToken::empty(),
            end_token: ast::helpers::attached_token::AttachedToken::empty(),
            operand: None,
            conditions: vec![CaseWhen { condition, result: subquery }],
            else_result: None,
        }),
    })
}

fn query_relations(query: &Query) -> Vec<String> {
    match &*query.body {
        SetExpr::Select(select) => relation_names(select).into_iter().map(|(name, _, _)| name).collect(),
        _ => Vec::new(),
    }
}

/// The query with one output.
fn selecting(query: &Query, expr: Expr, name: &str) -> Option<Query> {
    let mut query = query.clone();
    let SetExpr::Select(select) = &mut *query.body else { return None };
    select.projection = vec![SelectItem::ExprWithAlias { expr, alias: Ident::with_quote('"', name) }];
    Some(query)
}

/// `ARRAY(SELECT x ...)` as an aggregate.
fn array_of(query: &Query) -> Option<Expr> {
    let SetExpr::Select(select) = &*query.body else { return None };
    let empty = || parse("CAST(ARRAY[] AS text[])");
    if query.to_string().contains("reloptions") || always_empty(&query.body) {
        // Options of TOAST tables, of which there are none, and of features that are not here.
        return Some(empty());
    }
    let (SelectItem::UnnamedExpr(item) | SelectItem::ExprWithAlias { expr: item, .. }) = select.projection.first()? else {
        return None;
    };
    let mut query = query.clone();
    let aggregate = call("array_agg", vec![item.clone()]);
    let SetExpr::Select(select) = &mut *query.body else { return None };
    select.projection = vec![SelectItem::ExprWithAlias { expr: aggregate, alias: Ident::new("array") }];
    if let Some(order) = query.order_by.take()
        && let ast::OrderByKind::Expressions(mut list) = order.kind
    {
        for key in &mut list {
            // ORDER BY 1 is the one column.
            if matches!(&key.expr, Expr::Value(v) if matches!(&v.value, Value::Number(n, _) if n == "1")) {
                key.expr = item.clone();
            }
        }
        if let SelectItem::ExprWithAlias { expr: Expr::Function(function), .. } = &mut select.projection[0]
            && let FunctionArguments::List(arguments) = &mut function.args
        {
            arguments.clauses.push(ast::FunctionArgumentClause::OrderBy(list));
        }
    }
    Some(call("coalesce", vec![Expr::Subquery(Box::new(query)), empty()]))
}

/// `CROSS JOIN LATERAL (SELECT e) AS o(n)` without a FROM of its own is the expression by another name.
fn inline_lateral(select: &mut Select) {
    let mut named: HashMap<(String, String), Expr> = HashMap::new();
    for from in &mut select.from {
        from.joins.retain(|join| {
            let TableFactor::Derived { lateral: true, subquery, alias: Some(alias), .. } = &join.relation else { return true };
            let SetExpr::Select(inner) = &*subquery.body else { return true };
            if !inner.from.is_empty() || inner.selection.is_some() {
                return true;
            }
            for (at, item) in inner.projection.iter().enumerate() {
                let (expr, own) = match item {
                    SelectItem::UnnamedExpr(expr) => (expr, super::rewrite::output_name(expr)),
                    SelectItem::ExprWithAlias { expr, alias } => (expr, fold(alias)),
                    _ => return true,
                };
                let name = alias.columns.get(at).map_or(own, |c| fold(&c.name));
                named.insert((fold(&alias.name), name), expr.clone());
            }
            false
        });
    }
    if named.is_empty() {
        return;
    }
    for item in &mut select.projection {
        if let SelectItem::UnnamedExpr(expr @ Expr::CompoundIdentifier(_)) = item {
            let alias = Ident::with_quote('"', super::rewrite::output_name(expr));
            *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias };
        }
    }
    let _ = ast::visit_expressions_mut(select, |e| {
        if let Expr::CompoundIdentifier(parts) = e
            && let [relation, column] = parts.as_slice()
            && let Some(expr) = named.get(&(fold(relation), fold(column)))
        {
            *e = Expr::Nested(Box::new(expr.clone()));
        }
        ControlFlow::<()>::Continue(())
    });
}

/// Outputs with subqueries get their names before the subqueries are rewritten.
fn name_subqueries(select: &mut Select) {
    for item in &mut select.projection {
        if let SelectItem::UnnamedExpr(expr @ (Expr::Subquery(_) | Expr::BinaryOp { .. } | Expr::Function(_) | Expr::Cast { .. })) =
            item
            && expr.to_string().contains("(SELECT")
        {
            let alias = Ident::with_quote('"', super::rewrite::output_name(expr));
            *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias };
        }
    }
}

struct Isms;

impl VisitorMut for Isms {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        if always_empty(&query.body) {
            without_rows(query);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        inline_lateral(select);
        name_subqueries(select);
        count_exists(select);
        super::pgarrays::expand_items(select);
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        super::pgarrays::in_from(factor)
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        super::pgarrays::access(expr);
        let new = match expr {
            Expr::Subquery(query) => decorrelate(query),
            Expr::Function(function) if name_of(function) == "array" => match &function.args {
                FunctionArguments::Subquery(query) => array_of(query),
                _ => None,
            },
            _ => None,
        };
        if let Some(new) = new {
            *expr = new;
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let new = match expr {
            Expr::Collate { expr, .. } => Some((**expr).clone()),
            Expr::Function(function) => super::pgarrays::function(function),
            Expr::BinaryOp { op, .. } => {
                if let BinaryOperator::PGCustomBinaryOperator(path) = op {
                    let plain = match path.last().map(String::as_str) {
                        Some("~") => Some(BinaryOperator::PGRegexMatch),
                        Some("~*") => Some(BinaryOperator::PGRegexIMatch),
                        Some("!~") => Some(BinaryOperator::PGRegexNotMatch),
                        Some("~~") => Some(BinaryOperator::PGLikeMatch),
                        Some("!~~") => Some(BinaryOperator::PGNotLikeMatch),
                        Some("=") => Some(BinaryOperator::Eq),
                        Some("<>" | "!=") => Some(BinaryOperator::NotEq),
                        Some("<") => Some(BinaryOperator::Lt),
                        Some(">") => Some(BinaryOperator::Gt),
                        Some("+") => Some(BinaryOperator::Plus),
                        Some("-") => Some(BinaryOperator::Minus),
                        Some("||") => Some(BinaryOperator::StringConcat),
                        _ => None,
                    };
                    if let Some(plain) = plain {
                        *op = plain;
                    }
                }
                None
            }
            // What is cast to regclass to become an oid was never shown by its name.
            Expr::Cast { expr: inner, data_type, .. } if data_type.to_string().eq_ignore_ascii_case("oid") => {
                match &mut **inner {
                    Expr::Function(function) if name_of(function) == "regclass_name" => {
                        let arguments = super::rewrite::arguments(function).into_iter().cloned().collect();
                        Some(call("regclass_oid", arguments))
                    }
                    _ => None,
                }
            }
            Expr::Cast { expr: inner, data_type, .. } => reg_type(data_type).map(|kind| {
                let family = match kind {
                    "regprocedure" => "regproc",
                    "regrole" => "regnamespace",
                    other => other,
                };
                match super::rewrite::string_literal(inner) {
                    // Procedures are known by their names here.
                    Some(text) if kind == "regproc" => parse(&format!("'{}'", text.rsplit('.').next().unwrap_or(text))),
                    Some(text) if text.parse::<u32>().is_ok() => parse(&format!("CAST({text} AS oid)")),
                    Some(_) => call(&format!("{family}_oid"), vec![(**inner).clone()]),
                    None => call(&format!("{family}_name"), vec![(**inner).clone()]),
                }
            }),
            _ => None,
        };
        if let Some(new) = new {
            *expr = new;
        }
        ControlFlow::Continue(())
    }
}

/// `SELECT 'x'::regclass` shows the name, everything else works with the oid.
fn show_names(body: &mut SetExpr) {
    let SetExpr::Select(select) = body else { return };
    for item in &mut select.projection {
        let (SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) = item else { continue };
        if let Expr::Cast { expr: inner, data_type, .. } = expr
            && let Some(kind @ ("regclass" | "regtype")) = reg_type(data_type)
            && super::rewrite::string_literal(inner).is_some()
        {
            let oid = call(&format!("{kind}_oid"), vec![(**inner).clone()]);
            let shown = call(&format!("{kind}_name"), vec![oid]);
            match item {
                SelectItem::UnnamedExpr(_) => {
                    *item = SelectItem::ExprWithAlias { expr: shown, alias: Ident::new(kind) };
                }
                SelectItem::ExprWithAlias { expr, .. } => *expr = shown,
                _ => {}
            }
        }
    }
}

/// See the module.
pub fn rewrite(query: &mut Query) {
    show_names(&mut query.body);
    let _ = VisitMut::visit(query, &mut Isms);
}
