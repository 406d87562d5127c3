"""Passwords in addresses: hidden in every message, and found where they must not be."""

import pytest

from problems.errors import RecastError
from problems.passwords import find_password, hide_passwords

SECRET = "hunter2"

ADDRESSES = [
    # the address with its secret, and what a person reads
    (f"http://ann:{SECRET}@host:80/x", "http://host:80/x"),
    (f"http://{SECRET}@host/x", "http://host/x"),
    (f"http://ann@corp.com:{SECRET}@host/x", "http://host/x"),
    (f"http://ann:a/{SECRET}@host/x", "http://host/x"),
    (f"http://ann:a@{SECRET}@host/x", "http://host/x"),
    (f"http://host/x?password={SECRET}", "http://host/x?password=***"),
    (f"http://host/x?a=1&access_token={SECRET}&b=2#c", "http://host/x?a=1&access_token=***&b=2#c"),
    (f"http://host/x?key={SECRET}", "http://host/x?key=***"),
    (f"http://host/x?X-Amz-Signature={SECRET}", "http://host/x?X-Amz-Signature=***"),
    (f"mssql://host?odbc_connect=UID%3Dann%3BPWD%3D{SECRET}", "mssql://host?odbc_connect=UID%3Dann%3BPWD%3D***"),
    (f"host=h password={SECRET} dbname=x", "host=h password=*** dbname=x"),
    (f"MLFLOW_TRACKING_PASSWORD={SECRET}", "MLFLOW_TRACKING_PASSWORD=***"),
]


@pytest.mark.parametrize(("address", "hidden"), ADDRESSES)
def test_a_password_is_hidden_in_every_message(address: str, hidden: str) -> None:
    assert hide_passwords(f"see {address} and more") == f"see {hidden} and more"
    assert hide_passwords(hide_passwords(address)) == hidden
    error = RecastError(f"{address} cannot be reached")
    assert str(error) == f"{hidden} cannot be reached"
    assert SECRET not in repr(error)


@pytest.mark.parametrize("address", [address for address, _ in ADDRESSES if not address.startswith("http://hunter2")])
def test_a_password_is_found(address: str) -> None:
    assert find_password(address) is not None


@pytest.mark.parametrize(
    "text",
    [
        "http://host:8000/a@b",
        "https://host/@user/x.csv",
        "models:/jena@champion",
        "postgresql://ann@host/db",
        "postgresql://ann:${PASSWORD}@host/db",
        "https://host/x?token=${TOKEN}",
        "team@example.org",
        "tokens=words",
        "gru units=32 learning_rate=0.001",
        "sqlite:////home/ann@corp/x.db",
    ],
)
def test_what_is_not_a_password_is_not_taken_for_one(text: str) -> None:
    assert find_password(text) is None


def test_the_name_of_a_variable_may_be_shown() -> None:
    for address in ("postgresql://ann:${PASSWORD}@host/db", "https://host/x?token=${TOKEN}"):
        assert hide_passwords(address) == address
