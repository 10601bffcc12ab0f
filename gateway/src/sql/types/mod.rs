//! SQL types and values: PostgreSQL's names, numbers and text and binary forms.
//!
//! Pure values, owned by whoever holds them. [`Datum`] is one value that is not NULL; a cell is an `Option<Datum>`.
//! The text forms are PostgreSQL's with `DateStyle = ISO, MDY`, `IntervalStyle = postgres`, `bytea_output = hex`.

pub mod arrow;
pub mod binary;
pub mod cast;
pub mod datetime;
pub mod json;
pub mod numeric;
pub mod text;

pub use numeric::Numeric;
use serde::{Deserialize, Serialize};

/// A type of PostgreSQL that RustyDB stores or speaks. Length and precision travel apart, as a type modifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PgType {
    /// `boolean`
    Bool,
    /// `smallint`
    Int2,
    /// `integer`
    Int4,
    /// `bigint`
    Int8,
    /// `real`
    Float4,
    /// `double precision`
    Float8,
    /// `numeric(p, s)`
    Numeric,
    /// `text`
    Text,
    /// `character varying(n)`
    Varchar,
    /// `character(n)`: kept without its trailing blanks, padded when printed
    Bpchar,
    /// `"char"`: one byte, in the catalogs
    Char,
    /// `name`
    Name,
    /// `bytea`
    Bytea,
    /// `date`
    Date,
    /// `time without time zone`
    Time,
    /// `timestamp without time zone`
    Timestamp,
    /// `timestamp with time zone`
    Timestamptz,
    /// `interval`
    Interval,
    /// `uuid`
    Uuid,
    /// `json`
    Json,
    /// `jsonb`
    Jsonb,
    /// `oid`
    Oid,
    /// `regclass`, shown as a name by its casts
    Regclass,
    /// `regtype`
    Regtype,
    /// `regproc`
    Regproc,
    /// `int2vector`, in the catalogs
    Int2Vector,
    /// `oidvector`, in the catalogs
    OidVector,
    /// `void`, what some functions return
    Void,
    /// `boolean[]`
    BoolArray,
    /// `smallint[]`
    Int2Array,
    /// `integer[]`
    Int4Array,
    /// `bigint[]`
    Int8Array,
    /// `real[]`
    Float4Array,
    /// `double precision[]`
    Float8Array,
    /// `numeric[]`
    NumericArray,
    /// `text[]`
    TextArray,
    /// `character varying[]`
    VarcharArray,
    /// `name[]`
    NameArray,
    /// `"char"[]`
    CharArray,
    /// `oid[]`
    OidArray,
    /// `timestamp[]`
    TimestampArray,
    /// `timestamptz[]`
    TimestamptzArray,
    /// `date[]`
    DateArray,
    /// `uuid[]`
    UuidArray,
    /// An untyped literal's or parameter's type until something gives it one
    Unknown,
}

/// One value that is not NULL.
#[derive(Clone, Debug, PartialEq)]
pub enum Datum {
    /// `boolean`
    Bool(bool),
    /// `smallint`
    Int2(i16),
    /// `integer`
    Int4(i32),
    /// `bigint`
    Int8(i64),
    /// `real`
    Float4(f32),
    /// `double precision`
    Float8(f64),
    /// `numeric`
    Numeric(Numeric),
    /// `text`, `varchar`, `char(n)` (without trailing blanks), `name`, `"char"`, `json`, `jsonb` (in its normal form)
    Text(String),
    /// `bytea`
    Bytea(Vec<u8>),
    /// Days since 1970-01-01; `i32::MAX` and `i32::MIN` are the infinities
    Date(i32),
    /// Microseconds since midnight
    Time(i64),
    /// Microseconds since 1970-01-01 00:00:00; `i64::MAX` and `i64::MIN` are the infinities. Serves both timestamp types
    /// (with time zone: UTC)
    Timestamp(i64),
    /// `interval`
    Interval(Interval),
    /// `uuid`
    Uuid([u8; 16]),
    /// `oid` and the reg types
    Oid(u32),
    /// A one-dimensional array of the element type
    Array(PgType, Vec<Option<Datum>>),
}

/// A row: NULL is `None`.
pub type Row = Vec<Option<Datum>>;

/// PostgreSQL's interval: three parts that do not convert into each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Interval {
    /// Months (a year is 12).
    pub months: i32,
    /// Days.
    pub days: i32,
    /// Microseconds.
    pub micros: i64,
}

impl Interval {
    /// The length in microseconds with months of 30 days, as PostgreSQL compares intervals.
    #[must_use]
    pub fn comparison_micros(self) -> i128 {
        (i128::from(self.months) * 30 + i128::from(self.days)) * 86_400_000_000 + i128::from(self.micros)
    }
}

macro_rules! pg_types {
    ($($variant:ident, $oid:literal, $name:literal, $sql:literal, $len:literal, $array:literal, $category:literal;)+) => {
        impl PgType {
            /// Every type.
            pub const ALL: &'static [PgType] = &[$(PgType::$variant),+];

            /// The type's oid in PostgreSQL.
            #[must_use]
            pub const fn oid(self) -> u32 {
                match self { $(PgType::$variant => $oid),+ }
            }

            /// The type's name in pg_type (`int4`).
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(PgType::$variant => $name),+ }
            }

            /// The type's name as format_type() gives it (`integer`).
            #[must_use]
            pub const fn sql_name(self) -> &'static str {
                match self { $(PgType::$variant => $sql),+ }
            }

            /// pg_type.typlen: bytes of a fixed-length type, else -1.
            #[must_use]
            pub const fn length(self) -> i16 {
                match self { $(PgType::$variant => $len),+ }
            }

            /// Oid of the array of this type, or 0.
            #[must_use]
            pub const fn array_oid(self) -> u32 {
                match self { $(PgType::$variant => $array),+ }
            }

            /// pg_type.typcategory.
            #[must_use]
            pub const fn category(self) -> char {
                match self { $(PgType::$variant => $category),+ }
            }

            /// By oid.
            #[must_use]
            pub const fn from_oid(oid: u32) -> Option<PgType> {
                match oid { $($oid => Some(PgType::$variant),)+ _ => None }
            }

            /// By its name in pg_type or as format_type() gives it.
            #[must_use]
            pub fn from_name(name: &str) -> Option<PgType> {
                $(if name == $name || name == $sql { return Some(PgType::$variant); })+
                None
            }
        }
    };
}

pg_types! {
    Bool, 16, "bool", "boolean", 1, 1000, 'B';
    Bytea, 17, "bytea", "bytea", -1, 1001, 'U';
    Char, 18, "char", "\"char\"", 1, 1002, 'Z';
    Name, 19, "name", "name", 64, 1003, 'S';
    Int8, 20, "int8", "bigint", 8, 1016, 'N';
    Int2, 21, "int2", "smallint", 2, 1005, 'N';
    Int2Vector, 22, "int2vector", "int2vector", -1, 1006, 'A';
    Int4, 23, "int4", "integer", 4, 1007, 'N';
    Regproc, 24, "regproc", "regproc", 4, 1008, 'N';
    Text, 25, "text", "text", -1, 1009, 'S';
    Oid, 26, "oid", "oid", 4, 1028, 'N';
    OidVector, 30, "oidvector", "oidvector", -1, 1013, 'A';
    Json, 114, "json", "json", -1, 199, 'U';
    Float4, 700, "float4", "real", 4, 1021, 'N';
    Float8, 701, "float8", "double precision", 8, 1022, 'N';
    Unknown, 705, "unknown", "unknown", -2, 0, 'X';
    BoolArray, 1000, "_bool", "boolean[]", -1, 0, 'A';
    CharArray, 1002, "_char", "\"char\"[]", -1, 0, 'A';
    NameArray, 1003, "_name", "name[]", -1, 0, 'A';
    Int2Array, 1005, "_int2", "smallint[]", -1, 0, 'A';
    Int4Array, 1007, "_int4", "integer[]", -1, 0, 'A';
    TextArray, 1009, "_text", "text[]", -1, 0, 'A';
    VarcharArray, 1015, "_varchar", "character varying[]", -1, 0, 'A';
    Int8Array, 1016, "_int8", "bigint[]", -1, 0, 'A';
    Float4Array, 1021, "_float4", "real[]", -1, 0, 'A';
    Float8Array, 1022, "_float8", "double precision[]", -1, 0, 'A';
    OidArray, 1028, "_oid", "oid[]", -1, 0, 'A';
    Bpchar, 1042, "bpchar", "character", -1, 1014, 'S';
    Varchar, 1043, "varchar", "character varying", -1, 1015, 'S';
    Date, 1082, "date", "date", 4, 1182, 'D';
    Time, 1083, "time", "time without time zone", 8, 1183, 'D';
    Timestamp, 1114, "timestamp", "timestamp without time zone", 8, 1115, 'D';
    TimestampArray, 1115, "_timestamp", "timestamp without time zone[]", -1, 0, 'A';
    DateArray, 1182, "_date", "date[]", -1, 0, 'A';
    Timestamptz, 1184, "timestamptz", "timestamp with time zone", 8, 1185, 'D';
    TimestamptzArray, 1185, "_timestamptz", "timestamp with time zone[]", -1, 0, 'A';
    Interval, 1186, "interval", "interval", 16, 1187, 'T';
    NumericArray, 1231, "_numeric", "numeric[]", -1, 0, 'A';
    Numeric, 1700, "numeric", "numeric", -1, 1231, 'N';
    Regclass, 2205, "regclass", "regclass", 4, 2210, 'N';
    Regtype, 2206, "regtype", "regtype", 4, 2211, 'N';
    Void, 2278, "void", "void", 4, 0, 'P';
    Uuid, 2950, "uuid", "uuid", 16, 2951, 'U';
    UuidArray, 2951, "_uuid", "uuid[]", -1, 0, 'A';
    Jsonb, 3802, "jsonb", "jsonb", -1, 3807, 'U';
}

impl PgType {
    /// The type of an array's elements; `None` for what is no array.
    #[must_use]
    pub const fn element(self) -> Option<PgType> {
        Some(match self {
            PgType::BoolArray => PgType::Bool,
            PgType::Int2Array | PgType::Int2Vector => PgType::Int2,
            PgType::Int4Array => PgType::Int4,
            PgType::Int8Array => PgType::Int8,
            PgType::Float4Array => PgType::Float4,
            PgType::Float8Array => PgType::Float8,
            PgType::NumericArray => PgType::Numeric,
            PgType::TextArray => PgType::Text,
            PgType::VarcharArray => PgType::Varchar,
            PgType::NameArray => PgType::Name,
            PgType::CharArray => PgType::Char,
            PgType::OidArray | PgType::OidVector => PgType::Oid,
            PgType::TimestampArray => PgType::Timestamp,
            PgType::TimestamptzArray => PgType::Timestamptz,
            PgType::DateArray => PgType::Date,
            PgType::UuidArray => PgType::Uuid,
            _ => return None,
        })
    }

    /// The array type with these elements.
    #[must_use]
    pub fn array_of(element: PgType) -> Option<PgType> {
        Some(match element {
            PgType::Json | PgType::Jsonb | PgType::Bpchar => PgType::TextArray,
            other => {
                let oid = other.array_oid();
                return if oid == 0 { None } else { PgType::from_oid(oid) };
            }
        })
    }

    /// Whether values are strings inside ([`Datum::Text`]).
    #[must_use]
    pub const fn is_text(self) -> bool {
        matches!(
            self,
            PgType::Text
                | PgType::Varchar
                | PgType::Bpchar
                | PgType::Char
                | PgType::Name
                | PgType::Json
                | PgType::Jsonb
                | PgType::Unknown
                | PgType::Void
        )
    }

    /// Whether this is one of the three integer types.
    #[must_use]
    pub const fn is_integer(self) -> bool {
        matches!(self, PgType::Int2 | PgType::Int4 | PgType::Int8)
    }

    /// The name with its modifier, as format_type(oid, typmod) prints it.
    #[must_use]
    pub fn display_name(self, typmod: i32) -> String {
        match self {
            PgType::Varchar | PgType::Bpchar if typmod >= 4 => format!("{}({})", self.sql_name(), typmod - 4),
            PgType::Numeric if typmod >= 4 => {
                let (precision, scale) = numeric_typmod(typmod);
                format!("numeric({precision},{scale})")
            }
            PgType::Time | PgType::Timestamp | PgType::Timestamptz if typmod >= 0 => {
                let (first, rest) = self.sql_name().split_once(' ').unwrap_or((self.sql_name(), ""));
                format!("{first}({typmod}) {rest}")
            }
            _ => self.sql_name().to_owned(),
        }
    }
}

/// Precision and scale out of a numeric's type modifier.
#[must_use]
pub const fn numeric_typmod(typmod: i32) -> (u8, i8) {
    let raw = typmod - 4;
    (((raw >> 16) & 0xff) as u8, (raw & 0xff) as i8)
}

/// The type modifier of `numeric(precision, scale)`.
#[must_use]
pub const fn make_numeric_typmod(precision: u8, scale: i8) -> i32 {
    (((precision as i32) << 16) | (scale as i32 & 0xff)) + 4
}
