from typing import Any

from pydantic import BaseModel


class MessageNode(BaseModel):
    parent: int | None
    message: Any
    sampled: bool = False
