-- What a month's table is called once it is detached: it may happen to it again.
SELECT $1::text || '_detached_' || count(*) + 1 FROM pg_class
 WHERE starts_with(relname, $1 || '_detached_') AND relkind = 'r'
