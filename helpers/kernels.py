"""Warm kernels: each is forked from one process that has imported already what the notebooks import.

torch, transformers, datasets and seaborn take some six seconds to import, the same six for each notebook. Nothing is
computed before the fork, so kernels share code and no state.
"""

import asyncio
import gc
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterable
from importlib.metadata import EntryPoint
from multiprocessing.context import ForkServerProcess

from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

RUNNER = ("ipykernel.kernelapp", "papermill", "helpers.publish")  # what a fork of the runner needs in any case
# The slow part of a later import, by the module that makes it: of bitsandbytes here, which itself starts CUDA, and what
# has started CUDA cannot be forked.
LATER = {"helpers.quantization": "torch._inductor.compile_fx"}


class WarmKernel(ForkServerProcess):
    """A kernel's process, with what `LocalProvisioner` asks of a `subprocess.Popen`."""

    stdin = stdout = stderr = None  # the runner's own

    def __init__(self, arguments: list[str], env: dict[str, str], cwd: str):
        super().__init__()
        self.arguments, self.env, self.cwd = arguments, env, cwd

    def run(self) -> None:
        from ipykernel.kernelapp import launch_new_instance

        gc.freeze()  # what was imported stays: to look through it again takes each collection a quarter of a second
        os.setsid()  # a group of its own, to be ended with the processes that it starts
        os.chdir(self.cwd)
        os.environ.clear()
        os.environ.update(self.env)
        threading.Thread(target=_end_with_the_runner, daemon=True).start()
        sys.argv[:] = ["ipykernel_launcher", *self.arguments]
        launch_new_instance()

    def poll(self) -> int | None:
        return self.exitcode

    def wait(self) -> int | None:
        self.join()
        return self.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _end_with_the_runner() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


class WarmProvisioner(LocalProvisioner):
    """Starts kernels as jupyter_client does, but as forks."""

    async def launch_kernel(self, cmd, **kwargs):
        """`cmd` is a kernelspec's: the interpreter, -m ipykernel_launcher, and the kernel's arguments."""
        arguments = cmd[cmd.index("ipykernel_launcher") + 1 :]
        kernel = WarmKernel(arguments, dict(kwargs["env"]), str(kwargs.get("cwd") or os.getcwd()))
        try:
            await asyncio.to_thread(kernel.start)  # the first one waits for the imports
        except (OSError, EOFError):  # an import ended the warm process: let a cell of the notebook say why
            return await super().launch_kernel(cmd, **kwargs)
        self.process, self.cwd = kernel, kernel.cwd
        self.pid = self.pgid = kernel.pid
        return self.connection_info


def keep_warm(modules: Iterable[str]) -> None:
    """Let every kernel that this process starts from now on have these modules imported; missing ones are left out."""
    # As ipykernel sets it; matplotlib looks when it is imported.
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking whether there is a GPU must not start CUDA
    multiprocessing.set_start_method("forkserver", force=True)  # any other process of the runner may as well be one
    modules = set(modules)
    modules |= {later for module, later in LATER.items() if module in modules}
    multiprocessing.set_forkserver_preload([*RUNNER, *sorted(modules)])
    factory = KernelProvisionerFactory.instance()
    factory.provisioners["warm"] = EntryPoint("warm", f"{__name__}:WarmProvisioner", factory.GROUP_NAME)
    factory.default_provisioner_name = "warm"
