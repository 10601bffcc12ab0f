create table emp (id int primary key, dept text, pay int, boss int)
-- CREATE TABLE

insert into emp values (1,'a',10,null),(2,'a',20,1),(3,'b',30,1),(4,'b',40,3),(5,'c',50,3)
-- INSERT 0 5

select dept, count(*), sum(pay) from emp group by dept having count(*) > 1 order by dept
-- a|2|30
-- b|2|70

select e.id, b.id from emp e join emp b on e.boss = b.id where e.pay > 20 order by 1
-- 3|1
-- 4|3
-- 5|3

with recursive r(id, depth) as (select id, 0 from emp where boss is null union all select e.id, r.depth + 1 from emp e join r on e.boss = r.id) select max(depth) from r
-- 2

select id, rank() over (partition by dept order by pay desc) from emp order by id
-- 1|2
-- 2|1
-- 3|2
-- 4|1
-- 5|1

select id from emp where pay > (select avg(pay) from emp) order by id
-- 4
-- 5

select id from emp e where exists (select 1 from emp b where b.boss = e.id) order by id
-- 1
-- 3

select id from emp where pay < 20 union select id from emp where pay > 40 order by 1
-- 1
-- 5

select distinct dept from emp order by dept desc limit 2 offset 1
-- b
-- a

select string_agg(dept, ',' order by id), array_agg(id order by id) from emp
-- a,a,b,b,c|{1,2,3,4,5}

select case when pay > 25 then 'much' else 'little' end as how, count(*) from emp group by 1 order by 1
-- little|2
-- much|3

values (1, 'x'), (2, 'y')
-- 1|x
-- 2|y

select * from (select id as a from emp) s where a > 4
-- 5

select dept, pay from emp group by dept
-- 42803 column "emp.pay" must appear in the GROUP BY clause or be used in an aggregate function

select version() like 'PostgreSQL%', current_database(), current_user, current_schema
-- t|postgres|postgres|public

select now() = current_timestamp
-- t

select count(*) from pg_catalog.pg_class where relname = 'emp'
-- 1

select 'emp'::regclass::oid > 0
-- t

select sum(pay) filter (where dept = 'a') from emp
-- 30

select id from emp order by pay desc nulls last fetch first 2 rows only
-- 5
-- 4

select missing_function(1)
-- 42883 function missing_function(integer) does not exist

explain select * from emp where id = 3
-- FilterExec: id@0 = 3
--   StreamingTableExec: partition_sizes=1, projection=[id, dept, pay, boss]
