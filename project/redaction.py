"""Removes passwords from logs."""

import logging

from problems.passwords import hide_passwords


class RedactedRecord(logging.LogRecord):
    """A record of a log without passwords in its message and in its traceback.

    The traceback of an error also shows the errors that caused it, which come from libraries and name addresses.
    """

    @property
    def exc_text(self) -> str | None:
        """The traceback, which the first handler formats, for all handlers."""
        return self._exc_text

    @exc_text.setter
    def exc_text(self, text: str | None) -> None:
        self._exc_text = text if text is None else hide_passwords(text)

    def getMessage(self) -> str:  # noqa: N802 - the name that logging gives it
        """The message with its arguments."""
        return hide_passwords(super().getMessage())


def hide_passwords_in_logs() -> None:
    """Have everything that this process logs from now on written without passwords."""
    logging.setLogRecordFactory(RedactedRecord)
