//! Rows of pg_type.

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
