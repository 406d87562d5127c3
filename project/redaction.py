"""TODO: what project.redaction is for."""

import re


def without_passwords(text: str) -> str:
    """A text without the names and passwords that addresses in it may carry: messages and logs are read by many."""
    return re.sub(r"//[^/@\s]*@", "//", text)
