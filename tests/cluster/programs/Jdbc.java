// What programs do by JDBC, printed line by line: the same lines from RustyDB as from PostgreSQL. Argument: the URL.
import java.io.StringReader;
import java.io.StringWriter;
import java.math.BigDecimal;
import java.sql.*;
import java.time.OffsetDateTime;
import java.util.*;

public class Jdbc {
    static Connection connection;

    interface Step {
        void run() throws Exception;
    }

    static void step(String name, Step step) {
        try {
            step.run();
        } catch (Exception fault) {
            System.out.println(name + " FAILED " + fault);
        }
    }

    static String text(Object value) {
        return value instanceof byte[] ? Arrays.toString((byte[]) value) : String.valueOf(value);
    }

    static void show(String name, ResultSet rows) throws SQLException {
        ResultSetMetaData meta = rows.getMetaData();
        List<String> lines = new ArrayList<>();
        while (rows.next()) {
            StringBuilder line = new StringBuilder(name);
            for (int i = 1; i <= meta.getColumnCount(); i++) {
                line.append(' ').append(meta.getColumnName(i)).append('=').append(text(rows.getObject(i)));
            }
            lines.add(line.toString());
        }
        Collections.sort(lines);
        lines.forEach(System.out::println);
        rows.close();
    }

    static void metadata() throws SQLException {
        DatabaseMetaData d = connection.getMetaData();
        System.out.println(d.getDatabaseProductName() + " " + d.getDatabaseMajorVersion());
        step("tables", () -> show("tables", d.getTables(null, null, "%", new String[] {"TABLE", "VIEW", "SEQUENCE"})));
        step("schemas", () -> show("schemas", d.getSchemas()));
        step("columns", () -> show("columns", d.getColumns(null, "public", "child", "%")));
        step("primary", () -> show("primary", d.getPrimaryKeys(null, "public", "child")));
        step("imported", () -> show("imported", d.getImportedKeys(null, "public", "child")));
        step("exported", () -> show("exported", d.getExportedKeys(null, "public", "parent")));
        step("cross", () -> show("cross", d.getCrossReference(null, "public", "parent", null, "public", "child")));
        step("index", () -> show("index", d.getIndexInfo(null, "public", "child", false, false)));
        step("best", () -> show("best", d.getBestRowIdentifier(null, "public", "child", DatabaseMetaData.bestRowSession, false)));
        step("version", () -> show("version", d.getVersionColumns(null, "public", "child")));
        step("types", () -> System.out.println("types " + d.getTypeInfo().next()));
        step("functions", () -> System.out.println("functions " + d.getFunctions(null, "public", "%").next()));
        step("procedures", () -> System.out.println("procedures " + d.getProcedures(null, "public", "%").next()));
    }

    static void types() throws SQLException {
        connection.createStatement().execute("create table jt (id serial primary key, i int, l bigint, sh smallint, t text, v varchar(20), "
            + "n numeric(12,3), f real, d double precision, b boolean, by bytea, da date, ti time, ts timestamp, tz timestamptz, u uuid, j jsonb)");
        PreparedStatement insert = connection.prepareStatement(
            "insert into jt (i,l,sh,t,v,n,f,d,b,by,da,ti,ts,tz,u,j) values (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?::jsonb)", Statement.RETURN_GENERATED_KEYS);
        for (int k = 0; k < 3; k++) {
            insert.setInt(1, k);
            insert.setLong(2, 1L << 40);
            insert.setShort(3, (short) 7);
            insert.setString(4, "té");
            insert.setNull(5, Types.VARCHAR);
            insert.setBigDecimal(6, new BigDecimal("12.345"));
            insert.setFloat(7, 1.5f);
            insert.setDouble(8, 2.25);
            insert.setBoolean(9, true);
            insert.setBytes(10, new byte[] {0, 1, -1});
            insert.setDate(11, java.sql.Date.valueOf("2024-02-29"));
            insert.setTime(12, Time.valueOf("12:34:56"));
            insert.setTimestamp(13, Timestamp.valueOf("2024-02-29 12:34:56.789"));
            insert.setObject(14, OffsetDateTime.parse("2024-02-29T12:34:56Z"));
            insert.setObject(15, UUID.fromString("00000000-0000-0000-0000-00000000000a"));
            insert.setString(16, "{\"a\": 1}");
            System.out.println("inserted " + insert.executeUpdate());
            ResultSet keys = insert.getGeneratedKeys();
            keys.next();
            System.out.println("key " + keys.getInt(1));
        }
        PreparedStatement select = connection.prepareStatement("select * from jt where id = ?");
        for (int k = 1; k <= 7; k++) { // prepared on the server, then in binary
            select.setInt(1, k % 3 + 1);
            show("row", select.executeQuery());
        }
        ResultSetMetaData meta = connection.createStatement().executeQuery("select * from jt order by id").getMetaData();
        for (int k = 1; k <= meta.getColumnCount(); k++) {
            System.out.println("meta " + meta.getColumnName(k) + " " + meta.getColumnTypeName(k) + " " + meta.getColumnClassName(k) + " "
                + meta.getPrecision(k) + " " + meta.getScale(k) + " " + meta.isNullable(k) + " " + meta.isAutoIncrement(k) + " " + meta.getTableName(k));
        }
    }

    static void batch() throws SQLException {
        PreparedStatement insert = connection.prepareStatement("insert into jt (i, t) values (?, ?)");
        for (int k = 0; k < 100; k++) {
            insert.setInt(1, 100 + k);
            insert.setString(2, "b" + k);
            insert.addBatch();
        }
        System.out.println("batch " + Arrays.stream(insert.executeBatch()).sum());
    }

    static int count() throws SQLException {
        ResultSet rows = connection.createStatement().executeQuery("select count(*) from jt");
        rows.next();
        return rows.getInt(1);
    }

    static void transactions() throws SQLException {
        connection.setAutoCommit(false);
        connection.setTransactionIsolation(Connection.TRANSACTION_REPEATABLE_READ);
        Statement statement = connection.createStatement();
        statement.executeUpdate("delete from jt where i >= 100");
        Savepoint savepoint = connection.setSavepoint("sp");
        try {
            statement.executeUpdate("insert into jt (id) values (1)");
        } catch (SQLException fault) {
            System.out.println("state " + fault.getSQLState() + " " + fault.getMessage());
        }
        connection.rollback(savepoint);
        System.out.println("within " + count());
        connection.rollback();
        connection.setTransactionIsolation(Connection.TRANSACTION_READ_COMMITTED);
        System.out.println("after " + count());
        PreparedStatement cursor = connection.prepareStatement("select i, t from jt order by id");
        cursor.setFetchSize(10);
        ResultSet rows = cursor.executeQuery();
        int fetched = 0;
        while (rows.next()) fetched++;
        System.out.println("fetched " + fetched);
        connection.commit();
        connection.setReadOnly(true);
        try {
            statement.executeUpdate("delete from jt");
        } catch (SQLException fault) {
            System.out.println("read only " + fault.getSQLState());
        }
        connection.rollback();
        connection.setReadOnly(false);
        connection.setAutoCommit(true);
    }

    static void expressions() throws SQLException {
        PreparedStatement p = connection.prepareStatement("select t from jt where i in (?, ?) and t like ? order by 1");
        p.setInt(1, 150);
        p.setInt(2, 151);
        p.setString(3, "%");
        show("in", p.executeQuery());
        p = connection.prepareStatement("select ?::int + 1 as a, ? || 'x' as b, coalesce(?, 5) as c, ?::date as d");
        p.setInt(1, 1);
        p.setString(2, "s");
        p.setNull(3, Types.INTEGER);
        p.setString(4, "2024-01-01");
        show("computed", p.executeQuery());
        p = connection.prepareStatement("select i from jt where i = any(?) order by 1");
        p.setArray(1, connection.createArrayOf("int4", new Object[] {100, 101}));
        show("any", p.executeQuery());
        p = connection.prepareStatement("select t from jt where i >= 100 order by i limit ? offset ?");
        p.setInt(1, 2);
        p.setInt(2, 1);
        show("limit", p.executeQuery());
    }

    static void updatable() throws SQLException {
        Statement statement = connection.createStatement(ResultSet.TYPE_SCROLL_INSENSITIVE, ResultSet.CONCUR_UPDATABLE);
        ResultSet rows = statement.executeQuery("select id, t from jt where id = 1");
        rows.next();
        rows.updateString("t", "updated");
        rows.updateRow();
        show("updated", connection.createStatement().executeQuery("select t from jt where id = 1"));
    }

    static void copy() throws Exception {
        org.postgresql.copy.CopyManager copies = connection.unwrap(org.postgresql.PGConnection.class).getCopyAPI();
        System.out.println("copied " + copies.copyIn("copy jt (i, t) from stdin", new StringReader("1\tx\n2\ty\n")));
        StringWriter out = new StringWriter();
        copies.copyOut("copy (select i, t from jt where t in ('x','y') order by i) to stdout", out);
        System.out.println(out);
    }

    static void cancel() throws SQLException {
        Statement statement = connection.createStatement();
        statement.setQueryTimeout(1);
        try {
            statement.executeQuery("select pg_sleep(60)");
        } catch (SQLException fault) {
            System.out.println("canceled " + fault.getSQLState());
        }
    }

    public static void main(String[] arguments) throws Exception {
        connection = DriverManager.getConnection(arguments[0] + "?user=postgres&prepareThreshold=1");
        metadata();
        step("types", Jdbc::types);
        step("batch", Jdbc::batch);
        step("transactions", Jdbc::transactions);
        step("expressions", Jdbc::expressions);
        step("updatable", Jdbc::updatable);
        step("copy", Jdbc::copy);
        step("cancel", Jdbc::cancel);
        step("schema", () -> {
            connection.setSchema("app");
            System.out.println(connection.getSchema() + " " + connection.getCatalog() + " " + connection.isValid(10));
        });
        connection.createStatement().execute("drop table public.jt");
        connection.close();
    }
}
