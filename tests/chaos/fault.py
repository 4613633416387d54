"""One kind of fault, which does harm again and again until a scenario is over, and then leaves all healed."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod

from chaos.environment import Environment

__all__ = ["Fault"]


class Fault(ABC):
    """One kind of fault. `every` is the pause between two of them, in seconds, from and to; `pace` stretches it."""

    name: str
    every: tuple[float, float]
    needs_postgres = False
    together = True  # it is one of those that strike together
    stall_seconds = 0.0  # of the workers; above 0 they have supervisors
    expected_errors: frozenset[str] = frozenset()  # events that workers may log as errors because of it

    def __init__(self, *, pace: float = 1.0) -> None:
        self.pace = pace

    def run(self, environment: Environment, chance: random.Random) -> None:
        """Do harm until the environment says that it is over."""
        while not environment.over.wait(chance.uniform(*self.every) * self.pace):
            self.inject(environment, chance)

    @abstractmethod
    def inject(self, environment: Environment, chance: random.Random) -> None:
        """Do it once, heal it, and record it."""

    def explains(self, environment: Environment) -> int:
        """Return how many node runs one injection may take from their workers, and so have run again, at most."""
        return 0
