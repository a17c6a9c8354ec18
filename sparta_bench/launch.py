"""A sweep's jobs through one of Hydra's launchers (joblib, submitit): other processes or machines.

Hydra's own multirun would compose the whole sweep again, know nothing of what is done, and stop
at the first job that fails; so its launcher is called as its sweepers call it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hydra import compose as hydra_compose
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext

from sparta_bench.compose import our_hydra

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


def uses_launcher(overrides: list[str]) -> bool:
    """Whether the overrides choose another launcher than Hydra's basic one."""
    with our_hydra():
        composed = hydra_compose("config", overrides, return_hydra_config=True)
    return str(composed.hydra.launcher._target_) != BASIC


def launch(jobs: list[list[str]], task: Callable[[Any], Any]) -> list[JobReturn]:
    """Give the jobs to the launcher that they choose, and wait for all of them.

    `task` gets Hydra's composed configuration; it must be a function of a module, so that another
    process can import it.
    """
    own = [[text for text in job if not _is_hydras(text)] for job in jobs]
    with our_hydra():
        config = hydra_compose("config", jobs[0], return_hydra_config=True)
        loader = GlobalHydra.instance().config_loader()
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
            task_function=task,
            config=config,
        )
        return list(launcher.launch(own, initial_job_idx=0))


def _is_hydras(text: str) -> bool:
    return text.lstrip("+~").startswith(("hydra.", "hydra/"))
