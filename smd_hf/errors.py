"""The one exception class for what a user can mend."""


class SMDError(ValueError):
    """
    A mistake in what the user gave: a name, an argument, a data set, a file.

    The message is one paragraph which says what was wrong, what was expected and what to do. The command line prints it
    alone and exits with code 2; from Python it is an ordinary `ValueError`.
    """
