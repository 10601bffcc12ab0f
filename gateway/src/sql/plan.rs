//! Planning and running queries by DataFusion over one statement's view of the catalog.
//!
//! A [`Planner`] lives for one statement. It resolves names itself (no shared DataFusion session), so each statement has
//! its own catalog, search path and snapshot.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, FieldRef, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::common::{DFSchema, Result as DfResult, TableReference};
use datafusion::config::ConfigOptions;
use datafusion::datasource::{ViewTable, provider_as_source};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::planner::{ContextProvider, ExprPlanner, TypePlanner};
use datafusion::logical_expr::{AggregateUDF, Expr as DfExpr, HigherOrderUDF, LogicalPlan, ScalarUDF, TableSource, WindowUDF};
use datafusion::physical_plan::{ExecutionPlan, PhysicalExpr, execute_stream};
use datafusion::sql::planner::{ParserOptions, PlannerContext, SqlToRel};
use datafusion::sql::sqlparser::ast;
use futures::StreamExt as _;

use super::api::ColumnDesc;
use super::catalog::{Catalog, Oid, Relation, Table, undefined_table};
use super::core::SessionCore;
use super::database::Database;
use super::dferror::from_datafusion;
use super::error::{SqlError, code};
use super::rewrite::{self, Env, MARK};
use super::scan::TableScan;
use super::sqltypes::Types;
use super::types::arrow::{arrow_field, datum_at, field_type};
use super::types::{Datum, PgType, Row};
use crate::pg_catalog::{self, Asker};

/// A parameter: its type and, when it runs, its value.
pub type Parameter = (PgType, Option<Datum>);

/// See the module.
pub struct Planner<'a> {
    db: &'a Database,
    catalog: &'a Arc<Catalog>,
    core: &'a Arc<SessionCore>,
    env: &'a Env,
    /// Tables that show their hidden columns.
    hidden: BTreeSet<Oid>,
    /// Tables that stand in for others, by name.
    overlay: HashMap<String, Arc<dyn TableProvider>>,
    types: Arc<dyn TypePlanner>,
    fault: Mutex<Option<SqlError>>,
    asker: OnceLock<Arc<Asker>>,
    system_functions: OnceLock<HashMap<String, Arc<ScalarUDF>>>,
    /// A function of the statement's own.
    own: Option<Arc<ScalarUDF>>,
}

impl<'a> Planner<'a> {
    /// For one statement.
    #[must_use]
    pub fn new(db: &'a Database, catalog: &'a Arc<Catalog>, core: &'a Arc<SessionCore>, env: &'a Env) -> Planner<'a> {
        Planner {
            db,
            catalog,
            core,
            env,
            hidden: BTreeSet::new(),
            overlay: HashMap::new(),
            types: Arc::new(Types),
            fault: Mutex::new(None),
            asker: OnceLock::new(),
            system_functions: OnceLock::new(),
            own: None,
        }
    }

    /// Adds a function that knows the statement's context.
    #[must_use]
    pub fn with_function(mut self, function: ScalarUDF) -> Planner<'a> {
        self.own = Some(Arc::new(function));
        self
    }

    /// Shows the hidden columns of a table.
    pub fn show_hidden(&mut self, table: Oid) {
        self.hidden.insert(table);
    }

    /// Puts a table under a name, in front of the catalog's.
    pub fn overlay(&mut self, name: &str, provider: Arc<dyn TableProvider>) {
        self.overlay.insert(name.to_owned(), provider);
    }

    fn asker(&self) -> &Arc<Asker> {
        self.asker.get_or_init(|| {
            Arc::new(Asker {
                catalog: Arc::clone(self.catalog),
                user: self.env.user.clone(),
                database: self.env.database.clone(),
                search_path: self.env.search_path.iter().filter(|s| *s != "pg_catalog").cloned().collect(),
                settings: self.env.settings.iter().map(|(n, v)| (n.clone(), v.clone(), String::new())).collect(),
            })
        })
    }

    fn system_functions(&self) -> &HashMap<String, Arc<ScalarUDF>> {
        self.system_functions
            .get_or_init(|| pg_catalog::functions(self.asker()).into_iter().map(|f| (f.name().to_owned(), Arc::new(f))).collect())
    }

    fn provider(&self, schema: Option<&str>, name: &str) -> Result<Arc<dyn TableProvider>, SqlError> {
        if schema.is_none()
            && let Some(provider) = self.overlay.get(name)
        {
            return Ok(Arc::clone(provider));
        }
        match self.catalog.resolve(schema, name, &self.env.search_path) {
            Some(Relation::Table(table)) => {
                Ok(Arc::new(TableScan::new(Arc::clone(table), Arc::clone(self.core), self.hidden.contains(&table.oid))))
            }
            Some(Relation::View(view)) => {
                let mut query = super::parse::parse_query(&view.query)?;
                rewrite::query(&mut query, self.env, self.catalog, &[])?;
                let inner = Planner::new(self.db, self.catalog, self.core, self.env);
                let plan = inner.rewritten_to_plan(*query, &[])?;
                let plan = rename(plan, &view.columns)?;
                Ok(Arc::new(ViewTable::new(plan, Some(view.query.clone()))))
            }
            Some(Relation::Sequence(sequence)) => super::functions::sequence_table(sequence),
            None => {
                let system = pg_catalog::table(self.asker(), schema.unwrap_or("pg_catalog"), name)?;
                system.ok_or_else(|| undefined_table(schema, name))
            }
        }
    }

    /// Plans a query. `parameters` with values are put in; the others stay placeholders of their types.
    ///
    /// # Errors
    /// Everything that is wrong with the query.
    pub fn plan(&self, query: &ast::Query, parameters: &[Parameter], with_values: bool) -> Result<LogicalPlan, SqlError> {
        let mut query = query.clone();
        super::pgisms::rewrite(&mut query);
        rewrite::query(&mut query, self.env, self.catalog, if with_values { parameters } else { &[] })?;
        let types: Vec<Option<FieldRef>> = parameters
            .iter()
            .map(|(kind, _)| (*kind != PgType::Unknown).then(|| Arc::new(arrow_field("", *kind, -1, true)) as FieldRef))
            .collect();
        self.rewritten_to_plan(query, if with_values { &[] } else { &types })
    }

    fn options(&self) -> ParserOptions {
        ParserOptions {
            parse_float_as_decimal: true,
            map_string_types_to_utf8view: false,
            support_varchar_with_length: true,
            ..ParserOptions::default()
        }
    }

    fn rewritten_to_plan(&self, query: ast::Query, types: &[Option<FieldRef>]) -> Result<LogicalPlan, SqlError> {
        let planner = SqlToRel::new_with_options(self, self.options());
        let mut context = PlannerContext::new().with_prepare_param_data_types(types.to_vec());
        let statement = ast::Statement::Query(Box::new(query));
        let plan = planner.sql_statement_to_plan_with_context(statement, &mut context);
        plan.and_then(super::pgtypes::apply).map_err(|fault| self.fault_of(fault))
    }

    fn fault_of(&self, fault: datafusion::common::DataFusionError) -> SqlError {
        let ours = self.fault.lock().unwrap_or_else(PoisonError::into_inner).take();
        ours.unwrap_or_else(|| from_datafusion(fault))
    }

    /// Optimises a plan and makes it executable.
    ///
    /// # Errors
    /// What DataFusion cannot do.
    pub async fn physical(&self, plan: &LogicalPlan) -> Result<Arc<dyn ExecutionPlan>, SqlError> {
        self.db.state.create_physical_plan(plan).await.map_err(from_datafusion)
    }

    /// Starts a plan.
    ///
    /// # Errors
    /// What fails at the start.
    pub fn execute(&self, plan: Arc<dyn ExecutionPlan>) -> Result<SendableRecordBatchStream, SqlError> {
        execute_stream(plan, self.db.state.task_ctx()).map_err(from_datafusion)
    }

    /// Runs a query to its end.
    ///
    /// # Errors
    /// Everything that can go wrong with it.
    pub async fn collect(
        &self,
        query: &ast::Query,
        parameters: &[Parameter],
    ) -> Result<(LogicalPlan, Vec<RecordBatch>), SqlError> {
        let plan = self.plan(query, parameters, true)?;
        let mut stream = self.execute(self.physical(&plan).await?)?;
        let mut batches = Vec::new();
        let drain = async {
            while let Some(batch) = stream.next().await {
                self.core.check_canceled()?;
                batches.push(batch.map_err(from_datafusion)?);
            }
            Ok(())
        };
        self.core.unless_canceled(drain).await?;
        Ok((plan, batches))
    }

    /// Compiles an expression over a table's columns (a CHECK).
    ///
    /// # Errors
    /// As [`Planner::plan`].
    pub fn physical_expression(
        &self,
        expr: &ast::Expr,
        schema: &SchemaRef,
        table: &str,
    ) -> Result<Arc<dyn PhysicalExpr>, SqlError> {
        let mut expr = expr.clone();
        rewrite::expression(&mut expr, self.env, self.catalog, &[])?;
        let schema = DFSchema::try_from_qualified_schema(table, schema).map_err(from_datafusion)?;
        let planner = SqlToRel::new_with_options(self, self.options());
        let logical = planner.sql_to_expr(expr, &schema, &mut PlannerContext::new()).map_err(|fault| self.fault_of(fault))?;
        self.db.state.create_physical_expr(logical, &schema).map_err(from_datafusion)
    }
}

/// A view's columns bear the names that it was created with.
fn rename(plan: LogicalPlan, columns: &[super::catalog::Column]) -> Result<LogicalPlan, SqlError> {
    let names: Vec<String> = plan.schema().fields().iter().map(|f| f.name().clone()).collect();
    if names.len() != columns.len() {
        return Err(SqlError::new(code::OBJECT_NOT_IN_PREREQUISITE_STATE, "a view's tables have changed under it")
            .with_hint("Drop and create the view again."));
    }
    let exprs: Vec<DfExpr> = plan
        .schema()
        .columns()
        .into_iter()
        .zip(columns)
        .map(|(column, wanted)| DfExpr::Column(column).alias(&wanted.name))
        .collect();
    datafusion::logical_expr::LogicalPlanBuilder::from(plan).project(exprs).and_then(|b| b.build()).map_err(from_datafusion)
}

/// A plan's output as a client sees it, without hidden columns.
#[must_use]
pub fn columns_of(plan: &LogicalPlan) -> Vec<ColumnDesc> {
    plan.schema()
        .fields()
        .iter()
        .enumerate()
        .map(|(at, field)| {
            let (kind, typmod) = field_type(field);
            let name = field.name().split(MARK).next().unwrap_or_default().to_owned();
            let (table, number) = origin(plan, at).unwrap_or((0, 0));
            ColumnDesc { name, kind, typmod, table, number }
        })
        .collect()
}

/// The table and the number of the column that a plan's output shows unchanged.
fn origin(plan: &LogicalPlan, at: usize) -> Option<(Oid, i16)> {
    fn column_of(expr: &DfExpr) -> Option<&datafusion::common::Column> {
        match expr {
            DfExpr::Column(column) => Some(column),
            DfExpr::Alias(alias) => column_of(&alias.expr),
            _ => None,
        }
    }
    match plan {
        LogicalPlan::Projection(projection) => {
            let column = column_of(projection.expr.get(at)?)?;
            origin(&projection.input, projection.input.schema().maybe_index_of_column(column)?)
        }
        LogicalPlan::Filter(_) | LogicalPlan::Sort(_) | LogicalPlan::Limit(_) => origin(plan.inputs().first()?, at),
        LogicalPlan::SubqueryAlias(alias) => origin(&alias.input, at),
        LogicalPlan::Join(join) if join.schema.fields().len() > at => {
            let left = join.left.schema().fields().len();
            if at < left { origin(&join.left, at) } else { origin(&join.right, at - left) }
        }
        LogicalPlan::TableScan(scan) => {
            let provider = datafusion::datasource::source_as_provider(&scan.source).ok()?;
            let table = provider.downcast_ref::<TableScan>()?;
            let at = scan.projection.as_ref().map_or(at, |columns| columns[at]);
            table.origin(at)
        }
        _ => None,
    }
}

/// A batch's rows as values of these columns (the first so many of the batch).
///
/// # Errors
/// When a value does not fit its column's type.
pub fn batch_rows(batch: &RecordBatch, columns: &[ColumnDesc]) -> Result<Vec<Row>, SqlError> {
    let mut rows: Vec<Row> = (0..batch.num_rows()).map(|_| Vec::with_capacity(columns.len())).collect();
    for (at, column) in columns.iter().enumerate() {
        let array = batch.column(at);
        for (row, out) in rows.iter_mut().enumerate() {
            out.push(datum_at(array.as_ref(), row, column.kind)?);
        }
    }
    Ok(rows)
}

impl ContextProvider for Planner<'_> {
    fn get_table_source(&self, name: TableReference) -> DfResult<Arc<dyn TableSource>> {
        match self.provider(name.schema(), name.table()) {
            Ok(provider) => Ok(provider_as_source(provider)),
            Err(fault) => {
                *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault.clone());
                Err(fault.into())
            }
        }
    }

    fn get_table_function_source(&self, name: &str, args: Vec<DfExpr>) -> DfResult<Arc<dyn TableSource>> {
        let provider = super::functions::table_function(&self.db.state, name, args)?;
        Ok(provider_as_source(provider))
    }

    fn create_cte_work_table(&self, name: &str, schema: SchemaRef) -> DfResult<Arc<dyn TableSource>> {
        Ok(provider_as_source(Arc::new(datafusion::datasource::cte_worktable::CteWorkTable::new(name, schema))))
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        self.db.state.expr_planners()
    }

    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        Some(Arc::clone(&self.types))
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        let state = &self.db.state;
        let found = state.scalar_functions().get(name).or_else(|| self.system_functions().get(name)).cloned();
        let elsewhere = || {
            matches!(name, "unnest" | "grouping")
                || state.aggregate_functions().contains_key(name)
                || state.window_functions().contains_key(name)
                || state.higher_order_functions().contains_key(name)
        };
        let own = || self.own.iter().find(|own| own.name() == name).cloned();
        found.or_else(own).or_else(|| (!elsewhere()).then(|| super::functions::missing(name)))
    }

    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        self.db.state.higher_order_functions().get(name).cloned()
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.db.state.aggregate_functions().get(name).cloned()
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.db.state.window_functions().get(name).cloned()
    }

    fn get_variable_type(&self, _variable_names: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        self.db.state.config_options()
    }

    fn udf_names(&self) -> Vec<String> {
        self.db.state.scalar_functions().keys().cloned().collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        self.db.state.higher_order_functions().keys().cloned().collect()
    }

    fn udaf_names(&self) -> Vec<String> {
        self.db.state.aggregate_functions().keys().cloned().collect()
    }

    fn udwf_names(&self) -> Vec<String> {
        self.db.state.window_functions().keys().cloned().collect()
    }
}

/// The table that a DML statement names.
///
/// # Errors
/// `42P01`, `42809`.
pub fn target_table(catalog: &Catalog, env: &Env, name: &ast::ObjectName) -> Result<Arc<Table>, SqlError> {
    let (schema, name) = super::parse::split_name(name)?;
    if let Some(Relation::View(_)) = catalog.resolve(schema.as_deref(), &name, &env.search_path) {
        return Err(SqlError::new(code::OBJECT_NOT_IN_PREREQUISITE_STATE, format!("cannot change view \"{name}\""))
            .with_detail("Views are not updatable here."));
    }
    catalog.resolve_table(schema.as_deref(), &name, &env.search_path).map(Arc::clone)
}
