"""Generates the configuration reference, ``docs/configuration.md``, from the settings' schema: ``make configuration``."""

from __future__ import annotations

import json
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from selfcorrect.config.evaluation import EvalSettings
from selfcorrect.config.schema import Config
from selfcorrect.config.stages import STAGE_KINDS

HEAD = """# Configuration reference

Generated from `selfcorrect/config` by `make configuration`; a test compares the two. A configuration is a TOML file.
`selfcorrect config demo` prints a complete one, and `--set key.path=value` changes one setting. Unknown settings are errors.

The value of `--set` or `--task-option` is TOML. What is not is text, in which `\\n`, `\\t` and `\\\\` stand for a newline, a tab
and a backslash, as in `--stop`, and other backslashes stay. Settings whose names end in `pattern` are regular expressions and
stay as they are. TOML quotes, `--set 'task.system="..."'`, choose either rule: `"\\n"` is a newline, `'\\n'` is not.
"""

EVALUATION = """# Settings of an evaluation

Set them with `selfcorrect eval --set key.path=value` or as keywords of `selfcorrect.evaluate`; many also have an option.
"""


def configuration_page() -> str:
    """Return the page in Markdown, with one table per group of settings."""
    return "\n".join([HEAD, *_group(Config, ""), EVALUATION, *_group(EvalSettings, "", title="Evaluation")]) + "\n"


def _group(
    model: type[BaseModel], prefix: str, description: str | None = None, *, title: str = "Top level"
) -> list[str]:
    title = f"`[{prefix.rstrip('.')}]`" if prefix else title
    words = " ".join(filter(None, [_sentence(model.__doc__), _sentence(description)]))
    lines = [f"## {title}", "", words, "", "| setting | default | meaning |", "|---|---|---|"]
    nested: list[tuple[str, type[BaseModel], str | None]] = []
    for name, field in model.model_fields.items():
        inner = _inner(field)
        if name == "stages":
            lines.append(f"| `stages.NAME` | SCoRe's two | {_sentence(field.description)} |")
            nested += [("stages.NAME.", kind, None) for kind in STAGE_KINDS.values()]
        elif inner is not None:
            nested.append((f"{prefix}{name}.", inner, field.description))
        else:
            lines.append(f"| `{prefix}{name}` | {_default(field)} | {_sentence(field.description)} |")
    if len(lines) == 6:
        lines = lines[:4]
    return [*lines, "", *(line for path, inner, words in nested for line in _group(inner, path, words))]


def _inner(field: FieldInfo) -> type[BaseModel] | None:
    options: list[Any] = [field.annotation, *get_args(field.annotation)]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    return "unset" if default is None else f"`{json.dumps(default)}`"


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    print(configuration_page(), end="")
