"""The processes that train one cohort together, as torchrun starts them.

Every rank holds the data, all weights and all state, and computes some of each batch's
micro-batches (`kdbench.training.micro_batches`). Their results are summed, so that all ranks stay
equal. The first rank writes the files and the terminal's lines.
"""

import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store  # torch.distributed has them untyped
from torch.distributed.rendezvous import rendezvous

from kdbench.errors import ConfigError, KdbenchError, RankError, WriteError, first_line
from kdbench.parallel.torchrun import Place

T = TypeVar("T")
ALONE = Place()
PATIENCE, POLL = 600.0, 0.02  # seconds that ranks wait for each other, and between polls
ERRORS = {kind.__name__: kind for kind in (KdbenchError, ConfigError, WriteError)}


class Ranks:
    """The processes of a training, seen from one of them; without torchrun there is only one."""

    def __init__(self, place: Place = ALONE) -> None:
        self.number, self.count, self.local = place.number, place.count, place.local

    @property
    def first(self) -> bool:
        """Whether this process writes the files and prints."""
        return self.number == 0

    def join(self, device: torch.device) -> None:
        """Join the other processes, once in a process.

        Raises:
            RankError: they do not come.
        """
        if self.count > 1 and not dist.is_initialized():
            backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
            with self._connected():
                # By itself PyTorch waits half an hour for an agent that has died.
                store, *_ = next(rendezvous("env://", timeout=timedelta(seconds=PATIENCE)))
                own = PrefixStore(self.meet(store), store)
                dist.init_process_group(backend, store=own, rank=self.number, world_size=self.count)

    def meet(self, store: Store) -> str:
        """Agree on a word that only these processes share; wait until all are there.

        torchrun starts lost ranks again with the same store (seen with PyTorch 2.15), which still
        holds the addresses of dead ones. So each rank asks with a number of its own, and the first
        replies until all have the reply.
        """
        if not self.first:
            own = secrets.token_hex(8)
            store.set(f"kdbench/asks/{self.number}", own)
            word = store.get(f"kdbench/answer/{own}").decode()
            store.set(f"kdbench/heard/{word}/{self.number}", "")
            return word
        word, end = secrets.token_hex(8), time.monotonic() + PATIENCE
        missing = set(range(1, self.count))
        while missing:
            if time.monotonic() > end:
                raise RuntimeError(f"ranks {sorted(missing)} have not come")
            for number in sorted(missing):
                if store.check([f"kdbench/asks/{number}"]):
                    asked = store.get(f"kdbench/asks/{number}").decode()
                    store.set(f"kdbench/answer/{asked}", word)
                if store.check([f"kdbench/heard/{word}/{number}"]):
                    missing.remove(number)
            time.sleep(POLL)
        return word

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, in place; one message for each dtype.

        All ranks then hold the same bits, and as many ranks compute the same bits again.

        Raises:
            RankError: another rank is gone.
        """
        if self.count == 1:
            return
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            self.begin_sum([tensor for tensor in tensors if tensor.dtype == dtype])()

    @torch.no_grad()
    def begin_sum(self, tensors: Sequence[Tensor]) -> Callable[[], None]:
        """Begin to add tensors up over the ranks, in one message of the widest dtype among them.

        Returns:
            A function that waits for the sums and puts them in the tensors' places.

        Raises:
            RankError: another rank is gone; the function may raise it too.
        """
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with self._connected():
            work = dist.all_reduce(flat, async_op=True)

        @torch.no_grad()
        def finish() -> None:
            with self._connected():
                work.wait()
            parts = flat.split([tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))

        return finish

    def total(self, value: float) -> float:
        """Return the sum of a number over the ranks."""
        told = torch.tensor([value], dtype=torch.float64)
        self.add_up([told])
        return float(told)

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true on any rank."""
        return flag if self.count == 1 else self.total(flag) > 0

    def exchange(self, text: str) -> list[str]:
        """Return every rank's text, in the order of ranks."""
        told = text.encode()
        lengths = torch.zeros(self.count, dtype=torch.int64)
        lengths[self.number] = len(told)
        self.add_up([lengths])
        rows = torch.zeros(self.count, int(lengths.max()), dtype=torch.uint8)
        rows[self.number, : len(told)] = torch.tensor(list(told), dtype=torch.uint8)
        self.add_up([rows])
        return [
            bytes(row[:length].tolist()).decode()
            for row, length in zip(rows, lengths.tolist(), strict=True)
        ]

    def by_first(self, act: Callable[[], None]) -> None:
        """Let the first rank act; an error of ours (`KdbenchError`) is raised on all ranks."""
        self._act(self.first, act)

    def together(self, act: Callable[[], T]) -> T:
        """Act on every rank; an error of ours (`KdbenchError`) on one is raised on all."""
        result = self._act(True, act)
        assert result is not None
        return result

    def in_turn(self, act: Callable[[], T]) -> T:
        """Act on each machine's first rank before its others, which then find what it fetched."""
        result = self._act(self.local == 0, act)
        return act() if result is None else result

    def _act(self, chosen: bool, act: Callable[[], T]) -> T | None:
        if self.count == 1:
            return act()
        result, failure, told = None, None, ""
        if chosen:
            try:
                result = act()
            except RankError:
                raise
            except KdbenchError as error:
                failure, told = error, json.dumps([type(error).__name__, str(error)])
        failed = [text for text in self.exchange(told) if text]
        if failure is not None:
            raise failure
        if failed:
            kind, line = json.loads(failed[0])
            raise ERRORS.get(kind, KdbenchError)(line)
        return result

    @contextmanager
    def own_errors(self) -> Iterator[None]:
        """Mark errors of the enclosed code as those of this rank alone.

        Raises:
            RankError: replaces a `KdbenchError` where there are other ranks.
        """
        try:
            yield
        except RankError:
            raise
        except KdbenchError as error:
            if self.count == 1:
                raise
            raise RankError(f"rank {self.number}: {error}") from None

    @contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            said = re.sub(r"^\[[^]]*\] ", "", first_line(error)).split(". ")[0]
            raise RankError(
                f"rank {self.number} has lost the others ({said}): see what they said; the same "
                "command goes on from the last checkpoint"
            ) from None


def leave() -> None:
    """Leave the other ranks, at the end of the process."""
    if dist.is_initialized():
        dist.destroy_process_group()
