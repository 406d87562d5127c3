"""The runners that `runner.kind` in params.yaml may choose. A new one is an entry here and a module of its own."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RunnerEntry:
    """How to find a runner, and what others need to know of it.

    Attributes:
        path: module:class. It is imported when it is used, as a runner's packages may not be installed.
        description: where trials run, for the documentation of the setting.
        extra: the optional dependencies of Recast that it needs; None: none.
        prepare: module:function that begins what takes long before the runner can train; called as soon as it is known
            that there is something to train, and returns at once; None: there is nothing to prepare.
        in_flow_process: it trains in the process of the flow, so that two grids cannot train at once.
    """

    path: str
    description: str
    extra: str | None = None
    prepare: str | None = None
    in_flow_process: bool = False


RUNNERS = {
    "local": RunnerEntry(
        "flows.runners.processes:ProcessRunner",
        "processes",
        prepare="flows.runners.worker_processes:start_fork_server",
    ),
    "inline": RunnerEntry("flows.runners.inline:InlineRunner", "this one, to debug", in_flow_process=True),
    "ray": RunnerEntry("flows.runners.ray:RayRunner", "the nodes of a Ray cluster", extra="cluster"),
}
