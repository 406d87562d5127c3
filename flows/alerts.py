"""Alerts: messages to people, sent through the channels that `alerts` in params.yaml names.

The channel `log` is `.recast/alerts.log`, and the log of the flow run in Prefect where one runs. E-mail goes to an SMTP
server. Its user and password are in the environment, and so is the address of the webhook.
"""

import logging
import os
import smtplib
import ssl
from collections.abc import Callable
from contextlib import suppress
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
from problems.passwords import hide_passwords
from project.paths import STATE
from project.progress import console
from project.settings.operation import AlertKind, AlertSettings, EmailSettings, WebhookSettings
from project.settings.parsing import parse_settings

ALERT_LOG = STATE / "alerts.log"

SMTP_USER, SMTP_PASSWORD = "RECAST_SMTP_USER", "RECAST_SMTP_PASSWORD"
"""Environment variables with the user and the password that a mail server may ask for."""

TIMEOUT_SECONDS = 20
"""How long a mail server or a webhook may take to answer."""

_LEVELS: dict[AlertKind, int] = {
    "failure": logging.ERROR,
    "breach": logging.ERROR,
    "promotion": logging.INFO,
    "refusal": logging.WARNING,
    "monitor": logging.WARNING,
}

_FAILURES_OF_PREFECT = ("Failed", "TimedOut", "Crashed")
"""The names of the states that Prefect itself gives to a run that has failed."""

Log = Logger | LoggerAdapter[Any]


def alert(kind: AlertKind, title: str, text: str) -> None:
    """Send an alert through every channel that `alerts` in params.yaml has for this kind.

    A channel that fails is noted in the log and does not stop the caller. Nor does an error in params.yaml: then the
    alert goes to the log, with the reason why it goes nowhere else.

    Args:
        kind: what has happened: failure (a flow has failed or crashed), breach (data that break their contract),
            promotion and refusal (of a challenger), monitor (forecasts that got worse).
        title: one line: what has happened, and to which problem.
        text: everything that a person needs to act, as plain text.
    """
    try:
        log: Log = get_run_logger()
    except MissingContextError:
        log = logging.getLogger("recast.alerts")
    _send(kind, title, text, log)


def _send(kind: AlertKind, title: str, text: str, log: Log) -> None:
    # The text may hold the reason of a failure as a library gives it.
    text = hide_passwords(text)
    try:
        alerts = parse_settings().alerts
    except RecastError as error:
        alerts = AlertSettings(log=(kind,))
        text = f"{text}\nThis is only in the log, as the channels are not known: {error}"
    channels: list[tuple[str, Callable[[], None]]] = []
    if kind in alerts.log:
        log.log(_LEVELS[kind], "%s: %s\n%s", kind, title, text)
        channels.append(("log", lambda: _append_to_log(kind, title, text)))
    if (email := alerts.email) and kind in email.kinds:
        channels.append(("e-mail", lambda: _mail(email, kind, title, text)))
    if (webhook := alerts.webhook) and kind in webhook.kinds:
        channels.append(("webhook", lambda: _post(webhook, kind, title, text)))
    for name, send in channels:
        try:
            send()
        # Whatever a channel raises, the flow must go on.
        except Exception as error:
            kind_of_error = "" if isinstance(error, RecastError) else f"{type(error).__name__}: "
            reason = hide_passwords(f"{kind_of_error}{error}")
            message = f"the alert {title!r} did not go out by {name}: {reason}"
            log.error(message)
            # On a full disk neither may be possible, and the other channels must have their turn.
            with suppress(OSError):
                console.print(f"warning: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True)
                _append_to_log("channel", message, "")


def _append_to_log(kind: str, title: str, text: str) -> None:
    """Append an alert to the log file, its lines after the first indented."""
    ALERT_LOG.parent.mkdir(exist_ok=True)
    first, *rest = [f"{datetime.now().astimezone():%Y-%m-%dT%H:%M:%S%z} {kind}: {title}", *text.splitlines()]
    # A single write, so that two flows at once do not mix their lines.
    with ALERT_LOG.open("a", encoding="utf-8") as file:
        file.write("".join([f"{first}\n", *(f"    {line}\n" for line in rest)]))


def _mail(email: EmailSettings, kind: AlertKind, title: str, text: str) -> None:
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


def _post(webhook: WebhookSettings, kind: AlertKind, title: str, text: str) -> None:
    """Post an alert as the JSON that Slack, and whatever is compatible with it, shows.

    Raises:
        RecastError: the environment has no valid address, or the address does not accept the alert.
    """
    address = os.environ.get(webhook.variable, "")
    if not address.startswith(("http://", "https://")):
        raise RecastError(
            f"the environment's {webhook.variable} is not an http(s) address, which alerts.webhook.url needs"
        )
    block = CustomWebhookNotificationBlock(
        name="recast", url=address, json_data={"text": "{{subject}}\n{{body}}"}, timeout=TIMEOUT_SECONDS
    )
    try:
        block.notify(text, subject=f"*{kind}: {title}*")
    # The messages contain the address, which is a secret, or a part of it.
    except httpx.HTTPStatusError as error:
        raise RecastError(f"it answers {error.response.status_code} {error.response.reason_phrase}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RecastError(type(error).__name__) from None


def alert_of_end(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A hook for flows: `@flow(on_failure=[alert_of_end], on_crashed=[alert_of_end])`.

    It runs in the flow's process, or in the worker's if the flow's process has died. A failure that a flow has given a
    name of its own, such as Breach, has had an alert already.
    """
    if state.name not in _FAILURES_OF_PREFECT:
        return
    log = flow_run_logger(flow_run, flow)
    problem = flow_run.parameters.get("problem")
    subject = f"{flow.name} of {problem}" if problem else flow.name
    address = (get_current_settings().ui_url or "").rstrip("/")
    text = (
        f"{state.message or 'No reason is known.'}\nIts page: {address}/runs/flow-run/{flow_run.id} ({flow_run.name})"
    )
    _send("failure", f"{subject} has {'crashed' if state.is_crashed() else 'failed'}", text, log)
