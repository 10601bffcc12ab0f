//! The catalog: schemas, tables with their columns, indexes and constraints, views, sequences.
//!
//! A [`Catalog`] is an immutable snapshot that any thread may hold; a change makes a new one. It is stored as rows of
//! [`rustydb::ids::PartitionId::CATALOG`], one JSON document per schema or relation, written in the transaction of the
//! DDL statement (`catalog::cache` reads it back when the engine says that somebody has committed there).

pub mod cache;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::{SqlError, code};
use super::types::{Datum, PgType};

/// PostgreSQL's object identifier.
pub type Oid = u32;

/// pg_catalog.
pub const PG_CATALOG: Oid = 11;
/// public.
pub const PUBLIC: Oid = 2200;
/// information_schema.
pub const INFORMATION_SCHEMA: Oid = 13_000;
/// First oid that users' objects get.
pub const FIRST_USER_OID: Oid = 16_384;
/// Most columns of a table.
pub const COLUMNS_MAX: usize = 1600;

/// A schema.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Schema {
    /// Its oid.
    pub oid: Oid,
    /// Its name.
    pub name: String,
}

/// GENERATED ... AS IDENTITY.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Identity {
    /// Only OVERRIDING SYSTEM VALUE may set it.
    Always,
    /// A default.
    ByDefault,
}

/// A column of a table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Column {
    /// Its number, from 1; never reused.
    pub number: i16,
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: PgType,
    /// The type's modifier, -1 for none.
    pub typmod: i32,
    /// NOT NULL (a primary key's column too).
    pub not_null: bool,
    /// DEFAULT, as SQL.
    pub default: Option<String>,
    /// IDENTITY.
    pub identity: Option<Identity>,
    /// What rows older than the column have, as text of its type.
    pub missing: Option<String>,
    /// DROP COLUMN has taken it away; its place in rows stays.
    pub dropped: bool,
}

impl Column {
    /// One that takes NULL and nothing else is said of.
    #[must_use]
    pub fn new(number: i16, name: String, kind: PgType, typmod: i32) -> Column {
        Column { number, name, kind, typmod, not_null: false, default: None, identity: None, missing: None, dropped: false }
    }
}

/// A column of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexColumn {
    /// Number of the table's column.
    pub number: i16,
    /// DESC.
    pub descending: bool,
}

/// An index of a table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Index {
    /// Its oid.
    pub oid: Oid,
    /// Its name.
    pub name: String,
    /// Where its entries lie; a primary key's is the table's own.
    pub partition: u32,
    /// Its columns.
    pub columns: Vec<IndexColumn>,
    /// No two rows with equal columns, unless one of them is NULL.
    pub unique: bool,
    /// The rows themselves lie in its order.
    pub primary: bool,
    /// Made by a PRIMARY KEY or UNIQUE constraint of the same name.
    pub constraint: bool,
}

/// A CHECK constraint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Check {
    /// Its oid.
    pub oid: Oid,
    /// Its name.
    pub name: String,
    /// The condition, as SQL over the table's columns.
    pub expression: String,
}

/// What a foreign key does when its row goes or changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Refuse, at the statement's end.
    NoAction,
    /// Refuse.
    Restrict,
    /// Do the same to the referencing rows.
    Cascade,
    /// Set the referencing columns to NULL.
    SetNull,
    /// Set the referencing columns to their defaults.
    SetDefault,
}

/// A foreign key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ForeignKey {
    /// Its oid.
    pub oid: Oid,
    /// Its name.
    pub name: String,
    /// Referencing columns (numbers).
    pub columns: Vec<i16>,
    /// The referenced table.
    pub references: Oid,
    /// Referenced columns (numbers), those of a unique index.
    pub referenced_columns: Vec<i16>,
    /// ON DELETE.
    pub on_delete: Action,
    /// ON UPDATE.
    pub on_update: Action,
}

/// A table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Table {
    /// Its oid.
    pub oid: Oid,
    /// Its schema.
    pub schema: Oid,
    /// Its name.
    pub name: String,
    /// Where its rows lie.
    pub partition: u32,
    /// All columns that it ever had, by number.
    pub columns: Vec<Column>,
    /// Its indexes.
    pub indexes: Vec<Index>,
    /// Its CHECK constraints.
    pub checks: Vec<Check>,
    /// Its foreign keys.
    pub foreign_keys: Vec<ForeignKey>,
    /// Grows with each change of the definition.
    pub version: u32,
    /// Storage parameters, accepted and shown.
    pub options: Vec<String>,
}

/// A view.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct View {
    /// Its oid.
    pub oid: Oid,
    /// Its schema.
    pub schema: Oid,
    /// Its name.
    pub name: String,
    /// The query, as SQL.
    pub query: String,
    /// Its columns.
    pub columns: Vec<Column>,
}

/// A sequence.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sequence {
    /// Its oid; also the name of its counter in `store`.
    pub oid: Oid,
    /// Its schema.
    pub schema: Oid,
    /// Its name.
    pub name: String,
    /// smallint, integer or bigint.
    pub kind: PgType,
    /// START.
    pub start: i64,
    /// INCREMENT.
    pub increment: i64,
    /// MINVALUE.
    pub min: i64,
    /// MAXVALUE.
    pub max: i64,
    /// CACHE.
    pub cache: i64,
    /// CYCLE.
    pub cycle: bool,
    /// The column that it goes with (table, number).
    pub owned_by: Option<(Oid, i16)>,
    /// Grows with each setval and RESTART, so that no node goes on with numbers that it had taken before.
    pub restarts: u64,
}

/// A named thing in a schema.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Relation {
    /// A table.
    Table(#[serde(with = "shared")] Arc<Table>),
    /// A view.
    View(#[serde(with = "shared")] Arc<View>),
    /// A sequence.
    Sequence(#[serde(with = "shared")] Arc<Sequence>),
}

/// A shared value is stored as the value (serde's own `rc` feature would rebuild DataFusion for these few lines).
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(value: &Arc<T>, serializer: S) -> Result<S::Ok, S::Error> {
        value.as_ref().serialize(serializer)
    }

    pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<T>, D::Error> {
        T::deserialize(deserializer).map(Arc::new)
    }
}

impl Relation {
    /// Its oid.
    #[must_use]
    pub fn oid(&self) -> Oid {
        match self {
            Relation::Table(t) => t.oid,
            Relation::View(v) => v.oid,
            Relation::Sequence(s) => s.oid,
        }
    }

    /// Its schema.
    #[must_use]
    pub fn schema(&self) -> Oid {
        match self {
            Relation::Table(t) => t.schema,
            Relation::View(v) => v.schema,
            Relation::Sequence(s) => s.schema,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Relation::Table(t) => &t.name,
            Relation::View(v) => &v.name,
            Relation::Sequence(s) => &s.name,
        }
    }
}

impl Table {
    /// The columns that are there, in their order.
    pub fn live_columns(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|c| !c.dropped)
    }

    /// A column by name.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.live_columns().find(|c| c.name == name)
    }

    /// A column by number.
    #[must_use]
    pub fn column_by_number(&self, number: i16) -> &Column {
        &self.columns[usize::from(number as u16) - 1]
    }

    /// The primary key.
    #[must_use]
    pub fn primary_key(&self) -> Option<&Index> {
        self.indexes.iter().find(|i| i.primary)
    }

    /// All indexes but the primary key.
    pub fn secondary_indexes(&self) -> impl Iterator<Item = &Index> {
        self.indexes.iter().filter(|i| !i.primary)
    }

    /// The unique index over exactly these columns, in any order.
    #[must_use]
    pub fn unique_index_on(&self, columns: &[i16]) -> Option<&Index> {
        self.indexes
            .iter()
            .find(|i| i.unique && i.columns.len() == columns.len() && i.columns.iter().all(|c| columns.contains(&c.number)))
    }

    /// What a row older than the column has there.
    #[must_use]
    pub fn missing_value(column: &Column) -> Option<Datum> {
        column.missing.as_deref().and_then(|text| Datum::parse(column.kind, -1, text).ok())
    }
}

/// A snapshot of everything.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// What the engine said before it was read.
    pub generation: u64,
    schemas: BTreeMap<Oid, Arc<Schema>>,
    relations: HashMap<Oid, Relation>,
    names: HashMap<Oid, BTreeMap<String, Oid>>,
    /// Tables that reference a table.
    referencing: HashMap<Oid, Vec<Oid>>,
}

impl Catalog {
    /// With the schemas that are always there.
    #[must_use]
    pub fn empty() -> Catalog {
        let mut catalog = Catalog::default();
        for (oid, name) in [(PG_CATALOG, "pg_catalog"), (PUBLIC, "public"), (INFORMATION_SCHEMA, "information_schema")] {
            catalog.put_schema(Schema { oid, name: name.to_owned() });
        }
        catalog
    }

    /// Adds or replaces a schema.
    pub fn put_schema(&mut self, schema: Schema) {
        self.schemas.insert(schema.oid, Arc::new(schema));
    }

    /// Takes a schema away.
    pub fn remove_schema(&mut self, oid: Oid) {
        self.schemas.remove(&oid);
    }

    /// Adds or replaces a relation.
    pub fn put(&mut self, relation: Relation) {
        self.remove(relation.oid());
        self.names.entry(relation.schema()).or_default().insert(relation.name().to_owned(), relation.oid());
        if let Relation::Table(table) = &relation {
            for index in &table.indexes {
                self.names.entry(table.schema).or_default().insert(index.name.clone(), index.oid);
            }
            for key in &table.foreign_keys {
                let list = self.referencing.entry(key.references).or_default();
                if !list.contains(&table.oid) {
                    list.push(table.oid);
                }
            }
        }
        self.relations.insert(relation.oid(), relation);
    }

    /// Takes a relation away.
    pub fn remove(&mut self, oid: Oid) {
        let Some(old) = self.relations.remove(&oid) else { return };
        let names = self.names.entry(old.schema()).or_default();
        names.remove(old.name());
        if let Relation::Table(table) = &old {
            for index in &table.indexes {
                names.remove(&index.name);
            }
            for key in &table.foreign_keys {
                if let Some(list) = self.referencing.get_mut(&key.references) {
                    list.retain(|t| *t != oid);
                }
            }
        }
    }

    /// All schemas.
    pub fn schemas(&self) -> impl Iterator<Item = &Arc<Schema>> {
        self.schemas.values()
    }

    /// All tables, views and sequences, in no order.
    pub fn relations(&self) -> impl Iterator<Item = &Relation> {
        self.relations.values()
    }

    /// A schema by name.
    #[must_use]
    pub fn schema(&self, name: &str) -> Option<&Arc<Schema>> {
        self.schemas.values().find(|s| s.name == name)
    }

    /// A schema by oid.
    #[must_use]
    pub fn schema_by_oid(&self, oid: Oid) -> Option<&Arc<Schema>> {
        self.schemas.get(&oid)
    }

    /// A schema's name, for messages.
    #[must_use]
    pub fn schema_name(&self, oid: Oid) -> &str {
        self.schemas.get(&oid).map_or("?", |s| &s.name)
    }

    /// A relation by oid.
    #[must_use]
    pub fn relation(&self, oid: Oid) -> Option<&Relation> {
        self.relations.get(&oid)
    }

    /// A table by oid.
    #[must_use]
    pub fn table(&self, oid: Oid) -> Option<&Arc<Table>> {
        match self.relations.get(&oid) {
            Some(Relation::Table(table)) => Some(table),
            _ => None,
        }
    }

    /// A relation by schema and name; not an index.
    #[must_use]
    pub fn find(&self, schema: Oid, name: &str) -> Option<&Relation> {
        self.relations.get(self.names.get(&schema)?.get(name)?)
    }

    /// Whether the name is taken in the schema, by an index too.
    #[must_use]
    pub fn name_taken(&self, schema: Oid, name: &str) -> bool {
        self.names.get(&schema).is_some_and(|names| names.contains_key(name))
    }

    /// The index of that name, with its table.
    #[must_use]
    pub fn find_index(&self, schema: Oid, name: &str) -> Option<(&Arc<Table>, &Index)> {
        let oid = *self.names.get(&schema)?.get(name)?;
        self.index_by_oid(oid)
    }

    /// The index with that oid, with its table.
    #[must_use]
    pub fn index_by_oid(&self, oid: Oid) -> Option<(&Arc<Table>, &Index)> {
        self.relations.values().find_map(|relation| match relation {
            Relation::Table(table) => table.indexes.iter().find(|i| i.oid == oid).map(|i| (table, i)),
            _ => None,
        })
    }

    /// The foreign keys of other tables (and its own) that point at this table.
    pub fn references_to(&self, table: Oid) -> impl Iterator<Item = (&Arc<Table>, &ForeignKey)> {
        self.referencing
            .get(&table)
            .into_iter()
            .flatten()
            .filter_map(|oid| self.table(*oid))
            .flat_map(move |from| from.foreign_keys.iter().filter(move |k| k.references == table).map(move |k| (from, k)))
    }

    /// Resolves a name along a search path.
    #[must_use]
    pub fn resolve(&self, schema: Option<&str>, name: &str, search_path: &[String]) -> Option<&Relation> {
        match schema {
            Some(schema) => self.find(self.schema(schema)?.oid, name),
            None => search_path.iter().filter_map(|s| self.schema(s)).find_map(|s| self.find(s.oid, name)),
        }
    }

    /// As [`Catalog::resolve`] for a table.
    ///
    /// # Errors
    /// `42P01` when there is none, `42809` when it is something else.
    pub fn resolve_table(&self, schema: Option<&str>, name: &str, search_path: &[String]) -> Result<&Arc<Table>, SqlError> {
        match self.resolve(schema, name, search_path) {
            Some(Relation::Table(table)) => Ok(table),
            Some(_) => Err(SqlError::new(code::WRONG_OBJECT_TYPE, format!("\"{name}\" is not a table"))),
            None => Err(undefined_table(schema, name)),
        }
    }
}

/// `42P01`.
#[must_use]
pub fn undefined_table(schema: Option<&str>, name: &str) -> SqlError {
    let shown = schema.map_or_else(|| name.to_owned(), |s| format!("{s}.{name}"));
    SqlError::new(code::UNDEFINED_TABLE, format!("relation \"{shown}\" does not exist"))
}
