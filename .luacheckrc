std = "lua51"
read_globals = { "redis", "KEYS", "ARGV", "cjson", "struct", "bit" }
max_line_length = 130
