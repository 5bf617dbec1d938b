class Message(dict):
    __getattr__ = dict.__getitem__


def normalize_messages(messages, field_name="messages"):
    return [Message(message) for message in messages]
