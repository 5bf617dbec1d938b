"""The errors that this package raises on purpose.

Every message says what was wrong, the value, the rule and the fix. ``exit_status`` is the exit status of the
command line: 2 for bad input or usage, 1 for work that failed.
"""


class SelfCorrectError(Exception):
    """The base class of all errors raised on purpose."""

    exit_status = 1


class ConfigError(SelfCorrectError):
    """A setting, an option or a combination of them is invalid."""

    exit_status = 2


class ContextError(ConfigError):
    """An episode could exceed the model's context."""


class DataError(SelfCorrectError):
    """A data file, a problem or a stored episode is missing or malformed."""

    exit_status = 2


class ModelError(SelfCorrectError):
    """A model, a tokenizer or a chat template cannot be used as asked."""

    exit_status = 2


class RunDirectoryError(SelfCorrectError):
    """An output directory cannot be used: it holds something else, or is not writable."""

    exit_status = 2


class CheckpointError(SelfCorrectError):
    """A checkpoint is missing, torn or belongs to another configuration."""

    exit_status = 2


class ConsentError(SelfCorrectError):
    """A stored directory names code that the caller did not allow to run."""

    exit_status = 2


class VerifierError(SelfCorrectError):
    """Verifier failures exceed the configured limit, so the rewards can no longer be trusted."""


class TrainingError(SelfCorrectError):
    """Training cannot continue, for instance because a gradient is not finite."""


class ProcessError(SelfCorrectError):
    """Another process of the same run failed or ended, so this one cannot continue."""


class EndpointError(SelfCorrectError):
    """A model server did not answer, or did not answer like a chat server; the same command may work later."""


class FailedRequestsError(EndpointError, ModelError):
    """A server rejected more requests than the limit allows, or answered them with nothing that is an answer."""

    exit_status = 1


class InterruptedRun(SelfCorrectError):
    """A requested stop; everything so far is saved. ``signal`` is the number of the signal that asked for it, if any."""

    def __init__(self, message: str, signal: int | None = None) -> None:
        super().__init__(message)
        self.signal = signal

    @property
    def exit_status(self) -> int:  # type: ignore[override]
        """Return 128 + signal, as shells do: 130 for SIGINT, 143 for SIGTERM."""
        return 130 if self.signal is None else 128 + self.signal


def first_line(error: Exception) -> str:
    """Return the first line of an error's message; an error without a message says what it is."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
