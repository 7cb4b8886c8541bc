"""Small tables that a kernel reads, kept on the device under what they were made of."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor


class Tables:
    """Tables on devices, the longest unused thrown out.

    A graph reads its tables at every replay: what a capture has touched is never thrown out. One
    that is new in a capture is filled by a copy in the graph, from page-locked memory that was set
    aside in a step before, since a capture may not ask for any.

    Args:
        room: how many to keep.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._set_aside: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._captured: list[Tensor] = []

    def get(
        self,
        contents: Hashable,
        make: Callable[[], Tensor],
        device: torch.device,
        owner: Hashable = None,
    ) -> Tensor:
        """The table with these contents.

        Args:
            contents: what it is made of.
            make: makes it, on the CPU.
            device: where it is wanted.
            owner: given where graphs may be captured: what its shape depends on, and what stays
                the same from a step to the capture.
        """
        capturing = owner is not None and _capturing(device)
        # Without graphs a table is copied in the order of a stream, and is good on that alone.
        key = (device, contents, _stream(device) if owner is None else None)
        table = self._kept.get(key)
        if table is not None:
            self._kept.move_to_end(key)
        elif capturing:
            return self._copy_in_graph(make(), device, owner)
        else:
            table = self._kept[key] = _copy(make(), device, wait=owner is not None)
            _shorten(self._kept, self._room)
        if capturing:
            self._captured.append(table)
        elif owner is not None and owner not in self._set_aside and device.type == "cuda":
            self._set_aside[owner] = torch.empty_like(table, device="cpu", pin_memory=True)
            _shorten(self._set_aside, self._room)
        return table

    def _copy_in_graph(self, host: Tensor, device: torch.device, owner: Hashable) -> Tensor:
        pinned = self._set_aside.pop(owner, None)
        pinned = host.pin_memory() if pinned is None else pinned.copy_(host)
        self._captured.append(pinned)
        return pinned.to(device, non_blocking=True)


def _copy(host: Tensor, device: torch.device, wait: bool) -> Tensor:
    if device.type != "cuda" or wait:
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _shorten(tables: OrderedDict[Hashable, Tensor], room: int) -> None:
    while len(tables) > room:
        tables.popitem(last=False)
