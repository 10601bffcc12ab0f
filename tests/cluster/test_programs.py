"""Programs that ask a server about itself, against RustyDB and PostgreSQL 15: psql, SQLAlchemy, JDBC, sysbench."""

import difflib
import os
import pty
import re
import select
import subprocess
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, selectinload

PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(scope="module")
def both(cluster, postgres):
    """The two servers' addresses, with the same schema in each. RustyDB is asked on another node than the one that made it."""
    for url in (postgres, cluster.url(1)):
        subprocess.run(["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", url, "-f", PROGRAMS / "schema.sql"], check=True, timeout=120)
    return postgres, cluster.url(2)


def differences(expected, got):
    return "\n".join(difflib.unified_diff(expected, got, "PostgreSQL", "RustyDB", lineterm="", n=2))


def psql(url, commands):
    script = "".join(f"\\echo == {command[1:]}\n{command}\n" for command in commands)
    done = subprocess.run(["psql", "-X", "-q", url], input=script, capture_output=True, text=True, timeout=120, env=os.environ | {"COLUMNS": "200"})
    return [line.rstrip() for line in done.stdout.splitlines()], done.stderr


SAME = [
    r"\d", r"\d parent", r"\d child", r"\d cheap", r"\d joined", r"\d app.other", r"\d seq1", r"\d seq2", r"\d seq3", r"\d child_pkey",
    r"\d child_multi", r"\d par*", r"\d+ parent", r"\d+ child", r"\d+ app.other", r"\dt", r"\dt *.other", r"\dt app.*", r"\di", r"\dv", r"\ds",
    r"\df", r"\df+", r"\du", r"\du+", r"\dtvs", r"\dp", r"\dT", r"\dm", r"\det", r"\des", r"\dew", r"\dRp", r"\dRs", r"\dy", r"\drds", r"\ddp",
]  # fmt: skip
# Sizes, owners and templates are not PostgreSQL's, but there is an answer.
ANSWERED = [
    r"\l", r"\l+", r"\dn", r"\dn+", r"\dt+", r"\di+", r"\ds+", r"\dv+", r"\d+ cheap", r"\dx", r"\db", r"\dA", r"\sv cheap",
    r"\dF", r"\dc", r"\dl", r"\dC", r"\conninfo", r"\encoding",
]  # fmt: skip


def test_psql_describes_everything(both):
    (expected, complaints), (got, ours) = psql(both[0], SAME), psql(both[1], SAME)
    assert complaints == ours == ""
    assert not differences(expected, got)
    got, complaints = psql(both[1], ANSWERED)
    assert complaints == ""
    assert any("postgres" in line and "UTF8" in line for line in got)


LINES = [
    "SELECT * FROM ", "SELECT * FROM chi", "SELECT * FROM app.", "UPDATE child SET ", "INSERT INTO ", "INSERT INTO child (", "DELETE FROM ",
    "DROP TABLE ", "DROP INDEX ", "DROP VIEW ", "DROP SEQUENCE ", "ALTER TABLE ", "ALTER TABLE child DROP COLUMN ", "ALTER TABLE child DROP CONSTRAINT ",
    "ALTER SEQUENCE ", "CREATE INDEX ON ", "CREATE INDEX i ON child (", "TRUNCATE ", "COPY ", "SELECT id FROM child WHERE ", "DEALLOCATE ", "CLOSE ",
    r"\d ", r"\dt ", r"\di ", r"\sv ",
]  # fmt: skip


def completions(url, lines, quiet):
    """What psql shows for a line and two TABs. `quiet`: seconds of silence after which it is done."""
    process, terminal = pty.fork()
    if process == 0:
        os.environ.update(PAGER="cat", TERM="dumb")
        os.execvp("psql", ["psql", "-X", url])

    def read():
        out = b""
        while select.select([terminal], [], [], quiet)[0]:
            try:
                piece = os.read(terminal, 65536)
            except OSError:
                break
            if not piece:
                break
            out += piece
        return out.decode(errors="replace")

    shown = {}
    while "=#" not in read():
        pass
    for line in lines:
        os.write(terminal, line.encode() + b"\t\t")
        shown[line] = " ".join(read().split())
        os.write(terminal, b"\x15\x03")
        read()
    os.write(terminal, b"\\q\n")
    read()
    os.close(terminal)
    os.waitpid(process, 0)
    return shown


def test_psql_completes_names(both):
    lines = LINES
    for quiet in (0.2, 1, 4):
        expected, got = completions(both[0], lines, quiet), completions(both[1], lines, quiet)
        lines = [line for line in lines if expected[line] != got[line]]
        if not lines:
            break
    assert not {line: (expected[line], got[line]) for line in lines}


def engine(url):
    parts = dict(part.split("=") for part in url.split() if "=" in part)
    return sa.create_engine(f"postgresql+psycopg://postgres@{parts['host']}:{parts['port']}/postgres")


def reflected(url):
    server = engine(url)
    inspector = sa.inspect(server)
    found = {
        "schemas": inspector.get_schema_names(),
        "tables": sorted(inspector.get_table_names()),
        "views": sorted(inspector.get_view_names()),
        "materialized": inspector.get_materialized_view_names(),
        "sequences": sorted(inspector.get_sequence_names()),
        "enums": inspector.get_enums(),
        "domains": inspector.get_domains(),
        "has": [inspector.has_table("parent"), inspector.has_table("nope"), inspector.has_sequence("seq1"), inspector.has_index("child", "child_u")],
    }
    questions = ["columns", "pk_constraint", "foreign_keys", "indexes", "unique_constraints", "check_constraints", "table_comment"]
    for table, schema in (("parent", None), ("child", None), ("cheap", None), ("other", "app")):
        for question in questions:
            found[table, question] = repr(getattr(inspector, f"get_{question}")(table, schema=schema))
    metadata = sa.MetaData()
    metadata.reflect(server, views=True)
    found["reflected"] = {name: [(c.name, str(c.type)) for c in table.columns] for name, table in sorted(metadata.tables.items())}
    server.dispose()
    return found


def test_sqlalchemy_reflects_the_schema(both):
    expected, got = reflected(both[0]), reflected(both[1])
    assert got == expected


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "orm_user"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(30), unique=True, index=True)
    score: Mapped[float | None]
    posts: Mapped[list["Post"]] = relationship(back_populates="user", cascade="all, delete-orphan")


class Post(Base):
    __tablename__ = "orm_post"
    id: Mapped[int] = mapped_column(sa.Identity(), primary_key=True)
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("orm_user.id"))
    title: Mapped[str]
    price = mapped_column(sa.Numeric(10, 2), server_default="0")
    at = mapped_column(sa.DateTime(timezone=True), server_default=sa.func.now())
    user: Mapped[User] = relationship(back_populates="posts")
    __table_args__ = (sa.CheckConstraint("price >= 0", name="not_negative"), sa.Index("ix_title_price", "title", "price"))


def orm(url):
    """A program's work by the ORM: units of work, relations, aggregates, a nested transaction, a violated constraint."""
    server = engine(url)
    Base.metadata.create_all(server)
    seen = []
    with Session(server) as session:
        session.add_all([User(name=f"u{n}", score=n / 2, posts=[Post(title=f"t{n}{k}") for k in range(3)]) for n in range(10)])
        session.commit()
        users = session.scalars(sa.select(User).options(selectinload(User.posts)).where(User.score > 1).order_by(User.id)).all()
        seen.append([(user.name, len(user.posts)) for user in users])
        totals = sa.select(User.name, sa.func.count(Post.id), sa.func.sum(Post.price)).join(Post).group_by(User.name)
        seen.append(session.execute(totals.having(sa.func.count(Post.id) > 2).order_by(User.name)).all())
        session.get(User, 1).name = "changed"
        session.delete(session.get(User, 2))
        session.flush()
        session.rollback()
        seen.append((session.get(User, 1).name, session.scalar(sa.select(sa.func.count()).select_from(Post))))
        with session.begin_nested():
            session.add(User(name="nested"))
        session.commit()
        with pytest.raises(sa.exc.IntegrityError):
            session.add(User(name="nested"))
            session.commit()
        session.rollback()
        raised = sa.update(User).where(User.score.between(1, 2)).values(score=User.score + 1).returning(User.id, User.score)
        seen.append(sorted(session.execute(raised).all()))
        seen.append(session.execute(sa.select(User.id, sa.func.row_number().over(order_by=User.id)).order_by(User.id)).all())
        seen.append(session.scalar(sa.select(sa.exists().where(User.name == "u3"))))
        session.delete(session.get(User, 3))
        session.commit()
        seen.append(session.scalar(sa.select(sa.func.count()).select_from(Post)))
    Base.metadata.drop_all(server)
    server.dispose()
    return seen


def test_sqlalchemy_orm(both):
    expected, got = orm(both[0]), orm(both[1])
    assert got == expected


def test_jdbc(both):
    outputs = []
    for url in both:
        host, port = (re.search(rf"{word}=(\S+)", url)[1] for word in ("host", "port"))
        command = ["java", "-cp", "/usr/share/java/postgresql.jar", PROGRAMS / "Jdbc.java", f"jdbc:postgresql://{host}:{port}/postgres"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stdout + done.stderr
        outputs.append(done.stdout.splitlines())
    assert not any("FAILED" in line for line in outputs[0])
    assert not differences(*outputs)


@pytest.mark.parametrize("workload", ["oltp_read_write", "bulk_insert", "select_random_ranges"])
def test_sysbench(cluster, workload):
    def run(node, command):
        options = ["--pgsql-host=" + f"127.0.0.{node}", f"--pgsql-port={cluster.pg}", "--pgsql-user=postgres", "--pgsql-password=", "--pgsql-db=postgres"]
        sizes = ["--tables=2", "--table-size=500"] if workload.startswith("oltp") else []
        done = subprocess.run(
            ["sysbench", "--db-driver=pgsql", *options, *sizes, "--threads=2", "--time=3", workload, command], capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0 and "FATAL" not in done.stdout, done.stdout + done.stderr + cluster.logs()
        return done.stdout

    run(1, "prepare")
    out = run(3, "run")
    assert int(re.search(r"total number of events:\s+(\d+)", out)[1]) > 0, out
    if workload == "oltp_read_write":
        for node in cluster.numbers():
            # Each transaction deletes a row and inserts it anew.
            assert cluster.value(node, "select count(*), count(distinct id) from sbtest1") == "500|500"
    run(2, "cleanup")
