# ending: failed, timed out
exec("pass\0pass")
