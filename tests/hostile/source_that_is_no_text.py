# ending: failed
x = "\udcff\x00"
eval(x)
