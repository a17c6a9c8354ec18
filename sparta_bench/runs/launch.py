"""A sweep's jobs through one of Hydra's launchers (joblib, submitit): other processes or machines.

Hydra's own multirun would compose the whole sweep again, know nothing of what is done, and stop
at the first job that fails; so its launcher is called as its sweepers call it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext

from sparta_bench.config.compose import our_hydra
from sparta_bench.errors import InputError, reason_of

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


def uses_launcher(overrides: list[str]) -> bool:
    """Whether the overrides choose another launcher than Hydra's basic one.

    Raises
    ------
    InputError
        If they choose that of Slurm, and this machine has no Slurm.
    """
    with our_hydra():
        composed = hydra_compose("config", overrides, return_hydra_config=True)
    target = str(composed.hydra.launcher._target_)
    if target.endswith(".SlurmLauncher") and shutil.which("srun") is None:
        raise InputError(
            f"{_name(composed)}: needs Slurm, and this machine has no srun; start it on a machine "
            "of the cluster"
        )
    return target != BASIC


def launch(jobs: list[list[str]], task: Callable[[Any], Any]) -> list[JobReturn]:
    """Give the jobs to the launcher that they choose, and wait for all of them.

    `task` gets Hydra's composed configuration; it must be a function of a module, so that another
    process can import it.

    Raises
    ------
    InputError
        If submitit could submit none of them.
    Exception
        One of the launcher's, for instance where a worker died.
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
        try:
            return list(launcher.launch(own, initial_job_idx=0))
        except Exception as error:
            if _has_submitted_nothing(config):
                raise InputError(
                    f"{_name(config)}: nothing could be submitted: {reason_of(error)}"
                ) from None
            raise


def _has_submitted_nothing(config: Any) -> bool:
    # submitit gives a job's file this name when the cluster has taken the job
    folder = config.hydra.launcher.get("submitit_folder")
    return folder is not None and not any(Path(folder).parent.rglob("*_submitted.pkl"))


def _name(config: Any) -> str:
    return f"hydra/launcher={config.hydra.runtime.choices['hydra/launcher']}"


def _is_hydras(text: str) -> bool:
    return text.lstrip("+~").startswith(("hydra.", "hydra/"))
