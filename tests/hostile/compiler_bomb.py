# ending: failed, out of memory, timed out
exec("(" * 100_000 + ")" * 100_000)
