create table p (id serial primary key, code varchar(4) unique, price numeric(8,2) check (price > 0), note text not null default '-')
-- CREATE TABLE

insert into p (code, price) values ('a', 1), ('b', 2.345) returning id, price
-- 1|1.00
-- 2|2.35

insert into p (code, price) values ('a', 1)
-- 23505 duplicate key value violates unique constraint "p_code_key"

insert into p (code, price) values ('c', -1)
-- 23514 new row for relation "p" violates check constraint "p_price_check"

insert into p (code, price, note) values ('c', 1, null)
-- 23502 null value in column "note" of relation "p" violates not-null constraint

insert into p (code, price) values ('toolong', 1)
-- 22001 value too long for type character varying(4)

insert into p (code, price) values (null, null), (null, null)
-- INSERT 0 2

update p set code = 'a' where id = 2
-- 23505 duplicate key value violates unique constraint "p_code_key"

update p set code = 'z' where id = 2
-- UPDATE 1

insert into p (code) values ('b')
-- INSERT 0 1

select id, code from p where code = 'z'
-- 2|z

create table c (id int primary key, p_id int references p, q int references p (id) on delete cascade)
-- CREATE TABLE

insert into c values (1, 1, 2)
-- INSERT 0 1

insert into c values (2, 99, null)
-- 23503 insert or update on table "c" violates foreign key constraint "c_p_id_fkey"

delete from p where id = 1
-- 23503 update or delete on table "p" violates foreign key constraint "c_p_id_fkey" on table "c"

update p set id = 100 where id = 1
-- 23503 update or delete on table "p" violates foreign key constraint "c_p_id_fkey" on table "c"

update c set p_id = null
-- UPDATE 1

delete from p where id = 2
-- DELETE 1

select count(*) from c
-- 0

drop table p
-- 2BP01 cannot drop table p because other objects depend on it

drop table p cascade
-- DROP TABLE

insert into c values (3, 12345, 1)
-- INSERT 0 1

create table k (a int, b text, c int, primary key (a, b))
-- CREATE TABLE

insert into k values (1, 'x', 1), (1, 'y', 2), (2, 'x', 3)
-- INSERT 0 3

select c from k where b = 'y' and a = 1
-- 2

select c from k where a = 1 order by c
-- 1
-- 2

update k set a = a + 1
-- UPDATE 3

select a, b, c from k order by c
-- 2|x|1
-- 2|y|2
-- 3|x|3

update k set c = c + 10 where a = 2 and b = 'y'
-- UPDATE 1

create index k_c on k (c desc)
-- CREATE INDEX

select a, b from k where c = 12
-- 2|y

select c from k where c > 1 order by c
-- 3
-- 12

delete from k where c = 12
-- DELETE 1

select c from k where c >= 12
--

create unique index k_b on k (b)
-- 23505 could not create unique index "k_b"

create table tree (id int primary key, parent int references tree on delete cascade)
-- CREATE TABLE

insert into tree values (1, null), (2, 1), (3, 2)
-- INSERT 0 3

delete from tree where id = 1
-- DELETE 1

select count(*) from tree
-- 0

create table i (id int generated always as identity, v int)
-- CREATE TABLE

insert into i (v) values (7), (8) returning id
-- 1
-- 2

insert into i values (5, 5)
-- 428C9 cannot insert a non-DEFAULT value into column "id"
