# ending: failed
import pickle


class Shell:
    def __reduce__(self):
        import os

        return os.system, ("true",)


if pickle.loads(pickle.dumps(Shell())) == 0:
    escaped()


def f(x):
    return Shell()
