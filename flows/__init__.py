"""When and where things run. Prefect is imported only here."""

import gc
import os
import time
from pathlib import Path

# Prefect, MLflow and PyTorch make half a million objects that stay. To look through all of them again and again, as
# Python does while they are imported, took a tenth of a process's start. What is new is looked through as ever.
gc.set_threshold(*gc.get_threshold()[:2], 100)

# Prefect reads these when it is imported: its state below the project's root, nothing told to its makers, and a
# console that says what went wrong once, at the end (every line still goes to the server).
os.environ.setdefault("PREFECT_HOME", str(Path(".recast").absolute()))
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
# A temporary server for each process would take seconds and lose its last events; there is always a real one.
os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "false")
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
# A server that is away for minutes is waited for: 2, 4, ... 128 seconds, four minutes in all. What Prefect's threads
# could not tell it meanwhile is no news for the console.
os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "7")
# So is one whose database is away: it says 500 then, which Prefect's clients take for the end.
os.environ.setdefault("PREFECT_CLIENT_RETRY_EXTRA_CODES", "500")
os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
# A proxy is for the web: the project's own servers are on loopback.
for _name in ("NO_PROXY", "no_proxy"):
    os.environ[_name] = ",".join(filter(None, [os.environ.get(_name), "127.0.0.1", "localhost"]))

STARTED = time.time()
"""When this process began to load the project's code: what is edited later, it does not run."""
