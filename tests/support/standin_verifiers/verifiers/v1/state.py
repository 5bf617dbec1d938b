def state_cls(task):
    return dict
