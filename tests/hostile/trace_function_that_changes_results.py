# ending: failed
import sys


def tracer(frame, event, argument):
    frame.f_locals["value"] = 7
    return tracer


sys.settrace(tracer)
sys.setprofile(tracer)


def f(x):
    return 0
