create table v (b bool, i2 int2, i8 bigint, f4 real, f8 double precision, n numeric, nn numeric(6,2), t text, by bytea, d date, ti time, ts timestamp, tz timestamptz, iv interval, u uuid, j json, jb jsonb, k int primary key)
-- CREATE TABLE

insert into v values (true, -3, 9000000000, 1.5, 0.1, 12.340, 3.14159, 'tex''t', '\x00ff', '2024-02-29', '13:14:15.5', '2024-01-02 03:04:05', '2024-01-02 03:04:05+02', '1 year 2 mons 3 days 04:05:06', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', '{"a": 1}', '{"b":1,   "a":[1,2]}', 1)
-- INSERT 0 1

select * from v where k = 1
-- t|-3|9000000000|1.5|0.1|12.340|3.14|tex't|\x00ff|2024-02-29|13:14:15.5|2024-01-02 03:04:05|2024-01-02 01:04:05+00|1 year 2 mons 3 days 04:05:06|a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11|{"a": 1}|{"a": [1, 2], "b": 1}|1

select b, i2, i8, f4, f8, nn, t, by, d, ti, ts, tz, iv, u, j, jb from v
-- t|-3|9000000000|1.5|0.1|3.14|tex't|\x00ff|2024-02-29|13:14:15.5|2024-01-02 03:04:05|2024-01-02 01:04:05+00|1 year 2 mons 3 days 04:05:06|a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11|{"a": 1}|{"a": [1, 2], "b": 1}

select 1.5 + 1, 10 / 3, 10 % 3, 2.5 * 2
-- 2.5|3|1|5.0

select 1e20::float8, 1e15::float8, 123456789.123::float8, 0.00001::float8, 'NaN'::float8
-- 1e+20|1e+15|123456789.123|1e-05|NaN

select date '2024-03-01' - date '2024-02-01', timestamp '2024-01-31 10:00' + interval '1 month'
-- 29|2024-02-29 10:00:00

select true and null, null is null, not false
-- |t|t

select '2024-13-01'::date
-- 22008 date/time field value out of range: "2024-13-01"

select 'yes'::bool, 'off'::bool
-- t|f

insert into v (k, nn) values (2, 99999.5)
-- 22003 numeric field overflow

insert into v (k, u) values (2, 'nope')
-- 22P02 invalid input syntax for type uuid: "nope"

insert into v (k, jb) values (2, '{a}')
-- 22P02 invalid input syntax for type json

select jb -> 'a', jb ->> 'b' from v
-- [1, 2]|1

select array[1,2,3], '{a,"b c"}'::text[]
-- {1,2,3}|{a,"b c"}

select cast(12.5 as int), 7::text || 'x', '5'::int + 1
-- 13|7x|6

select interval '90 minutes', interval '-1 day'
-- 01:30:00|-1 days

select length('héllo'), upper('a'), substring('hello' from 2 for 3), position('l' in 'hello'), trim('  x ')
-- 5|A|ell|3|x

select coalesce(null, 2), nullif(1, 1), greatest(1, 5, 3)
-- 2||5

select extract(year from date '2024-05-06'), date_trunc('month', timestamp '2024-05-06 07:08')
-- 2024|2024-05-01 00:00:00

select 9223372036854775807 + 1
-- 22003 bigint out of range

select 2147483647::int + 1
-- 22003 integer out of range

select mod(7, 3), octet_length('\x0102'::bytea), 'abc'::varchar(2), k::text::varchar(1) from v
-- 1|2|ab|1
