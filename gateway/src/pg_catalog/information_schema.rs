//! Rows of the information_schema views (SQL:2016 part 11, with PostgreSQL's choices where the standard leaves some).

use super::definitions::{action_words, check_definition};
use super::rows::tables;
use super::{Asker, Spec, int4, text};
use crate::sql::catalog::{Column, Identity, Relation, Table};
use crate::sql::types::{Datum, PgType, Row, numeric_typmod};

type Cells<'a> = Vec<(&'a str, Option<Datum>)>;

pub(super) fn rows(asker: &Asker, name: &str, spec: &Spec) -> Vec<Row> {
    let catalog = &asker.catalog;
    let database = || text(&asker.database);
    match name {
        "schemata" => catalog
            .schemas()
            .map(|schema| {
                spec.row(&[("catalog_name", database()), ("schema_name", text(&schema.name)), ("schema_owner", text("postgres"))])
            })
            .collect(),
        "tables" => catalog
            .relations()
            .filter_map(|relation| {
                let (kind, insertable) = match relation {
                    Relation::Table(_) => ("BASE TABLE", "YES"),
                    Relation::View(_) => ("VIEW", "NO"),
                    Relation::Sequence(_) => return None,
                };
                Some(spec.row(&[
                    ("table_catalog", database()),
                    ("table_schema", text(catalog.schema_name(relation.schema()))),
                    ("table_name", text(relation.name())),
                    ("table_type", text(kind)),
                    ("is_insertable_into", text(insertable)),
                ]))
            })
            .collect(),
        "columns" => catalog
            .relations()
            .flat_map(|relation| {
                let columns: &[Column] = match relation {
                    Relation::Table(table) => &table.columns,
                    Relation::View(view) => &view.columns,
                    Relation::Sequence(_) => &[],
                };
                columns.iter().filter(|column| !column.dropped).map(|column| spec.row(&column_cells(asker, relation, column)))
            })
            .collect(),
        "table_constraints" => constraints(asker)
            .map(|(table, name, kind)| {
                let mut cells = constraint_cells(asker, table, &name);
                cells.extend(table_cells(asker, table));
                cells.push(("constraint_type", text(kind)));
                spec.row(&cells)
            })
            .collect(),
        "key_column_usage" => tables(asker).flat_map(|table| key_column_usage(asker, spec, table)).collect(),
        "constraint_column_usage" => tables(asker).flat_map(|table| constraint_column_usage(asker, spec, table)).collect(),
        "referential_constraints" => tables(asker)
            .flat_map(|table| {
                table.foreign_keys.iter().map(move |key| {
                    let mut cells = constraint_cells(asker, table, &key.name);
                    if let Some(parent) = catalog.table(key.references) {
                        let index = parent.unique_index_on(&key.referenced_columns).map(|index| index.name.clone());
                        cells.extend([
                            ("unique_constraint_catalog", database()),
                            ("unique_constraint_schema", text(catalog.schema_name(parent.schema))),
                            ("unique_constraint_name", index.map(Datum::Text)),
                        ]);
                    }
                    cells.extend([
                        ("update_rule", text(action_words(key.on_update))),
                        ("delete_rule", text(action_words(key.on_delete))),
                    ]);
                    spec.row(&cells)
                })
            })
            .collect(),
        "check_constraints" => tables(asker)
            .flat_map(|table| {
                table.checks.iter().map(move |check| {
                    let mut cells = constraint_cells(asker, table, &check.name);
                    let definition = check_definition(table, check, false);
                    cells.push(("check_clause", text(definition.trim_start_matches("CHECK "))));
                    spec.row(&cells)
                })
            })
            .collect(),
        "views" => catalog
            .relations()
            .filter_map(|relation| {
                let Relation::View(view) = relation else { return None };
                Some(spec.row(&[
                    ("table_catalog", database()),
                    ("table_schema", text(catalog.schema_name(view.schema))),
                    ("table_name", text(&view.name)),
                    ("view_definition", text(format!(" {};", view.query))),
                ]))
            })
            .collect(),
        "sequences" => catalog
            .relations()
            .filter_map(|relation| {
                let Relation::Sequence(sequence) = relation else { return None };
                Some(spec.row(&[
                    ("sequence_catalog", database()),
                    ("sequence_schema", text(catalog.schema_name(sequence.schema))),
                    ("sequence_name", text(&sequence.name)),
                    ("data_type", text(sequence.kind.sql_name())),
                    ("numeric_precision", int4(i32::from(sequence.kind.length()) * 8)),
                    ("start_value", text(sequence.start.to_string())),
                    ("minimum_value", text(sequence.min.to_string())),
                    ("maximum_value", text(sequence.max.to_string())),
                    ("increment", text(sequence.increment.to_string())),
                    ("cycle_option", text(if sequence.cycle { "YES" } else { "NO" })),
                ]))
            })
            .collect(),
        _ => Vec::new(),
    }
}

fn constraint_cells<'a>(asker: &Asker, table: &Table, name: &str) -> Cells<'a> {
    vec![
        ("constraint_catalog", text(&asker.database)),
        ("constraint_schema", text(asker.catalog.schema_name(table.schema))),
        ("constraint_name", text(name)),
    ]
}

fn table_cells<'a>(asker: &Asker, table: &Table) -> Cells<'a> {
    vec![
        ("table_catalog", text(&asker.database)),
        ("table_schema", text(asker.catalog.schema_name(table.schema))),
        ("table_name", text(&table.name)),
    ]
}

fn constraints(asker: &Asker) -> impl Iterator<Item = (&Table, String, &'static str)> {
    tables(asker).flat_map(|table| {
        let keys = table.indexes.iter().filter(|index| index.primary || index.constraint);
        let keys = keys.map(move |index| (table, index.name.clone(), if index.primary { "PRIMARY KEY" } else { "UNIQUE" }));
        let checks = table.checks.iter().map(move |check| (table, check.name.clone(), "CHECK"));
        let foreign = table.foreign_keys.iter().map(move |key| (table, key.name.clone(), "FOREIGN KEY"));
        keys.chain(checks).chain(foreign)
    })
}

fn key_column_usage(asker: &Asker, spec: &Spec, table: &Table) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |name: &str, columns: Vec<i16>, referenced: Option<Vec<i32>>| {
        for (at, number) in columns.into_iter().enumerate() {
            let mut cells = constraint_cells(asker, table, name);
            cells.extend(table_cells(asker, table));
            cells.extend([
                ("column_name", text(&table.column_by_number(number).name)),
                ("ordinal_position", int4(at as i32 + 1)),
                ("position_in_unique_constraint", referenced.as_ref().and_then(|positions| int4(positions[at]))),
            ]);
            rows.push(spec.row(&cells));
        }
    };
    for index in table.indexes.iter().filter(|index| index.primary || index.constraint) {
        add(&index.name, index.columns.iter().map(|column| column.number).collect(), None);
    }
    for key in &table.foreign_keys {
        let parent = asker.catalog.table(key.references);
        let index = parent.and_then(|parent| parent.unique_index_on(&key.referenced_columns));
        let position = |number: &i16| {
            let at = index.and_then(|index| index.columns.iter().position(|column| column.number == *number));
            at.map_or(0, |at| at as i32 + 1)
        };
        add(&key.name, key.columns.clone(), Some(key.referenced_columns.iter().map(position).collect()));
    }
    rows
}

fn constraint_column_usage(asker: &Asker, spec: &Spec, table: &Table) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |name: &str, owner: &Table, numbers: &[i16]| {
        for number in numbers {
            let mut cells = table_cells(asker, owner);
            cells.push(("column_name", text(&owner.column_by_number(*number).name)));
            cells.extend(constraint_cells(asker, table, name));
            rows.push(spec.row(&cells));
        }
    };
    for index in table.indexes.iter().filter(|index| index.primary || index.constraint) {
        let numbers: Vec<i16> = index.columns.iter().map(|column| column.number).collect();
        add(&index.name, table, &numbers);
    }
    for key in &table.foreign_keys {
        if let Some(parent) = asker.catalog.table(key.references) {
            add(&key.name, parent, &key.referenced_columns);
        }
    }
    rows
}

fn column_cells<'a>(asker: &Asker, relation: &Relation, column: &Column) -> Cells<'a> {
    let live = match relation {
        Relation::Table(table) => table.live_columns().position(|other| other.number == column.number),
        _ => None,
    };
    let position = live.map_or(i32::from(column.number), |at| at as i32 + 1);
    let kind = column.kind;
    let data_type = if kind.element().is_some() { "ARRAY" } else { kind.sql_name() };
    let length = matches!(kind, PgType::Varchar | PgType::Bpchar).then_some(column.typmod - 4).filter(|length| *length >= 0);
    let (precision, radix, scale) = match kind {
        PgType::Int2 => (int4(16), int4(2), int4(0)),
        PgType::Int4 => (int4(32), int4(2), int4(0)),
        PgType::Int8 => (int4(64), int4(2), int4(0)),
        PgType::Float4 => (int4(24), int4(2), None),
        PgType::Float8 => (int4(53), int4(2), None),
        PgType::Numeric if column.typmod >= 4 => {
            let (precision, scale) = numeric_typmod(column.typmod);
            (int4(i32::from(precision)), int4(10), int4(i32::from(scale)))
        }
        PgType::Numeric => (None, int4(10), None),
        _ => (None, None, None),
    };
    let fraction = match kind {
        PgType::Date => int4(0),
        PgType::Time | PgType::Timestamp | PgType::Timestamptz | PgType::Interval => {
            int4(if column.typmod >= 0 { column.typmod } else { 6 })
        }
        _ => None,
    };
    let mut cells = vec![
        ("table_catalog", text(&asker.database)),
        ("table_schema", text(asker.catalog.schema_name(relation.schema()))),
        ("table_name", text(relation.name())),
        ("column_name", text(&column.name)),
        ("ordinal_position", int4(position)),
        (
            "column_default",
            column
                .default
                .as_ref()
                .filter(|_| column.identity.is_none())
                .map(|default| Datum::Text(super::deparse::default(default, column.kind))),
        ),
        ("is_nullable", text(if column.not_null { "NO" } else { "YES" })),
        ("data_type", text(data_type)),
        ("character_maximum_length", length.and_then(int4)),
        (
            "character_octet_length",
            length.map_or_else(|| kind.is_text().then_some(1 << 30), |length| Some(length * 4)).and_then(int4),
        ),
        ("numeric_precision", precision),
        ("numeric_precision_radix", radix),
        ("numeric_scale", scale),
        ("datetime_precision", fraction),
        ("udt_catalog", text(&asker.database)),
        ("udt_name", text(kind.name())),
        ("dtd_identifier", text(position.to_string())),
    ];
    if let Some(identity) = column.identity {
        cells.push(("is_identity", text("YES")));
        cells.push(("identity_generation", text(if identity == Identity::Always { "ALWAYS" } else { "BY DEFAULT" })));
    }
    cells
}
