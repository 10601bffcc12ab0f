//! Which relations a statement works on, and their locks: as PostgreSQL does, a table that is read is held in ACCESS SHARE
//! (CR), one that is written in ROW EXCLUSIVE or whose rows are locked in ROW SHARE (both CW), until the transaction ends; outside a block that is the statement's end.
//!
//! Found in the statement's text before it is planned: every table that it names, in sub-selects too, those of its views,
//! and those that its foreign keys lead to. At the node's gate such a lock costs no trip and no message, unless somebody
//! alters the table (`docs/ges.md`). Taken in the order of their oids; a name that is also one of WITH locks the table of
//! that name without need.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use datafusion::sql::sqlparser::ast;
use rustydb::store::{LockMode, LockName, LockSpace, WaitPolicy};

use super::catalog::{Action, Catalog, Oid, Relation, Table};
use super::error::{SqlError, code};
use super::parse::{CopyDirection, CopySource, Statement, split_name};
use super::session::SqlSession;

/// The name of a relation's lock.
#[must_use]
pub fn relation_lock(relation: Oid) -> LockName {
    LockName { space: LockSpace::Relation, id1: u64::from(relation), id2: 0 }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Write {
    Insert,
    Update,
    Delete,
}

/// The relations of a statement, each with the mode that it needs.
struct Wanted<'a> {
    catalog: &'a Catalog,
    search_path: &'a [String],
    modes: BTreeMap<Oid, LockMode>,
    views: BTreeSet<Oid>,
    written: BTreeSet<(Oid, Write)>,
}

impl Wanted<'_> {
    fn resolve(&self, name: &ast::ObjectName) -> Option<&Relation> {
        let (schema, name) = split_name(name).ok()?;
        self.catalog.resolve(schema.as_deref(), &name, self.search_path)
    }

    fn add(&mut self, table: Oid, mode: LockMode) {
        let held = self.modes.entry(table).or_insert(mode);
        *held = held.with(mode);
    }

    /// A table that is read. What is not there is the planner's to complain of.
    fn name(&mut self, name: &ast::ObjectName, mode: LockMode) {
        match self.resolve(name) {
            Some(Relation::Table(table)) => {
                let oid = table.oid;
                self.add(oid, mode);
            }
            Some(Relation::View(view)) => {
                let view = Arc::clone(view);
                if self.views.insert(view.oid)
                    && let Ok(query) = super::parse::parse_query(&view.query)
                {
                    self.read(&*query);
                }
            }
            _ => {}
        }
    }

    /// All that is named in a part of a statement.
    fn read(&mut self, part: &impl ast::Visit) {
        self.read_in(part, LockMode::ConcurrentRead);
    }

    fn read_in(&mut self, part: &impl ast::Visit, mode: LockMode) {
        let _ = ast::visit_relations(part, |name| {
            self.name(name, mode);
            ControlFlow::<()>::Continue(())
        });
    }

    /// A table that is written, and what its foreign keys lead to.
    fn write(&mut self, name: &ast::ObjectName, how: Write) {
        if let Some(Relation::Table(table)) = self.resolve(name) {
            let table = Arc::clone(table);
            self.write_table(&table, how);
        }
    }

    fn write_table(&mut self, table: &Arc<Table>, how: Write) {
        if !self.written.insert((table.oid, how)) {
            return;
        }
        self.add(table.oid, LockMode::ConcurrentWrite);
        if how != Write::Delete {
            table.foreign_keys.iter().for_each(|key| self.add(key.references, LockMode::ConcurrentWrite));
        }
        if how == Write::Insert {
            return;
        }
        let catalog = self.catalog;
        for (child, key) in catalog.references_to(table.oid) {
            match (if how == Write::Delete { key.on_delete } else { key.on_update }, how) {
                (Action::NoAction | Action::Restrict, _) => self.add(child.oid, LockMode::ConcurrentRead),
                (Action::Cascade, _) => self.write_table(child, how),
                (Action::SetNull | Action::SetDefault, _) => self.write_table(child, Write::Update),
            }
        }
    }

    fn factor(&mut self, factor: Option<&ast::TableFactor>, how: Write) {
        if let Some(ast::TableFactor::Table { name, .. }) = factor {
            self.write(name, how);
        }
    }

    fn statement(&mut self, statement: &Statement) {
        match statement {
            // FOR UPDATE and FOR SHARE leave stamps in the rows: ROW SHARE.
            Statement::Query(query) if !query.locks.is_empty() => self.read_in(&**query, LockMode::ConcurrentWrite),
            Statement::Query(query) => self.read(&**query),
            Statement::Insert(insert) => {
                if let ast::TableObject::TableName(name) = &insert.table {
                    self.write(name, if insert.on.is_some() { Write::Update } else { Write::Insert });
                }
                self.read(&**insert);
            }
            Statement::Update(update) => {
                self.factor(Some(&update.table.relation), Write::Update);
                self.read(&**update);
            }
            Statement::Delete(delete) => {
                let (ast::FromTable::WithFromKeyword(list) | ast::FromTable::WithoutKeyword(list)) = &delete.from;
                self.factor(list.first().map(|from| &from.relation), Write::Delete);
                self.read(&**delete);
            }
            Statement::Explain { statement, .. } => self.statement(&statement.statement),
            Statement::Declare { query, .. } => self.statement(&query.statement),
            Statement::Copy(copy) => match (&copy.source, copy.direction) {
                (CopySource::Table(name, _), CopyDirection::In) => self.write(name, Write::Insert),
                (CopySource::Table(name, _), CopyDirection::Out) => self.name(name, LockMode::ConcurrentRead),
                (CopySource::Query(inner), _) => self.statement(&inner.statement),
            },
            Statement::Ddl(ddl) => match &**ddl {
                ast::Statement::CreateTable(create) => create.query.iter().for_each(|query| self.read(&**query)),
                ast::Statement::CreateView(view) => self.read(&*view.query),
                // The others lock what they change.
                _ => {}
            },
            _ => {}
        }
    }
}

impl SqlSession {
    /// Locks the relations of a statement, and returns the catalog as it is then. Nothing that it says of them changes
    /// before the transaction ends.
    ///
    /// # Errors
    /// As [`SqlSession::lock_relation`].
    pub(in crate::sql) async fn lock_relations_of(&mut self, statement: &Statement) -> Result<Arc<Catalog>, SqlError> {
        let search_path = self.settings.search_path(&self.user);
        let mut catalog = self.catalog().await?;
        // Again as long as somebody has altered something meanwhile: the names may mean other tables now.
        loop {
            let mut wanted = Wanted {
                catalog: &catalog,
                search_path: &search_path,
                modes: BTreeMap::new(),
                views: BTreeSet::new(),
                written: BTreeSet::new(),
            };
            wanted.statement(statement);
            let modes = wanted.modes;
            if modes.is_empty() {
                return Ok(catalog);
            }
            for (relation, mode) in modes {
                self.lock_relation(relation, mode).await?;
            }
            let now = self.catalog().await?;
            if Arc::ptr_eq(&now, &catalog) {
                // What was committed while it waited counts.
                self.core.store.lock().await.new_statement();
                return Ok(catalog);
            }
            catalog = now;
        }
    }

    /// Takes a relation's lock for the rest of the transaction, unless it has as strong a one.
    ///
    /// # Errors
    /// `55P03` after `lock_timeout`, `40P01`, `57014`.
    pub(in crate::sql) async fn lock_relation(&mut self, relation: Oid, mode: LockMode) -> Result<(), SqlError> {
        self.lock_relation_or(relation, mode, WaitPolicy::Wait).await
    }

    /// LOCK TABLE.
    ///
    /// # Errors
    /// As [`SqlSession::lock_relation`]; `55P03` with [`WaitPolicy::NoWait`] when somebody is in the way.
    pub(in crate::sql) async fn lock_table(&mut self, table: &Table, mode: LockMode, wait: WaitPolicy) -> Result<(), SqlError> {
        self.lock_relation_or(table.oid, mode, wait).await.map_err(|fault| {
            if wait == WaitPolicy::NoWait && fault.code() == code::LOCK_NOT_AVAILABLE {
                let message = format!("could not obtain lock on relation \"{}\"", table.name);
                return SqlError::new(code::LOCK_NOT_AVAILABLE, message);
            }
            fault
        })
    }

    /// `lock_timeout`, unless it is 0.
    pub(in crate::sql) fn lock_limit(&self) -> Option<Duration> {
        let timeout_ms = self.settings.milliseconds("lock_timeout");
        (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms))
    }

    async fn lock_relation_or(&mut self, relation: Oid, mode: LockMode, wait: WaitPolicy) -> Result<(), SqlError> {
        let held = self.transaction.locks.get(&relation).copied();
        let mode = held.map_or(mode, |held| held.with(mode));
        if held == Some(mode) {
            return Ok(());
        }
        self.core.lock(relation_lock(relation), mode, wait, self.lock_limit()).await?;
        self.transaction.locks.insert(relation, mode);
        Ok(())
    }
}
