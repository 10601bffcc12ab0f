//! Which way to a table's rows: key ranges and index lookups out of a query's filters.
//!
//! Pure functions. The chosen way may give more rows than the filters let through, never fewer: DataFusion filters again.

use std::ops::Bound;

use datafusion::common::ScalarValue;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator, expr::InList};
use rustydb::ids::PartitionId;
use rustydb::store::ScanRange;

use super::catalog::{Column, Index, Table};
use super::key_codec;
use super::types::Datum;
use super::types::arrow::{arrow_type, datum_at};

/// Most key combinations that are looked up one by one; above it the way is a wider range.
const POINTS_MAX: usize = 4096;

/// A way to rows.
#[derive(Clone, Debug)]
pub enum Access {
    /// These rows, by their whole key.
    Points(Vec<Vec<u8>>),
    /// These stretches of the table.
    Ranges(Vec<ScanRange>),
    /// These stretches of an index, whose entries hold the rows' keys.
    Index {
        /// The index's name.
        name: String,
        /// Its partition.
        partition: PartitionId,
        /// The stretches.
        ranges: Vec<ScanRange>,
    },
}

impl Access {
    /// For EXPLAIN.
    #[must_use]
    pub fn describe(&self, table: &Table) -> String {
        match self {
            Access::Points(keys) => format!("{} key(s) of {}", keys.len(), table.name),
            Access::Ranges(ranges) if ranges.iter().any(|r| *r == ScanRange::all()) => format!("all of {}", table.name),
            Access::Ranges(ranges) => format!("{} key range(s) of {}", ranges.len(), table.name),
            Access::Index { name, ranges, .. } => format!("{} range(s) of index {name} on {}", ranges.len(), table.name),
        }
    }
}

/// What filters say about a column.
#[derive(Default, Clone)]
struct Constraint {
    equal: Option<Vec<Datum>>,
    lower: Option<(Datum, bool)>,
    upper: Option<(Datum, bool)>,
}

fn literal(expr: &Expr, column: &Column) -> Option<Datum> {
    let Expr::Literal(value, _) = expr else { return None };
    if value.is_null() {
        return None;
    }
    scalar_as(value, column)
}

fn scalar_as(value: &ScalarValue, column: &Column) -> Option<Datum> {
    let wanted = arrow_type(column.kind, column.typmod);
    let value = if value.data_type() == wanted { value.clone() } else { exact_cast(value, &wanted)? };
    let array = value.to_array().ok()?;
    datum_at(array.as_ref(), 0, column.kind).ok()?
}

/// A cast that keeps the value: integers among each other and strings among each other.
fn exact_cast(value: &ScalarValue, wanted: &datafusion::arrow::datatypes::DataType) -> Option<ScalarValue> {
    let from = value.data_type();
    let strings = |t: &datafusion::arrow::datatypes::DataType| t.is_string();
    if (from.is_integer() && wanted.is_integer()) || (strings(&from) && strings(wanted)) {
        value.cast_to(wanted).ok()
    } else {
        None
    }
}

fn column_of<'a>(expr: &Expr, table: &'a Table) -> Option<&'a Column> {
    match expr {
        Expr::Column(column) => table.column(&column.name),
        _ => None,
    }
}

fn constrain(table: &Table, expr: &Expr, out: &mut [Constraint]) {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            constrain(table, left, out);
            constrain(table, right, out);
        }
        Expr::BinaryExpr(BinaryExpr { op: Operator::Or, .. }) => {
            if let Some((number, values)) = disjunction(table, expr)
                && out[number].equal.is_none()
            {
                out[number].equal = Some(values);
            }
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let (column, value, op) = match (column_of(left, table), column_of(right, table)) {
                (Some(column), None) => (column, literal(right, column), *op),
                (None, Some(column)) => match op.swap() {
                    Some(op) => (column, literal(left, column), op),
                    None => return,
                },
                _ => return,
            };
            let Some(value) = value else { return };
            let constraint = &mut out[column.number as usize - 1];
            match op {
                Operator::Eq => constraint.equal = Some(vec![value]),
                Operator::Gt | Operator::GtEq if constraint.lower.is_none() => {
                    constraint.lower = Some((value, op == Operator::GtEq));
                }
                Operator::Lt | Operator::LtEq if constraint.upper.is_none() => {
                    constraint.upper = Some((value, op == Operator::LtEq));
                }
                _ => {}
            }
        }
        Expr::Between(between) if !between.negated => {
            let Some(column) = column_of(&between.expr, table) else { return };
            let (low, high) = (literal(&between.low, column), literal(&between.high, column));
            let constraint = &mut out[column.number as usize - 1];
            constraint.lower = constraint.lower.take().or(low.map(|v| (v, true)));
            constraint.upper = constraint.upper.take().or(high.map(|v| (v, true)));
        }
        Expr::InList(InList { expr, list, negated: false }) => {
            let Some(column) = column_of(expr, table) else { return };
            let values: Option<Vec<Datum>> = list.iter().map(|item| literal(item, column)).collect();
            let constraint = &mut out[column.number as usize - 1];
            if let (Some(values), None) = (values, &constraint.equal) {
                constraint.equal = Some(values);
            }
        }
        _ => {}
    }
}

/// `a = 1 OR a = 2 OR ...` over one column.
fn disjunction(table: &Table, expr: &Expr) -> Option<(usize, Vec<Datum>)> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            let (column, mut values) = disjunction(table, left)?;
            let (other, more) = disjunction(table, right)?;
            if column != other {
                return None;
            }
            values.extend(more);
            Some((column, values))
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => {
            let column = column_of(left, table)?;
            Some((column.number as usize - 1, vec![literal(right, column)?]))
        }
        Expr::InList(InList { expr, list, negated: false }) => {
            let column = column_of(expr, table)?;
            let values: Option<Vec<Datum>> = list.iter().map(|item| literal(item, column)).collect();
            Some((column.number as usize - 1, values?))
        }
        _ => None,
    }
}

/// Whether a filter can narrow the way to the rows.
#[must_use]
pub fn is_useful(table: &Table, filter: &Expr) -> bool {
    let mut constraints = vec![Constraint::default(); table.columns.len()];
    constrain(table, filter, &mut constraints);
    constraints.iter().any(|c| c.equal.is_some() || c.lower.is_some() || c.upper.is_some())
}

struct Candidate {
    ranges: Vec<ScanRange>,
    whole: Vec<Vec<u8>>,
    /// Columns bound by equality, then whether one more is bound by a range.
    score: usize,
}

fn candidate(index: &Index, constraints: &[Constraint]) -> Option<Candidate> {
    let mut prefixes: Vec<Vec<u8>> = vec![Vec::new()];
    let mut bound = 0;
    for column in &index.columns {
        let Some(values) = &constraints[column.number as usize - 1].equal else { break };
        if prefixes.len() * values.len().max(1) > POINTS_MAX {
            break;
        }
        let mut longer = Vec::with_capacity(prefixes.len() * values.len());
        for prefix in &prefixes {
            for value in values {
                let mut key = prefix.clone();
                key_codec::put(&mut key, Some(value), column.descending);
                longer.push(key);
            }
        }
        prefixes = longer;
        bound += 1;
    }
    prefixes.sort();
    prefixes.dedup();
    if bound == index.columns.len() {
        let ranges = prefixes.iter().map(|p| ScanRange::prefix(p)).collect();
        return Some(Candidate { ranges, whole: prefixes, score: bound * 2 });
    }
    let next = index.columns[bound];
    let constraint = &constraints[next.number as usize - 1];
    if constraint.lower.is_none() && constraint.upper.is_none() {
        return (bound > 0).then(|| Candidate {
            ranges: prefixes.iter().map(|p| ScanRange::prefix(p)).collect(),
            whole: Vec::new(),
            score: bound * 2,
        });
    }
    let ranges = prefixes
        .iter()
        .map(|prefix| {
            let encode = |value: &Datum| {
                let mut key = prefix.clone();
                key_codec::put(&mut key, Some(value), next.descending);
                key
            };
            let mut range = ScanRange::prefix(prefix);
            let (low, high) = if next.descending {
                (constraint.upper.as_ref(), constraint.lower.as_ref())
            } else {
                (constraint.lower.as_ref(), constraint.upper.as_ref())
            };
            // Longer keys begin with these bytes, so a bound takes all or none of them.
            if let Some((value, inclusive)) = low {
                let key = encode(value);
                range.lower = if *inclusive { Bound::Included(key) } else { after(&key) };
            } else if prefix.is_empty() && matches!(range.lower, Bound::Included(ref k) if k.is_empty()) {
                range.lower = Bound::Unbounded;
            }
            if let Some((value, inclusive)) = high {
                let key = encode(value);
                range.upper = if *inclusive { ScanRange::prefix(&key).upper } else { Bound::Excluded(key) };
            }
            range
        })
        .collect();
    Some(Candidate { ranges, whole: Vec::new(), score: bound * 2 + 1 })
}

fn after(key: &[u8]) -> Bound<Vec<u8>> {
    match ScanRange::prefix(key).upper {
        Bound::Excluded(end) => Bound::Included(end),
        other => other,
    }
}

/// The best way for these filters (which are all to hold).
#[must_use]
pub fn choose(table: &Table, filters: &[Expr]) -> Access {
    let mut constraints = vec![Constraint::default(); table.columns.len()];
    for filter in filters {
        constrain(table, filter, &mut constraints);
    }
    let mut best: Option<(usize, Access)> = None;
    for index in &table.indexes {
        let Some(found) = candidate(index, &constraints) else { continue };
        // The primary key needs no second look-up; a wholly bound unique index gives one row.
        let whole = !found.whole.is_empty();
        let score = found.score * 4 + usize::from(index.primary) * 2 + usize::from(whole && index.unique);
        if best.as_ref().is_none_or(|(other, _)| score > *other) {
            let access = if index.primary && whole {
                Access::Points(found.whole)
            } else if index.primary {
                Access::Ranges(found.ranges)
            } else {
                Access::Index { name: index.name.clone(), partition: PartitionId(index.partition), ranges: found.ranges }
            };
            best = Some((score, access));
        }
    }
    best.map_or_else(|| Access::Ranges(vec![ScanRange::all()]), |(_, access)| access)
}
