# ending: refused, failed
import multiprocessing

with multiprocessing.Pool(4) as pool:
    pool.map(abs, range(100))
escaped()
