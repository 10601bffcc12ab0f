create table t (a int, b text)
-- CREATE TABLE

create table t (a int)
-- 42P07 relation "t" already exists

create table if not exists t (a int)
-- CREATE TABLE

insert into t values (2, 'two'), (1, 'one')
-- INSERT 0 2

alter table t add column c int default 9
-- ALTER TABLE

alter table t add column d text
-- ALTER TABLE

select * from t order by a
-- 1|one|9|
-- 2|two|9|

alter table t add primary key (a)
-- ALTER TABLE

select * from t where a = 2
-- 2|two|9|

insert into t values (2)
-- 23505 duplicate key value violates unique constraint "t_pkey"

alter table t drop column b
-- ALTER TABLE

select * from t where a = 1
-- 1|9|

alter table t rename column d to e
-- ALTER TABLE

alter table t rename to tt
-- ALTER TABLE

update tt set e = 'x' where a = 1
-- UPDATE 1

select * from tt order by a
-- 1|9|x
-- 2|9|

alter table tt alter column c type text
-- ALTER TABLE

select a, c || '!' from tt where a = 1
-- 1|9!

alter table tt alter column e set not null
-- 23502 column "e" of relation "tt" contains null values

alter table tt alter column e set default 'dd'
-- ALTER TABLE

insert into tt (a) values (3)
-- INSERT 0 1

select e from tt where a = 3
-- dd

alter table tt add constraint positive check (a > 0)
-- ALTER TABLE

insert into tt (a) values (-3)
-- 23514 new row for relation "tt" violates check constraint "positive"

alter table tt drop constraint positive
-- ALTER TABLE

alter table tt add column s serial
-- ALTER TABLE

select count(distinct s) from tt
-- 3

create view v as select a, upper(c) as c2 from tt where a < 3
-- CREATE VIEW

select * from v order by a
-- 1|9
-- 2|9

drop table tt
-- 2BP01 cannot drop table tt because other objects depend on it

drop view v
-- DROP VIEW

create schema s
-- CREATE SCHEMA

create table s.x (a int)
-- CREATE TABLE

insert into s.x values (1)
-- INSERT 0 1

select * from x
-- 42P01 relation "x" does not exist

set search_path = s, public
-- SET

select * from x
-- 1

select current_schema()
-- s

reset search_path
-- RESET

drop schema s
-- 2BP01 cannot drop schema s because other objects depend on it

drop schema s cascade
-- DROP SCHEMA

create sequence q start 10 increment 5
-- CREATE SEQUENCE

select nextval('q'), currval('q'), lastval()
-- 10|10|10

select nextval('q')
-- 15

select setval('q', 100)
-- 100

select nextval('q')
-- 105

drop sequence q
-- DROP SEQUENCE

drop table if exists nix, tt
-- DROP TABLE

create table as_copy as select g as a, g * 2 as b from generate_series(1, 3) g
-- SELECT 3

select sum(b) from as_copy
-- 12

create table w (id int not null, filler char(10)) with (fillfactor=100)
-- CREATE TABLE

insert into w values (1, 'x')
-- INSERT 0 1

select filler from w
-- x         

create temp table tmp (a int)
-- 0A000 CREATE TEMPORARY TABLE is not supported
