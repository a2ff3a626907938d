"""Which network is trained in which epoch."""

from __future__ import annotations

from dataclasses import dataclass

DISCRIMINATOR, MAIN = "discriminator", "main"


@dataclass(frozen=True)
class Phase:
    """Some epochs in which one network is trained."""

    stage: int  # 1 or 2
    cycle: int  # from 1, within its stage
    trained: str  # DISCRIMINATOR or MAIN
    first_epoch: int
    epochs: int

    @property
    def name(self) -> str:
        """In words."""
        return f"stage {self.stage}, cycle {self.cycle}, {self.trained}"


@dataclass(frozen=True)
class Schedule:
    """Cycles of both stages: first the discriminator, then the main network (Dey et al., Algorithm 1)."""

    cycles: tuple[int, int]  # of stages 1 and 2
    discriminator_epochs: int
    main_epochs: int

    @property
    def phases(self) -> list[Phase]:
        """In their order."""
        found: list[Phase] = []
        for stage, cycles in enumerate(self.cycles, start=1):
            for cycle in range(1, cycles + 1):
                for trained, epochs in ((DISCRIMINATOR, self.discriminator_epochs), (MAIN, self.main_epochs)):
                    first = found[-1].first_epoch + found[-1].epochs if found else 0
                    found.append(Phase(stage, cycle, trained, first, epochs))
        return found

    @property
    def num_epochs(self) -> int:
        """Of all phases."""
        return sum(self.cycles) * (self.discriminator_epochs + self.main_epochs)

    def at(self, epoch: int) -> Phase:
        """The phase of an epoch; the last one after the end."""
        return [phase for phase in self.phases if phase.first_epoch <= epoch][-1]
