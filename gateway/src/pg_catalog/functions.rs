//! Functions over the catalog that psql, drivers and ORMs call, and the ones that casts to `regclass` and its like are
//! rewritten to.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::Asker;
use super::definitions::{check_definition, foreign_key_definition, index_definition, key_definition, quoted};
use super::rows::{OWNER, constraint_oid, tables};
use crate::sql::catalog::{Index, Relation, Table};
use crate::sql::types::arrow::{ColumnBuilder, arrow_field, arrow_type, datum_at, default_type};
use crate::sql::types::{Datum, PgType};

type Body = Arc<dyn Fn(&Asker, &[Option<Datum>]) -> Option<Datum> + Send + Sync>;

/// A function of one row's arguments.
struct CatalogFunction {
    name: &'static str,
    returns: PgType,
    signature: Signature,
    asker: Arc<Asker>,
    body: Body,
}

impl fmt::Debug for CatalogFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for CatalogFunction {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && Arc::ptr_eq(&self.asker, &other.asker)
    }
}

impl Eq for CatalogFunction {}

impl std::hash::Hash for CatalogFunction {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for CatalogFunction {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(arrow_type(self.returns, -1))
    }

    fn return_field_from_args(&self, _arguments: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        Ok(Arc::new(arrow_field(self.name, self.returns, -1, true)))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = arguments.number_rows;
        let arrays: Vec<_> = arguments.args.iter().map(|argument| argument.to_array(rows)).collect::<Result<_>>()?;
        let kinds: Vec<_> = arrays.iter().map(|array| default_type(array.data_type())).collect();
        let mut column = ColumnBuilder::new(self.returns, -1, rows);
        let mut cells = Vec::with_capacity(arrays.len());
        for row in 0..rows {
            cells.clear();
            for (array, (kind, _)) in arrays.iter().zip(&kinds) {
                let cell = if *array.data_type() == DataType::Null { Ok(None) } else { datum_at(array, row, *kind) };
                cells.push(cell.map_err(|error| DataFusionError::External(Box::new(error)))?);
            }
            column.push((self.body)(&self.asker, &cells).as_ref());
        }
        Ok(ColumnarValue::Array(column.finish()))
    }
}

/// All of them, for one session.
#[must_use]
pub fn functions(asker: &Arc<Asker>) -> Vec<ScalarUDF> {
    let make = |name: &'static str, returns: PgType, body: Body| {
        let signature = Signature::one_of(
            vec![datafusion::logical_expr::TypeSignature::VariadicAny, datafusion::logical_expr::TypeSignature::Nullary],
            Volatility::Stable,
        );
        ScalarUDF::new_from_impl(CatalogFunction { name, returns, signature, asker: asker.clone(), body })
    };
    let mut all: Vec<ScalarUDF> = Vec::new();
    for (name, body) in TEXT_FUNCTIONS {
        all.push(make(name, PgType::Text, Arc::new(body)));
    }
    for name in TRUE_FUNCTIONS {
        all.push(make(name, PgType::Bool, Arc::new(|_, _| Some(Datum::Bool(true)))));
    }
    for name in ["pg_is_in_recovery", "pg_relation_is_publishable", "pg_is_other_temp_schema"] {
        all.push(make(name, PgType::Bool, Arc::new(|_, _| Some(Datum::Bool(false)))));
    }
    for name in ["pg_table_size", "pg_relation_size", "pg_total_relation_size", "pg_indexes_size", "pg_database_size"] {
        all.push(make(name, PgType::Int8, Arc::new(|_, _| Some(Datum::Int8(0)))));
    }
    for name in ["regclass_oid", "regtype_oid", "regproc_oid", "regnamespace_oid", "regrole_oid"] {
        all.push(make(name, PgType::Oid, Arc::new(move |asker, cells| oid_of(asker, name, cells.first()?.as_ref()?))));
    }
    for (name, kind) in [
        ("to_regclass", "regclass_oid"),
        ("to_regtype", "regtype_oid"),
        ("to_regnamespace", "regnamespace_oid"),
        ("to_regrole", "regrole_oid"),
        ("to_regproc", "regproc_oid"),
    ] {
        all.push(make(name, PgType::Oid, Arc::new(move |asker, cells| oid_of(asker, kind, cells.first()?.as_ref()?))));
    }
    all.push(make(
        "pg_table_is_visible",
        PgType::Bool,
        Arc::new(|asker, cells| Some(Datum::Bool(is_visible(asker, u32::try_from(number(cells, 0)?).ok()?)))),
    ));
    all.push(make(
        "pg_char_to_encoding",
        PgType::Int4,
        Arc::new(|_, cells| Some(Datum::Int4(if string(cells, 0)?.eq_ignore_ascii_case("utf8") { 6 } else { -1 }))),
    ));
    for (name, first) in [("_pg_expand_n", 1), ("_pg_expand_zero", 0)] {
        let body: Body = Arc::new(move |_, cells| match cells.first()?.as_ref()? {
            Datum::Array(_, items) => {
                Some(Datum::Array(PgType::Int4, (first..).take(items.len()).map(|n| Some(Datum::Int4(n))).collect()))
            }
            _ => None,
        });
        all.push(make(name, PgType::Int4Array, body));
    }
    all.push(make("json_build_object", PgType::Json, Arc::new(|_, cells| json_object(cells, " : ").map(Datum::Text))));
    let jsonb: Body = Arc::new(|_, cells| Datum::parse(PgType::Jsonb, -1, &json_object(cells, ": ")?).ok());
    all.push(make("jsonb_build_object", PgType::Jsonb, jsonb));
    all.push(make("pg_backend_pid", PgType::Int4, Arc::new(|_, _| Some(Datum::Int4(std::process::id() as i32)))));
    all.push(make("pg_my_temp_schema", PgType::Oid, Arc::new(|_, _| Some(Datum::Oid(0)))));
    all.push(make("pg_partition_ancestors", PgType::Oid, Arc::new(|_, _| None)));
    all.push(make("pg_sequence_last_value", PgType::Int8, Arc::new(|_, _| None)));
    all
}

const TRUE_FUNCTIONS: [&str; 20] = [
    "pg_ts_config_is_visible",
    "pg_ts_dict_is_visible",
    "pg_ts_parser_is_visible",
    "pg_ts_template_is_visible",
    "pg_conversion_is_visible",
    "pg_type_is_visible",
    "pg_function_is_visible",
    "pg_operator_is_visible",
    "pg_opclass_is_visible",
    "pg_collation_is_visible",
    "pg_statistics_obj_is_visible",
    "has_table_privilege",
    "has_any_column_privilege",
    "has_column_privilege",
    "has_schema_privilege",
    "has_database_privilege",
    "has_sequence_privilege",
    "has_function_privilege",
    "has_tablespace_privilege",
    "pg_has_role",
];

type TextBody = fn(&Asker, &[Option<Datum>]) -> Option<Datum>;

const TEXT_FUNCTIONS: [(&str, TextBody); 27] = [
    ("pg_get_userbyid", |_, cells| Some(Datum::Text(user(number(cells, 0)?)))),
    ("pg_get_expr", |_, cells| cells.first()?.clone()),
    ("pg_get_constraintdef", |asker, cells| constraint(asker, number(cells, 0)?, yes(cells, 1)).map(Datum::Text)),
    ("pg_get_indexdef", |asker, cells| indexdef(asker, number(cells, 0)?, number(cells, 1).unwrap_or(0)).map(Datum::Text)),
    ("pg_get_viewdef", |asker, cells| viewdef(asker, cells.first()?.as_ref()?).map(Datum::Text)),
    ("pg_get_ruledef", |_, _| None),
    ("pg_get_triggerdef", |_, _| None),
    ("pg_get_functiondef", |_, _| None),
    ("pg_get_function_sqlbody", |_, _| None),
    ("pg_get_function_result", |_, _| None),
    ("pg_get_function_arguments", |_, _| None),
    ("pg_get_function_identity_arguments", |_, _| None),
    ("pg_get_statisticsobjdef_columns", |_, _| None),
    ("pg_get_partkeydef", |_, _| None),
    ("pg_get_serial_sequence", |asker, cells| serial_sequence(asker, cells).map(Datum::Text)),
    ("format_type", |_, cells| format_type(cells).map(Datum::Text)),
    ("obj_description", |_, _| None),
    ("col_description", |_, _| None),
    ("shobj_description", |_, _| None),
    ("pg_encoding_to_char", |_, cells| Some(Datum::Text(if number(cells, 0)? == 6 { "UTF8" } else { "" }.into()))),
    ("pg_size_pretty", |_, cells| Some(Datum::Text(format!("{} bytes", number(cells, 0)?)))),
    ("quote_ident", |_, cells| string(cells, 0).map(|name| Datum::Text(quoted(&name)))),
    ("pg_tablespace_location", |_, _| Some(Datum::Text(String::new()))),
    ("regclass_name", |asker, cells| class_name(asker, number(cells, 0)?).map(Datum::Text)),
    ("regtype_name", |_, cells| format_type(&cells[..1]).map(Datum::Text)),
    ("regproc_name", |_, cells| cells.first()?.as_ref().map(|datum| Datum::Text(datum.to_text(PgType::Text, -1)))),
    ("regnamespace_name", |asker, cells| {
        let id = number(cells, 0)?;
        Some(Datum::Text(asker.catalog.schema_by_oid(id as u32).map_or_else(|| id.to_string(), |schema| schema.name.clone())))
    }),
];

fn number(cells: &[Option<Datum>], at: usize) -> Option<i64> {
    match cells.get(at)?.as_ref()? {
        Datum::Int2(value) => Some(i64::from(*value)),
        Datum::Int4(value) => Some(i64::from(*value)),
        Datum::Int8(value) => Some(*value),
        Datum::Oid(value) => Some(i64::from(*value)),
        Datum::Numeric(value) => value.to_i64(),
        Datum::Text(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn string(cells: &[Option<Datum>], at: usize) -> Option<String> {
    match cells.get(at)?.as_ref()? {
        Datum::Text(text) => Some(text.clone()),
        other => Some(other.to_text(other.natural_type(), -1)),
    }
}

fn user(id: i64) -> String {
    if id == i64::from(OWNER) { "postgres".into() } else { format!("unknown (OID={id})") }
}

fn indexes(asker: &Asker) -> impl Iterator<Item = (&Table, &Index)> {
    tables(asker).flat_map(|table| table.indexes.iter().map(move |index| (table, index)))
}

fn yes(cells: &[Option<Datum>], at: usize) -> bool {
    matches!(cells.get(at), Some(Some(Datum::Bool(true))))
}

fn constraint(asker: &Asker, id: i64, pretty: bool) -> Option<String> {
    if let Some((table, index)) = indexes(asker).find(|(_, index)| i64::from(constraint_oid(index.oid)) == id) {
        return Some(key_definition(table, index));
    }
    tables(asker).find_map(|table| {
        let check =
            table.checks.iter().find(|check| i64::from(check.oid) == id).map(|check| check_definition(table, check, pretty));
        check.or_else(|| {
            let key = table.foreign_keys.iter().find(|key| i64::from(key.oid) == id)?;
            Some(foreign_key_definition(&asker.catalog, table, key))
        })
    })
}

fn indexdef(asker: &Asker, id: i64, column: i64) -> Option<String> {
    let (table, index) = indexes(asker).find(|(_, index)| i64::from(index.oid) == id)?;
    match usize::try_from(column).ok()? {
        0 => Some(index_definition(&asker.catalog, table, index)),
        column => Some(quoted(&table.column_by_number(index.columns.get(column - 1)?.number).name)),
    }
}

fn viewdef(asker: &Asker, cell: &Datum) -> Option<String> {
    let id = oid_of(asker, "regclass_oid", cell)?;
    let Datum::Oid(id) = id else { return None };
    match asker.catalog.relation(id)? {
        Relation::View(view) => Some(format!(" {};", view.query)),
        _ => None,
    }
}

fn serial_sequence(asker: &Asker, cells: &[Option<Datum>]) -> Option<String> {
    let Some(Datum::Oid(table)) = oid_of(asker, "regclass_oid", cells.first()?.as_ref()?) else { return None };
    let number = asker.catalog.table(table)?.column(&string(cells, 1)?)?.number;
    asker.catalog.relations().find_map(|relation| match relation {
        Relation::Sequence(sequence) if sequence.owned_by == Some((table, number)) => {
            Some(format!("{}.{}", quoted(asker.catalog.schema_name(sequence.schema)), quoted(&sequence.name)))
        }
        _ => None,
    })
}

fn format_type(cells: &[Option<Datum>]) -> Option<String> {
    let id = number(cells, 0)?;
    let typmod = number(cells, 1).and_then(|typmod| i32::try_from(typmod).ok()).unwrap_or(-1);
    Some(match u32::try_from(id).ok().and_then(PgType::from_oid) {
        Some(kind) => kind.display_name(typmod),
        None if id == 0 => "-".into(),
        None => "???".into(),
    })
}

/// Pairs of keys and values as a JSON object.
fn json_object(cells: &[Option<Datum>], colon: &str) -> Option<String> {
    let quote = |text: &str| {
        let mut out = String::new();
        crate::sql::types::json::Json::String(text.to_owned()).write(&mut out);
        out
    };
    let members: Option<Vec<String>> = cells
        .chunks(2)
        .map(|pair| {
            let value = match pair.get(1)? {
                None => "null".to_owned(),
                Some(Datum::Bool(value)) => value.to_string(),
                Some(
                    number @ (Datum::Int2(_)
                    | Datum::Int4(_)
                    | Datum::Int8(_)
                    | Datum::Numeric(_)
                    | Datum::Float4(_)
                    | Datum::Float8(_)
                    | Datum::Oid(_)),
                ) => number.to_text(number.natural_type(), -1),
                Some(other) => quote(&other.to_text(other.natural_type(), -1)),
            };
            Some(format!("{}{colon}{value}", quote(&string(pair, 0)?)))
        })
        .collect();
    Some(format!("{{{}}}", members?.join(", ")))
}

/// Whether a relation's or an index's bare name finds it by the search path.
fn is_visible(asker: &Asker, id: u32) -> bool {
    let found = match asker.catalog.relation(id) {
        Some(relation) => Some((relation.schema(), relation.name())),
        None => indexes(asker).find(|(_, index)| index.oid == id).map(|(table, index)| (table.schema, index.name.as_str())),
    };
    // System tables are in no relation, and always in the path.
    let Some((schema, name)) = found else { return true };
    let first = asker.search_path.iter().filter_map(|path| asker.catalog.schema(path)).find(|path| {
        asker.catalog.find(path.oid, name).is_some()
            || indexes(asker).any(|(table, index)| table.schema == path.oid && index.name == name)
    });
    first.is_some_and(|path| path.oid == schema)
}

/// How `regclass` prints: without its schema where the search path finds it.
fn class_name(asker: &Asker, id: i64) -> Option<String> {
    let id32 = u32::try_from(id).ok()?;
    let (schema, name) = match asker.catalog.relation(id32) {
        Some(relation) => (relation.schema(), relation.name().to_owned()),
        None => match indexes(asker).find(|(_, index)| index.oid == id32) {
            Some((table, index)) => (table.schema, index.name.clone()),
            None => return Some(if id == 0 { "-".into() } else { id.to_string() }),
        },
    };
    let schema = asker.catalog.schema_name(schema);
    let visible = asker.search_path.iter().any(|visible| visible == schema);
    Some(if visible { quoted(&name) } else { format!("{}.{}", quoted(schema), quoted(&name)) })
}

fn type_by_sql_name(name: &str) -> Option<PgType> {
    PgType::ALL.iter().copied().find(|kind| kind.sql_name().eq_ignore_ascii_case(name.trim()))
}

fn oid_of(asker: &Asker, function: &str, cell: &Datum) -> Option<Datum> {
    if let Some(id) = number(std::slice::from_ref(&Some(cell.clone())), 0) {
        return Some(Datum::Oid(id as u32));
    }
    let Datum::Text(text) = cell else { return None };
    let parts: Vec<String> = text.split('.').map(|part| part.trim_matches('"').to_owned()).collect();
    let name = parts.last()?;
    let id = match function {
        "regtype_oid" => PgType::from_name(name).or_else(|| type_by_sql_name(text))?.oid(),
        "regnamespace_oid" => asker.catalog.schema(name)?.oid,
        "regrole_oid" => OWNER,
        "regclass_oid" => {
            let catalogs = [
                ("pg_class", 1259),
                ("pg_type", 1247),
                ("pg_proc", 1255),
                ("pg_attribute", 1249),
                ("pg_namespace", 2615),
                ("pg_constraint", 2606),
                ("pg_database", 1262),
            ];
            if let Some((_, id)) = catalogs.iter().find(|(catalog, _)| catalog == name) {
                return Some(Datum::Oid(*id));
            }
            let path: Vec<&str> = match parts.as_slice() {
                [schema, _] => vec![schema.as_str()],
                _ => asker.search_path.iter().map(String::as_str).collect(),
            };
            path.into_iter().find_map(|schema| {
                let schema = asker.catalog.schema(schema)?.oid;
                let relation = asker.catalog.find(schema, name).map(Relation::oid);
                relation.or_else(|| {
                    indexes(asker)
                        .find(|(table, index)| table.schema == schema && index.name == *name)
                        .map(|(_, index)| index.oid)
                })
            })?
        }
        _ => return None,
    };
    Some(Datum::Oid(id))
}
