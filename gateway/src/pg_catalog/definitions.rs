//! Constraints and indexes written out as SQL, the way PostgreSQL's `pg_get_…def` functions print them.

use crate::sql::catalog::{Action, Catalog, Check, ForeignKey, Index, Table};

/// An identifier, in quotes where it needs them.
#[must_use]
pub fn quoted(name: &str) -> String {
    let plain = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !RESERVED.contains(&name);
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// Words that an identifier is quoted for.
pub(super) const RESERVED: &[&str] = &[
    "all",
    "and",
    "any",
    "array",
    "as",
    "asc",
    "both",
    "case",
    "cast",
    "check",
    "collate",
    "column",
    "constraint",
    "create",
    "default",
    "desc",
    "distinct",
    "do",
    "else",
    "end",
    "except",
    "false",
    "for",
    "foreign",
    "from",
    "grant",
    "group",
    "having",
    "in",
    "into",
    "limit",
    "not",
    "null",
    "offset",
    "on",
    "or",
    "order",
    "primary",
    "references",
    "select",
    "table",
    "then",
    "to",
    "true",
    "union",
    "unique",
    "user",
    "using",
    "when",
    "where",
    "with",
];

fn names(table: &Table, numbers: impl IntoIterator<Item = i16>) -> String {
    let names: Vec<String> = numbers.into_iter().map(|number| quoted(&table.column_by_number(number).name)).collect();
    names.join(", ")
}

/// `PRIMARY KEY (id)` or `UNIQUE (a, b)`.
#[must_use]
pub fn key_definition(table: &Table, index: &Index) -> String {
    let word = if index.primary { "PRIMARY KEY" } else { "UNIQUE" };
    format!("{word} ({})", names(table, index.columns.iter().map(|column| column.number)))
}

/// `CREATE INDEX i ON public.t USING btree (a, b DESC)`.
#[must_use]
pub fn index_definition(catalog: &Catalog, table: &Table, index: &Index) -> String {
    let unique = if index.unique { "UNIQUE " } else { "" };
    let columns: Vec<String> = index
        .columns
        .iter()
        .map(|column| {
            let name = quoted(&table.column_by_number(column.number).name);
            if column.descending { format!("{name} DESC") } else { name }
        })
        .collect();
    let schema = quoted(catalog.schema_name(table.schema));
    format!(
        "CREATE {unique}INDEX {} ON {schema}.{} USING btree ({})",
        quoted(&index.name),
        quoted(&table.name),
        columns.join(", ")
    )
}

/// `FOREIGN KEY (a) REFERENCES t(id) ON DELETE CASCADE`.
#[must_use]
pub fn foreign_key_definition(catalog: &Catalog, table: &Table, key: &ForeignKey) -> String {
    let columns = names(table, key.columns.iter().copied());
    let mut text = match catalog.table(key.references) {
        Some(parent) => {
            let schema = catalog.schema_name(parent.schema);
            let prefix = if schema == "public" { String::new() } else { format!("{}.", quoted(schema)) };
            let parent_columns = names(parent, key.referenced_columns.iter().copied());
            format!("FOREIGN KEY ({columns}) REFERENCES {prefix}{}({parent_columns})", quoted(&parent.name))
        }
        None => format!("FOREIGN KEY ({columns})"),
    };
    for (event, action) in [("UPDATE", key.on_update), ("DELETE", key.on_delete)] {
        if action != Action::NoAction {
            text.push_str(&format!(" ON {event} {}", action_words(action)));
        }
    }
    text
}

/// As information_schema and definitions write it.
#[must_use]
pub fn action_words(action: Action) -> &'static str {
    match action {
        Action::NoAction => "NO ACTION",
        Action::Restrict => "RESTRICT",
        Action::Cascade => "CASCADE",
        Action::SetNull => "SET NULL",
        Action::SetDefault => "SET DEFAULT",
    }
}

/// As pg_constraint writes it.
#[must_use]
pub fn action_letter(action: Action) -> &'static str {
    match action {
        Action::NoAction => "a",
        Action::Restrict => "r",
        Action::Cascade => "c",
        Action::SetNull => "n",
        Action::SetDefault => "d",
    }
}

/// `CHECK ((a > 0))`, or pretty `CHECK (a > 0)`.
#[must_use]
pub fn check_definition(table: &Table, check: &Check, pretty: bool) -> String {
    format!("CHECK ({})", super::deparse::check(&check.expression, &table.columns, pretty))
}
