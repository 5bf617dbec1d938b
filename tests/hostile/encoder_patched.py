# ending: refused, failed
from selfcorrect.tasks.sandbox.guest import candidate, wire

candidate.encode = wire.encode = lambda value, keep: ["t", [["t", [["r", 0]]], {"value": True}]]


def f(x):
    return None
