"""Errors that a user can mend. The program prints their message alone, without a traceback."""


class SagelrError(Exception):
    """Something went wrong that the user can act on. Exit status 1."""

    exit_status = 1


class UsageError(SagelrError):
    """The request itself cannot be right: unknown key, missing file, bad value. Exit status 2."""

    exit_status = 2
