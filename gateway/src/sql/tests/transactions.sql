create table t (a int primary key, b int)
-- CREATE TABLE

begin
-- BEGIN

insert into t values (1, 1)
-- INSERT 0 1

savepoint s
-- SAVEPOINT

insert into t values (2, 2)
-- INSERT 0 1

insert into t values (2, 2)
-- 23505 duplicate key value violates unique constraint "t_pkey"

select 1
-- 25P02 current transaction is aborted, commands ignored until end of transaction block

rollback to s
-- ROLLBACK

insert into t values (3, 3)
-- INSERT 0 1

commit
-- COMMIT

select * from t order by a
-- 1|1
-- 3|3

begin; insert into t values (4, 4); rollback
-- ROLLBACK

begin; insert into t values (1, 4); commit
-- 23505 duplicate key value violates unique constraint "t_pkey"

commit
-- ROLLBACK

insert into t values (5, 5); insert into t values (5, 5)
-- 23505 duplicate key value violates unique constraint "t_pkey"

select count(*) from t
-- 2

begin; create table u (a int); insert into u values (1); rollback
-- ROLLBACK

select * from u
-- 42P01 relation "u" does not exist

begin
-- BEGIN

select * from t where a = 1 for update
-- 1|1

select b from t order by a limit 1 for update skip locked
-- 1

end
-- COMMIT

show transaction isolation level
-- read committed

begin isolation level repeatable read
-- BEGIN

show transaction_isolation
-- repeatable read

end
-- COMMIT

show transaction_isolation
-- read committed

begin read only; insert into t values (9, 9)
-- 25006 cannot execute INSERT in a read-only transaction

rollback
-- ROLLBACK

set application_name = 'x'; show application_name
-- x

prepare p (int) as select b from t where a = $1
-- PREPARE

execute p(3)
-- 3

execute p('3')
-- 3

deallocate p
-- DEALLOCATE

execute p(1)
-- 26000 prepared statement "p" does not exist

begin; declare c cursor for select a from t order by a; fetch 1 from c
-- 1

fetch all from c
-- 3

fetch prior from c
-- 3

commit
-- COMMIT

fetch c
-- 34000 cursor "c" does not exist

savepoint x
-- 25P01 SAVEPOINT can only be used in transaction blocks

vacuum analyze t
-- VACUUM

copy t to stdout
-- 1	1
-- 3	3
--
