//! Types that PostgreSQL gives and DataFusion does not: an integer literal is `integer` where it fits, and the sum of
//! bigints is a numeric, which does not wrap around.
//!
//! Pure over a plan, right after it is made.

use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result as DfResult, ScalarValue};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Cast, Expr, ExprSchemable as _, LogicalPlan, LogicalPlanBuilder};

fn narrowed(expr: Expr) -> DfResult<Transformed<Expr>> {
    Ok(match expr {
        Expr::Literal(ScalarValue::Int64(Some(value)), metadata) => match i32::try_from(value) {
            Ok(small) => Transformed::yes(Expr::Literal(ScalarValue::Int32(Some(small)), metadata)),
            Err(_) => Transformed::no(Expr::Literal(ScalarValue::Int64(Some(value)), metadata)),
        },
        other => Transformed::no(other),
    })
}

/// A sum of bigints counts in decimals.
fn wide_sum(expr: Expr, schema: &DFSchema) -> DfResult<Transformed<Expr>> {
    let is_bigint = |args: &[Expr]| args.len() == 1 && matches!(args[0].get_type(schema), Ok(DataType::Int64));
    let widen = |args: &mut Vec<Expr>| {
        let value = std::mem::take(&mut args[0]);
        args[0] = Expr::Cast(Cast::new(Box::new(value), DataType::Decimal128(38, 0)));
    };
    Ok(match expr {
        Expr::AggregateFunction(mut sum) if sum.func.name() == "sum" && is_bigint(&sum.params.args) => {
            widen(&mut sum.params.args);
            Transformed::yes(Expr::AggregateFunction(sum))
        }
        Expr::WindowFunction(mut sum) if sum.fun.name() == "sum" && is_bigint(&sum.params.args) => {
            widen(&mut sum.params.args);
            Transformed::yes(Expr::WindowFunction(sum))
        }
        other => Transformed::no(other),
    })
}

/// VALUES whose column has nothing but such literals.
fn values(rows: Vec<Vec<Expr>>) -> DfResult<LogicalPlan> {
    let mut rows = rows;
    for at in 0..rows.first().map_or(0, Vec::len) {
        let fits = |expr: &Expr| match expr {
            Expr::Literal(ScalarValue::Int64(Some(value)), _) => i32::try_from(*value).is_ok(),
            Expr::Literal(value, _) => value.is_null(),
            _ => false,
        };
        if rows.iter().all(|row| fits(&row[at]))
            && rows.iter().any(|row| matches!(&row[at], Expr::Literal(ScalarValue::Int64(_), _)))
        {
            for row in &mut rows {
                let narrow = match std::mem::take(&mut row[at]) {
                    Expr::Literal(value, metadata) => Expr::Literal(value.cast_to(&DataType::Int32)?, metadata),
                    other => other,
                };
                row[at] = narrow;
            }
        }
    }
    LogicalPlanBuilder::values(rows)?.build()
}

/// See the module.
///
/// # Errors
/// A bug: the plan was sound before.
pub fn apply(plan: LogicalPlan) -> DfResult<LogicalPlan> {
    // The table that a recursive query reads has its types already.
    if plan.exists(|node| Ok(matches!(node, LogicalPlan::RecursiveQuery(_))))? {
        return Ok(plan);
    }
    let done = plan.transform_up_with_subqueries(|node| match node {
        LogicalPlan::Values(list) => Ok(Transformed::yes(values(list.values)?)),
        LogicalPlan::Limit(_) | LogicalPlan::TableScan(_) => Ok(Transformed::no(node)),
        other => {
            let names = NamePreserver::new(&other);
            let sums = matches!(other, LogicalPlan::Aggregate(_) | LogicalPlan::Window(_));
            let schema = match other.inputs().first() {
                Some(input) if sums => Arc::clone(input.schema()),
                _ => Arc::new(DFSchema::empty()),
            };
            let changed = other.map_expressions(|expr| {
                let name = names.save(&expr);
                let small = expr.transform_up(narrowed)?;
                let wide = small.transform_data(|expr| {
                    if sums { expr.transform_up(|expr| wide_sum(expr, &schema)) } else { Ok(Transformed::no(expr)) }
                })?;
                Ok(wide.update_data(|expr| name.restore(expr)))
            })?;
            // What lies below may have changed its types even where this node has no literal.
            changed.map_data(LogicalPlan::recompute_schema).map(|done| Transformed::yes(done.data))
        }
    })?;
    Ok(done.data)
}
