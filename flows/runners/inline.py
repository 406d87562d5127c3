"""Runner `inline`: one bundle after the other in this process, where a debugger can follow."""

import time

import torch

from flows.runners.bundle import bundle_task, bundle_training
from flows.runners.work import Runner, Work, bundle_label, count_bundle_epochs
from infra.devices.packing import Device
from infra.devices.slots import machine_devices
from infra.devices.status import DeviceStatus, RunningBundle, status_file
from problems.errors import RecastError
from project.progress import show_progress
from stages.training.outcomes import Outcome
from stages.training.recurrent_loops import compile_missing_loops, list_training_loops
from stages.training.trials import Trial


class InlineRunner(Runner):
    """Trains in this process, on the first device of the machine."""

    def run(self, work: Work) -> list[Outcome]:
        device = machine_devices(work.settings.runner, work.settings.train.threads)[0]
        work.device = device.name.partition(":")[0]
        if work.device == "cpu":
            compile_missing_loops(list_training_loops(bundle[0] for bundle in work.bundles))
        outcomes: list[Outcome] = []
        with show_progress() as display, status_file(work.title) as status:
            bar = display.add_task(work.title, total=sum(count_bundle_epochs(bundle) for bundle in work.bundles))
            longest_first = sorted(work.bundles, key=work.seconds, reverse=True)
            seconds_left = sum(work.seconds(bundle) for bundle in longest_first)
            for position, bundle in enumerate(longest_first, 1):
                expected, begun = work.seconds(bundle), time.time()
                running = RunningBundle(device.name, bundle_label(bundle), begun, work.pace.seconds(expected))
                waiting = len(longest_first) - position
                device_status = DeviceStatus(device.name, 1, None, None)
                status.update([device_status], [running], waiting, work.pace.seconds(seconds_left), at_once=True)
                outcomes += _train(work, bundle, device)
                work.pace.record(time.time() - begun, expected)
                seconds_left -= expected
                display.advance(bar, count_bundle_epochs(bundle))
            display.remove_task(bar)
        return outcomes


def _train(work: Work, bundle: list[Trial], device: Device) -> list[Outcome]:
    try:
        return bundle_task(bundle_label(bundle), bundle_training(work, bundle, device))
    except torch.AcceleratorError as error:
        raise RecastError(f"{bundle_label(bundle)}: the device has failed: {error}; run again") from error
