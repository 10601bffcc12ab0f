//! CREATE TABLE, VIEW, INDEX, SCHEMA.

use std::sync::Arc;

use datafusion::sql::sqlparser::ast::{
    self, ColumnOption, CreateTable, CreateTableOptions, Expr, GeneratedAs, ReferentialAction, TableConstraint,
};
use rustydb::store::Placement;

use super::sequence::{self, Bounds};
use super::{Change, already_exists, cut, qualified};
use crate::sql::api::Execution;
use crate::sql::catalog::{
    Action, COLUMNS_MAX, Catalog, Check, Column, ForeignKey, Identity, Index, IndexColumn, Oid, Relation, Schema, Table, View,
};
use crate::sql::error::{SqlError, code};
use crate::sql::key_codec::can_be_key;
use crate::sql::parse::{fold, split_name};
use crate::sql::plan::columns_of;
use crate::sql::session::SqlSession;
use crate::sql::sqltypes::sql_type;
use crate::sql::types::PgType;

/// A table under construction.
pub(super) struct Draft {
    pub(super) table: Table,
    /// Sequences of its own to make: column number, and options.
    pub(super) sequences: Vec<(i16, Vec<ast::SequenceOptions>)>,
}

/// A constraint as it is to be added.
pub(super) enum Constraint {
    Key { name: Option<String>, columns: Vec<IndexColumn>, primary: bool },
    Check { name: Option<String>, expr: Box<Expr> },
    Foreign { name: Option<String>, columns: Vec<i16>, constraint: Box<ast::ForeignKeyConstraint> },
}

pub(super) fn column_number(table: &Table, name: &str) -> Result<i16, SqlError> {
    table
        .column(name)
        .map(|c| c.number)
        .ok_or_else(|| SqlError::new(code::UNDEFINED_COLUMN, format!("column \"{name}\" named in key does not exist")))
}

/// Index columns by their expressions.
pub(super) fn index_columns(table: &Table, list: &[ast::IndexColumn]) -> Result<Vec<IndexColumn>, SqlError> {
    let mut columns = Vec::with_capacity(list.len());
    for item in list {
        let Expr::Identifier(name) = &item.column.expr else {
            return Err(SqlError::unsupported("an index on an expression"));
        };
        let descending = item.column.options.asc == Some(false);
        if item.column.options.nulls_first.is_some_and(|first| first != descending) {
            return Err(SqlError::unsupported("an index with NULLS FIRST or LAST other than the default"));
        }
        let name = fold(name);
        let column = table
            .column(&name)
            .ok_or_else(|| SqlError::new(code::UNDEFINED_COLUMN, format!("column \"{name}\" does not exist")))?;
        if !can_be_key(column.kind) {
            return Err(SqlError::new(
                code::UNDEFINED_OBJECT,
                format!("data type {} has no default operator class for access method \"btree\"", column.kind.sql_name()),
            ));
        }
        columns.push(IndexColumn { number: column.number, descending });
    }
    Ok(columns)
}

/// A column's definition: the column, what constraints come with it, and whether it has a sequence of its own.
pub(super) fn column(
    number: i16,
    definition: &ast::ColumnDef,
    constraints: &mut Vec<(Option<String>, ColumnOption)>,
) -> Result<(Column, Option<Vec<ast::SequenceOptions>>), SqlError> {
    let found = sql_type(&definition.data_type)?;
    if matches!(found.kind, PgType::Unknown | PgType::Void) {
        return Err(SqlError::new("42P16", format!("column \"{}\" has pseudo-type {}", definition.name, found.kind.name())));
    }
    let mut column = Column::new(number, cut(&fold(&definition.name)), found.kind, found.typmod);
    column.not_null = found.serial;
    let mut sequence = found.serial.then(Vec::new);
    for option in &definition.options {
        let name = option.name.as_ref().map(fold);
        match &option.option {
            ColumnOption::Null => {}
            ColumnOption::NotNull => column.not_null = true,
            ColumnOption::Default(expr) => column.default = Some(expr.to_string()),
            ColumnOption::Generated { generated_as, sequence_options, generation_expr: None, .. } => {
                column.identity = Some(if *generated_as == GeneratedAs::Always { Identity::Always } else { Identity::ByDefault });
                column.not_null = true;
                sequence = Some(sequence_options.clone().unwrap_or_default());
            }
            ColumnOption::Generated { .. } => return Err(SqlError::unsupported("a generated column")),
            ColumnOption::Collation(_) | ColumnOption::Comment(_) => {}
            option @ (ColumnOption::PrimaryKey(_)
            | ColumnOption::Unique(_)
            | ColumnOption::ForeignKey(_)
            | ColumnOption::Check(_)) => {
                constraints.push((name, option.clone()));
            }
            other => return Err(SqlError::unsupported(format_args!("column option {other}"))),
        }
    }
    Ok((column, sequence))
}

/// A column's constraint as one of the table.
pub(super) fn column_constraint(number: i16, name: Option<String>, option: ColumnOption) -> Option<Constraint> {
    let own = vec![IndexColumn { number, descending: false }];
    Some(match option {
        ColumnOption::PrimaryKey(_) => Constraint::Key { name, columns: own, primary: true },
        ColumnOption::Unique(_) => Constraint::Key { name, columns: own, primary: false },
        ColumnOption::Check(check) => Constraint::Check { name: name.or(check.name.as_ref().map(fold)), expr: check.expr },
        ColumnOption::ForeignKey(key) => {
            Constraint::Foreign { name: name.or(key.name.as_ref().map(fold)), columns: vec![number], constraint: Box::new(key) }
        }
        _ => return None,
    })
}

/// A table's constraint.
pub(super) fn table_constraint(table: &Table, constraint: &TableConstraint) -> Result<Constraint, SqlError> {
    Ok(match constraint {
        TableConstraint::PrimaryKey(key) => {
            let columns = index_columns(table, &key.columns)?;
            Constraint::Key { name: key.name.as_ref().map(fold), columns, primary: true }
        }
        TableConstraint::Unique(key) => {
            let columns = index_columns(table, &key.columns)?;
            Constraint::Key { name: key.name.as_ref().map(fold), columns, primary: false }
        }
        TableConstraint::Check(check) => Constraint::Check { name: check.name.as_ref().map(fold), expr: check.expr.clone() },
        TableConstraint::ForeignKey(key) => {
            let columns = key.columns.iter().map(|c| column_number(table, &fold(c))).collect::<Result<_, _>>()?;
            Constraint::Foreign { name: key.name.as_ref().map(fold), columns, constraint: Box::new(key.clone()) }
        }
        other => return Err(SqlError::unsupported(format_args!("constraint {other}"))),
    })
}

impl SqlSession {
    /// Adds a constraint to a table under construction. A key's partition is made; its rows are not put in.
    pub(super) async fn add_constraint(
        &mut self,
        catalog: &Catalog,
        table: &mut Table,
        constraint: Constraint,
    ) -> Result<(), SqlError> {
        let mut taken: Vec<String> = table.indexes.iter().map(|i| i.name.clone()).collect();
        taken.extend(table.checks.iter().map(|c| c.name.clone()));
        taken.extend(table.foreign_keys.iter().map(|k| k.name.clone()));
        taken.push(table.name.clone());
        let named = |wanted: Option<String>, otherwise: String| match wanted {
            Some(name) if taken.contains(&name) => Err(SqlError::new(
                code::DUPLICATE_OBJECT,
                format!("constraint \"{name}\" for relation \"{}\" already exists", table.name),
            )),
            Some(name) => Ok(cut(&name)),
            None => Ok(SqlSession::free_name(catalog, table.schema, &taken, &otherwise)),
        };
        let names = |columns: &mut dyn Iterator<Item = i16>| {
            columns.map(|n| table.column_by_number(n).name.clone()).collect::<Vec<_>>().join("_")
        };
        match constraint {
            Constraint::Key { name, columns, primary } => {
                if primary && table.primary_key().is_some() {
                    return Err(SqlError::new(
                        code::INVALID_TABLE_DEFINITION,
                        format!("multiple primary keys for table \"{}\" are not allowed", table.name),
                    ));
                }
                let otherwise = if primary {
                    format!("{}_pkey", table.name)
                } else {
                    format!("{}_{}_key", table.name, names(&mut columns.iter().map(|c| c.number)))
                };
                let explicit = name.is_some();
                let name = named(name, otherwise)?;
                if explicit && catalog.name_taken(table.schema, &name) {
                    return Err(already_exists(&name));
                }
                if primary {
                    for column in &columns {
                        table.columns[column.number as usize - 1].not_null = true;
                    }
                }
                let partition = if primary {
                    table.partition
                } else {
                    self.new_partition(Placement::With(rustydb::ids::PartitionId(table.partition))).await?
                };
                let oid = self.db.new_oid().await?;
                table.indexes.push(Index { oid, name, partition, columns, unique: true, primary, constraint: true });
            }
            Constraint::Check { name, expr } => {
                let mut used = Vec::new();
                let _ = ast::visit_expressions(&*expr, |e| {
                    if let Expr::Identifier(ident) = e {
                        let ident = fold(ident);
                        if !used.contains(&ident) {
                            used.push(ident);
                        }
                    }
                    std::ops::ControlFlow::<()>::Continue(())
                });
                let otherwise = match used.as_slice() {
                    [column] => format!("{}_{column}_check", table.name),
                    _ => format!("{}_check", table.name),
                };
                let name = named(name, otherwise)?;
                let oid = self.db.new_oid().await?;
                table.checks.push(Check { oid, name, expression: expr.to_string() });
            }
            Constraint::Foreign { name, columns, constraint } => {
                let otherwise = format!("{}_{}_fkey", table.name, names(&mut columns.iter().copied()));
                let name = named(name, otherwise)?;
                let key = self.foreign_key(catalog, table, name, columns, &constraint).await?;
                table.foreign_keys.push(key);
            }
        }
        Ok(())
    }

    async fn foreign_key(
        &mut self,
        catalog: &Catalog,
        table: &Table,
        name: String,
        columns: Vec<i16>,
        constraint: &ast::ForeignKeyConstraint,
    ) -> Result<ForeignKey, SqlError> {
        let (schema, parent_name) = split_name(&constraint.foreign_table)?;
        let path = self.settings.search_path(&self.user);
        // A table may refer to itself while it is being made.
        let own = schema.is_none() && parent_name == table.name;
        let found;
        let parent: &Table = if own {
            table
        } else {
            found = Arc::clone(catalog.resolve_table(schema.as_deref(), &parent_name, &path)?);
            &found
        };
        let referenced: Vec<i16> = if constraint.referred_columns.is_empty() {
            let primary = parent.primary_key().ok_or_else(|| {
                SqlError::new(code::UNDEFINED_OBJECT, format!("there is no primary key for referenced table \"{parent_name}\""))
            })?;
            primary.columns.iter().map(|c| c.number).collect()
        } else {
            constraint
                .referred_columns
                .iter()
                .map(|c| {
                    let name = fold(c);
                    parent.column(&name).map(|c| c.number).ok_or_else(|| {
                        SqlError::new(
                            code::UNDEFINED_COLUMN,
                            format!("column \"{name}\" referenced in foreign key constraint does not exist"),
                        )
                    })
                })
                .collect::<Result<_, _>>()?
        };
        if referenced.len() != columns.len() {
            return Err(SqlError::new(
                code::INVALID_FOREIGN_KEY,
                "number of referencing and referenced columns for foreign key disagree",
            ));
        }
        if parent.unique_index_on(&referenced).is_none() {
            return Err(SqlError::new(
                code::INVALID_FOREIGN_KEY,
                format!("there is no unique constraint matching given keys for referenced table \"{parent_name}\""),
            ));
        }
        for (from, to) in columns.iter().zip(&referenced) {
            let (from, to) = (table.column_by_number(*from), parent.column_by_number(*to));
            let numbers = |kind: PgType| kind.is_integer() || kind == PgType::Numeric;
            let texts = |kind: PgType| matches!(kind, PgType::Text | PgType::Varchar | PgType::Bpchar | PgType::Name);
            if from.kind != to.kind && !(numbers(from.kind) && numbers(to.kind)) && !(texts(from.kind) && texts(to.kind)) {
                return Err(SqlError::new(
                    code::DATATYPE_MISMATCH,
                    format!("foreign key constraint \"{name}\" cannot be implemented"),
                )
                .with_detail(format!(
                    "Key columns \"{}\" and \"{}\" are of incompatible types: {} and {}.",
                    from.name,
                    to.name,
                    from.kind.sql_name(),
                    to.kind.sql_name()
                )));
            }
        }
        let references = parent.oid;
        if !own {
            // Its rows are about to be referred to.
            self.lock_relation(references, rustydb::store::LockMode::ConcurrentWrite).await?;
        }
        let action = |action: Option<ReferentialAction>| match action {
            None | Some(ReferentialAction::NoAction) => Action::NoAction,
            Some(ReferentialAction::Restrict) => Action::Restrict,
            Some(ReferentialAction::Cascade) => Action::Cascade,
            Some(ReferentialAction::SetNull) => Action::SetNull,
            Some(ReferentialAction::SetDefault) => Action::SetDefault,
        };
        Ok(ForeignKey {
            oid: self.db.new_oid().await?,
            name,
            columns,
            references,
            referenced_columns: referenced,
            on_delete: action(constraint.on_delete),
            on_update: action(constraint.on_update),
        })
    }

    /// Makes the sequences of serial and identity columns, and their defaults.
    pub(super) async fn own_sequences(
        &mut self,
        catalog: &Catalog,
        draft: &mut Draft,
        changes: &mut Vec<Change>,
    ) -> Result<(), SqlError> {
        let mut taken = vec![draft.table.name.clone()];
        for (number, options) in std::mem::take(&mut draft.sequences) {
            let column = draft.table.column_by_number(number).clone();
            let wanted = format!("{}_{}_seq", draft.table.name, column.name);
            let name = SqlSession::free_name(catalog, draft.table.schema, &taken, &wanted);
            taken.push(name.clone());
            let mut sequence = sequence::build(self, draft.table.schema, &name, Bounds::of(column.kind), &options).await?;
            sequence.owned_by = Some((draft.table.oid, number));
            let shown = qualified(catalog, draft.table.schema, &name).replace('\'', "''");
            draft.table.columns[number as usize - 1].default = Some(format!("nextval('{shown}'::regclass)"));
            changes.push(Change::Put(Relation::Sequence(Arc::new(sequence))));
        }
        Ok(())
    }

    /// Sees that defaults and checks can be compiled.
    pub(super) async fn check_expressions(&self, catalog: &Arc<Catalog>, table: &Arc<Table>) -> Result<(), SqlError> {
        let context = self.own_context(catalog);
        crate::sql::dml::write::Writer::new(&context, table)?;
        crate::sql::dml::insert::Defaults::new(&context, table)?;
        for column in table.live_columns() {
            if let Some(sql) = &column.default {
                let expr = crate::sql::parse::parse_expression(sql)?;
                // A constant that is not of the column's type is refused now, not at the first insert.
                if let Some(fast) = crate::sql::expr::compile(&expr, &[], &[], column.kind)
                    && matches!(fast.fast, crate::sql::expr::Fast::Constant(_))
                {
                    let inputs = crate::sql::expr::Inputs::constant(&[], &context.env);
                    crate::sql::rows::assign(column, fast.evaluate(&inputs)?)?;
                }
            }
        }
        Ok(())
    }
}

pub(super) async fn table(session: &mut SqlSession, create: &CreateTable) -> Result<Execution, SqlError> {
    if create.temporary {
        return Err(SqlError::unsupported("CREATE TEMPORARY TABLE"));
    }
    if create.inherits.is_some() || create.partition_by.is_some() || create.partition_of.is_some() {
        return Err(SqlError::unsupported("inheritance or declarative partitioning"));
    }
    let catalog = session.own_catalog().await?;
    let (schema, name) = session.new_name(&catalog, &create.name)?;
    if catalog.name_taken(schema, &name) {
        let fault = already_exists(&name);
        if create.if_not_exists {
            session.notices.push(SqlError::notice(format!("relation \"{name}\" already exists, skipping")));
            return Ok(Execution::Command { tag: "CREATE TABLE".to_owned() });
        }
        return Err(fault);
    }
    let options = match &create.table_options {
        CreateTableOptions::With(list) | CreateTableOptions::Options(list) | CreateTableOptions::Plain(list) => {
            list.iter().map(ToString::to_string).collect()
        }
        _ => Vec::new(),
    };
    let oid = session.db.new_oid().await?;
    let mut draft = Draft {
        table: Table {
            oid,
            schema,
            name: name.clone(),
            partition: 0,
            columns: Vec::new(),
            indexes: Vec::new(),
            checks: Vec::new(),
            foreign_keys: Vec::new(),
            version: 1,
            options,
        },
        sequences: Vec::new(),
    };
    let mut source = None;
    if let Some(query) = &create.query {
        let context = session.own_context(&catalog);
        let plan = context.planner().plan(query, &[], true)?;
        for (at, found) in columns_of(&plan).into_iter().enumerate() {
            let name = create.columns.get(at).map_or(found.name, |c| fold(&c.name));
            draft.table.columns.push(Column::new(at as i16 + 1, name, found.kind, found.typmod));
        }
        source = Some(query);
    } else if let Some(ast::CreateTableLikeKind::Parenthesized(like) | ast::CreateTableLikeKind::Plain(like)) = &create.like {
        let (from_schema, from) = split_name(&like.name)?;
        let path = session.settings.search_path(&session.user);
        let model = Arc::clone(catalog.resolve_table(from_schema.as_deref(), &from, &path)?);
        for (at, column) in model.live_columns().enumerate() {
            let own = Column { number: at as i16 + 1, default: None, identity: None, missing: None, ..column.clone() };
            draft.table.columns.push(own);
        }
    }
    let mut column_options = Vec::new();
    if source.is_none() {
        for definition in &create.columns {
            let number = draft.table.columns.len() as i16 + 1;
            let mut options = Vec::new();
            let (column, sequence) = column(number, definition, &mut options)?;
            if draft.table.column(&column.name).is_some() {
                return Err(SqlError::new(
                    code::DUPLICATE_COLUMN,
                    format!("column \"{}\" specified more than once", column.name),
                ));
            }
            column_options.extend(options.into_iter().map(|(name, option)| (number, name, option)));
            draft.sequences.extend(sequence.map(|s| (number, s)));
            draft.table.columns.push(column);
        }
    }
    if draft.table.columns.len() > COLUMNS_MAX {
        return Err(SqlError::new("54011", format!("tables can have at most {COLUMNS_MAX} columns")));
    }
    draft.table.partition = session.new_partition(Placement::Any).await?;
    let mut constraints = Vec::new();
    for (number, name, option) in column_options {
        constraints.extend(column_constraint(number, name, option));
    }
    for constraint in &create.constraints {
        constraints.push(table_constraint(&draft.table, constraint)?);
    }
    // Keys first: foreign keys of the table to itself need them.
    constraints.sort_by_key(|c| match c {
        Constraint::Key { primary: true, .. } => 0,
        Constraint::Key { .. } => 1,
        Constraint::Check { .. } => 2,
        Constraint::Foreign { .. } => 3,
    });
    for constraint in constraints {
        session.add_constraint(&catalog, &mut draft.table, constraint).await?;
    }
    let mut changes = Vec::new();
    session.own_sequences(&catalog, &mut draft, &mut changes).await?;
    let table = Arc::new(draft.table);
    changes.push(Change::Put(Relation::Table(Arc::clone(&table))));
    let catalog = session.apply(changes).await?;
    session.check_expressions(&catalog, &table).await?;
    let Some(query) = source else { return Ok(Execution::Command { tag: "CREATE TABLE".to_owned() }) };
    let context = session.own_context(&catalog);
    let planner = context.planner();
    let (plan, batches) = planner.collect(query, &[]).await?;
    let columns = columns_of(&plan);
    let writer = crate::sql::dml::write::Writer::new(&context, &table)?;
    let mut count = 0;
    for batch in &batches {
        let rows = crate::sql::plan::batch_rows(batch, &columns)?;
        writer.insert(&rows).await?;
        count += rows.len();
    }
    Ok(Execution::Command { tag: format!("SELECT {count}") })
}

pub(super) async fn view(session: &mut SqlSession, create: &ast::CreateView) -> Result<&'static str, SqlError> {
    if create.materialized || create.temporary {
        return Err(SqlError::unsupported("a materialized or temporary view"));
    }
    let catalog = session.own_catalog().await?;
    let (schema, name) = session.new_name(&catalog, &create.name)?;
    let old = catalog.find(schema, &name).cloned();
    match &old {
        Some(Relation::View(_)) if create.or_replace => {}
        Some(_) if create.if_not_exists => return Ok("CREATE VIEW"),
        Some(_) => return Err(already_exists(&name)),
        None if catalog.name_taken(schema, &name) => return Err(already_exists(&name)),
        None => {}
    }
    let context = session.own_context(&catalog);
    let plan = context.planner().plan(&create.query, &[], true)?;
    let mut columns: Vec<Column> = Vec::new();
    for (at, found) in columns_of(&plan).into_iter().enumerate() {
        let name = create.columns.get(at).map_or(found.name, |c| fold(&c.name));
        if columns.iter().any(|c| c.name == name) {
            return Err(SqlError::new(code::DUPLICATE_COLUMN, format!("column \"{name}\" specified more than once")));
        }
        columns.push(Column::new(at as i16 + 1, name, found.kind, found.typmod));
    }
    if let Some(Relation::View(old)) = &old {
        let same = old.columns.len() <= columns.len() && old.columns.iter().zip(&columns).all(|(a, b)| a.name == b.name);
        if !same {
            return Err(SqlError::new(code::INVALID_TABLE_DEFINITION, "cannot drop or rename columns of a view by replacing it"));
        }
    }
    let oid = match old {
        Some(old) => old.oid(),
        None => session.db.new_oid().await?,
    };
    let query = super::views::spelled_out(&context, &create.query).to_string();
    let view = View { oid, schema, name, query, columns };
    session.apply(vec![Change::Put(Relation::View(Arc::new(view)))]).await?;
    Ok("CREATE VIEW")
}

pub(super) async fn schema(
    session: &mut SqlSession,
    name: &ast::SchemaName,
    if_not_exists: bool,
) -> Result<&'static str, SqlError> {
    let catalog = session.own_catalog().await?;
    let name = match name {
        ast::SchemaName::Simple(name) | ast::SchemaName::NamedAuthorization(name, _) => split_name(name)?.1,
        ast::SchemaName::UnnamedAuthorization(user) => fold(user),
    };
    if catalog.schema(&name).is_some() {
        if if_not_exists {
            session.notices.push(SqlError::notice(format!("schema \"{name}\" already exists, skipping")));
            return Ok("CREATE SCHEMA");
        }
        return Err(SqlError::new(code::DUPLICATE_SCHEMA, format!("schema \"{name}\" already exists")));
    }
    if name.starts_with("pg_") {
        return Err(SqlError::new("42939", format!("unacceptable schema name \"{name}\""))
            .with_detail("The prefix \"pg_\" is reserved for system schemas."));
    }
    let oid: Oid = session.db.new_oid().await?;
    session.apply(vec![Change::PutSchema(Schema { oid, name })]).await?;
    Ok("CREATE SCHEMA")
}
