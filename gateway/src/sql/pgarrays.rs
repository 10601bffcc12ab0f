//! Arrays as PostgreSQL's own tools use them: `_pg_expandarray` and its fields, vectors that count from 0, functions over
//! arrays, functions in FROM with their schema.
//!
//! Pure over a syntax tree; a part of [`super::pgisms`].

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    self, AccessExpr, BinaryOperator, Expr, Ident, ObjectName, ObjectNamePart, Select, SelectItem, Subscript, TableFactor, Value,
};

use super::parse::fold;
use super::pgisms::{call, name_of};

/// Columns of the catalogs that are vectors: their subscripts begin with 0.
const VECTORS: &[&str] = &["indkey", "indoption", "indclass", "indcollation"];

fn expanded(expr: &Expr) -> Option<Expr> {
    match expr {
        Expr::Nested(inner) => expanded(inner),
        Expr::Function(function) if name_of(function) == "_pg_expandarray" => {
            super::rewrite::arguments(function).first().map(|argument| (*argument).clone())
        }
        _ => None,
    }
}

/// `x` or `n` of an expanded array, as rows.
fn part(array: Expr, field: &str) -> Expr {
    match field {
        "n" => call("unnest", vec![call("_pg_expand_n", vec![array])]),
        _ => call("unnest", vec![array]),
    }
}

fn suffixed(name: &Ident, field: &str) -> Ident {
    Ident::with_quote('"', format!("{}_{field}", fold(name)))
}

/// A whole expanded array in a select list becomes two columns, its elements and their numbers.
pub(super) fn expand_items(select: &mut Select) {
    let mut items = Vec::with_capacity(select.projection.len());
    for item in select.projection.drain(..) {
        match &item {
            SelectItem::ExprWithAlias { expr, alias } if expanded(expr).is_some() => {
                let Some(array) = expanded(expr) else { continue };
                for field in ["x", "n"] {
                    items.push(SelectItem::ExprWithAlias { expr: part(array.clone(), field), alias: suffixed(alias, field) });
                }
            }
            _ => items.push(item),
        }
    }
    select.projection = items;
}

fn is_vector(expr: &Expr) -> bool {
    let name = match expr {
        Expr::Nested(inner) => return is_vector(inner),
        Expr::Identifier(name) => fold(name),
        Expr::CompoundIdentifier(parts) => parts.last().map(fold).unwrap_or_default(),
        _ => return false,
    };
    VECTORS.iter().any(|vector| name.ends_with(vector))
}

/// `(_pg_expandarray(a)).n`, `(t.keys).x`, and subscripts of vectors. Runs before the expression's parts are looked at.
pub(super) fn access(expr: &mut Expr) {
    let Expr::CompoundFieldAccess { root, access_chain } = expr else { return };
    match access_chain.as_mut_slice() {
        [AccessExpr::Dot(Expr::Identifier(field))] => {
            let field = fold(field);
            if field != "x" && field != "n" {
                return;
            }
            if let Some(array) = expanded(root) {
                *expr = part(array, &field);
            } else if let Expr::Nested(inner) = &**root
                && let Expr::CompoundIdentifier(parts) = &**inner
                && let Some((last, relation)) = parts.split_last()
                && fold(last) == "keys"
            {
                let mut parts = relation.to_vec();
                parts.push(suffixed(last, &field));
                *expr = Expr::CompoundIdentifier(parts);
            }
        }
        [.., AccessExpr::Dot(Expr::Identifier(name)), AccessExpr::Subscript(Subscript::Index { index })]
            if is_vector(&Expr::Identifier(name.clone())) =>
        {
            from_one(index);
        }
        [AccessExpr::Subscript(Subscript::Index { index })] if is_vector(root) => from_one(index),
        _ => {}
    }
}

fn from_one(index: &mut Expr) {
    let one = Expr::Value(Value::Number("1".to_owned(), false).into());
    let old = Box::new(Expr::Nested(Box::new(index.clone())));
    *index = Expr::BinaryOp { left: old, op: BinaryOperator::Plus, right: Box::new(one) };
}

fn integer(expr: Expr) -> Expr {
    Expr::Cast {
        kind: ast::CastKind::Cast,
        expr: Box::new(expr),
        data_type: ast::DataType::Int(None),
        array: false,
        format: None,
    }
}

/// Functions over arrays, with PostgreSQL's names and types.
pub(super) fn function(function: &ast::Function) -> Option<Expr> {
    let given: Vec<Expr> = super::rewrite::arguments(function).into_iter().cloned().collect();
    match name_of(function).as_str() {
        "array_upper" if given.len() == 2 => {
            let zero = Expr::Value(Value::Number("0".to_owned(), false).into());
            Some(integer(call("nullif", vec![call("array_length", given), zero])))
        }
        "generate_subscripts" if !given.is_empty() => {
            let numbers = if is_vector(&given[0]) { "_pg_expand_zero" } else { "_pg_expand_n" };
            Some(call("unnest", vec![call(numbers, vec![given[0].clone()])]))
        }
        "array_lower" if given.len() == 2 => {
            let one = Expr::Value(Value::Number("1".to_owned(), false).into());
            Some(integer(one))
        }
        _ => None,
    }
}

/// Functions in FROM are known without their schema; `pg_get_keywords()` is a table here.
pub(super) fn in_from(factor: &mut TableFactor) -> ControlFlow<()> {
    let (TableFactor::Table { name, args: Some(_), .. } | TableFactor::Function { name, .. }) = factor else {
        return ControlFlow::Continue(());
    };
    if let [ObjectNamePart::Identifier(schema), ObjectNamePart::Identifier(own)] = name.0.as_slice()
        && fold(schema) == "pg_catalog"
    {
        *name = ObjectName(vec![ObjectNamePart::Identifier(own.clone())]);
    }
    if let TableFactor::Table { name, args, .. } = factor
        && name.to_string().eq_ignore_ascii_case("pg_get_keywords")
    {
        *args = None;
    }
    ControlFlow::Continue(())
}
