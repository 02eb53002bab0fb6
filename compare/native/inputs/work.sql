create table t(a integer primary key, b text, c real);
with recursive n(x) as (select 1 union all select x + 1 from n where x < 100000)
insert into t select x, hex(x * 7919 % 100003), x * 1.5 from n;
create index i on t(b);
create table u as select a, b || '-' || c as d from t where a % 3 = 0;
create index j on u(d);
select count(*), sum(t.a), max(u.d) from t join u on t.a = u.a where t.b like '3%';
select substr(b, 1, 3) as p, count(*) from t group by p order by 2 desc, 1 limit 5;
.quit
