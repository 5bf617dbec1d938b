"""The errors this package raises on purpose.

Every message says what was wrong, the value, the rule and the fix. ``exit_status`` is what the
command line exits with: 2 where the input or the usage was bad, 1 where work failed.
"""


class SelfCorrectError(Exception):
    """Root of all errors raised on purpose; catching it catches every one of them."""

    exit_status = 1


class ConfigError(SelfCorrectError):
    """A setting, an option or a combination of them is wrong."""

    exit_status = 2


class ContextError(ConfigError):
    """An episode could become longer than the model's context."""


class DataError(SelfCorrectError):
    """A data file, a problem or a stored episode is missing or malformed."""

    exit_status = 2


class ModelError(SelfCorrectError):
    """A model, a tokenizer or a chat template cannot be used as asked."""

    exit_status = 2


class RunDirectoryError(SelfCorrectError):
    """An output directory cannot be used: it holds something else, or cannot be written."""

    exit_status = 2


class CheckpointError(SelfCorrectError):
    """A checkpoint is missing, torn or belongs to another configuration."""

    exit_status = 2


class VerifierError(SelfCorrectError):
    """More verifier failures than the configured limit: the rewards can no longer be trusted."""


class TrainingError(SelfCorrectError):
    """Training cannot go on, for instance because a gradient is not finite."""


class EndpointError(SelfCorrectError):
    """A model's server did not answer, or not as a chat server does; the same command may work later."""


class InterruptedRun(SelfCorrectError):
    """A stop was asked for; everything up to here is saved. ``signal`` is the signal's number, if one asked."""

    def __init__(self, message: str, signal: int | None = None) -> None:
        super().__init__(message)
        self.signal = signal

    @property
    def exit_status(self) -> int:  # type: ignore[override]
        """128 + signal, as shells do: 130 for SIGINT, 143 for SIGTERM."""
        return 130 if self.signal is None else 128 + self.signal
