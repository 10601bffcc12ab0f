//! Functions that PostgreSQL has and DataFusion lacks, and functions in FROM.
//!
//! Registered once per node; pure but for pg_sleep.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Float64Type, Schema};
use datafusion::catalog::{TableFunctionArgs, TableProvider};
use datafusion::common::{DFSchema, DataFusionError, Result as DfResult, ScalarValue};
use datafusion::datasource::MemTable;
use datafusion::execution::FunctionRegistry;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::ExprSchemable as _;
use datafusion::logical_expr::expr::{AggregateFunction, WindowFunction, WindowFunctionParams};
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawAggregateExpr, RawBinaryExpr, RawWindowExpr};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{
    AggregateUDF, ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
    WindowFunctionDefinition,
};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::sql::sqlparser::ast::BinaryOperator;

use super::catalog::Sequence;
use super::dferror::from_datafusion;
use super::error::SqlError;
use super::types::Datum;

type Body = fn(&[ArrayRef], usize) -> Result<ArrayRef, SqlError>;

/// A scalar function written as a plain Rust function over arrays.
struct Plain {
    name: &'static str,
    signature: Signature,
    result: DataType,
    body: Body,
}

impl std::fmt::Debug for Plain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Plain {
    fn eq(&self, other: &Plain) -> bool {
        self.name == other.name
    }
}

impl Eq for Plain {}

impl Hash for Plain {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for Plain {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> DfResult<DataType> {
        Ok(self.result.clone())
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&arguments.args)?;
        let rows = if arrays.is_empty() { arguments.number_rows } else { arrays[0].len() };
        let scalar = arguments.args.iter().all(|a| matches!(a, ColumnarValue::Scalar(_))) && !arguments.args.is_empty();
        let out = (self.body)(&arrays, rows).map_err(DataFusionError::from)?;
        if scalar {
            return Ok(ColumnarValue::Scalar(datafusion::common::ScalarValue::try_from_array(&out, 0)?));
        }
        Ok(ColumnarValue::Array(out))
    }
}

fn plain(name: &'static str, arguments: Vec<DataType>, result: DataType, volatility: Volatility, body: Body) -> ScalarUDF {
    let signature = if arguments.is_empty() { Signature::nullary(volatility) } else { Signature::exact(arguments, volatility) };
    ScalarUDF::new_from_impl(Plain { name, signature, result, body })
}

/// `jsonb ->`, `->>`: one step into a document by key or number.
fn json_step(arrays: &[ArrayRef], as_text: bool) -> Result<ArrayRef, SqlError> {
    use super::types::json::{Json, parse};
    let documents = arrays[0].as_string::<i32>();
    let keys = arrays[1].as_string::<i32>();
    let step = |at: usize| -> Result<Option<String>, SqlError> {
        if documents.is_null(at) || keys.is_null(at) {
            return Ok(None);
        }
        let key = keys.value(at);
        let found = match parse(documents.value(at))? {
            Json::Object(mut members) => members.remove(&(key.len(), key.to_owned())),
            Json::Array(mut items) => {
                let length = items.len() as i64;
                let index = key.parse::<i64>().ok().map(|i| if i < 0 { i + length } else { i });
                index.filter(|i| (0..length).contains(i)).map(|i| items.swap_remove(i as usize))
            }
            _ => None,
        };
        Ok(found.and_then(|value| match value {
            Json::String(text) if as_text => Some(text),
            Json::Null if as_text => None,
            other => {
                let mut out = String::new();
                other.write(&mut out);
                Some(out)
            }
        }))
    };
    let values: Vec<Option<String>> = (0..documents.len()).map(step).collect::<Result<_, _>>()?;
    Ok(Arc::new(StringArray::from(values)))
}

/// Operators that DataFusion does not know, and the type of integer literals.
#[derive(Debug)]
struct Operators {
    get: Arc<ScalarUDF>,
    get_text: Arc<ScalarUDF>,
    add: Arc<ScalarUDF>,
    subtract: Arc<ScalarUDF>,
    multiply: Arc<ScalarUDF>,
    divide_numeric: Arc<ScalarUDF>,
    multiply_numeric: Arc<ScalarUDF>,
    average: Arc<ScalarUDF>,
    sum: Arc<AggregateUDF>,
    count: Arc<AggregateUDF>,
}

impl ExprPlanner for Operators {
    fn plan_binary_op(&self, mut expr: RawBinaryExpr, schema: &DFSchema) -> DfResult<PlannerResult<RawBinaryExpr>> {
        let function = match expr.op {
            BinaryOperator::Arrow => &self.get,
            BinaryOperator::LongArrow => &self.get_text,
            // An integer literal is an integer, not a bigint, beside one: sums and comparisons keep their type.
            _ => {
                let small = |e: &Expr| matches!(e.get_type(schema), Ok(DataType::Int16 | DataType::Int32));
                let narrow = |e: &mut Expr| {
                    if let Expr::Literal(ScalarValue::Int64(Some(value)), metadata) = e
                        && let Ok(value) = i32::try_from(*value)
                    {
                        *e = Expr::Literal(ScalarValue::Int32(Some(value)), metadata.clone());
                    }
                };
                if small(&expr.left) {
                    narrow(&mut expr.right);
                } else if small(&expr.right) {
                    narrow(&mut expr.left);
                }
                if let (Ok(left), Ok(right)) = (expr.left.get_type(schema), expr.right.get_type(schema))
                    && super::decimals::applies(&left, &right)
                {
                    let free = super::decimals::is_free(&left) || super::decimals::is_free(&right);
                    match expr.op {
                        BinaryOperator::Divide => {
                            return Ok(PlannerResult::Planned(self.divide_numeric.call(vec![expr.left, expr.right])));
                        }
                        BinaryOperator::Multiply if free => {
                            return Ok(PlannerResult::Planned(self.multiply_numeric.call(vec![expr.left, expr.right])));
                        }
                        _ => {}
                    }
                }
                let checked = match expr.op {
                    BinaryOperator::Plus => &self.add,
                    BinaryOperator::Minus => &self.subtract,
                    BinaryOperator::Multiply => &self.multiply,
                    _ => return Ok(PlannerResult::Original(expr)),
                };
                let integer = |e: &Expr| matches!(e.get_type(schema), Ok(DataType::Int16 | DataType::Int32 | DataType::Int64));
                if integer(&expr.left) && integer(&expr.right) {
                    return Ok(PlannerResult::Planned(checked.call(vec![expr.left, expr.right])));
                }
                return Ok(PlannerResult::Original(expr));
            }
        };
        let text = |e: Expr| Expr::Cast(datafusion::logical_expr::Cast::new(Box::new(e), DataType::Utf8));
        Ok(PlannerResult::Planned(function.call(vec![text(expr.left), text(expr.right)])))
    }

    /// avg is sum by count, with PostgreSQL's digits.
    fn plan_aggregate(&self, raw: RawAggregateExpr) -> DfResult<PlannerResult<RawAggregateExpr>> {
        if raw.func.name() != "avg" || raw.args.len() != 1 {
            return Ok(PlannerResult::Original(raw));
        }
        let part = |func: &Arc<AggregateUDF>| {
            Expr::AggregateFunction(AggregateFunction::new_udf(
                Arc::clone(func),
                raw.args.clone(),
                raw.distinct,
                raw.filter.clone(),
                raw.order_by.clone(),
                raw.null_treatment,
            ))
        };
        Ok(PlannerResult::Planned(self.average.call(vec![part(&self.sum), part(&self.count)])))
    }

    fn plan_window(&self, raw: RawWindowExpr) -> DfResult<PlannerResult<RawWindowExpr>> {
        if raw.func_def.name() != "avg" || raw.args.len() != 1 {
            return Ok(PlannerResult::Original(raw));
        }
        let part = |func: &Arc<AggregateUDF>| {
            Expr::WindowFunction(Box::new(WindowFunction {
                fun: WindowFunctionDefinition::AggregateUDF(Arc::clone(func)),
                params: WindowFunctionParams {
                    args: raw.args.clone(),
                    partition_by: raw.partition_by.clone(),
                    order_by: raw.order_by.clone(),
                    window_frame: raw.window_frame.clone(),
                    filter: raw.filter.clone(),
                    null_treatment: raw.null_treatment,
                    distinct: raw.distinct,
                },
            }))
        };
        Ok(PlannerResult::Planned(self.average.call(vec![part(&self.sum), part(&self.count)])))
    }
}

/// The type of a value, as PostgreSQL names it.
#[derive(Debug, PartialEq, Eq, Hash)]
struct TypeOf(Signature);

impl ScalarUDFImpl for TypeOf {
    fn name(&self) -> &str {
        "pg_typeof"
    }

    fn signature(&self) -> &Signature {
        &self.0
    }

    fn return_type(&self, _arguments: &[DataType]) -> DfResult<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        let kind = super::types::arrow::field_type(&arguments.arg_fields[0]).0;
        Ok(ColumnarValue::Scalar(ScalarValue::Utf8(Some(kind.sql_name().to_owned()))))
    }
}

/// A correlated subquery's value and how many rows it had: more than one is an error.
#[derive(Debug, PartialEq, Eq, Hash)]
struct OneRow(Signature);

impl ScalarUDFImpl for OneRow {
    fn name(&self) -> &str {
        "one_row"
    }

    fn signature(&self) -> &Signature {
        &self.0
    }

    fn return_type(&self, arguments: &[DataType]) -> DfResult<DataType> {
        Ok(arguments[0].clone())
    }

    fn return_field_from_args(&self, arguments: ReturnFieldArgs<'_>) -> DfResult<FieldRef> {
        Ok(Arc::new(arguments.arg_fields[0].as_ref().clone().with_nullable(true)))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        let counts = arguments.args[1].to_array(arguments.number_rows)?;
        let counts = counts.as_primitive::<datafusion::arrow::datatypes::Int64Type>();
        if counts.iter().flatten().any(|count| count > 1) {
            let message = "more than one row returned by a subquery used as an expression";
            return Err(SqlError::new(super::error::code::CARDINALITY_VIOLATION, message).into());
        }
        Ok(arguments.args[0].clone())
    }
}

/// A function that there is none of: it fails once the types of its arguments are known.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Missing {
    name: String,
    signature: Signature,
}

/// Stands for a function of that name that there is none of, so that the error can name its arguments' types.
#[must_use]
pub fn missing(name: &str) -> Arc<ScalarUDF> {
    let any = vec![datafusion::logical_expr::TypeSignature::VariadicAny, datafusion::logical_expr::TypeSignature::Nullary];
    Arc::new(ScalarUDF::new_from_impl(Missing { name: name.to_owned(), signature: Signature::one_of(any, Volatility::Stable) }))
}

impl ScalarUDFImpl for Missing {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> DfResult<DataType> {
        Ok(DataType::Null)
    }

    fn return_field_from_args(&self, arguments: ReturnFieldArgs<'_>) -> DfResult<FieldRef> {
        let shown = arguments.arg_fields.iter().zip(arguments.scalar_arguments).map(|(field, value)| match value {
            Some(ScalarValue::Utf8(_)) | Some(ScalarValue::Null) if field.metadata().is_empty() => "unknown",
            Some(ScalarValue::Int64(Some(value))) if i32::try_from(*value).is_ok() => "integer",
            _ => super::types::arrow::field_type(field).0.sql_name(),
        });
        let shown: Vec<&str> = shown.collect();
        Err(SqlError::undefined_function(&self.name, &shown.join(", ")).into())
    }

    fn invoke_with_args(&self, _arguments: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        Err(SqlError::undefined_function(&self.name, "").into())
    }
}

/// Addition, subtraction and multiplication of integers, which DataFusion lets wrap around.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Checked {
    name: &'static str,
    signature: Signature,
}

impl Checked {
    fn function(name: &'static str) -> ScalarUDF {
        ScalarUDF::new_from_impl(Checked { name, signature: Signature::any(2, Volatility::Immutable) })
    }
}

fn wider(a: &DataType, b: &DataType) -> DataType {
    match (a, b) {
        (DataType::Int64, _) | (_, DataType::Int64) => DataType::Int64,
        (DataType::Int32, _) | (_, DataType::Int32) => DataType::Int32,
        _ => DataType::Int16,
    }
}

impl ScalarUDFImpl for Checked {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> DfResult<DataType> {
        Ok(wider(&arguments[0], &arguments[1]))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        use datafusion::arrow::compute::{cast, kernels::numeric};
        let kind = wider(&arguments.args[0].data_type(), &arguments.args[1].data_type());
        let scalar = arguments.args.iter().all(|a| matches!(a, ColumnarValue::Scalar(_)));
        let arrays = ColumnarValue::values_to_arrays(&arguments.args)?;
        let (a, b) = (cast(&arrays[0], &kind)?, cast(&arrays[1], &kind)?);
        let result = match self.name {
            "int_add" => numeric::add(&a, &b),
            "int_subtract" => numeric::sub(&a, &b),
            _ => numeric::mul(&a, &b),
        };
        let result = result.map_err(|_| {
            let kind = super::types::arrow::default_type(&kind).0;
            let fault =
                SqlError::new(super::error::code::NUMERIC_VALUE_OUT_OF_RANGE, format!("{} out of range", kind.sql_name()));
            DataFusionError::from(fault)
        })?;
        if scalar {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?));
        }
        Ok(ColumnarValue::Array(result))
    }
}

/// Adds our functions to DataFusion's.
///
/// # Errors
/// A name taken twice, which would be a bug.
pub fn register(state: &mut SessionState) -> Result<(), SqlError> {
    use DataType::{Float64, Int64, Utf8};
    let sleep: Body = |arrays, rows| {
        let seconds = arrays[0].as_primitive::<Float64Type>();
        for at in 0..seconds.len() {
            if seconds.is_valid(at) && seconds.value(at) > 0.0 {
                let pause = std::time::Duration::from_secs_f64(seconds.value(at).min(86_400.0));
                tokio::task::block_in_place(|| std::thread::sleep(pause));
            }
        }
        Ok(Arc::new(StringArray::from(vec![Some(""); rows])))
    };
    let functions = [
        plain("pg_sleep", vec![Float64], Utf8, Volatility::Volatile, sleep),
        plain("json_get", vec![Utf8, Utf8], Utf8, Volatility::Immutable, |arrays, _| json_step(arrays, false)),
        plain("json_get_text", vec![Utf8, Utf8], Utf8, Volatility::Immutable, |arrays, _| json_step(arrays, true)),
        plain("pg_column_size", vec![Utf8], Int64, Volatility::Stable, |arrays, _| {
            let texts = arrays[0].as_string::<i32>();
            Ok(Arc::new(texts.iter().map(|t| t.map(|t| t.len() as i64)).collect::<Int64Array>()))
        }),
    ];
    let byte_length = |arrays: &[ArrayRef], _: usize| -> Result<ArrayRef, SqlError> {
        let lengths: Vec<Option<i32>> = (0..arrays[0].len())
            .map(|at| {
                let (kind, typmod) = super::types::arrow::default_type(arrays[0].data_type());
                Ok(match super::types::arrow::datum_at(arrays[0].as_ref(), at, kind)? {
                    Some(Datum::Bytea(bytes)) => Some(bytes.len() as i32),
                    Some(other) => Some(other.to_text(kind, typmod).len() as i32),
                    None => None,
                })
            })
            .collect::<Result<_, SqlError>>()?;
        Ok(Arc::new(Int32Array::from(lengths)))
    };
    let any = Plain {
        name: "byte_length",
        signature: Signature::any(1, Volatility::Immutable),
        result: DataType::Int32,
        body: byte_length,
    };
    state.register_udf(Arc::new(ScalarUDF::new_from_impl(any))).map_err(from_datafusion)?;
    for function in functions {
        state.register_udf(Arc::new(function)).map_err(from_datafusion)?;
    }
    for function in super::decimals::functions() {
        state.register_udf(Arc::new(function)).map_err(from_datafusion)?;
    }
    let type_of = TypeOf(Signature::any(1, Volatility::Stable));
    state.register_udf(Arc::new(ScalarUDF::new_from_impl(type_of))).map_err(from_datafusion)?;
    let one_row = OneRow(Signature::any(2, Volatility::Immutable));
    state.register_udf(Arc::new(ScalarUDF::new_from_impl(one_row))).map_err(from_datafusion)?;
    let round = state.udf("round").map_err(from_datafusion)?;
    let text = state.udf("numeric_text").map_err(from_datafusion)?;
    state.add_analyzer_rule(Arc::new(super::casts::RoundingCasts { round, text }));
    let operators = Operators {
        get: state.udf("json_get").map_err(from_datafusion)?,
        get_text: state.udf("json_get_text").map_err(from_datafusion)?,
        add: Arc::new(Checked::function("int_add")),
        subtract: Arc::new(Checked::function("int_subtract")),
        multiply: Arc::new(Checked::function("int_multiply")),
        divide_numeric: state.udf("numeric_div").map_err(from_datafusion)?,
        multiply_numeric: state.udf("numeric_mul").map_err(from_datafusion)?,
        average: state.udf("numeric_avg").map_err(from_datafusion)?,
        sum: state.udaf("sum").map_err(from_datafusion)?,
        count: state.udaf("count").map_err(from_datafusion)?,
    };
    state.register_expr_planner(Arc::new(operators)).map_err(from_datafusion)
}

/// A function in FROM.
///
/// # Errors
/// `42883` when there is none.
pub fn table_function(state: &SessionState, name: &str, arguments: Vec<Expr>) -> DfResult<Arc<dyn TableProvider>> {
    let function = state.table_functions().get(name).cloned();
    let function = function.ok_or_else(|| DataFusionError::Plan(format!("table function '{name}' not found")))?;
    let context = SimplifyContext::builder().with_config_options(Arc::clone(state.config_options())).build();
    let simplifier = ExprSimplifier::new(context);
    let schema = DFSchema::empty();
    let arguments = arguments
        .into_iter()
        .map(|argument| simplifier.coerce(argument, &schema).and_then(|e| simplifier.simplify(e)).map(widened))
        .collect::<DfResult<Vec<_>>>()?;
    function.create_table_provider_with_args(TableFunctionArgs::new(&arguments, state))
}

/// Functions in FROM take bigint where they take a number.
fn widened(expr: Expr) -> Expr {
    match expr {
        Expr::Literal(ScalarValue::Int32(value), metadata) => Expr::Literal(ScalarValue::Int64(value.map(i64::from)), metadata),
        Expr::Literal(ScalarValue::Int16(value), metadata) => Expr::Literal(ScalarValue::Int64(value.map(i64::from)), metadata),
        other => other,
    }
}

/// `SELECT * FROM a_sequence`.
///
/// # Errors
/// A bug of ours.
pub fn sequence_table(sequence: &Sequence) -> Result<Arc<dyn TableProvider>, SqlError> {
    let schema = Arc::new(Schema::new(vec![Field::new("last_value", DataType::Int64, false)]));
    let values: ArrayRef = Arc::new(Int64Array::from(vec![sequence.start]));
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![values]).map_err(|fault| SqlError::internal(fault.to_string()))?;
    let table = MemTable::try_new(schema, vec![vec![batch]]).map_err(from_datafusion)?;
    Ok(Arc::new(table))
}
