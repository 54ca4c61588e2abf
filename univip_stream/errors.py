"""What went wrong, said to the person who can mend it."""


class InputError(ValueError):
    """People's input cannot be used: the message says what was found, what was expected and what to do.

    The commands print the message without a traceback and leave with `exit_status`.
    """

    exit_status = 1


class UsageError(InputError):
    """The command itself was called wrongly (a contradiction between options, an unknown name)."""

    exit_status = 2
