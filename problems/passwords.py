"""Passwords in addresses: hidden in what people read, and found in files that must not hold any."""

import re

VARIABLE = re.compile(r"\$\{(\w+)\}")
"""Stands in an address for the value of an environment variable."""

# A password may contain slashes and even @: everything up to the last @ belongs to it. This hides too much rather than
# too little.
_USER = re.compile(r'//(?P<user>[^\s/:"<>]*)(?::(?P<password>[^\s"<>]*))?@')

_PARAMETER = re.compile(
    r"(?P<name>(?:passw(?:or)?d|passphrase|pwd|secret|token(?!s\b)|api[-_]?key|access[-_]?key|credential|signature)"
    r"[\w.-]*|(?<=[?&;])(?:auth|key|pass|pw|sig))"
    r"(?P<sign>\s*(?:=|%3d))(?P<value>[^&;#\s\"<>]+)",
    re.IGNORECASE,
)

_HIDDEN = "***"


def hide_passwords(text: str) -> str:
    """The text without the user names and passwords in its addresses, because many people read messages and logs."""
    return _PARAMETER.sub(_hide_parameter, _USER.sub(_hide_user, text))


def _hide_user(match: re.Match[str]) -> str:
    return match[0] if match["password"] and _is_harmless(match["password"]) else "//"


def _hide_parameter(match: re.Match[str]) -> str:
    return match[0] if _is_harmless(match["value"]) else f"{match['name']}{match['sign']}{_HIDDEN}"


def find_password(text: str) -> str | None:
    """The name of the parameter that holds a password in the text, or `password` where one precedes an @; None: none.

    ${NAME} is not a password but the variable that holds one.
    """
    for match in _USER.finditer(text):
        password = match["password"]
        # Digits and a slash are a port, and the @ is in the path.
        if password and not _is_harmless(password) and not re.match(r"\d{1,5}/", password):
            return "password"
    for match in _PARAMETER.finditer(text):
        if not _is_harmless(match["value"]):
            return match["name"]
    return None


def _is_harmless(value: str) -> bool:
    """Whether a value consists of variables alone, or is hidden already."""
    return value == _HIDDEN or not VARIABLE.sub("", value)
