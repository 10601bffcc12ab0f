//! Casts from numeric and float to an integer round, as PostgreSQL's do; Arrow's cut off. Numerics without a scale become text
//! with the digits that they print with.
//!
//! A rule of DataFusion's analyzer, pure over a plan.

use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result as DfResult};
use datafusion::config::ConfigOptions;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Cast, Expr, ExprSchemable as _, LogicalPlan, ScalarUDF};
use datafusion::optimizer::AnalyzerRule;

/// See the module.
#[derive(Debug)]
pub struct RoundingCasts {
    /// `round`.
    pub round: Arc<ScalarUDF>,
    /// `numeric_text`.
    pub text: Arc<ScalarUDF>,
}

impl RoundingCasts {
    fn rounded(&self, expr: Expr, schema: &DFSchema) -> DfResult<Transformed<Expr>> {
        let Expr::Cast(cast) = &expr else { return Ok(Transformed::no(expr)) };
        if *cast.field.data_type() == DataType::Utf8 && super::decimals::is_free(&cast.expr.get_type(schema)?) {
            let inner = self.text.call(vec![(*cast.expr).clone()]);
            return Ok(Transformed::yes(Expr::Cast(Cast { expr: Box::new(inner), field: Arc::clone(&cast.field) })));
        }
        if !cast.field.data_type().is_integer() || matches!(&*cast.expr, Expr::ScalarFunction(f) if f.func.name() == "round") {
            return Ok(Transformed::no(expr));
        }
        let fraction = match cast.expr.get_type(schema)? {
            DataType::Decimal128(_, scale) | DataType::Decimal256(_, scale) => scale > 0,
            DataType::Float32 | DataType::Float64 => true,
            _ => false,
        };
        if !fraction {
            return Ok(Transformed::no(expr));
        }
        let inner = self.round.call(vec![(*cast.expr).clone()]);
        Ok(Transformed::yes(Expr::Cast(Cast { expr: Box::new(inner), field: Arc::clone(&cast.field) })))
    }
}

impl AnalyzerRule for RoundingCasts {
    fn name(&self) -> &str {
        "rounding_casts"
    }

    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> DfResult<LogicalPlan> {
        let plan = plan.transform_up_with_subqueries(|node| {
            let mut schema = DFSchema::empty();
            for input in node.inputs() {
                schema.merge(input.schema());
            }
            if node.inputs().is_empty() {
                schema.merge(node.schema());
            }
            let names = NamePreserver::new(&node);
            node.map_expressions(|expr| {
                let name = names.save(&expr);
                // What refers to an outer query has no type here; it stays as it is.
                let unchanged = expr.clone();
                match expr.transform_up(|e| self.rounded(e, &schema)) {
                    Ok(done) => Ok(done.update_data(|e| name.restore(e))),
                    Err(_) => Ok(Transformed::no(unchanged)),
                }
            })
        })?;
        Ok(plan.data)
    }
}
