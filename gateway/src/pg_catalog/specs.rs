//! The columns of the system tables, as `name:type` or `name:type=default` words.

/// The columns of a table; `None` when there is none of that name.
pub(super) fn spec(schema: &str, name: &str) -> Option<&'static str> {
    TABLES.iter().find(|(s, n, _)| *s == schema && *n == name).map(|(_, _, spec)| *spec)
}

/// All tables.
#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
    TABLES.iter().map(|(schema, name, _)| (*schema, *name))
}

const PG: &str = "pg_catalog";
const INFO: &str = "information_schema";

const TABLES: &[(&str, &str, &str)] = &[
    (PG, "pg_namespace", "oid:oid nspname:name nspowner:oid=10 nspacl:_text"),
    (
        PG,
        "pg_class",
        "oid:oid relname:name relnamespace:oid reltype:oid=0 reloftype:oid=0 relowner:oid=10 relam:oid=0 relfilenode:oid=0 \
         reltablespace:oid=0 relpages:int4=0 reltuples:float4=-1 relallvisible:int4=0 reltoastrelid:oid=0 relhasindex:bool=f \
         relisshared:bool=f relpersistence:char=p relkind:char=r relnatts:int2=0 relchecks:int2=0 relhasrules:bool=f \
         relhastriggers:bool=f relhassubclass:bool=f relrowsecurity:bool=f relforcerowsecurity:bool=f relispopulated:bool=t \
         relreplident:char=d relispartition:bool=f relrewrite:oid=0 relfrozenxid:oid=0 relminmxid:oid=0 relacl:_text \
         reloptions:_text relpartbound:text",
    ),
    (
        PG,
        "pg_attribute",
        "attrelid:oid attname:name atttypid:oid attstattarget:int4=-1 attlen:int2=0 attnum:int2 attndims:int4=0 \
         attcacheoff:int4=-1 atttypmod:int4=-1 attbyval:bool=f attalign:char=i attstorage:char=p attcompression:char= \
         attnotnull:bool=f atthasdef:bool=f atthasmissing:bool=f attidentity:char= attgenerated:char= attisdropped:bool=f \
         attislocal:bool=t attinhcount:int4=0 attcollation:oid=0 attacl:_text attoptions:_text attfdwoptions:_text attmissingval:text",
    ),
    (
        PG,
        "pg_type",
        "oid:oid typname:name typnamespace:oid=11 typowner:oid=10 typlen:int2 typbyval:bool=f typtype:char=b typcategory:char \
         typispreferred:bool=f typisdefined:bool=t typdelim:char=, typrelid:oid=0 typsubscript:oid=0 typelem:oid=0 typarray:oid=0 \
         typinput:text= typoutput:text= typreceive:text= typsend:text= typmodin:oid=0 typmodout:oid=0 typanalyze:oid=0 \
         typalign:char=i typstorage:char=p typnotnull:bool=f typbasetype:oid=0 typtypmod:int4=-1 typndims:int4=0 \
         typcollation:oid=0 typdefaultbin:text typdefault:text typacl:_text",
    ),
    (
        PG,
        "pg_index",
        "indexrelid:oid indrelid:oid indnatts:int2 indnkeyatts:int2 indisunique:bool indnullsnotdistinct:bool=f indisprimary:bool \
         indisexclusion:bool=f indimmediate:bool=t indisclustered:bool=f indisvalid:bool=t indcheckxmin:bool=f indisready:bool=t \
         indislive:bool=t indisreplident:bool=f indkey:int2vector indcollation:oidvector indclass:oidvector indoption:int2vector indexprs:text indpred:text",
    ),
    (
        PG,
        "pg_constraint",
        "oid:oid conname:name connamespace:oid contype:char condeferrable:bool=f condeferred:bool=f convalidated:bool=t \
         conrelid:oid=0 contypid:oid=0 conindid:oid=0 conparentid:oid=0 confrelid:oid=0 confupdtype:char= confdeltype:char= \
         confmatchtype:char= conislocal:bool=t coninhcount:int4=0 connoinherit:bool=t conkey:_int2 confkey:_int2 \
         conpfeqop:_oid conppeqop:_oid conffeqop:_oid confdelsetcols:_int2 conexclop:_oid conbin:text",
    ),
    (PG, "pg_attrdef", "oid:oid adrelid:oid adnum:int2 adbin:text"),
    (
        PG,
        "pg_proc",
        "oid:oid proname:name pronamespace:oid=11 proowner:oid=10 prolang:oid=12 procost:float4=1 prorows:float4=0 \
         provariadic:oid=0 prokind:char=f prosecdef:bool=f proleakproof:bool=f proisstrict:bool=t proretset:bool=f \
         provolatile:char=i proparallel:char=s pronargs:int2=0 pronargdefaults:int2=0 prorettype:oid=0 proargtypes:_oid \
         proallargtypes:_oid proargmodes:_char proargnames:_text prosrc:text= probin:text proconfig:_text proacl:_text",
    ),
    (
        PG,
        "pg_database",
        "oid:oid datname:name datdba:oid=10 encoding:int4=6 datlocprovider:char=c datistemplate:bool=f datallowconn:bool=t \
         datconnlimit:int4=-1 datfrozenxid:oid=0 datminmxid:oid=0 dattablespace:oid=1663 datcollate:text=C datctype:text=C \
         daticulocale:text datcollversion:text datacl:_text",
    ),
    (
        PG,
        "pg_roles",
        "rolname:name rolsuper:bool=t rolinherit:bool=t rolcreaterole:bool=t rolcreatedb:bool=t rolcanlogin:bool=t \
         rolreplication:bool=t rolconnlimit:int4=-1 rolpassword:text=******** rolvaliduntil:timestamptz rolbypassrls:bool=t \
         rolconfig:_text oid:oid",
    ),
    (
        PG,
        "pg_authid",
        "oid:oid rolname:name rolsuper:bool=t rolinherit:bool=t rolcreaterole:bool=t rolcreatedb:bool=t rolcanlogin:bool=t \
         rolreplication:bool=t rolbypassrls:bool=t rolconnlimit:int4=-1 rolpassword:text rolvaliduntil:timestamptz",
    ),
    (
        PG,
        "pg_user",
        "usename:name usesysid:oid usecreatedb:bool=t usesuper:bool=t userepl:bool=t usebypassrls:bool=t passwd:text=******** \
         valuntil:timestamptz useconfig:_text",
    ),
    (PG, "pg_auth_members", "roleid:oid member:oid grantor:oid admin_option:bool"),
    (PG, "pg_am", "oid:oid amname:name amhandler:text= amtype:char"),
    (
        PG,
        "pg_opclass",
        "oid:oid opcmethod:oid opcname:name opcnamespace:oid opcowner:oid opcfamily:oid opcintype:oid opcdefault:bool opckeytype:oid",
    ),
    (PG, "pg_operator", "oid:oid oprname:name oprnamespace:oid oprowner:oid oprkind:char oprleft:oid oprright:oid oprresult:oid"),
    (
        PG,
        "pg_collation",
        "oid:oid collname:name collnamespace:oid=11 collowner:oid=10 collprovider:char=c collisdeterministic:bool=t \
         collencoding:int4=-1 collcollate:text=C collctype:text=C colliculocale:text collversion:text",
    ),
    (PG, "pg_description", "objoid:oid classoid:oid objsubid:int4 description:text"),
    (PG, "pg_shdescription", "objoid:oid classoid:oid description:text"),
    (PG, "pg_inherits", "inhrelid:oid inhparent:oid inhseqno:int4 inhdetachpending:bool"),
    (
        PG,
        "pg_partitioned_table",
        "partrelid:oid partstrat:char partnatts:int2 partdefid:oid partattrs:_int2 partclass:_oid partcollation:_oid partexprs:text",
    ),
    (
        PG,
        "pg_sequence",
        "seqrelid:oid seqtypid:oid seqstart:int8 seqincrement:int8 seqmax:int8 seqmin:int8 seqcache:int8 seqcycle:bool",
    ),
    (PG, "pg_depend", "classid:oid objid:oid objsubid:int4 refclassid:oid refobjid:oid refobjsubid:int4 deptype:char"),
    (PG, "pg_enum", "oid:oid enumtypid:oid enumsortorder:float4 enumlabel:name"),
    (
        PG,
        "pg_range",
        "rngtypid:oid rngsubtype:oid rngmultitypid:oid rngcollation:oid rngsubopc:oid rngcanonical:oid rngsubdiff:oid",
    ),
    (PG, "pg_tablespace", "oid:oid spcname:name spcowner:oid=10 spcacl:_text spcoptions:_text"),
    (
        PG,
        "pg_trigger",
        "oid:oid tgrelid:oid tgparentid:oid tgname:name tgfoid:oid tgtype:int2 tgenabled:char tgisinternal:bool tgconstrrelid:oid \
         tgconstrindid:oid tgconstraint:oid tgdeferrable:bool tginitdeferred:bool tgnargs:int2 tgattr:_int2 tgargs:bytea tgqual:text \
         tgoldtable:name tgnewtable:name",
    ),
    (
        PG,
        "pg_rewrite",
        "oid:oid rulename:name ev_class:oid ev_type:char ev_enabled:char is_instead:bool ev_qual:text ev_action:text",
    ),
    (
        PG,
        "pg_policy",
        "oid:oid polname:name polrelid:oid polcmd:char polpermissive:bool polroles:_oid polqual:text polwithcheck:text",
    ),
    (
        PG,
        "pg_statistic_ext",
        "oid:oid stxrelid:oid stxname:name stxnamespace:oid stxowner:oid stxstattarget:int4 stxkeys:_int2 stxkind:_char stxexprs:text",
    ),
    (
        PG,
        "pg_publication",
        "oid:oid pubname:name pubowner:oid puballtables:bool pubinsert:bool pubupdate:bool pubdelete:bool pubtruncate:bool pubviaroot:bool",
    ),
    (PG, "pg_publication_rel", "oid:oid prpubid:oid prrelid:oid prqual:text prattrs:_int2"),
    (PG, "pg_publication_namespace", "oid:oid pnpubid:oid pnnspid:oid"),
    (PG, "pg_foreign_table", "ftrelid:oid ftserver:oid ftoptions:_text"),
    (
        PG,
        "pg_foreign_server",
        "oid:oid srvname:name srvowner:oid srvfdw:oid srvtype:text srvversion:text srvacl:_text srvoptions:_text",
    ),
    (
        PG,
        "pg_extension",
        "oid:oid extname:name extowner:oid extnamespace:oid extrelocatable:bool extversion:text extconfig:_oid extcondition:_text",
    ),
    (
        PG,
        "pg_language",
        "oid:oid lanname:name lanowner:oid=10 lanispl:bool=f lanpltrusted:bool=t lanplcallfoid:oid=0 laninline:oid=0 lanvalidator:oid=0 lanacl:_text",
    ),
    (PG, "pg_event_trigger", "oid:oid evtname:name evtevent:name evtowner:oid evtfoid:oid evtenabled:char evttags:_text"),
    (PG, "pg_cast", "oid:oid castsource:oid casttarget:oid castfunc:oid castcontext:char castmethod:char"),
    (PG, "pg_db_role_setting", "setdatabase:oid setrole:oid setconfig:_text"),
    (
        PG,
        "pg_settings",
        "name:text setting:text unit:text category:text= short_desc:text extra_desc:text context:text=user vartype:text=string \
         source:text=default min_val:text max_val:text enumvals:_text boot_val:text reset_val:text sourcefile:text sourceline:int4 \
         pending_restart:bool=f",
    ),
    (
        PG,
        "pg_tables",
        "schemaname:name tablename:name tableowner:name tablespace:name hasindexes:bool hasrules:bool=f hastriggers:bool=f rowsecurity:bool=f",
    ),
    (PG, "pg_indexes", "schemaname:name tablename:name indexname:name tablespace:name indexdef:text"),
    (PG, "pg_views", "schemaname:name viewname:name viewowner:name definition:text"),
    (
        PG,
        "pg_matviews",
        "schemaname:name matviewname:name matviewowner:name tablespace:name hasindexes:bool ispopulated:bool definition:text",
    ),
    (
        PG,
        "pg_sequences",
        "schemaname:name sequencename:name sequenceowner:name data_type:text start_value:int8 min_value:int8 max_value:int8 \
         increment_by:int8 cycle:bool cache_size:int8 last_value:int8",
    ),
    (
        PG,
        "pg_stat_user_tables",
        "relid:oid schemaname:name relname:name seq_scan:int8=0 seq_tup_read:int8=0 idx_scan:int8=0 idx_tup_fetch:int8=0 \
         n_tup_ins:int8=0 n_tup_upd:int8=0 n_tup_del:int8=0 n_live_tup:int8=0 n_dead_tup:int8=0",
    ),
    (PG, "pg_prepared_statements", "name:text statement:text prepare_time:timestamptz parameter_types:_text from_sql:bool"),
    (PG, "pg_cursors", "name:text statement:text is_holdable:bool is_binary:bool is_scrollable:bool creation_time:timestamptz"),
    (
        PG,
        "pg_foreign_data_wrapper",
        "oid:oid fdwname:name fdwowner:oid fdwhandler:oid fdwvalidator:oid fdwacl:_text fdwoptions:_text",
    ),
    (PG, "pg_user_mapping", "oid:oid umuser:oid umserver:oid umoptions:_text"),
    (PG, "pg_ts_config", "oid:oid cfgname:name cfgnamespace:oid cfgowner:oid cfgparser:oid"),
    (PG, "pg_ts_dict", "oid:oid dictname:name dictnamespace:oid dictowner:oid dicttemplate:oid dictinitoption:text"),
    (PG, "pg_ts_parser", "oid:oid prsname:name prsnamespace:oid"),
    (PG, "pg_ts_template", "oid:oid tmplname:name tmplnamespace:oid"),
    (
        PG,
        "pg_conversion",
        "oid:oid conname:name connamespace:oid conowner:oid conforencoding:int4 contoencoding:int4 conproc:text condefault:bool",
    ),
    (PG, "pg_default_acl", "oid:oid defaclrole:oid defaclnamespace:oid defaclobjtype:char defaclacl:_text"),
    (PG, "pg_opfamily", "oid:oid opfmethod:oid opfname:name opfnamespace:oid opfowner:oid"),
    (PG, "pg_aggregate", "aggfnoid:oid aggkind:char aggnumdirectargs:int2"),
    (PG, "pg_largeobject_metadata", "oid:oid lomowner:oid lomacl:_text"),
    (PG, "pg_seclabel", "objoid:oid classoid:oid objsubid:int4 provider:text label:text"),
    (
        PG,
        "pg_subscription",
        "oid:oid subdbid:oid subname:name subowner:oid subenabled:bool subconninfo:text subslotname:name subpublications:_text",
    ),
    (PG, "pg_available_extensions", "name:name default_version:text installed_version:text comment:text"),
    (PG, "pg_timezone_names", "name:text abbrev:text utc_offset:interval is_dst:bool"),
    (PG, "pg_group", "groname:name grosysid:oid grolist:_oid"),
    (PG, "pg_get_keywords", "word:text catcode:char=R barelabel:bool=f catdesc:text=reserved baredesc:text"),
    (PG, "pg_prepared_xacts", "transaction:oid gid:text prepared:timestamptz owner:name database:name"),
    (
        INFO,
        "schemata",
        "catalog_name:name schema_name:name schema_owner:name default_character_set_catalog:name default_character_set_schema:name default_character_set_name:name sql_path:text",
    ),
    (
        INFO,
        "tables",
        "table_catalog:name table_schema:name table_name:name table_type:text self_referencing_column_name:name reference_generation:text \
         user_defined_type_catalog:name user_defined_type_schema:name user_defined_type_name:name is_insertable_into:text=YES \
         is_typed:text=NO commit_action:text",
    ),
    (
        INFO,
        "columns",
        "table_catalog:name table_schema:name table_name:name column_name:name ordinal_position:int4 column_default:text \
         is_nullable:text data_type:text character_maximum_length:int4 character_octet_length:int4 numeric_precision:int4 \
         numeric_precision_radix:int4 numeric_scale:int4 datetime_precision:int4 interval_type:text interval_precision:int4 \
         character_set_catalog:name character_set_schema:name character_set_name:name collation_catalog:name collation_schema:name \
         collation_name:name domain_catalog:name domain_schema:name domain_name:name udt_catalog:name udt_schema:name=pg_catalog \
         udt_name:name scope_catalog:name scope_schema:name scope_name:name maximum_cardinality:int4 dtd_identifier:name \
         is_self_referencing:text=NO is_identity:text=NO identity_generation:text identity_start:text identity_increment:text \
         identity_maximum:text identity_minimum:text identity_cycle:text=NO is_generated:text=NEVER generation_expression:text \
         is_updatable:text=YES",
    ),
    (
        INFO,
        "table_constraints",
        "constraint_catalog:name constraint_schema:name constraint_name:name table_catalog:name table_schema:name table_name:name \
         constraint_type:text is_deferrable:text=NO initially_deferred:text=NO enforced:text=YES nulls_distinct:text",
    ),
    (
        INFO,
        "key_column_usage",
        "constraint_catalog:name constraint_schema:name constraint_name:name table_catalog:name table_schema:name table_name:name \
         column_name:name ordinal_position:int4 position_in_unique_constraint:int4",
    ),
    (
        INFO,
        "constraint_column_usage",
        "table_catalog:name table_schema:name table_name:name column_name:name constraint_catalog:name constraint_schema:name constraint_name:name",
    ),
    (
        INFO,
        "referential_constraints",
        "constraint_catalog:name constraint_schema:name constraint_name:name unique_constraint_catalog:name \
         unique_constraint_schema:name unique_constraint_name:name match_option:text=NONE update_rule:text delete_rule:text",
    ),
    (INFO, "check_constraints", "constraint_catalog:name constraint_schema:name constraint_name:name check_clause:text"),
    (
        INFO,
        "views",
        "table_catalog:name table_schema:name table_name:name view_definition:text check_option:text=NONE is_updatable:text=NO \
         is_insertable_into:text=NO is_trigger_updatable:text=NO is_trigger_deletable:text=NO is_trigger_insertable_into:text=NO",
    ),
    (
        INFO,
        "sequences",
        "sequence_catalog:name sequence_schema:name sequence_name:name data_type:text numeric_precision:int4 numeric_precision_radix:int4=2 \
         numeric_scale:int4=0 start_value:text minimum_value:text maximum_value:text increment:text cycle_option:text",
    ),
];
