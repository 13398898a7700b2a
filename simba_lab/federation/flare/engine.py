"""Engine: the object that a job asks a role for; it has the functions of our job and no other."""

from __future__ import annotations

from typing import Any

from nvflare.collab.api.module_wrapper import ModuleWrapper

from simba_lab.federation.flare import job


class Engine(ModuleWrapper):
    """The functions of `simba_lab.federation.flare.job`.

    FLARE's own wrapper imports any module that a job names; this one takes no name.
    """

    def __init__(self) -> None:
        super().__init__(job)

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        return Engine()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]


__all__ = ["Engine"]
