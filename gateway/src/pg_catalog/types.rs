//! Rows of pg_type, and the operator classes of the types that an index can be on.

use super::{Spec, int2, oid, text, yes};
use crate::sql::types::{PgType, Row};

pub(super) fn pg_type(spec: &Spec) -> Vec<Row> {
    PgType::ALL
        .iter()
        .map(|kind| {
            let element = kind.element().map_or(0, PgType::oid);
            let by_value = (1..=8).contains(&kind.length());
            let procedure = if kind.name().starts_with('_') { "array_" } else { kind.name() };
            spec.row(&[
                ("oid", oid(kind.oid())),
                ("typname", text(kind.name())),
                ("typlen", int2(kind.length())),
                ("typbyval", yes(by_value)),
                ("typtype", text(if *kind == PgType::Void || *kind == PgType::Unknown { "p" } else { "b" })),
                ("typcategory", text(kind.category())),
                ("typelem", oid(element)),
                ("typarray", oid(kind.array_oid())),
                ("typinput", text(format!("{procedure}in"))),
                ("typoutput", text(format!("{procedure}out"))),
                ("typreceive", text(format!("{procedure}recv"))),
                ("typsend", text(format!("{procedure}send"))),
                ("typcollation", oid(if kind.category() == 'S' { 100 } else { 0 })),
            ])
        })
        .collect()
}

/// Default btree operator classes: the type, the class's oid and its family's.
pub(super) const OPERATOR_CLASSES: [(PgType, u32, u32); 20] = [
    (PgType::Bool, 10_003, 424),
    (PgType::Bpchar, 10_004, 426),
    (PgType::Bytea, 10_006, 428),
    (PgType::Char, 10_007, 429),
    (PgType::Date, 3122, 434),
    (PgType::Float4, 10_012, 1970),
    (PgType::Float8, 3123, 1970),
    (PgType::Int2, 1979, 1976),
    (PgType::Int4, 1978, 1976),
    (PgType::Int8, 3124, 1976),
    (PgType::Interval, 10_022, 1982),
    (PgType::Name, 10_028, 1994),
    (PgType::Numeric, 3125, 1988),
    (PgType::Oid, 1981, 1989),
    (PgType::Text, 3126, 1994),
    (PgType::Time, 10_038, 1996),
    (PgType::Timestamptz, 3127, 434),
    (PgType::Timestamp, 3128, 434),
    (PgType::Uuid, 10_065, 2968),
    (PgType::Jsonb, 10_088, 4033),
];

/// The default operator class of a type; 0 where there is none.
pub(super) fn operator_class(kind: PgType) -> u32 {
    let kind = if kind == PgType::Varchar { PgType::Text } else { kind };
    OPERATOR_CLASSES.iter().find(|(of, _, _)| *of == kind).map_or(0, |(_, id, _)| *id)
}
