//! `nextval` as a function of each row of a query.
//!
//! One per statement. Numbers come from those that the node has taken in advance; taking more waits for the store, in the
//! thread that computes the row.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::array::{Array as _, ArrayRef, AsArray as _, Int64Array};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, UInt32Type};
use datafusion::common::{DataFusionError, Result as DfResult};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use datafusion::sql::sqlparser::ast;

use super::catalog::{Relation, Sequence};
use super::context::Context;
use super::error::SqlError;

struct NextVal {
    context: Context,
    signature: Signature,
}

/// `nextval`, for one statement.
#[must_use]
pub fn nextval(context: &Context) -> ScalarUDF {
    ScalarUDF::new_from_impl(NextVal { context: context.clone(), signature: Signature::any(1, Volatility::Volatile) })
}

impl fmt::Debug for NextVal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nextval")
    }
}

impl PartialEq for NextVal {
    fn eq(&self, other: &NextVal) -> bool {
        Arc::ptr_eq(&self.context.core, &other.context.core)
    }
}

impl Eq for NextVal {}

impl Hash for NextVal {
    fn hash<H: Hasher>(&self, state: &mut H) {
        "nextval".hash(state);
    }
}

impl NextVal {
    /// The sequence that a row names, by its name or its oid.
    fn sequence(&self, names: &ArrayRef, row: usize) -> Result<Arc<Sequence>, SqlError> {
        if *names.data_type() == DataType::UInt32 {
            let oid = names.as_primitive::<UInt32Type>().value(row);
            return match self.context.catalog.relation(oid) {
                Some(Relation::Sequence(sequence)) => Ok(Arc::clone(sequence)),
                _ => Err(SqlError::new(super::error::code::WRONG_OBJECT_TYPE, format!("\"{oid}\" is not a sequence"))),
            };
        }
        let name = names.as_string::<i32>().value(row).to_owned();
        let literal = ast::Expr::Value(ast::Value::SingleQuotedString(name).into());
        super::select::sequence(&self.context, Some(&literal))
    }
}

impl ScalarUDFImpl for NextVal {
    fn name(&self) -> &str {
        "nextval"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> DfResult<DataType> {
        Ok(DataType::Int64)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        let rows = arguments.number_rows;
        let names = arguments.args[0].to_array(rows)?;
        let names =
            if names.data_type().is_integer() { cast(&names, &DataType::UInt32)? } else { cast(&names, &DataType::Utf8)? };
        let take = async {
            let mut values = Vec::with_capacity(rows);
            for row in 0..rows {
                values.push(match names.is_null(row) {
                    true => None,
                    false => Some(self.context.nextval(&*self.sequence(&names, row)?).await?),
                });
            }
            Ok::<_, SqlError>(values)
        };
        let values = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(take));
        let values = values.map_err(DataFusionError::from)?;
        Ok(ColumnarValue::Array(Arc::new(Int64Array::from(values))))
    }
}
