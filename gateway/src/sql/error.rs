//! Errors as PostgreSQL reports them: a severity, an SQLSTATE, and the fields a client may show.
//!
//! Plain values, owned by whoever holds them. Every error that reaches a client is one of these; the codes are
//! PostgreSQL's own (its manual, appendix A), because programs decide by them.

use std::fmt;

/// How loud a report is. Only [`Severity::Error`] and above end a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Ends the connection.
    Fatal,
    /// Ends the statement, and fails the transaction.
    Error,
    /// Something is likely wrong, the statement goes on.
    Warning,
    /// For the user's information.
    Notice,
}

impl Severity {
    /// The word that goes into the `S` and `V` fields.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Severity::Fatal => "FATAL",
            Severity::Error => "ERROR",
            Severity::Warning => "WARNING",
            Severity::Notice => "NOTICE",
        }
    }
}

/// What a client is told when something went wrong (or deserves a notice). Boxed inside, so that results stay small.
#[derive(Clone, PartialEq, Eq)]
pub struct SqlError(Box<Fields>);

/// The fields of a report. All but the first three are often absent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fields {
    /// How loud.
    pub severity: Severity,
    /// SQLSTATE, five characters.
    pub code: &'static str,
    /// One line: what happened, to what.
    pub message: String,
    /// The values at hand.
    pub detail: Option<String>,
    /// What to do now.
    pub hint: Option<String>,
    /// Where in the data it happened.
    pub context: Option<String>,
    /// Character position in the statement, from 1.
    pub position: Option<u32>,
    /// Schema of the table at fault.
    pub schema: Option<String>,
    /// Table at fault.
    pub table: Option<String>,
    /// Column at fault.
    pub column: Option<String>,
    /// Constraint at fault.
    pub constraint: Option<String>,
}

/// SQLSTATEs that this crate raises.
pub mod code {
    #![allow(missing_docs, reason = "the names are the documentation: PostgreSQL's condition names")]
    pub const CONNECTION_FAILURE: &str = "08006";
    pub const PROTOCOL_VIOLATION: &str = "08P01";
    pub const FEATURE_NOT_SUPPORTED: &str = "0A000";
    pub const CARDINALITY_VIOLATION: &str = "21000";
    pub const STRING_DATA_RIGHT_TRUNCATION: &str = "22001";
    pub const NUMERIC_VALUE_OUT_OF_RANGE: &str = "22003";
    pub const INVALID_DATETIME_FORMAT: &str = "22007";
    pub const DATETIME_FIELD_OVERFLOW: &str = "22008";
    pub const DIVISION_BY_ZERO: &str = "22012";
    pub const INVALID_PARAMETER_VALUE: &str = "22023";
    pub const SEQUENCE_LIMIT_EXCEEDED: &str = "2200H";
    pub const INVALID_TEXT_REPRESENTATION: &str = "22P02";
    pub const INVALID_BINARY_REPRESENTATION: &str = "22P03";
    pub const BAD_COPY_FILE_FORMAT: &str = "22P04";
    pub const NOT_NULL_VIOLATION: &str = "23502";
    pub const FOREIGN_KEY_VIOLATION: &str = "23503";
    pub const UNIQUE_VIOLATION: &str = "23505";
    pub const CHECK_VIOLATION: &str = "23514";
    pub const INVALID_CURSOR_STATE: &str = "24000";
    pub const ACTIVE_SQL_TRANSACTION: &str = "25001";
    pub const READ_ONLY_SQL_TRANSACTION: &str = "25006";
    pub const NO_ACTIVE_SQL_TRANSACTION: &str = "25P01";
    pub const IN_FAILED_SQL_TRANSACTION: &str = "25P02";
    pub const INVALID_SQL_STATEMENT_NAME: &str = "26000";
    pub const DEPENDENT_OBJECTS_STILL_EXIST: &str = "2BP01";
    pub const INVALID_CURSOR_NAME: &str = "34000";
    pub const INVALID_CATALOG_NAME: &str = "3D000";
    pub const INVALID_SAVEPOINT_SPECIFICATION: &str = "3B001";
    pub const INVALID_SCHEMA_NAME: &str = "3F000";
    pub const SERIALIZATION_FAILURE: &str = "40001";
    pub const DEADLOCK_DETECTED: &str = "40P01";
    pub const SYNTAX_ERROR: &str = "42601";
    pub const INSUFFICIENT_PRIVILEGE: &str = "42501";
    pub const DUPLICATE_COLUMN: &str = "42701";
    pub const AMBIGUOUS_COLUMN: &str = "42702";
    pub const UNDEFINED_COLUMN: &str = "42703";
    pub const UNDEFINED_OBJECT: &str = "42704";
    pub const DUPLICATE_OBJECT: &str = "42710";
    pub const DUPLICATE_ALIAS: &str = "42712";
    pub const GROUPING_ERROR: &str = "42803";
    pub const DATATYPE_MISMATCH: &str = "42804";
    pub const WRONG_OBJECT_TYPE: &str = "42809";
    pub const INVALID_FOREIGN_KEY: &str = "42830";
    pub const CANNOT_COERCE: &str = "42846";
    pub const UNDEFINED_FUNCTION: &str = "42883";
    pub const UNDEFINED_TABLE: &str = "42P01";
    pub const UNDEFINED_PARAMETER: &str = "42P02";
    pub const DUPLICATE_CURSOR: &str = "42P03";
    pub const DUPLICATE_PREPARED_STATEMENT: &str = "42P05";
    pub const DUPLICATE_SCHEMA: &str = "42P06";
    pub const DUPLICATE_TABLE: &str = "42P07";
    pub const INVALID_COLUMN_REFERENCE: &str = "42P10";
    pub const INVALID_TABLE_DEFINITION: &str = "42P16";
    pub const INDETERMINATE_DATATYPE: &str = "42P18";
    pub const DISK_FULL: &str = "53100";
    pub const OUT_OF_MEMORY: &str = "53200";
    pub const PROGRAM_LIMIT_EXCEEDED: &str = "54000";
    pub const OBJECT_NOT_IN_PREREQUISITE_STATE: &str = "55000";
    pub const LOCK_NOT_AVAILABLE: &str = "55P03";
    pub const QUERY_CANCELED: &str = "57014";
    pub const ADMIN_SHUTDOWN: &str = "57P01";
    pub const CANNOT_CONNECT_NOW: &str = "57P03";
    pub const SNAPSHOT_TOO_OLD: &str = "72000";
    pub const INTERNAL_ERROR: &str = "XX000";
    pub const DATA_CORRUPTED: &str = "XX001";
}

impl SqlError {
    /// An error with a code and a message.
    #[must_use]
    pub fn new(code: &'static str, message: impl Into<String>) -> SqlError {
        SqlError(Box::new(Fields {
            severity: Severity::Error,
            code,
            message: message.into(),
            detail: None,
            hint: None,
            context: None,
            position: None,
            schema: None,
            table: None,
            column: None,
            constraint: None,
        }))
    }

    /// A notice: success class `00000`.
    #[must_use]
    pub fn notice(message: impl Into<String>) -> SqlError {
        let mut notice = SqlError::new("00000", message);
        notice.0.severity = Severity::Notice;
        notice
    }

    /// A warning.
    #[must_use]
    pub fn warning(code: &'static str, message: impl Into<String>) -> SqlError {
        let mut warning = SqlError::new(code, message);
        warning.0.severity = Severity::Warning;
        warning
    }

    /// `0A000` with what is not supported.
    #[must_use]
    pub fn unsupported(what: impl fmt::Display) -> SqlError {
        SqlError::new(code::FEATURE_NOT_SUPPORTED, format!("{what} is not supported"))
    }

    /// `42601`.
    #[must_use]
    pub fn syntax(message: impl Into<String>) -> SqlError {
        SqlError::new(code::SYNTAX_ERROR, message)
    }

    /// `42883`, with PostgreSQL's hint.
    #[must_use]
    pub fn undefined_function(name: &str, arguments: &str) -> SqlError {
        SqlError::new(code::UNDEFINED_FUNCTION, format!("function {name}({arguments}) does not exist"))
            .with_hint("No function matches the given name and argument types. You might need to add explicit type casts.")
    }

    /// `XX000`: a fault of ours.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> SqlError {
        SqlError::new(code::INTERNAL_ERROR, message)
    }

    /// Adds the values at hand.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> SqlError {
        self.0.detail = Some(detail.into());
        self
    }

    /// Adds where in the data it happened.
    #[must_use]
    pub fn with_context(mut self, context: impl Into<String>) -> SqlError {
        self.0.context = Some(context.into());
        self
    }

    /// Adds what to do now.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> SqlError {
        self.0.hint = Some(hint.into());
        self
    }

    /// Names the table at fault.
    #[must_use]
    pub fn on_table(mut self, schema: &str, table: &str) -> SqlError {
        self.0.schema = Some(schema.to_owned());
        self.0.table = Some(table.to_owned());
        self
    }

    /// Names the column at fault.
    #[must_use]
    pub fn on_column(mut self, column: &str) -> SqlError {
        self.0.column = Some(column.to_owned());
        self
    }

    /// Names the constraint at fault.
    #[must_use]
    pub fn on_constraint(mut self, constraint: &str) -> SqlError {
        self.0.constraint = Some(constraint.to_owned());
        self
    }

    /// Points into the statement (characters from 1).
    #[must_use]
    pub fn at(mut self, position: u32) -> SqlError {
        self.0.position = Some(position);
        self
    }

    /// SQLSTATE.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.0.code
    }

    /// The message.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// All fields.
    #[must_use]
    pub fn fields(&self) -> &Fields {
        &self.0
    }
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (SQLSTATE {})", self.0.severity.as_str(), self.0.message, self.0.code)?;
        if let Some(detail) = &self.0.detail {
            write!(f, "; {detail}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for SqlError {}

impl From<rustydb::store::StoreError> for SqlError {
    fn from(fault: rustydb::store::StoreError) -> SqlError {
        SqlError::new(fault.sqlstate(), fault.to_string())
    }
}
