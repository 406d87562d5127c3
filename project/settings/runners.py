"""The runners that `runner.kind` in params.yaml may choose. A new one is an entry here and a module of its own."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RunnerEntry:
    """How to find a runner, and what others need to know of it.

    Attributes:
        path: module:class. It is imported when it is used, as a runner's packages may not be installed.
        description: where trials run, for the documentation of the setting.
        extra: the optional dependencies of Recast that it needs; None: none.
        in_flow_process: it trains in the process of the flow, so that two grids cannot train at once.
    """

    path: str
    description: str
    extra: str | None = None
    in_flow_process: bool = False


RUNNERS = {
    "local": RunnerEntry("flows.runners.processes:ProcessRunner", "processes"),
    "inline": RunnerEntry("flows.runners.inline:InlineRunner", "this one, to debug", in_flow_process=True),
    "ray": RunnerEntry("flows.runners.ray:RayRunner", "the nodes of a Ray cluster", extra="cluster"),
}
