"""One way to try again: how often, after which waits, until when, and after which errors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
E = TypeVar("E", bound=Exception)


@dataclass(frozen=True)
class RetryPolicy:
    """How often something is tried: `tries` in all, the first included.

    `waits` are seconds before the second try, the third and so on; the last one stands for all that follow,
    and without any the next try comes at once. No further try begins after `deadline` (monotonic seconds).
    """

    tries: int
    waits: tuple[float, ...] = ()
    deadline: float = math.inf

    @classmethod
    def doubling(cls, tries: int, first_sec: float, max_sec: float) -> RetryPolicy:
        """Tries whose waits begin at `first_sec` and double, up to `max_sec`."""
        return cls(tries, tuple(min(first_sec * 2.0**number, max_sec) for number in range(max(tries - 1, 1))))

    def wait_after(self, number: int) -> float:
        """Seconds between try `number`, counted from 1, and the next."""
        return self.waits[min(number, len(self.waits)) - 1] if self.waits else 0.0


def retry(
    step: Callable[[int], T],
    policy: RetryPolicy | Callable[[], RetryPolicy],
    *,
    on: type[E],
    unless: tuple[type[E], ...] = (),
    when: Callable[[E], bool] = lambda _: True,
    asked: Callable[[E], float | None] = lambda _: None,
    between: Callable[[E], None] = lambda _: None,
    monotonic: Callable[[], float] | None = None,
    sleep: Callable[[float], None] | None = None,
) -> T:
    """Call `step` with the number of the try, from 1, until it returns; what it returns is returned.

    policy: or a function that says it, asked after each failure, where what was answered so far decides.
    It is tried again after an error of the type `on` that is none of `unless` and of which `when` holds.
    `asked`: seconds to wait that the error itself asks for; None leaves it to the policy. `between` is called
    with that error before the wait: it says so, or mends what broke, and whatever it raises ends the tries.
    `monotonic` and `sleep` stand in for this machine's clock where the caller has another.
    The last try's error is raised as it is.
    """
    number = 1
    while True:
        try:
            return step(number)
        except on as error:
            chosen = policy() if callable(policy) else policy
            own = asked(error)
            wait = chosen.wait_after(number) if own is None else own
            late = (monotonic or time.monotonic)() + wait >= chosen.deadline
            if number >= chosen.tries or late or isinstance(error, unless) or not when(error):
                raise
            between(error)
        (sleep or time.sleep)(wait)
        number += 1
