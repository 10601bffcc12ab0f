//! Arithmetic of `numeric` inside DataFusion with PostgreSQL's digits: division, products of unconstrained numerics, avg,
//! round, trunc, ceil, floor, and a numeric as text.
//!
//! Pure functions. Arrow's decimals have one scale per column and PostgreSQL's numerics one per value, so two types stand for
//! values without a scale of their own: [`FREE`] prints without zeros at its end, [`QUOTIENT`] with the digits that
//! PostgreSQL's division would have given (at least 16 significant ones).

use std::hash::Hash;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Decimal256Builder, Float64Array, StringBuilder};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{
    DataType, Decimal128Type, Decimal256Type, Field, FieldRef, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    UInt32Type, UInt64Type,
};
use datafusion::common::{DataFusionError, Result as DfResult, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};

use super::error::{SqlError, code};
use super::types::arrow::{FREE_SCALE, QUOTIENT_SCALE, shown_decimal};
use super::types::{Datum, Numeric, PgType};

/// The type of a numeric without a scale.
pub const FREE: DataType = DataType::Decimal256(76, FREE_SCALE);
/// The type of a quotient.
pub const QUOTIENT: DataType = DataType::Decimal256(76, QUOTIENT_SCALE);

/// What a function does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Divide,
    Multiply,
    Average,
    Round,
    Truncate,
    Ceil,
    Floor,
    Sign,
    Text,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Decimals {
    name: &'static str,
    kind: Kind,
    signature: Signature,
}

fn overflow() -> SqlError {
    SqlError::new(code::NUMERIC_VALUE_OUT_OF_RANGE, "value overflows numeric format")
}

fn is_decimal(kind: &DataType) -> bool {
    matches!(kind, DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) | DataType::Decimal256(..))
}

fn is_integer(kind: &DataType) -> bool {
    kind.is_integer()
}

fn is_float(kind: &DataType) -> bool {
    kind.is_floating()
}

/// Whether an operator on these types is one of numerics.
#[must_use]
pub fn applies(left: &DataType, right: &DataType) -> bool {
    (is_decimal(left) && (is_decimal(right) || is_integer(right))) || (is_integer(left) && is_decimal(right))
}

/// Whether the type is one of values that each have a scale.
#[must_use]
pub fn is_free(kind: &DataType) -> bool {
    matches!(kind, DataType::Decimal256(76, _))
}

/// A value of an array as it is, with the scale that PostgreSQL would see.
fn number(array: &dyn Array, row: usize) -> Option<Numeric> {
    if array.is_null(row) {
        return None;
    }
    let scaled = |value: Numeric, scale: i8| {
        if scale >= 0 {
            return Some(value);
        }
        let factor = Numeric::parse(&format!("1e{}", -i32::from(scale))).ok()?;
        value.checked_mul(factor)
    };
    match array.data_type() {
        DataType::Int8 => Some(Numeric::from_i64(i64::from(array.as_primitive::<Int8Type>().value(row)))),
        DataType::Int16 => Some(Numeric::from_i64(i64::from(array.as_primitive::<Int16Type>().value(row)))),
        DataType::Int32 => Some(Numeric::from_i64(i64::from(array.as_primitive::<Int32Type>().value(row)))),
        DataType::Int64 => Some(Numeric::from_i64(array.as_primitive::<Int64Type>().value(row))),
        DataType::UInt32 => Some(Numeric::from_i64(i64::from(array.as_primitive::<UInt32Type>().value(row)))),
        DataType::UInt64 => Some(Numeric::from_i128(i128::from(array.as_primitive::<UInt64Type>().value(row)), 0)),
        DataType::Decimal128(_, scale) => {
            scaled(Numeric::from_i128(array.as_primitive::<Decimal128Type>().value(row), (*scale).max(0) as u8), *scale)
        }
        DataType::Decimal256(precision, scale) => {
            let unscaled = array.as_primitive::<Decimal256Type>().value(row);
            let value = scaled(Numeric { unscaled, scale: (*scale).max(0) as u8 }, *scale)?;
            Some(if *precision == 76 { shown_decimal(value, *scale) } else { value })
        }
        _ => None,
    }
}

impl Decimals {
    fn function(name: &'static str, kind: Kind) -> ScalarUDF {
        let signature = match kind {
            Kind::Divide | Kind::Multiply | Kind::Average => Signature::any(2, Volatility::Immutable),
            Kind::Round | Kind::Truncate => {
                Signature::one_of(vec![TypeSignature::Any(1), TypeSignature::Any(2)], Volatility::Immutable)
            }
            Kind::Ceil | Kind::Floor | Kind::Sign | Kind::Text => Signature::any(1, Volatility::Immutable),
        };
        ScalarUDF::new_from_impl(Decimals { name, kind, signature })
    }

    fn result(&self, kinds: &[DataType], digits: Option<i64>) -> DfResult<DataType> {
        let whole = DataType::Decimal256(75, 0);
        Ok(match self.kind {
            Kind::Text => DataType::Utf8,
            Kind::Average | Kind::Divide if is_float(&kinds[0]) => DataType::Float64,
            Kind::Average | Kind::Divide => QUOTIENT,
            Kind::Multiply if kinds.contains(&QUOTIENT) => QUOTIENT,
            Kind::Multiply => FREE,
            _ if !is_decimal(&kinds[0]) => {
                if kinds.len() == 2 && is_integer(&kinds[0]) {
                    return Ok(whole);
                }
                DataType::Float64
            }
            Kind::Ceil | Kind::Floor | Kind::Sign => whole,
            Kind::Round | Kind::Truncate => match (kinds.len(), digits) {
                (1, _) => whole,
                (_, Some(digits)) => DataType::Decimal256(75, digits.clamp(0, i64::from(FREE_SCALE)) as i8),
                _ => FREE,
            },
        })
    }
}

/// `value` with `digits` behind the point (before it, if negative).
fn rounded(kind: Kind, value: Numeric, digits: i64) -> Option<Numeric> {
    let keep = digits.clamp(0, i64::from(u8::MAX)) as u8;
    let shift = u32::try_from(-digits).unwrap_or(0);
    let ten = |exponent: u32| Numeric::parse(&format!("1e{exponent}")).ok();
    // Digits before the point: a division by a power of ten and a product.
    let moved = Numeric { unscaled: value.unscaled, scale: value.scale.checked_add(u8::try_from(shift).ok()?)? };
    let at = if shift > 0 { 0 } else { keep };
    let nearest = moved.rescale(at)?;
    let exact = nearest.cmp(&moved);
    let unit = Numeric { unscaled: datafusion::arrow::datatypes::i256::ONE, scale: at };
    let out = match kind {
        Kind::Floor if exact.is_gt() => nearest.checked_sub(unit)?,
        Kind::Ceil if exact.is_lt() => nearest.checked_add(unit)?,
        Kind::Truncate => {
            let negative = moved.unscaled.is_negative();
            match exact {
                std::cmp::Ordering::Greater if !negative => nearest.checked_sub(unit)?,
                std::cmp::Ordering::Less if negative => nearest.checked_add(unit)?,
                _ => nearest,
            }
        }
        _ => nearest,
    };
    if shift > 0 { out.checked_mul(ten(shift)?) } else { Some(out) }
}

fn floats(array: &ArrayRef) -> DfResult<ArrayRef> {
    Ok(cast(array, &DataType::Float64)?)
}

impl ScalarUDFImpl for Decimals {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> DfResult<DataType> {
        self.result(arguments, None)
    }

    fn return_field_from_args(&self, arguments: ReturnFieldArgs<'_>) -> DfResult<FieldRef> {
        let kinds: Vec<DataType> = arguments.arg_fields.iter().map(|field| field.data_type().clone()).collect();
        let digits = match arguments.scalar_arguments.get(1).copied().flatten() {
            Some(ScalarValue::Int64(Some(digits))) => Some(*digits),
            Some(ScalarValue::Int32(Some(digits))) => Some(i64::from(*digits)),
            _ => None,
        };
        Ok(Arc::new(Field::new(self.name, self.result(&kinds, digits)?, true)))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        let scalar = arguments.args.iter().all(|a| matches!(a, ColumnarValue::Scalar(_)));
        let arrays = ColumnarValue::values_to_arrays(&arguments.args)?;
        let out = match arguments.return_field.data_type() {
            DataType::Float64 => self.as_floats(&arrays)?,
            DataType::Utf8 => {
                let mut out = StringBuilder::new();
                for row in 0..arrays[0].len() {
                    out.append_option(number(arrays[0].as_ref(), row).map(|v| Datum::Numeric(v).to_text(PgType::Numeric, -1)));
                }
                Arc::new(out.finish())
            }
            kind => self.as_decimals(&arrays, kind).map_err(DataFusionError::from)?,
        };
        if scalar { Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&out, 0)?)) } else { Ok(ColumnarValue::Array(out)) }
    }
}

impl Decimals {
    fn as_floats(&self, arrays: &[ArrayRef]) -> DfResult<ArrayRef> {
        let values = floats(&arrays[0])?;
        let values = values.as_primitive::<Float64Type>();
        let others = arrays.get(1).map(floats).transpose()?;
        let others = others.as_ref().map(|other| other.as_primitive::<Float64Type>());
        let out: Float64Array = (0..values.len())
            .map(|row| {
                let value = values.is_valid(row).then(|| values.value(row))?;
                let other = match others {
                    Some(other) if other.is_null(row) => return None,
                    Some(other) => Some(other.value(row)),
                    None => None,
                };
                match (self.kind, other) {
                    (Kind::Average, Some(0.0)) => None,
                    (Kind::Average | Kind::Divide, Some(other)) => Some(value / other),
                    (Kind::Ceil, _) => Some(value.ceil()),
                    (Kind::Floor, _) => Some(value.floor()),
                    (Kind::Sign, _) => Some(if value == 0.0 { 0.0 } else { value.signum() }),
                    (Kind::Truncate, None) => Some(value.trunc()),
                    (Kind::Round, None) => Some(value.round_ties_even()),
                    (kind, Some(digits)) => {
                        let number = Numeric::from_f64(value).ok()?;
                        Some(rounded(kind, number, digits as i64)?.to_f64())
                    }
                    (_, None) => None,
                }
            })
            .collect();
        Ok(Arc::new(out))
    }

    fn as_decimals(&self, arrays: &[ArrayRef], kind: &DataType) -> Result<ArrayRef, SqlError> {
        let DataType::Decimal256(precision, scale) = kind else { return Err(SqlError::internal("not a decimal")) };
        let rows = arrays[0].len();
        let mut out = Decimal256Builder::with_capacity(rows)
            .with_precision_and_scale(*precision, *scale)
            .map_err(|fault| SqlError::internal(fault.to_string()))?;
        for row in 0..rows {
            let value = number(arrays[0].as_ref(), row);
            let other = arrays.get(1).map(|array| number(array.as_ref(), row));
            let (Some(value), other) = (value, other) else {
                out.append_null();
                continue;
            };
            let result = match (self.kind, other) {
                (_, Some(None)) => {
                    out.append_null();
                    continue;
                }
                (Kind::Average, Some(Some(count))) if count.unscaled == datafusion::arrow::datatypes::i256::ZERO => {
                    out.append_null();
                    continue;
                }
                (Kind::Divide | Kind::Average, Some(Some(other))) => value.divided_by(other)?,
                (Kind::Sign, _) => Numeric::from_i64(value.cmp(&Numeric::from_i64(0)) as i64),
                (Kind::Multiply, Some(Some(other))) => value.checked_mul(other).ok_or_else(overflow)?,
                (kind, digits) => {
                    let digits = digits.flatten().and_then(Numeric::to_i64).unwrap_or(0);
                    rounded(kind, value, digits).ok_or_else(overflow)?
                }
            };
            out.append_value(result.rescale(*scale as u8).ok_or_else(overflow)?.unscaled);
        }
        Ok(Arc::new(out.finish()))
    }
}

/// The functions under the names that SQL and our own planning call them by.
#[must_use]
pub fn functions() -> Vec<ScalarUDF> {
    [
        ("numeric_div", Kind::Divide),
        ("numeric_mul", Kind::Multiply),
        ("numeric_avg", Kind::Average),
        ("numeric_text", Kind::Text),
        ("round", Kind::Round),
        ("trunc", Kind::Truncate),
        ("ceil", Kind::Ceil),
        ("ceiling", Kind::Ceil),
        ("floor", Kind::Floor),
        ("sign", Kind::Sign),
    ]
    .map(|(name, kind)| Decimals::function(name, kind))
    .into()
}
