//! WITH before UPDATE and DELETE: the common table expressions are put where they are named, as subqueries in FROM.
//!
//! Pure over a syntax tree. The statement's own table is never one of them, whatever its name.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{self, TableFactor, VisitMut, VisitorMut};

use super::fold;
use crate::sql::error::SqlError;

struct Inline(Vec<ast::Cte>);

impl VisitorMut for Inline {
    type Break = ();

    fn post_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        let TableFactor::Table { name, alias, args: None, .. } = factor else { return ControlFlow::Continue(()) };
        let [part] = name.0.as_slice() else { return ControlFlow::Continue(()) };
        let wanted = part.as_ident().map(fold);
        // The latest of a name counts.
        let Some(cte) = self.0.iter().rev().find(|cte| Some(fold(&cte.alias.name)) == wanted) else {
            return ControlFlow::Continue(());
        };
        let mut shown = alias.clone().unwrap_or_else(|| cte.alias.clone());
        if shown.columns.is_empty() {
            shown.columns.clone_from(&cte.alias.columns);
        }
        *factor = TableFactor::Derived { lateral: false, subquery: cte.query.clone(), alias: Some(shown), sample: None };
        ControlFlow::Continue(())
    }
}

fn inliner(with: ast::With) -> Result<Inline, SqlError> {
    if with.recursive {
        return Err(SqlError::unsupported("WITH RECURSIVE before UPDATE or DELETE"));
    }
    let mut inline = Inline(Vec::new());
    for mut cte in with.cte_tables {
        let changes = matches!(*cte.query.body, ast::SetExpr::Insert(_) | ast::SetExpr::Update(_) | ast::SetExpr::Delete(_));
        if changes {
            return Err(SqlError::unsupported("a WITH query that changes data"));
        }
        // One may name those before it.
        let _ = VisitMut::visit(&mut cte.query, &mut inline);
        inline.0.push(cte);
    }
    Ok(inline)
}

pub(super) fn inline_in_update(with: ast::With, update: &mut ast::Update) -> Result<(), SqlError> {
    let mut inline = inliner(with)?;
    let _ = VisitMut::visit(&mut update.from, &mut inline);
    let _ = VisitMut::visit(&mut update.selection, &mut inline);
    let _ = VisitMut::visit(&mut update.assignments, &mut inline);
    let _ = VisitMut::visit(&mut update.returning, &mut inline);
    Ok(())
}

pub(super) fn inline_in_delete(with: ast::With, delete: &mut ast::Delete) -> Result<(), SqlError> {
    let mut inline = inliner(with)?;
    let _ = VisitMut::visit(&mut delete.using, &mut inline);
    let _ = VisitMut::visit(&mut delete.selection, &mut inline);
    let _ = VisitMut::visit(&mut delete.returning, &mut inline);
    Ok(())
}
