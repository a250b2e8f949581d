std = "lua51"
read_globals = { "redis", "KEYS", "ARGV", "cjson", "cmsgpack", "struct", "bit" }
max_line_length = 130
-- A script includes a file of lib/ whole, and need not use all of it.
ignore = { "211", "231" }
