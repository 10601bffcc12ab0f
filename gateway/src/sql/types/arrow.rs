//! Between PostgreSQL's values and Arrow's arrays, in which DataFusion computes.
//!
//! Pure functions. What Arrow has no type for (uuid, json, name, lengths of strings) travels as a field's metadata, under
//! [`TYPE_KEY`] and [`TYPMOD_KEY`]; an expression that loses it gives plain text, which is what a client then sees.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayBuilder, ArrayRef, AsArray, BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, Decimal256Builder,
    Float32Builder, Float64Builder, Int16Builder, Int32Builder, Int64Builder, IntervalMonthDayNanoBuilder, ListBuilder,
    StringBuilder, Time64MicrosecondBuilder, TimestampMicrosecondBuilder, UInt32Builder, make_builder,
};
use datafusion::arrow::datatypes::{
    DataType, Date32Type, Date64Type, Decimal128Type, Decimal256Type, Field, Float16Type, Float32Type, Float64Type, Int8Type,
    Int16Type, Int32Type, Int64Type, IntervalDayTimeType, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit,
    IntervalYearMonthType, Time32MillisecondType, Time32SecondType, Time64MicrosecondType, Time64NanosecondType, TimeUnit,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use datafusion::common::ScalarValue;

use super::{Datum, Interval, Numeric, PgType, numeric_typmod};
use crate::sql::error::SqlError;

/// Metadata key of a field's PostgreSQL type (its name in pg_type).
pub const TYPE_KEY: &str = "pg_type";
/// Metadata key of a field's type modifier.
pub const TYPMOD_KEY: &str = "pg_typmod";
/// The zone of every timestamp with time zone.
pub const ZONE: &str = "+00:00";

/// Digits behind the point that an unconstrained numeric has inside DataFusion.
pub const FREE_SCALE: i8 = 24;
/// Digits behind the point that a quotient has inside DataFusion: more than PostgreSQL ever prints of one.
pub const QUOTIENT_SCALE: i8 = 28;

/// The Arrow type that a PostgreSQL type computes as.
#[must_use]
pub fn arrow_type(kind: PgType, typmod: i32) -> DataType {
    match kind {
        PgType::Bool => DataType::Boolean,
        PgType::Int2 => DataType::Int16,
        PgType::Int4 => DataType::Int32,
        PgType::Int8 => DataType::Int64,
        PgType::Float4 => DataType::Float32,
        PgType::Float8 => DataType::Float64,
        PgType::Numeric if typmod >= 4 => {
            let (precision, scale) = numeric_typmod(typmod);
            if precision <= 38 { DataType::Decimal128(precision, scale) } else { DataType::Decimal256(precision.min(76), scale) }
        }
        PgType::Numeric => DataType::Decimal256(76, FREE_SCALE),
        PgType::Bytea => DataType::Binary,
        PgType::Date => DataType::Date32,
        PgType::Time => DataType::Time64(TimeUnit::Microsecond),
        PgType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
        PgType::Timestamptz => DataType::Timestamp(TimeUnit::Microsecond, Some(ZONE.into())),
        PgType::Interval => DataType::Interval(IntervalUnit::MonthDayNano),
        PgType::Oid | PgType::Regproc => DataType::UInt32,
        _ => match kind.element() {
            Some(element) => DataType::List(Arc::new(Field::new_list_field(arrow_type(element, -1), true))),
            None => DataType::Utf8,
        },
    }
}

/// A field of that type, with metadata where Arrow's type does not say it all.
#[must_use]
pub fn arrow_field(name: &str, kind: PgType, typmod: i32, nullable: bool) -> Field {
    let field = Field::new(name, arrow_type(kind, typmod), nullable);
    match type_metadata(kind, typmod) {
        Some(metadata) => field.with_metadata(metadata),
        None => field,
    }
}

/// The metadata that [`arrow_field`] gives; `None` where Arrow's type says it all.
#[must_use]
pub fn type_metadata(kind: PgType, typmod: i32) -> Option<HashMap<String, String>> {
    if typmod < 0 && default_type(&arrow_type(kind, typmod)).0 == kind && kind != PgType::Numeric {
        return None;
    }
    Some(HashMap::from([(TYPE_KEY.to_owned(), kind.name().to_owned()), (TYPMOD_KEY.to_owned(), typmod.to_string())]))
}

/// What a client sees an Arrow type as, with its modifier.
#[must_use]
pub fn default_type(data_type: &DataType) -> (PgType, i32) {
    let kind = match data_type {
        DataType::Boolean => PgType::Bool,
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => PgType::Int2,
        DataType::Int32 | DataType::UInt16 => PgType::Int4,
        DataType::Int64 | DataType::UInt64 => PgType::Int8,
        DataType::UInt32 => PgType::Oid,
        DataType::Float16 | DataType::Float32 => PgType::Float4,
        DataType::Float64 => PgType::Float8,
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) | DataType::Decimal256(..) => {
            PgType::Numeric
        }
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => PgType::Bytea,
        DataType::Date32 | DataType::Date64 => PgType::Date,
        DataType::Time32(_) | DataType::Time64(_) => PgType::Time,
        DataType::Timestamp(_, None) => PgType::Timestamp,
        DataType::Timestamp(_, Some(_)) => PgType::Timestamptz,
        DataType::Interval(_) | DataType::Duration(_) => PgType::Interval,
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            PgType::array_of(field_type(item).0).unwrap_or(PgType::TextArray)
        }
        DataType::Dictionary(_, value) => return default_type(value),
        _ => PgType::Text,
    };
    (kind, -1)
}

/// The PostgreSQL type and modifier of a field: its metadata where that goes with its Arrow type.
#[must_use]
pub fn field_type(field: &Field) -> (PgType, i32) {
    let fallback = default_type(field.data_type());
    let Some(kind) = field.metadata().get(TYPE_KEY).and_then(|name| PgType::from_name(name)) else { return fallback };
    let typmod = field.metadata().get(TYPMOD_KEY).and_then(|t| t.parse().ok()).unwrap_or(-1);
    // Metadata outlives some expressions that change the type; the type then wins.
    let agrees = match (&arrow_type(kind, typmod), field.data_type()) {
        (DataType::Utf8, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) => true,
        (DataType::Timestamp(_, a), DataType::Timestamp(_, b)) => a.is_some() == b.is_some(),
        (DataType::Binary, DataType::Binary | DataType::LargeBinary | DataType::BinaryView) => true,
        (DataType::List(_), DataType::List(_)) => true,
        (wanted, is) => wanted == is,
    };
    if agrees { (kind, typmod) } else { fallback }
}

/// Builds one column from values.
pub enum ColumnBuilder {
    #[allow(missing_docs)]
    Bool(BooleanBuilder),
    #[allow(missing_docs)]
    Int2(Int16Builder),
    #[allow(missing_docs)]
    Int4(Int32Builder),
    #[allow(missing_docs)]
    Int8(Int64Builder),
    #[allow(missing_docs)]
    Float4(Float32Builder),
    #[allow(missing_docs)]
    Float8(Float64Builder),
    #[allow(missing_docs)]
    Decimal128(Decimal128Builder, u8),
    #[allow(missing_docs)]
    Decimal256(Decimal256Builder, u8),
    #[allow(missing_docs)]
    Text(StringBuilder, PgType),
    #[allow(missing_docs)]
    Binary(BinaryBuilder),
    #[allow(missing_docs)]
    Date(Date32Builder),
    #[allow(missing_docs)]
    Time(Time64MicrosecondBuilder),
    #[allow(missing_docs)]
    Timestamp(TimestampMicrosecondBuilder),
    #[allow(missing_docs)]
    Interval(IntervalMonthDayNanoBuilder),
    #[allow(missing_docs)]
    Oid(UInt32Builder),
    #[allow(missing_docs)]
    List(ListBuilder<Box<dyn ArrayBuilder>>, DataType),
}

impl ColumnBuilder {
    /// For `capacity` values of that type.
    #[must_use]
    pub fn new(kind: PgType, typmod: i32, capacity: usize) -> ColumnBuilder {
        let data_type = arrow_type(kind, typmod);
        match &data_type {
            DataType::Boolean => ColumnBuilder::Bool(BooleanBuilder::with_capacity(capacity)),
            DataType::Int16 => ColumnBuilder::Int2(Int16Builder::with_capacity(capacity)),
            DataType::Int32 => ColumnBuilder::Int4(Int32Builder::with_capacity(capacity)),
            DataType::Int64 => ColumnBuilder::Int8(Int64Builder::with_capacity(capacity)),
            DataType::Float32 => ColumnBuilder::Float4(Float32Builder::with_capacity(capacity)),
            DataType::Float64 => ColumnBuilder::Float8(Float64Builder::with_capacity(capacity)),
            DataType::Decimal128(_, scale) => {
                let builder = Decimal128Builder::with_capacity(capacity).with_data_type(data_type.clone());
                ColumnBuilder::Decimal128(builder, *scale as u8)
            }
            DataType::Decimal256(_, scale) => {
                let builder = Decimal256Builder::with_capacity(capacity).with_data_type(data_type.clone());
                ColumnBuilder::Decimal256(builder, *scale as u8)
            }
            DataType::Binary => ColumnBuilder::Binary(BinaryBuilder::with_capacity(capacity, capacity * 32)),
            DataType::Date32 => ColumnBuilder::Date(Date32Builder::with_capacity(capacity)),
            DataType::Time64(_) => ColumnBuilder::Time(Time64MicrosecondBuilder::with_capacity(capacity)),
            DataType::Timestamp(..) => {
                let builder = TimestampMicrosecondBuilder::with_capacity(capacity).with_data_type(data_type.clone());
                ColumnBuilder::Timestamp(builder)
            }
            DataType::Interval(_) => ColumnBuilder::Interval(IntervalMonthDayNanoBuilder::with_capacity(capacity)),
            DataType::UInt32 => ColumnBuilder::Oid(UInt32Builder::with_capacity(capacity)),
            DataType::List(item) => {
                let values = make_builder(item.data_type(), capacity);
                ColumnBuilder::List(ListBuilder::new(values).with_field(Arc::clone(item)), item.data_type().clone())
            }
            _ => ColumnBuilder::Text(StringBuilder::with_capacity(capacity, capacity * 16), kind),
        }
    }

    /// Appends a value. A value of another type than the column's is a bug and asserts.
    pub fn push(&mut self, value: Option<&Datum>) {
        match (&mut *self, value) {
            (ColumnBuilder::Bool(b), None) => b.append_null(),
            (ColumnBuilder::Int2(b), None) => b.append_null(),
            (ColumnBuilder::Int4(b), None) => b.append_null(),
            (ColumnBuilder::Int8(b), None) => b.append_null(),
            (ColumnBuilder::Float4(b), None) => b.append_null(),
            (ColumnBuilder::Float8(b), None) => b.append_null(),
            (ColumnBuilder::Decimal128(b, _), None) => b.append_null(),
            (ColumnBuilder::Decimal256(b, _), None) => b.append_null(),
            (ColumnBuilder::Text(b, _), None) => b.append_null(),
            (ColumnBuilder::Binary(b), None) => b.append_null(),
            (ColumnBuilder::Date(b), None) => b.append_null(),
            (ColumnBuilder::Time(b), None) => b.append_null(),
            (ColumnBuilder::Timestamp(b), None) => b.append_null(),
            (ColumnBuilder::Interval(b), None) => b.append_null(),
            (ColumnBuilder::Oid(b), None) => b.append_null(),
            (ColumnBuilder::List(b, _), None) => b.append(false),
            (ColumnBuilder::Bool(b), Some(Datum::Bool(v))) => b.append_value(*v),
            (ColumnBuilder::Int2(b), Some(Datum::Int2(v))) => b.append_value(*v),
            (ColumnBuilder::Int4(b), Some(Datum::Int4(v))) => b.append_value(*v),
            (ColumnBuilder::Int8(b), Some(Datum::Int8(v))) => b.append_value(*v),
            (ColumnBuilder::Float4(b), Some(Datum::Float4(v))) => b.append_value(*v),
            (ColumnBuilder::Float8(b), Some(Datum::Float8(v))) => b.append_value(*v),
            // A value with more digits than the computing type has is NULL there; stored, it stays whole.
            (ColumnBuilder::Decimal128(b, scale), Some(Datum::Numeric(v))) => {
                b.append_option(v.rescale(*scale).and_then(|v| v.unscaled.to_i128()));
            }
            (ColumnBuilder::Decimal256(b, scale), Some(Datum::Numeric(v))) => {
                b.append_option(v.rescale(*scale).map(|v| v.unscaled));
            }
            (ColumnBuilder::Text(b, _), Some(Datum::Text(v))) => b.append_value(v),
            (ColumnBuilder::Text(b, kind), Some(other)) => b.append_value(other.to_text(*kind, -1)),
            (ColumnBuilder::Binary(b), Some(Datum::Bytea(v))) => b.append_value(v),
            (ColumnBuilder::Date(b), Some(Datum::Date(v))) => b.append_value(*v),
            (ColumnBuilder::Time(b), Some(Datum::Time(v))) => b.append_value(*v),
            (ColumnBuilder::Timestamp(b), Some(Datum::Timestamp(v))) => b.append_value(*v),
            (ColumnBuilder::Interval(b), Some(Datum::Interval(v))) => b.append_value(interval_to_arrow(*v)),
            (ColumnBuilder::Oid(b), Some(Datum::Oid(v))) => b.append_value(*v),
            (ColumnBuilder::List(b, item), Some(Datum::Array(_, values))) => {
                for value in values {
                    push_list_item(b.values(), item, value.as_ref());
                }
                b.append(true);
            }
            (_, Some(other)) => panic!("a column was given {other:?}, which is not of its type"),
        }
    }

    /// The finished column; the builder is empty again.
    pub fn finish(&mut self) -> ArrayRef {
        match self {
            ColumnBuilder::Bool(b) => Arc::new(b.finish()),
            ColumnBuilder::Int2(b) => Arc::new(b.finish()),
            ColumnBuilder::Int4(b) => Arc::new(b.finish()),
            ColumnBuilder::Int8(b) => Arc::new(b.finish()),
            ColumnBuilder::Float4(b) => Arc::new(b.finish()),
            ColumnBuilder::Float8(b) => Arc::new(b.finish()),
            ColumnBuilder::Decimal128(b, _) => Arc::new(b.finish()),
            ColumnBuilder::Decimal256(b, _) => Arc::new(b.finish()),
            ColumnBuilder::Text(b, _) => Arc::new(b.finish()),
            ColumnBuilder::Binary(b) => Arc::new(b.finish()),
            ColumnBuilder::Date(b) => Arc::new(b.finish()),
            ColumnBuilder::Time(b) => Arc::new(b.finish()),
            ColumnBuilder::Timestamp(b) => Arc::new(b.finish()),
            ColumnBuilder::Interval(b) => Arc::new(b.finish()),
            ColumnBuilder::Oid(b) => Arc::new(b.finish()),
            ColumnBuilder::List(b, _) => Arc::new(b.finish()),
        }
    }
}

fn push_list_item(builder: &mut Box<dyn ArrayBuilder>, item: &DataType, value: Option<&Datum>) {
    macro_rules! item {
        ($builder:ty, $pattern:pat => $value:expr) => {{
            let builder = builder.as_any_mut().downcast_mut::<$builder>().expect("the list's builder is of its item's type");
            match value {
                Some($pattern) => builder.append_value($value),
                _ => builder.append_null(),
            }
        }};
    }
    match item {
        DataType::Boolean => item!(BooleanBuilder, Datum::Bool(v) => *v),
        DataType::Int16 => item!(Int16Builder, Datum::Int2(v) => *v),
        DataType::Int32 => item!(Int32Builder, Datum::Int4(v) => *v),
        DataType::Int64 => item!(Int64Builder, Datum::Int8(v) => *v),
        DataType::Float32 => item!(Float32Builder, Datum::Float4(v) => *v),
        DataType::Float64 => item!(Float64Builder, Datum::Float8(v) => *v),
        DataType::UInt32 => item!(UInt32Builder, Datum::Oid(v) => *v),
        DataType::Date32 => item!(Date32Builder, Datum::Date(v) => *v),
        DataType::Timestamp(..) => item!(TimestampMicrosecondBuilder, Datum::Timestamp(v) => *v),
        DataType::Decimal256(_, scale) => {
            let builder = builder.as_any_mut().downcast_mut::<Decimal256Builder>().expect("a decimal list's builder");
            match value {
                Some(Datum::Numeric(v)) => builder.append_option(v.rescale(*scale as u8).map(|v| v.unscaled)),
                _ => builder.append_null(),
            }
        }
        _ => {
            let builder = builder.as_any_mut().downcast_mut::<StringBuilder>().expect("a text list's builder");
            match value {
                Some(Datum::Text(v)) => builder.append_value(v),
                Some(other) => builder.append_value(other.to_text(other.natural_type(), -1)),
                None => builder.append_null(),
            }
        }
    }
}

fn interval_to_arrow(interval: Interval) -> IntervalMonthDayNano {
    IntervalMonthDayNano::new(interval.months, interval.days, interval.micros.saturating_mul(1000))
}

/// A value as DataFusion's scalar, of the Arrow type of `kind`.
///
/// # Errors
/// When the value is not of that type.
pub fn to_scalar(kind: PgType, typmod: i32, value: Option<&Datum>) -> Result<ScalarValue, SqlError> {
    let mut builder = ColumnBuilder::new(kind, typmod, 1);
    builder.push(value);
    ScalarValue::try_from_array(&builder.finish(), 0).map_err(|fault| SqlError::internal(fault.to_string()))
}

/// The value at `row`, as `kind` (which the array's type must be able to hold).
///
/// # Errors
/// When the array holds something else, or text that is not of that type.
pub fn datum_at(array: &dyn Array, row: usize, kind: PgType) -> Result<Option<Datum>, SqlError> {
    if array.is_null(row) {
        return Ok(None);
    }
    let natural = match array.data_type() {
        DataType::Null => return Ok(None),
        DataType::Boolean => Datum::Bool(array.as_boolean().value(row)),
        DataType::Int8 => Datum::Int2(i16::from(array.as_primitive::<Int8Type>().value(row))),
        DataType::Int16 => Datum::Int2(array.as_primitive::<Int16Type>().value(row)),
        DataType::Int32 => Datum::Int4(array.as_primitive::<Int32Type>().value(row)),
        DataType::Int64 => Datum::Int8(array.as_primitive::<Int64Type>().value(row)),
        DataType::UInt8 => Datum::Int2(i16::from(array.as_primitive::<UInt8Type>().value(row))),
        DataType::UInt16 => Datum::Int4(i32::from(array.as_primitive::<UInt16Type>().value(row))),
        DataType::UInt32 => Datum::Oid(array.as_primitive::<UInt32Type>().value(row)),
        DataType::UInt64 => {
            let value = array.as_primitive::<UInt64Type>().value(row);
            match i64::try_from(value) {
                Ok(value) => Datum::Int8(value),
                Err(_) => return Err(SqlError::new("22003", "bigint out of range")),
            }
        }
        DataType::Float16 => Datum::Float4(array.as_primitive::<Float16Type>().value(row).to_f32()),
        DataType::Float32 => Datum::Float4(array.as_primitive::<Float32Type>().value(row)),
        DataType::Float64 => Datum::Float8(array.as_primitive::<Float64Type>().value(row)),
        DataType::Decimal128(precision, scale) => {
            let unscaled = array.as_primitive::<Decimal128Type>().value(row);
            decimal(Numeric::from_i128(unscaled, (*scale).max(0) as u8), *precision, *scale)?
        }
        DataType::Decimal256(precision, scale) => {
            let unscaled = array.as_primitive::<Decimal256Type>().value(row);
            decimal(Numeric { unscaled, scale: (*scale).max(0) as u8 }, *precision, *scale)?
        }
        DataType::Utf8 => Datum::Text(array.as_string::<i32>().value(row).to_owned()),
        DataType::LargeUtf8 => Datum::Text(array.as_string::<i64>().value(row).to_owned()),
        DataType::Utf8View => Datum::Text(array.as_string_view().value(row).to_owned()),
        DataType::Binary => Datum::Bytea(array.as_binary::<i32>().value(row).to_vec()),
        DataType::LargeBinary => Datum::Bytea(array.as_binary::<i64>().value(row).to_vec()),
        DataType::BinaryView => Datum::Bytea(array.as_binary_view().value(row).to_vec()),
        DataType::FixedSizeBinary(_) => Datum::Bytea(array.as_fixed_size_binary().value(row).to_vec()),
        DataType::Date32 => Datum::Date(array.as_primitive::<Date32Type>().value(row)),
        DataType::Date64 => Datum::Date((array.as_primitive::<Date64Type>().value(row) / 86_400_000) as i32),
        DataType::Time32(TimeUnit::Second) => {
            Datum::Time(i64::from(array.as_primitive::<Time32SecondType>().value(row)) * 1_000_000)
        }
        DataType::Time32(_) => Datum::Time(i64::from(array.as_primitive::<Time32MillisecondType>().value(row)) * 1000),
        DataType::Time64(TimeUnit::Nanosecond) => Datum::Time(array.as_primitive::<Time64NanosecondType>().value(row) / 1000),
        DataType::Time64(_) => Datum::Time(array.as_primitive::<Time64MicrosecondType>().value(row)),
        DataType::Timestamp(unit, _) => Datum::Timestamp(match unit {
            TimeUnit::Second => array.as_primitive::<TimestampSecondType>().value(row).saturating_mul(1_000_000),
            TimeUnit::Millisecond => array.as_primitive::<TimestampMillisecondType>().value(row).saturating_mul(1000),
            TimeUnit::Microsecond => array.as_primitive::<TimestampMicrosecondType>().value(row),
            TimeUnit::Nanosecond => array.as_primitive::<TimestampNanosecondType>().value(row).div_euclid(1000),
        }),
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            let value = array.as_primitive::<IntervalMonthDayNanoType>().value(row);
            Datum::Interval(Interval { months: value.months, days: value.days, micros: value.nanoseconds / 1000 })
        }
        DataType::Interval(IntervalUnit::DayTime) => {
            let value = array.as_primitive::<IntervalDayTimeType>().value(row);
            Datum::Interval(Interval { months: 0, days: value.days, micros: i64::from(value.milliseconds) * 1000 })
        }
        DataType::Interval(IntervalUnit::YearMonth) => {
            let months = array.as_primitive::<IntervalYearMonthType>().value(row);
            Datum::Interval(Interval { months, days: 0, micros: 0 })
        }
        DataType::Duration(_) => {
            let nanos = datafusion::arrow::compute::cast(&array.slice(row, 1), &DataType::Duration(TimeUnit::Microsecond))
                .map_err(|fault| SqlError::internal(fault.to_string()))?;
            let micros = nanos.as_primitive::<datafusion::arrow::datatypes::DurationMicrosecondType>().value(0);
            let days = micros / super::datetime::DAY;
            Datum::Interval(Interval { months: 0, days: days as i32, micros: micros - days * super::datetime::DAY })
        }
        DataType::List(_) => list(array.as_list::<i32>().value(row).as_ref(), kind)?,
        DataType::LargeList(_) => list(array.as_list::<i64>().value(row).as_ref(), kind)?,
        DataType::FixedSizeList(..) => list(array.as_fixed_size_list().value(row).as_ref(), kind)?,
        DataType::Dictionary(_, value_type) => {
            let plain = datafusion::arrow::compute::cast(&array.slice(row, 1), value_type)
                .map_err(|fault| SqlError::internal(fault.to_string()))?;
            return datum_at(plain.as_ref(), 0, kind);
        }
        _ => {
            let options = datafusion::arrow::util::display::FormatOptions::default();
            let text = datafusion::arrow::util::display::ArrayFormatter::try_new(array, &options)
                .map_err(|fault| SqlError::internal(fault.to_string()))?;
            Datum::Text(text.value(row).to_string())
        }
    };
    if kind == natural.natural_type() || kind.is_text() && matches!(natural, Datum::Text(_)) {
        return Ok(Some(natural));
    }
    natural.cast(kind, -1).map(Some)
}

/// A value of a decimal type that has no scale of its own, with the scale that it prints with.
#[must_use]
pub fn shown_decimal(value: Numeric, scale: i8) -> Numeric {
    if scale == QUOTIENT_SCALE { value.as_quotient() } else { value.normalized() }
}

/// A decimal as it shall print: with its type's scale where there is one.
fn decimal(value: Numeric, precision: u8, scale: i8) -> Result<Datum, SqlError> {
    if scale < 0 {
        let factor = Numeric::parse(&format!("1e{}", -i32::from(scale)))?;
        let whole = value.checked_mul(factor).ok_or_else(|| SqlError::new("22003", "value overflows numeric format"))?;
        return Ok(Datum::Numeric(whole));
    }
    Ok(Datum::Numeric(if precision == 76 { shown_decimal(value, scale) } else { value }))
}

fn list(items: &dyn Array, kind: PgType) -> Result<Datum, SqlError> {
    let natural = default_type(items.data_type()).0;
    let element = kind.element().unwrap_or(natural);
    let values = (0..items.len()).map(|at| datum_at(items, at, element)).collect::<Result<_, _>>()?;
    Ok(Datum::Array(element, values))
}
