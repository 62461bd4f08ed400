"""The one class of mistakes that a user can mend."""


class UserError(ValueError):
    """Something in what the user gave: a file, an option, a row. The message says what to do.

    Commands print it without a traceback; everything else is a bug and keeps its own.
    """
