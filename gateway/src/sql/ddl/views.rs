//! Views keep reading what they were made over: `*` is spelled out when a view is made, and renames of a table or a column
//! are followed in the views' queries.
//!
//! Pure over the catalog's texts; the changes go into the transaction of the renaming statement.

use std::ops::ControlFlow;
use std::sync::Arc;

use datafusion::sql::sqlparser::ast::{
    self, Expr, Ident, ObjectNamePart, Query, Select, SelectItem, SetExpr, TableFactor, VisitMut, VisitorMut,
};

use super::Change;
use super::drop::dependents;
use crate::sql::catalog::{Catalog, Oid, Relation, Table, View};
use crate::sql::context::Context;
use crate::sql::error::SqlError;
use crate::sql::parse::{fold, parse_query, split_name};

/// A view's query with the columns that `*` means now, where that is plain to see.
pub(super) fn spelled_out(context: &Context, query: &Query) -> Query {
    let mut query = query.clone();
    if let SetExpr::Select(select) = &mut *query.body {
        let merged = select.from.iter().flat_map(|from| &from.joins).any(|join| {
            use ast::JoinConstraint::{Natural, Using};
            use ast::JoinOperator as J;
            matches!(
                &join.join_operator,
                J::Join(Using(_) | Natural)
                    | J::Inner(Using(_) | Natural)
                    | J::Left(Using(_) | Natural)
                    | J::LeftOuter(Using(_) | Natural)
                    | J::Right(Using(_) | Natural)
                    | J::RightOuter(Using(_) | Natural)
                    | J::FullOuter(Using(_) | Natural)
            )
        });
        if !merged && let Ok(items) = crate::sql::select::visible_items(context, select) {
            select.projection = items;
        }
    }
    query
}

/// How a view's query names relations: the view's own schema, then public.
struct Place<'a> {
    catalog: &'a Catalog,
    path: [String; 2],
    table: Oid,
}

impl Place<'_> {
    fn is_table(&self, name: &ast::ObjectName) -> bool {
        let Ok((schema, name)) = split_name(name) else { return false };
        self.catalog.resolve(schema.as_deref(), &name, &self.path).is_some_and(|found| found.oid() == self.table)
    }

    fn columns(&self, name: &ast::ObjectName) -> Option<Vec<String>> {
        let (schema, name) = split_name(name).ok()?;
        let columns = match self.catalog.resolve(schema.as_deref(), &name, &self.path)? {
            Relation::Table(table) => table.live_columns().map(|c| c.name.clone()).collect(),
            Relation::View(view) => view.columns.iter().map(|c| c.name.clone()).collect(),
            Relation::Sequence(_) => Vec::new(),
        };
        Some(columns)
    }
}

fn changed(view: &View, query: &Query) -> Change {
    Change::Put(Relation::View(Arc::new(View { query: query.to_string(), ..view.clone() })))
}

fn place<'a>(catalog: &'a Catalog, view: &View, table: Oid) -> Place<'a> {
    Place { catalog, path: [catalog.schema_name(view.schema).to_owned(), "public".to_owned()], table }
}

struct Tables<'a> {
    place: Place<'a>,
    to: String,
}

impl VisitorMut for Tables<'_> {
    type Break = ();

    fn post_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, alias, args: None, .. } = factor
            && self.place.is_table(name)
            && let Some(ObjectNamePart::Identifier(last)) = name.0.last_mut()
        {
            let old = std::mem::replace(last, Ident::with_quote('"', &self.to));
            // Columns go on being qualified by the old name.
            alias.get_or_insert_with(|| ast::TableAlias { explicit: true, name: old, columns: Vec::new(), at: None });
        }
        ControlFlow::Continue(())
    }
}

/// The views that read a table, when it gets another name.
///
/// # Errors
/// A stored query that does not parse, which would be a bug.
pub(super) fn table_renamed(catalog: &Catalog, table: Oid, to: &str) -> Result<Vec<Change>, SqlError> {
    let mut changes = Vec::new();
    for view in dependents(catalog, table) {
        let mut query = parse_query(&view.query)?;
        let _ = VisitMut::visit(&mut query, &mut Tables { place: place(catalog, &view, table), to: to.to_owned() });
        changes.push(changed(&view, &query));
    }
    Ok(changes)
}

struct Columns<'a> {
    place: Place<'a>,
    from: String,
    to: String,
    /// A name that could be this column or another one was found.
    unclear: bool,
}

impl VisitorMut for Columns<'_> {
    type Break = ();

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        let factors = select.from.iter().flat_map(|f| std::iter::once(&f.relation).chain(f.joins.iter().map(|j| &j.relation)));
        let (mut aliases, mut shared) = (Vec::new(), false);
        for factor in factors {
            match factor {
                TableFactor::Table { name, alias, args: None, .. } if self.place.is_table(name) => {
                    let own = split_name(name).map(|(_, name)| name).unwrap_or_default();
                    aliases.push(alias.as_ref().map_or(own, |alias| fold(&alias.name)));
                }
                TableFactor::Table { name, args: None, .. } => {
                    shared |= self.place.columns(name).is_none_or(|columns| columns.contains(&self.from));
                }
                _ => shared = true,
            }
        }
        if aliases.is_empty() {
            return ControlFlow::Continue(());
        }
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(expr @ (Expr::Identifier(_) | Expr::CompoundIdentifier(_))) = item {
                let alias = Ident::with_quote('"', crate::sql::rewrite::output_name(expr));
                *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias };
            }
        }
        let (from, to) = (self.from.clone(), Ident::with_quote('"', &self.to));
        let mut unclear = false;
        let _ = ast::visit_expressions_mut(select, |expr| {
            match expr {
                Expr::CompoundIdentifier(parts) => {
                    if let [.., relation, column] = parts.as_mut_slice()
                        && aliases.contains(&fold(relation))
                        && fold(column) == from
                    {
                        *column = to.clone();
                    }
                }
                Expr::Identifier(column) if fold(column) == from => {
                    unclear |= shared;
                    *column = to.clone();
                }
                _ => {}
            }
            ControlFlow::<()>::Continue(())
        });
        self.unclear |= unclear;
        ControlFlow::Continue(())
    }
}

/// The views that read a table, when one of its columns gets another name.
///
/// # Errors
/// `0A000` when a view's query does not tell whose column a name is.
pub(super) fn column_renamed(catalog: &Catalog, table: &Table, from: &str, to: &str) -> Result<Vec<Change>, SqlError> {
    let mut changes = Vec::new();
    for view in dependents(catalog, table.oid) {
        let mut query = parse_query(&view.query)?;
        let (from, to) = (from.to_owned(), to.to_owned());
        let mut columns = Columns { place: place(catalog, &view, table.oid), from, to, unclear: false };
        let _ = VisitMut::visit(&mut query, &mut columns);
        if columns.unclear {
            let what = format!(
                "renaming column {} of {}, which view {} reads by an unqualified name,",
                columns.from, table.name, view.name
            );
            return Err(SqlError::unsupported(what).with_hint("Qualify the column in the view's query."));
        }
        changes.push(changed(&view, &query));
    }
    Ok(changes)
}
