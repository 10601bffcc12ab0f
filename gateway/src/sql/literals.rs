//! Integer literals are `integer` where they fit, as PostgreSQL reads them; DataFusion makes them all bigint.
//!
//! Pure over a plan, right after it is made.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Result as DfResult, ScalarValue};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};

fn narrowed(expr: Expr) -> DfResult<Transformed<Expr>> {
    Ok(match expr {
        Expr::Literal(ScalarValue::Int64(Some(value)), metadata) => match i32::try_from(value) {
            Ok(small) => Transformed::yes(Expr::Literal(ScalarValue::Int32(Some(small)), metadata)),
            Err(_) => Transformed::no(Expr::Literal(ScalarValue::Int64(Some(value)), metadata)),
        },
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
pub fn narrow(plan: LogicalPlan) -> DfResult<LogicalPlan> {
    // The table that a recursive query reads has its types already.
    if plan.exists(|node| Ok(matches!(node, LogicalPlan::RecursiveQuery(_))))? {
        return Ok(plan);
    }
    let done = plan.transform_up_with_subqueries(|node| match node {
        LogicalPlan::Values(list) => Ok(Transformed::yes(values(list.values)?)),
        LogicalPlan::Limit(_) | LogicalPlan::TableScan(_) => Ok(Transformed::no(node)),
        other => {
            let names = NamePreserver::new(&other);
            let changed = other.map_expressions(|expr| {
                let name = names.save(&expr);
                Ok(expr.transform_up(narrowed)?.update_data(|expr| name.restore(expr)))
            })?;
            // What lies below may have changed its types even where this node has no literal.
            changed.map_data(LogicalPlan::recompute_schema).map(|done| Transformed::yes(done.data))
        }
    })?;
    Ok(done.data)
}
