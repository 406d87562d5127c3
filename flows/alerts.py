"""Alerts: what a person should hear of, told through the channels that `alerts` in params.yaml names.

The log is a line in `.recast/alerts.log`, and in the log of the flow's run in Prefect where one runs. E-mail goes to a
server by SMTP; its user and password stand in the environment, as does the address of the webhook.
"""

import logging
import os
import smtplib
import ssl
from collections.abc import Callable
from datetime import datetime
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from logging import Logger, LoggerAdapter
from typing import Any

import httpx
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import MissingContextError
from prefect.flows import Flow
from prefect.logging import get_run_logger
from prefect.logging.loggers import flow_run_logger
from prefect.settings import get_current_settings

from problems.errors import RecastError
from project.paths import STATE
from project.progress import console
from project.redaction import without_passwords
from project.settings.parsing import parse_settings
from project.settings.sections import AlertKind, Alerts, Email, Webhook

LOG = STATE / "alerts.log"

SMTP_USER, SMTP_PASSWORD = "RECAST_SMTP_USER", "RECAST_SMTP_PASSWORD"
"""The environment's names for what a mail server may want to know."""

TIMEOUT_SECONDS = 20

_LEVELS: dict[AlertKind, int] = {
    "failure": logging.ERROR,
    "breach": logging.ERROR,
    "promotion": logging.INFO,
    "refusal": logging.WARNING,
    "monitor": logging.WARNING,
}

_UNTOLD = ("Failed", "TimedOut", "Crashed")
"""The names that Prefect gives to a bad end."""

Log = Logger | LoggerAdapter[Any]


def alert(kind: AlertKind, title: str, text: str) -> None:
    """Tell people, through every channel that `alerts` in params.yaml has for this kind.

    A channel that fails is told in the log; it does not stop the caller. Nor does a params.yaml that is wrong: the
    alert goes to the log then, with the reason why it goes nowhere else.

    Args:
        kind: what has happened: failure (a flow has failed or crashed), breach (data that break their contract),
            promotion and refusal (of a challenger), monitor (forecasts that got worse).
        title: a line: what, and of which problem.
        text: all that a person needs to act, as plain text.
    """
    try:
        log: Log = get_run_logger()
    except MissingContextError:
        log = logging.getLogger("recast.alerts")
    _send(kind, title, text, log)


def _send(kind: AlertKind, title: str, text: str, log: Log) -> None:
    try:
        alerts = parse_settings().alerts
    except RecastError as error:
        alerts = Alerts(log=(kind,))
        text = f"{text}\nThis is told here alone, as the channels are not known: {error}"
    if kind in alerts.log:
        log.log(_LEVELS[kind], "%s: %s\n%s", kind, title, text)
        _note(kind, title, text)
    channels: list[tuple[str, Callable[[], None]]] = []
    if (email := alerts.email) and kind in email.kinds:
        channels.append(("e-mail", lambda: _mail(email, kind, title, text)))
    if (webhook := alerts.webhook) and kind in webhook.kinds:
        channels.append(("webhook", lambda: _post(webhook, kind, title, text)))
    for name, send in channels:
        try:
            send()
        # Whatever a channel raises, the flow has more to do than to tell of it.
        except Exception as error:
            kind_of_error = "" if isinstance(error, RecastError) else f"{type(error).__name__}: "
            why = without_passwords(f"{kind_of_error}{error}")
            told = f"the alert {title!r} did not go out by {name}: {why}"
            log.error(told)
            _note("channel", told, "")
            console.print(f"warning: {told}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _note(kind: str, title: str, text: str) -> None:
    """Append an alert to the log, its lines after the first indented."""
    LOG.parent.mkdir(exist_ok=True)
    first, *rest = [f"{datetime.now().astimezone():%Y-%m-%dT%H:%M:%S%z} {kind}: {title}", *text.splitlines()]
    # One write: two flows at once do not mix their lines.
    with LOG.open("a", encoding="utf-8") as file:
        file.write("".join([f"{first}\n", *(f"    {line}\n" for line in rest)]))


def _mail(email: Email, kind: AlertKind, title: str, text: str) -> None:
    """Send an alert by SMTP."""
    message = EmailMessage()
    message["From"], message["To"] = email.sender, ", ".join(email.to)
    message["Subject"] = f"[recast] {kind}: {' '.join(title.split())}"
    message["Date"], message["Message-ID"] = formatdate(localtime=True), make_msgid("recast")
    message.set_content(f"{title}\n\n{text}\n")
    host, port, context = email.host, email.port, ssl.create_default_context()
    connection = (
        smtplib.SMTP_SSL(host, port, timeout=TIMEOUT_SECONDS, context=context)
        if email.security == "tls"
        else smtplib.SMTP(host, port, timeout=TIMEOUT_SECONDS)
    )
    with connection as server:
        if email.security == "starttls":
            server.starttls(context=context)
        if user := os.environ.get(SMTP_USER):
            server.login(user, os.environ.get(SMTP_PASSWORD, ""))
        server.send_message(message)


def _post(webhook: Webhook, kind: AlertKind, title: str, text: str) -> None:
    """Post an alert as JSON that Slack, and all that is compatible with it, shows.

    Raises:
        RecastError: the environment has no such address, or it does not take the alert.
    """
    address = os.environ.get(webhook.variable, "")
    if not address.startswith(("http://", "https://")):
        raise RecastError(f"the environment's {webhook.variable} is no http(s) address, which alerts.webhook.url needs")
    block = CustomWebhookNotificationBlock(
        name="recast", url=address, json_data={"text": "{{subject}}\n{{body}}"}, timeout=TIMEOUT_SECONDS
    )
    try:
        block.notify(text, subject=f"*{kind}: {title}*")
    except httpx.HTTPError as error:
        # Its message has the address, which is a secret.
        said = str(error).partition("\n")[0].replace(address, webhook.url)
        raise RecastError(f"{type(error).__name__}: {said}") from None


def alert_of_end(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A hook for flows: `@flow(on_failure=[alert_of_end], on_crashed=[alert_of_end])`.

    It runs in the flow's process, or in the worker's when the flow's process has died. Of a failure that a flow has
    given a name of its own, such as Breach, it has told itself.
    """
    if state.name not in _UNTOLD:
        return
    log = flow_run_logger(flow_run, flow)
    problem = flow_run.parameters.get("problem")
    what = f"{flow.name} of {problem}" if problem else flow.name
    page = (get_current_settings().ui_url or "").rstrip("/")
    text = f"{state.message or 'No reason is known.'}\nIts page: {page}/runs/flow-run/{flow_run.id} ({flow_run.name})"
    _send("failure", f"{what} has {'crashed' if state.is_crashed() else 'failed'}", text, log)
