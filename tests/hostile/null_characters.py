# ending: failed
exec("pass\0pass")
