from typing import Generic, TypeVar, get_args

T = TypeVar("T")
C = TypeVar("C")


class Taskset(Generic[T, C]):
    INFINITE = False

    def __init__(self, config):
        self.config = config

    @classmethod
    def task_type(cls):
        return get_args(cls.__orig_bases__[0])[0]

    @classmethod
    def toolsets(cls, config):
        return []
