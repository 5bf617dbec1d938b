# ending: out of memory
hoard = [0]
while True:
    hoard += hoard
