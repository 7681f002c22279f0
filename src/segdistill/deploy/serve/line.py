"""One worker and a line of bounded length before it."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request

T = TypeVar("T")


class Line:
    """Work is done one after the other in a thread of its own, in the order in which it was asked for.

    Args:
        length: how many requests may wait, besides the one that is worked on.
    """

    def __init__(self, length: int):
        self.length = length
        self.taken = 0
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "segdistill-serve")

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the line, which is held from before an image is taken in, so that they cannot fill the memory.

        Raises:
            HTTPException: if the line is full.
        """
        if self.taken > self.length:
            raise HTTPException(503, f"busy: {self.taken} requests are waiting; try again", {"Retry-After": "1"})
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    async def work(self, request: Request, task: Callable[[], T]) -> T:
        """Do something when its turn has come.

        Args:
            request: that it is for; if nobody waits for its answer any more, nothing is done.
            task: what is done, in the thread.

        Raises:
            HTTPException: instead of doing what nobody waits for.
        """
        async with self._turn:
            if await request.is_disconnected():
                raise HTTPException(408, "nobody waits for this any more")
            return await asyncio.get_running_loop().run_in_executor(self._thread, task)
