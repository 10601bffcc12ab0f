//! What a running statement works with.
//!
//! Made per statement by the session; cheap to clone, so that a stream of rows can take one along.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::sql::sqlparser::ast;

use super::catalog::{Catalog, Oid, Sequence};
use super::core::SessionCore;
use super::database::Database;
use super::error::{SqlError, code};
use super::plan::{Parameter, Planner};
use super::rewrite::Env;
use super::types::{Datum, PgType};

/// currval and lastval of a session.
#[derive(Default)]
pub struct SequenceMemory {
    /// By sequence.
    pub values: HashMap<Oid, i64>,
    /// Of the last nextval.
    pub last: Option<i64>,
}

/// See the module.
#[derive(Clone)]
pub struct Context {
    /// The node's.
    pub db: Arc<Database>,
    /// The session's.
    pub core: Arc<SessionCore>,
    /// What the statement sees.
    pub catalog: Arc<Catalog>,
    /// What its expressions may ask.
    pub env: Arc<Env>,
    /// currval and lastval.
    pub sequences: Arc<Mutex<SequenceMemory>>,
    /// Parameters with their values.
    pub parameters: Arc<Vec<Parameter>>,
}

impl Context {
    /// A planner over this view.
    #[must_use]
    pub fn planner(&self) -> Planner<'_> {
        Planner::new(&self.db, &self.catalog, &self.core, &self.env).with_function(super::sequences::nextval(self))
    }

    /// The parameters' types.
    #[must_use]
    pub fn parameter_types(&self) -> Vec<PgType> {
        self.parameters.iter().map(|(kind, _)| *kind).collect()
    }

    /// The parameters' values.
    #[must_use]
    pub fn parameter_values(&self) -> Vec<Option<Datum>> {
        self.parameters.iter().map(|(_, value)| value.clone()).collect()
    }

    /// A schema's name.
    #[must_use]
    pub fn schema_name(&self, oid: Oid) -> &str {
        self.catalog.schema_name(oid)
    }

    /// Evaluates an expression without columns by DataFusion.
    ///
    /// # Errors
    /// Everything that can be wrong with it.
    pub async fn evaluate(&self, expr: &ast::Expr) -> Result<Option<Datum>, SqlError> {
        let query = super::parse::parse_query(&format!("SELECT {expr}"))?;
        let (plan, batches) = self.planner().collect(&query, &self.parameters).await?;
        let columns = super::plan::columns_of(&plan);
        if let Some(batch) = batches.iter().find(|b| b.num_rows() > 0) {
            return Ok(super::plan::batch_rows(batch, &columns)?.swap_remove(0).swap_remove(0));
        }
        Ok(None)
    }

    /// nextval.
    ///
    /// # Errors
    /// `2200H` at the sequence's end, and the store's.
    pub async fn nextval(&self, sequence: &Sequence) -> Result<i64, SqlError> {
        let number = self.db.number(u64::from(sequence.oid), sequence.restarts, 64).await?;
        let value = sequence.value_at(number)?;
        let mut memory = self.sequences.lock().unwrap_or_else(PoisonError::into_inner);
        memory.values.insert(sequence.oid, value);
        memory.last = Some(value);
        Ok(value)
    }
}

/// Counters of sequences begin here, so that they can be set back below their start.
pub const SEQUENCE_ORIGIN: u64 = 1 << 62;

impl Sequence {
    /// The value at a place of its counter.
    ///
    /// # Errors
    /// `2200H` beyond its bounds.
    pub fn value_at(&self, counter: u64) -> Result<i64, SqlError> {
        let steps = i128::from(counter) - i128::from(SEQUENCE_ORIGIN);
        let mut value = i128::from(self.start) + steps * i128::from(self.increment);
        if self.cycle {
            let (low, span) = (i128::from(self.min), i128::from(self.max) - i128::from(self.min) + 1);
            value = low + (value - low).rem_euclid(span);
        }
        if value > i128::from(self.max) {
            return Err(SqlError::new(
                code::SEQUENCE_LIMIT_EXCEEDED,
                format!("nextval: reached maximum value of sequence \"{}\" ({})", self.name, self.max),
            ));
        }
        if value < i128::from(self.min) {
            return Err(SqlError::new(
                code::SEQUENCE_LIMIT_EXCEEDED,
                format!("nextval: reached minimum value of sequence \"{}\" ({})", self.name, self.min),
            ));
        }
        Ok(value as i64)
    }

    /// The place in its counter where the next value is `value`.
    ///
    /// # Errors
    /// `22003` out of bounds, `0A000` off its steps.
    pub fn counter_at(&self, value: i64) -> Result<u64, SqlError> {
        if !(self.min..=self.max).contains(&value) {
            return Err(SqlError::new(
                code::NUMERIC_VALUE_OUT_OF_RANGE,
                format!("setval: value {value} is out of bounds for sequence \"{}\" ({}..{})", self.name, self.min, self.max),
            ));
        }
        let distance = i128::from(value) - i128::from(self.start);
        if distance % i128::from(self.increment) != 0 {
            return Err(SqlError::unsupported("setting a sequence to a value off its steps"));
        }
        u64::try_from(i128::from(SEQUENCE_ORIGIN) + distance / i128::from(self.increment))
            .map_err(|_| SqlError::new(code::NUMERIC_VALUE_OUT_OF_RANGE, "sequence out of range"))
    }
}
