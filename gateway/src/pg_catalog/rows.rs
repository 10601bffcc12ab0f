//! Rows of the pg_catalog tables, made from the catalog.

use super::definitions::{action_letter, index_definition};
use super::{Asker, Spec, int2, int4, int8, oid, text, types, yes};
use crate::sql::catalog::{Catalog, Identity, Index, Oid, PG_CATALOG, Relation, Table};
use crate::sql::types::{Datum, PgType, Row};

/// The one role.
pub(super) const OWNER: Oid = 10;
/// The database.
pub(super) const DATABASE: Oid = 5;
/// Oids of the catalogs that others refer to.
pub(super) const PG_CLASS: Oid = 1259;
const BTREE: Oid = 403;
const HEAP: Oid = 2;
const DEFAULT_COLLATION: Oid = 100;

pub(super) fn rows(asker: &Asker, name: &str, spec: &Spec) -> Vec<Row> {
    let catalog = &asker.catalog;
    match name {
        "pg_namespace" => {
            catalog.schemas().map(|schema| spec.row(&[("oid", oid(schema.oid)), ("nspname", text(&schema.name))])).collect()
        }
        "pg_class" => catalog.relations().flat_map(|relation| pg_class(catalog, spec, relation)).collect(),
        "pg_attribute" => catalog.relations().flat_map(|relation| pg_attribute(spec, relation)).collect(),
        "pg_type" => types::pg_type(spec),
        "pg_index" => tables(asker).flat_map(|table| pg_index(spec, table)).collect(),
        "pg_constraint" => tables(asker).flat_map(|table| pg_constraint(asker, spec, table)).collect(),
        "pg_attrdef" => tables(asker).flat_map(|table| pg_attrdef(spec, table)).collect(),
        "pg_database" => vec![spec.row(&[("oid", oid(DATABASE)), ("datname", text(&asker.database))])],
        "pg_roles" | "pg_authid" => vec![spec.row(&[("oid", oid(OWNER)), ("rolname", text("postgres"))])],
        "pg_user" => vec![spec.row(&[("usesysid", oid(OWNER)), ("usename", text("postgres"))])],
        "pg_am" => [(HEAP, "heap", "t"), (BTREE, "btree", "i")]
            .into_iter()
            .map(|(id, name, kind)| spec.row(&[("oid", oid(id)), ("amname", text(name)), ("amtype", text(kind))]))
            .collect(),
        "pg_collation" => [(DEFAULT_COLLATION, "default"), (950, "C"), (951, "POSIX")]
            .into_iter()
            .map(|(id, name)| spec.row(&[("oid", oid(id)), ("collname", text(name))]))
            .collect(),
        "pg_sequence" => catalog.relations().filter_map(|relation| pg_sequence(spec, relation)).collect(),
        "pg_depend" => catalog.relations().filter_map(|relation| pg_depend(spec, relation)).collect(),
        "pg_tablespace" => [(1663, "pg_default"), (1664, "pg_global")]
            .into_iter()
            .map(|(id, name)| spec.row(&[("oid", oid(id)), ("spcname", text(name))]))
            .collect(),
        "pg_language" => [(12, "internal"), (14, "sql")]
            .into_iter()
            .map(|(id, name)| spec.row(&[("oid", oid(id)), ("lanname", text(name))]))
            .collect(),
        "pg_settings" => asker
            .settings
            .iter()
            .map(|(name, value, description)| {
                spec.row(&[
                    ("name", text(name)),
                    ("setting", text(value)),
                    ("short_desc", text(description)),
                    ("boot_val", text(value)),
                    ("reset_val", text(value)),
                ])
            })
            .collect(),
        "pg_tables" | "pg_stat_user_tables" => tables(asker)
            .map(|table| {
                let schema = text(catalog.schema_name(table.schema));
                if name == "pg_tables" {
                    spec.row(&[
                        ("schemaname", schema),
                        ("tablename", text(&table.name)),
                        ("tableowner", text("postgres")),
                        ("hasindexes", yes(!table.indexes.is_empty())),
                    ])
                } else {
                    spec.row(&[("relid", oid(table.oid)), ("schemaname", schema), ("relname", text(&table.name))])
                }
            })
            .collect(),
        "pg_indexes" => tables(asker)
            .flat_map(|table| {
                table.indexes.iter().map(|index| {
                    spec.row(&[
                        ("schemaname", text(catalog.schema_name(table.schema))),
                        ("tablename", text(&table.name)),
                        ("indexname", text(&index.name)),
                        ("indexdef", text(index_definition(catalog, table, index))),
                    ])
                })
            })
            .collect(),
        "pg_views" => catalog
            .relations()
            .filter_map(|relation| {
                let Relation::View(view) = relation else { return None };
                Some(spec.row(&[
                    ("schemaname", text(catalog.schema_name(view.schema))),
                    ("viewname", text(&view.name)),
                    ("viewowner", text("postgres")),
                    ("definition", text(format!(" {};", view.query))),
                ]))
            })
            .collect(),
        "pg_opclass" => types::OPERATOR_CLASSES
            .iter()
            .map(|(kind, id, family)| {
                spec.row(&[
                    ("oid", oid(*id)),
                    ("opcmethod", oid(BTREE)),
                    ("opcname", text(format!("{}_ops", kind.name()))),
                    ("opcnamespace", oid(PG_CATALOG)),
                    ("opcowner", oid(OWNER)),
                    ("opcfamily", oid(*family)),
                    ("opcintype", oid(kind.oid())),
                    ("opcdefault", yes(true)),
                    ("opckeytype", oid(0)),
                ])
            })
            .collect(),
        "pg_timezone_names" => vec![spec.row(&[("name", text("UTC")), ("abbrev", text("UTC")), ("is_dst", yes(false))])],
        "pg_get_keywords" => super::definitions::RESERVED.iter().map(|word| spec.row(&[("word", text(*word))])).collect(),
        "pg_sequences" => catalog
            .relations()
            .filter_map(|relation| {
                let Relation::Sequence(sequence) = relation else { return None };
                Some(spec.row(&[
                    ("schemaname", text(catalog.schema_name(sequence.schema))),
                    ("sequencename", text(&sequence.name)),
                    ("sequenceowner", text("postgres")),
                    ("data_type", text(sequence.kind.sql_name())),
                    ("start_value", int8(sequence.start)),
                    ("min_value", int8(sequence.min)),
                    ("max_value", int8(sequence.max)),
                    ("increment_by", int8(sequence.increment)),
                    ("cycle", yes(sequence.cycle)),
                    ("cache_size", int8(sequence.cache)),
                ]))
            })
            .collect(),
        _ => Vec::new(),
    }
}

pub(super) fn tables(asker: &Asker) -> impl Iterator<Item = &Table> {
    asker.catalog.relations().filter_map(|relation| match relation {
        Relation::Table(table) => Some(table.as_ref()),
        _ => None,
    })
}

fn pg_class(catalog: &Catalog, spec: &Spec, relation: &Relation) -> Vec<Row> {
    let base = |kind: &str, columns: usize| {
        vec![
            ("oid", oid(relation.oid())),
            ("relname", text(relation.name())),
            ("relnamespace", oid(relation.schema())),
            ("relkind", text(kind)),
            ("relnatts", int2(columns as i16)),
            ("relfilenode", oid(relation.oid())),
        ]
    };
    match relation {
        Relation::View(view) => {
            let mut cells = base("v", view.columns.len());
            cells.extend([("relhasrules", yes(true)), ("relreplident", text("n"))]);
            vec![spec.row(&cells)]
        }
        Relation::Sequence(_) => vec![spec.row(&base("S", 3))],
        Relation::Table(table) => {
            let mut cells = base("r", table.columns.len());
            cells.extend([
                ("relam", oid(HEAP)),
                ("relhasindex", yes(!table.indexes.is_empty())),
                ("relchecks", int2(table.checks.len() as i16)),
                ("relhastriggers", yes(!table.foreign_keys.is_empty() || catalog.references_to(table.oid).next().is_some())),
            ]);
            if !table.options.is_empty() {
                let options = table.options.iter().map(text).collect();
                cells.push(("reloptions", Some(Datum::Array(PgType::Text, options))));
            }
            let mut rows = vec![spec.row(&cells)];
            rows.extend(table.indexes.iter().map(|index| {
                spec.row(&[
                    ("oid", oid(index.oid)),
                    ("relname", text(&index.name)),
                    ("relnamespace", oid(table.schema)),
                    ("relkind", text("i")),
                    ("relam", oid(BTREE)),
                    ("relnatts", int2(index.columns.len() as i16)),
                    ("relfilenode", oid(index.oid)),
                    ("relreplident", text("n")),
                    ("relpages", int4(1)),
                    ("reltuples", Some(Datum::Float4(0.0))),
                ])
            }));
            rows
        }
    }
}

fn pg_attribute(spec: &Spec, relation: &Relation) -> Vec<Row> {
    let (owner, columns) = match relation {
        Relation::Table(table) => (table.oid, table.columns.as_slice()),
        Relation::View(view) => (view.oid, view.columns.as_slice()),
        Relation::Sequence(_) => return Vec::new(),
    };
    let row = |relation: Oid, number: i16, column: &crate::sql::catalog::Column| {
        let identity = match column.identity {
            Some(Identity::Always) => "a",
            Some(Identity::ByDefault) => "d",
            None => "",
        };
        let name = if column.dropped { format!("........pg.dropped.{number}........") } else { column.name.clone() };
        spec.row(&[
            ("attrelid", oid(relation)),
            ("attname", text(name)),
            ("atttypid", oid(if column.dropped { 0 } else { column.kind.oid() })),
            ("attlen", int2(column.kind.length())),
            ("attnum", int2(number)),
            ("atttypmod", int4(column.typmod)),
            ("attnotnull", yes(column.not_null)),
            ("atthasdef", yes(column.default.is_some() && column.identity.is_none())),
            ("attidentity", text(identity)),
            ("attisdropped", yes(column.dropped)),
            ("attstorage", text(storage(column.kind))),
            ("attcollation", oid(if column.kind.category() == 'S' { DEFAULT_COLLATION } else { 0 })),
        ])
    };
    let mut rows: Vec<Row> = columns.iter().map(|column| row(owner, column.number, column)).collect();
    if let Relation::Table(table) = relation {
        for index in &table.indexes {
            let columns = index.columns.iter().zip(1..);
            rows.extend(columns.map(|(column, number)| row(index.oid, number, table.column_by_number(column.number))));
        }
    }
    rows
}

fn storage(kind: PgType) -> &'static str {
    match kind {
        PgType::Numeric => "m",
        _ if kind.length() < 0 => "x",
        _ => "p",
    }
}

fn numbers(values: impl IntoIterator<Item = i16>) -> Option<Datum> {
    Some(Datum::Array(PgType::Int2, values.into_iter().map(int2).collect()))
}

fn pg_index(spec: &Spec, table: &Table) -> Vec<Row> {
    let oids = |index: &Index, of: fn(PgType) -> Oid| {
        let kinds = index.columns.iter().map(|column| table.column_by_number(column.number).kind);
        Some(Datum::Array(PgType::Oid, kinds.map(|kind| oid(of(kind))).collect()))
    };
    let row = |index: &Index| {
        let count = index.columns.len();
        spec.row(&[
            ("indexrelid", oid(index.oid)),
            ("indrelid", oid(table.oid)),
            ("indnatts", int2(count as i16)),
            ("indnkeyatts", int2(count as i16)),
            ("indisunique", yes(index.unique)),
            ("indisprimary", yes(index.primary)),
            ("indkey", numbers(index.columns.iter().map(|column| column.number))),
            ("indcollation", oids(index, |kind| if kind.category() == 'S' { DEFAULT_COLLATION } else { 0 })),
            ("indclass", oids(index, types::operator_class)),
            ("indoption", numbers(index.columns.iter().map(|column| if column.descending { 3 } else { 0 }))),
        ])
    };
    table.indexes.iter().map(row).collect()
}

fn pg_constraint(asker: &Asker, spec: &Spec, table: &Table) -> Vec<Row> {
    let mut rows = Vec::new();
    let base = |id: Oid, name: &str, kind: &str| {
        vec![
            ("oid", oid(id)),
            ("conname", text(name)),
            ("connamespace", oid(table.schema)),
            ("contype", text(kind)),
            ("conrelid", oid(table.oid)),
        ]
    };
    for index in table.indexes.iter().filter(|index| index.primary || index.constraint) {
        let mut cells = base(constraint_oid(index.oid), &index.name, if index.primary { "p" } else { "u" });
        cells.push(("conindid", oid(index.oid)));
        cells.push(("conkey", numbers(index.columns.iter().map(|column| column.number))));
        rows.push(spec.row(&cells));
    }
    for check in &table.checks {
        let mut cells = base(check.oid, &check.name, "c");
        cells.extend([("conbin", text(&check.expression)), ("connoinherit", yes(false))]);
        rows.push(spec.row(&cells));
    }
    for key in &table.foreign_keys {
        let parent = asker.catalog.table(key.references);
        let index = parent.and_then(|parent| parent.unique_index_on(&key.referenced_columns)).map_or(0, |index| index.oid);
        let mut cells = base(key.oid, &key.name, "f");
        cells.extend([
            ("conindid", oid(index)),
            ("confrelid", oid(key.references)),
            ("confupdtype", text(action_letter(key.on_update))),
            ("confdeltype", text(action_letter(key.on_delete))),
            ("confmatchtype", text("s")),
            ("conkey", numbers(key.columns.iter().copied())),
            ("confkey", numbers(key.referenced_columns.iter().copied())),
        ]);
        rows.push(spec.row(&cells));
    }
    rows
}

/// An index and the constraint that made it are one thing here and two in PostgreSQL: the constraint's oid is the
/// index's with the top bit set.
pub(super) const fn constraint_oid(index: Oid) -> Oid {
    index | 1 << 31
}

fn pg_attrdef(spec: &Spec, table: &Table) -> Vec<Row> {
    table
        .live_columns()
        .filter(|column| column.identity.is_none())
        .filter_map(|column| {
            let default = column.default.as_ref()?;
            Some(spec.row(&[
                ("oid", oid(table.oid ^ (u32::from(column.number as u16) << 20))),
                ("adrelid", oid(table.oid)),
                ("adnum", int2(column.number)),
                ("adbin", text(super::deparse::default(default, column.kind))),
            ]))
        })
        .collect()
}

fn pg_sequence(spec: &Spec, relation: &Relation) -> Option<Row> {
    let Relation::Sequence(sequence) = relation else { return None };
    Some(spec.row(&[
        ("seqrelid", oid(sequence.oid)),
        ("seqtypid", oid(sequence.kind.oid())),
        ("seqstart", int8(sequence.start)),
        ("seqincrement", int8(sequence.increment)),
        ("seqmax", int8(sequence.max)),
        ("seqmin", int8(sequence.min)),
        ("seqcache", int8(sequence.cache)),
        ("seqcycle", yes(sequence.cycle)),
    ]))
}

fn pg_depend(spec: &Spec, relation: &Relation) -> Option<Row> {
    let Relation::Sequence(sequence) = relation else { return None };
    let (table, column) = sequence.owned_by?;
    Some(spec.row(&[
        ("classid", oid(PG_CLASS)),
        ("objid", oid(sequence.oid)),
        ("objsubid", int4(0)),
        ("refclassid", oid(PG_CLASS)),
        ("refobjid", oid(table)),
        ("refobjsubid", int4(i32::from(column))),
        ("deptype", text("a")),
    ]))
}
