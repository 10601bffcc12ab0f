//! A statement's parameters and columns, without running it.
//!
//! Pure over the catalog. A parameter that nothing gives a type is text.

use std::ops::ControlFlow;
use std::sync::Arc;

use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::sqlparser::ast::{self, Expr, SetExpr, Value, VisitMut, VisitorMut};

use super::api::ColumnDesc;
use super::catalog::{Column, Table};
use super::context::Context;
use super::dferror::from_datafusion;
use super::dml::{Returning, insert, update};
use super::error::SqlError;
use super::parse::{CopyDirection, Statement};
use super::plan::{Parameter, columns_of};
use super::types::PgType;
use super::types::arrow::field_type;

type Described = (Vec<PgType>, Option<Arc<[ColumnDesc]>>);

/// See the module. `declared` has the types that the client gave, [`PgType::Unknown`] for the others.
///
/// # Errors
/// What is wrong with the statement.
pub fn describe(context: &Context, statement: &Statement, declared: Vec<PgType>) -> Result<Described, SqlError> {
    let mut types = declared;
    let columns = match statement {
        Statement::Query(query) => Some(query_columns(context, query, &mut types, &[])?),
        Statement::Insert(statement) => {
            let (table, alias) = insert::table_of(context, statement)?;
            let names = insert::column_names(statement)?;
            let targets = insert::target_columns(&table, &names)?;
            if !types.is_empty() {
                insert_types(context, statement, &table, &targets, &mut types)?;
            }
            returning(context, statement.returning.as_deref(), &table, &alias, &mut types)?
        }
        Statement::Update(statement) => {
            let target = update::update_target(context, statement)?;
            describe_target(context, target, statement.returning.as_deref(), &mut types)?
        }
        Statement::Delete(statement) => {
            let target = update::delete_target(context, statement)?;
            describe_target(context, target, statement.returning.as_deref(), &mut types)?
        }
        Statement::Show(name) => {
            let shown = super::settings::REPORTED.iter().find(|(n, _)| n == name).map_or(name.as_str(), |(_, shown)| shown);
            Some(if name == "all" {
                ["name", "setting", "description"].map(|n| ColumnDesc::new(n, PgType::Text)).into()
            } else {
                [ColumnDesc::new(shown, PgType::Text)].into()
            })
        }
        Statement::Explain { statement, .. } => {
            let (inner, _) = describe(context, &statement.statement, types)?;
            types = inner;
            Some([ColumnDesc::new("QUERY PLAN", PgType::Text)].into())
        }
        Statement::Declare { query, .. } => {
            types = describe(context, &query.statement, types)?.0;
            None
        }
        Statement::Copy(copy) if copy.direction == CopyDirection::Out => None,
        _ => None,
    };
    for kind in &mut types {
        if *kind == PgType::Unknown {
            *kind = PgType::Text;
        }
    }
    Ok((types, columns))
}

fn without_values(types: &[PgType]) -> Vec<Parameter> {
    types.iter().map(|kind| (*kind, None)).collect()
}

/// Takes over what DataFusion has found out about parameters.
fn learn(plan: &LogicalPlan, types: &mut [PgType]) -> Result<(), SqlError> {
    for (name, field) in plan.get_parameter_fields().map_err(from_datafusion)? {
        let at = name.strip_prefix('$').and_then(|n| n.parse::<usize>().ok()).and_then(|n| n.checked_sub(1));
        if let (Some(field), Some(kind)) = (field, at.and_then(|at| types.get_mut(at)))
            && *kind == PgType::Unknown
            && !matches!(field.data_type(), datafusion::arrow::datatypes::DataType::Null)
        {
            *kind = field_type(&field).0;
        }
    }
    Ok(())
}

fn query_columns(
    context: &Context,
    query: &ast::Query,
    types: &mut [PgType],
    hidden: &[u32],
) -> Result<Arc<[ColumnDesc]>, SqlError> {
    let mut query = query.clone();
    query.locks.clear();
    effects_to_literals(&mut query);
    limits_to_bigint(&mut query, types);
    let mut planner = context.planner();
    hidden.iter().for_each(|oid| planner.show_hidden(*oid));
    let plan = planner.plan(&query, &without_values(types), false)?;
    if types.contains(&PgType::Unknown) {
        learn(&plan, types)?;
        for kind in types.iter_mut() {
            if *kind == PgType::Unknown {
                *kind = PgType::Text;
            }
        }
        let plan = planner.plan(&query, &without_values(types), false)?;
        return Ok(columns_of(&plan).into());
    }
    Ok(columns_of(&plan).into())
}

/// LIMIT's and OFFSET's parameters are bigint.
fn limits_to_bigint(query: &mut ast::Query, types: &mut [PgType]) {
    let mut mark = |expr: &Expr| {
        if let Expr::Value(value) = expr
            && let Value::Placeholder(name) = &value.value
            && let Some(at) = name.strip_prefix('$').and_then(|n| n.parse::<usize>().ok())
            && let Some(kind) = types.get_mut(at.wrapping_sub(1))
            && *kind == PgType::Unknown
        {
            *kind = PgType::Int8;
        }
    };
    if let Some(ast::LimitClause::LimitOffset { limit, offset, .. }) = &query.limit_clause {
        limit.iter().for_each(&mut mark);
        offset.iter().for_each(|o| mark(&o.value));
    }
}

struct Effects;

impl VisitorMut for Effects {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::Function(function) = expr
            && let Some(name) = function.name.0.last().and_then(|p| p.as_ident()).map(super::parse::fold)
        {
            match name.as_str() {
                "nextval" | "currval" | "setval" | "lastval" => {
                    *expr = super::rewrite::literal(Some(&super::types::Datum::Int8(0)), PgType::Int8);
                }
                "pg_advisory_lock" | "pg_advisory_xact_lock" | "set_config" => {
                    *expr = super::rewrite::literal(Some(&super::types::Datum::Text(String::new())), PgType::Text);
                }
                "pg_try_advisory_lock" | "pg_try_advisory_xact_lock" | "pg_advisory_unlock" => {
                    *expr = super::rewrite::literal(Some(&super::types::Datum::Bool(true)), PgType::Bool);
                }
                _ => {}
            }
        }
        ControlFlow::Continue(())
    }
}

/// Functions with effects stand for values of their types while nothing runs.
fn effects_to_literals(query: &mut ast::Query) {
    if let SetExpr::Select(select) = &mut *query.body {
        for item in &mut select.projection {
            if let ast::SelectItem::UnnamedExpr(expr) = item
                && matches!(expr, Expr::Function(_))
            {
                let alias = ast::Ident::with_quote('"', super::rewrite::output_name(expr));
                *item = ast::SelectItem::ExprWithAlias { expr: expr.clone(), alias };
            }
        }
    }
    let _ = VisitMut::visit(query, &mut Effects);
}

fn bare_parameter(expr: &Expr) -> Option<usize> {
    match expr {
        Expr::Nested(inner) => bare_parameter(inner),
        Expr::Value(value) => match &value.value {
            Value::Placeholder(name) => name.strip_prefix('$')?.parse::<usize>().ok()?.checked_sub(1),
            _ => None,
        },
        _ => None,
    }
}

fn insert_types(
    context: &Context,
    statement: &ast::Insert,
    table: &Arc<Table>,
    targets: &[&Column],
    types: &mut [PgType],
) -> Result<(), SqlError> {
    if let Some(query) = &statement.source {
        match &*query.body {
            SetExpr::Values(values) => {
                let mut rest = Vec::new();
                for row in &values.rows {
                    for (expr, column) in row.content.iter().zip(targets) {
                        match bare_parameter(expr) {
                            Some(at) if types.get(at) == Some(&PgType::Unknown) => types[at] = column.kind,
                            Some(_) => {}
                            None => rest.push(expr),
                        }
                    }
                }
                let open = |types: &[PgType]| types.contains(&PgType::Unknown);
                for expr in rest {
                    if open(types) && expr.to_string().contains('$') {
                        let query = super::parse::parse_query(&format!("SELECT {expr}"))?;
                        let plan = context.planner().plan(&query, &without_values(types), false)?;
                        learn(&plan, types)?;
                    }
                }
            }
            SetExpr::Select(select) => {
                for (item, column) in select.projection.iter().zip(targets) {
                    if let ast::SelectItem::UnnamedExpr(expr) | ast::SelectItem::ExprWithAlias { expr, .. } = item
                        && let Some(at) = bare_parameter(expr)
                        && types.get(at) == Some(&PgType::Unknown)
                    {
                        types[at] = column.kind;
                    }
                }
                query_columns(context, query, types, &[])?;
            }
            _ => {
                query_columns(context, query, types, &[])?;
            }
        }
    }
    if let Some(ast::OnInsert::OnConflict(clause)) = &statement.on
        && let ast::OnConflictAction::DoUpdate(action) = &clause.action
    {
        for (at, expr) in update::assignments(table, &action.assignments)? {
            if let Some(parameter) = bare_parameter(&expr)
                && types.get(parameter) == Some(&PgType::Unknown)
            {
                types[parameter] = table.columns[at].kind;
            }
        }
    }
    Ok(())
}

fn describe_target(
    context: &Context,
    target: update::Target,
    items: Option<&[ast::SelectItem]>,
    types: &mut [PgType],
) -> Result<Option<Arc<[ColumnDesc]>>, SqlError> {
    if !types.is_empty() {
        if let SetExpr::Select(select) = &*target.query.body {
            let values = select.projection.iter().skip(2);
            let columns = target.columns.iter().filter(|(_, default)| !default);
            for (item, (at, _)) in values.zip(columns) {
                if let ast::SelectItem::ExprWithAlias { expr, .. } = item
                    && let Some(parameter) = bare_parameter(expr)
                    && types.get(parameter) == Some(&PgType::Unknown)
                {
                    types[parameter] = target.table.columns[*at].kind;
                }
            }
        }
        query_columns(context, &target.query, types, &[target.table.oid])?;
    }
    returning(context, items, &target.table, &target.alias, types)
}

fn returning(
    context: &Context,
    items: Option<&[ast::SelectItem]>,
    table: &Arc<Table>,
    alias: &str,
    types: &mut [PgType],
) -> Result<Option<Arc<[ColumnDesc]>>, SqlError> {
    let Some(items) = items else { return Ok(None) };
    let mut context = context.clone();
    context.parameters = Arc::new(without_values(types));
    Returning::compile(items, table, alias, types).columns(&context, table, alias).map(Some)
}
