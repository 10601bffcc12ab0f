create table t (id int primary key, name text, n int default 5)
-- CREATE TABLE

insert into t values (1, 'one', default), (2, 'two', 22)
-- INSERT 0 2

insert into t (name, id) values ('three', 3)
-- INSERT 0 1

select * from t order by id
-- 1|one|5
-- 2|two|22
-- 3|three|5

select name from t where id = 2
-- two

select name, id + 1 from t where id = 2
-- two|3

select count(*), sum(n), min(name) from t
-- 3|32|one

update t set n = n + 1 where id = 1
-- UPDATE 1

update t set n = n + 1 where id = 77
-- UPDATE 0

update t set n = n * 2, name = upper(name) where n > 5
-- UPDATE 2

select * from t order by 1
-- 1|ONE|12
-- 2|TWO|44
-- 3|three|5

delete from t where id = 3
-- DELETE 1

delete from t where name like 'T%' returning id, name
-- 2|TWO

insert into t select id + 10, name || '!', n from t returning *
-- 11|ONE!|12

insert into t values (1, 'again')
-- 23505 duplicate key value violates unique constraint "t_pkey"

insert into t values (1, 'again') on conflict do nothing
-- INSERT 0 0

insert into t values (1, 'again') on conflict (id) do update set name = excluded.name, n = t.n + 1
-- INSERT 0 1

select * from t order by id
-- 1|again|13
-- 11|ONE!|12

select * from nothing
-- 42P01 relation "nothing" does not exist

select nothing from t
-- 42703 column "nothing" does not exist

selec 1
-- 42601 syntax error at or near "selec"

insert into t (id, nix) values (1, 2)
-- 42703 column "nix" of relation "t" does not exist

select 1/0
-- 22012 division by zero

select 'x'::int
-- 22P02 invalid input syntax for type integer: "x"

insert into t values ('x', 'y')
-- 22P02 invalid input syntax for type integer: "x"

insert into t values (3000000000, 'y')
-- 22003 integer out of range

update t set n = case when id = 1 then 100 else n end
-- UPDATE 2

select id, n from t order by n desc limit 1
-- 1|100

create table u (t_id int, v text)
-- CREATE TABLE

insert into u values (1, 'a'), (11, 'b'), (12, 'c')
-- INSERT 0 3

update t set name = u.v from u where u.t_id = t.id
-- UPDATE 2

delete from u using t where t.id = u.t_id and t.id > 1
-- DELETE 1

select t.id, t.name, u.v from t left join u on u.t_id = t.id order by 1
-- 1|a|a
-- 11|b|

delete from t where 1 = 0
-- DELETE 0

delete from t where id in (select t_id from u)
-- DELETE 1

truncate t, u
-- TRUNCATE TABLE

select count(*) from t
-- 0

insert into t (id) select g from generate_series(1, 100) g
-- INSERT 0 100

select count(*), max(id) from t where id between 10 and 19
-- 10|19

select id from t where id in (5, 50, 500) order by id desc
-- 50
-- 5

select 'abc' as x, 1 as y, 1 as y
-- abc|1|1
