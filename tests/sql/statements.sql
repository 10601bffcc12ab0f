-- Statements whose words, types and side effects programs depend on.
select pg_typeof(1), pg_typeof(3000000000), pg_typeof(1+1), pg_typeof(2*3000000000), pg_typeof(1/2), pg_typeof(1::smallint+1), pg_typeof(1+1.5);
select pg_typeof(x), pg_typeof(sum(x)) from (values (1),(2)) t(x) group by 1;
select 2147483647 + 1;
select 9223372036854775807 + 1;
select abs((-2147483648)::int);
selec 1;
select 1 from;
create table ;
create tabel x (a int);
insert into values (1);
select 1 +;
update t set;
create table cp (a int, b numeric, c date);
copy cp from stdin;
1	2.5	2024-01-01
x	2	2024-01-01
\.
copy cp from stdin;
1	2.5
\.
copy cp from stdin;
1	2.5	2024-01-01	7
\.
copy cp from stdin csv;
99999999999,2,2024-10-01
\.
select count(*) from cp;
create table p (id int primary key, n text);
create table c (id int primary key, pid int, v numeric);
insert into p values (1,'a'),(2,'b'),(3,'c');
insert into c values (1,1,1.5),(2,1,2.5),(3,2,7);
select id, (select max(v) from c where c.pid = p.id) from p order by id;
select id, (select v from c where c.pid = p.id order by v limit 1) from p order by id;
select id, (select v from c where c.pid = p.id order by v desc limit 1) from p order by id;
select id, (select v from c where c.pid = p.id) from p order by id;
select id, (select v from c where c.pid = p.id) from p where id > 1 order by id;
select id, (select count(*) from c where c.pid = p.id) from p order by id;
select id, (select n from p where p.id = c.pid), (select p.n || c.v from p where p.id = c.pid) from c order by id;
select * from p where (select count(*) from c where pid = p.id) > 1;
create schema s1;
create table s1.a (x int primary key);
create view s1.v as select * from s1.a;
create sequence s1.q;
drop schema s1;
drop schema s1 cascade;
create table d1 (a int primary key);
create view dv as select * from d1;
drop table d1;
drop table d1 cascade;
create table d2 (a int primary key);
create table d3 (b int references d2);
drop table d2 cascade;
create sequence zq;
select nextval('zq'), x from generate_series(1,3) x;
insert into p select nextval('zq')+10, 'gen' from generate_series(1,2);
select * from p order by id;
with x as (select 1 as i) update p set n = 'w' from x where p.id = x.i returning p.*;
with x(i) as (select 77), y as (select i + 1 as j from x) insert into p select j, 'ins' from y returning *;
with x as (select 77 as i), y as (select i + 1 as j from x) delete from p using y where p.id = y.j returning p.id;
create view pv as select id, n from p where n is not null and id < 10;
create view ps as select * from p;
alter table p add column extra int;
select * from ps order by id limit 1;
alter table p rename column n to name2;
select * from pv order by id limit 1;
alter table p rename to pp;
select * from pv order by id limit 1;
select * from ps order by id limit 1;
alter table pv rename to pw;
select * from pw order by id desc limit 1;
