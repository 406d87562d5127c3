"""When and where things run. Prefect, DVC and Ray are imported only in this package, except that `infra/s3.py` writes
DVC's configuration."""

import gc
import os
import time
from pathlib import Path

from project.redaction import hide_passwords_in_logs

# Prefect, MLflow and PyTorch create half a million objects that are never freed. Python's garbage collector examined
# all of them repeatedly during the imports, which took a tenth of a process's start. It still examines new objects.
gc.set_threshold(*gc.get_threshold()[:2], 100)

# Prefect reads these variables when it is imported: its state is below the project's root, it sends no statistics to
# its makers, and the console shows an error once, at the end (every line of the log still goes to the server).
os.environ.setdefault("PREFECT_HOME", str(Path(".recast").absolute()))
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
# A temporary server for each process takes seconds to start and loses its last events; there is always a real one.
os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "false")
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
# Prefect waits for a server that is away for minutes: 2, 4, ... 128 seconds, four minutes in all. The console need not
# show what Prefect's threads could not send meanwhile.
os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "7")
# It also waits for a server whose database is away: that answers 500, which Prefect's clients would not try again.
os.environ.setdefault("PREFECT_CLIENT_RETRY_EXTRA_CODES", "500")
os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
# A proxy is for the web only: the project's own servers are on loopback.
for _name in ("NO_PROXY", "no_proxy"):
    os.environ[_name] = ",".join(filter(None, [os.environ.get(_name), "127.0.0.1", "localhost"]))

# In every process that imports Prefect: what it logs goes to a server, where many people read it.
hide_passwords_in_logs()

REQUIREMENTS = Path("requirements.lock")
"""The version of every package, which this machine and Ray's nodes install."""

STARTED = time.time()
"""When this process began to load the project's code. It does not run what is edited later."""
