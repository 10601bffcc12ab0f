-- Every type: what goes in comes out as PostgreSQL prints it.
create table types (
    id int primary key, b bool, i2 smallint, i4 integer, i8 bigint, f4 real, f8 double precision, n numeric, n2 numeric(10,2),
    t text, v varchar(5), c char(4), y bytea, d date, tm time, ts timestamp, tz timestamptz, iv interval, u uuid, j json, jb jsonb
);
set timezone to 'UTC';
insert into types values
 (1, true, 32767, 2147483647, 9223372036854775807, 1.5, 2.5e10, 12345678901234567890.123456789, 3.14159, 'text', 'abc', 'ab',
  '\xdeadbeef', '2024-02-29', '23:59:59.123456', '2024-02-29 12:34:56.789', '2024-02-29 12:34:56+02', '1 year 2 mons 3 days 04:05:06', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{"a": 1, "b": [1, 2]}', '{"b":2,"a":1,"a":3}'),
 (2, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null),
 (3, 'f', -32768, -2147483648, -9223372036854775808, -0.1, 'NaN', -0.00001, 0, '', '', '', '', '0001-01-01', '00:00', '1969-12-31 23:59:59', 'epoch', '-3 days', '00000000-0000-0000-0000-000000000000', '[]', 'null');
select * from types order by id;
insert into types (id, i2) values (4, 32768);
insert into types (id, i4) values (4, 2147483648);
insert into types (id, v) values (4, 'toolong');
insert into types (id, n2) values (4, 123456789.99);
insert into types (id, i4) values (4, 'x');
insert into types (id, d) values (4, '2023-02-29');
insert into types (id, u) values (4, 'nope');
select '1'::int + 1, 7 / 2, -7 / 2, 7 % 3, 2 ^ 10;
select 1 / 0;
select cast('12' as int), 2.5::int, 3.5::int, 'true'::bool, 1::bool;
select now() = now(), current_date = now()::date;
select date '2024-01-31' + 1, date '2024-03-01' - date '2024-02-01', timestamp '2024-01-31' + interval '1 month';
select extract(year from date '2024-02-29'), date_trunc('month', timestamp '2024-02-29 10:11:12'), date_part('dow', date '2024-02-29');
select upper('abc'), lower('ABC'), substring('hello' from 2 for 3), position('l' in 'hello'), trim('  x  '), 'a' || 'b' || 1, replace('aXb', 'X', '-'), length('hello'), left('hello', 2), right('hello', 2), lpad('7', 3, '0'), split_part('a,b,c', ',', 2);
select coalesce(null, 2), nullif(1, 1), greatest(1, 3, 2), least(1, 3, 2), case when true then 'y' else 'n' end;
select abs(-5), power(2, 3), sqrt(16);
select 'abc' like 'a%', 'abc' ilike 'A%', 'abc' similar to 'a(b|c)*', 'abc' ~ '^a', 'a_c' like 'a\_c';
select 1 in (1, 2), 3 not in (1, 2), null in (1), 2 between 1 and 3, null is null, 1 is distinct from null;
drop table types;
