# ending: out of memory, timed out
hoard = [0]
while True:
    hoard += hoard
