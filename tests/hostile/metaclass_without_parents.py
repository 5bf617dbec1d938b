# ending: failed
class Meta(type):
    def mro(cls):
        return [cls, BaseException, object] if cls.__name__ == "E" else super().mro()

    __module__ = property(lambda cls: exit(0))


class E(BaseException, metaclass=Meta):
    def __str__(self):
        return 5


def f(x):
    raise E()
