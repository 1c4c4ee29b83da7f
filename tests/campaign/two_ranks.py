"""Data-parallel trainings of two processes, of which one is killed: started again, they end as if nothing had been."""

import random
import shutil
import socket
import time
from collections import Counter
from pathlib import Path

from .kills import LONGEST, Kills, last_line
from .processes import Child, learn, learning
from .trainings import Training, result_of


class Ranks(Kills):
    """One trial: two processes, one of which is killed; both are started again."""

    name = "ranks"

    def trial(self, chance: random.Random) -> dict:
        recipe = chance.choice(["ptb_lstm", "ptb_lstm", "cifar_cnn", "wsj_sgcn"])
        sign = chance.choice(["ranks", "batch", "halves", "steps", "pairs"])
        one = self.trainings.recipe(recipe, "ssgd", "--optim.signs", sign)
        training = Training(f"{recipe} {sign}", one.program, one.arguments)
        if training.name not in self.whole:
            out, modules = self.folder / "whole", self.folder / "modules"
            for _ in range(1 if modules.exists() else 2):
                shutil.rmtree(out, ignore_errors=True)
                begin = time.monotonic()
                if (statuses := self.both(training, out, None, chance, modules)) != [0, 0]:
                    raise RuntimeError(f"{training.name}: {statuses}, {last_line(self.log)}")
                self.whole[training.name] = result_of(out), time.monotonic() - begin
                learn(modules)
        expected, seconds = self.whole[training.name]
        out = self.folder / "killed"
        shutil.rmtree(out, ignore_errors=True)
        count: dict = {"trials": 1, "kills": 0, "of": Counter()}
        for _ in range(chance.randint(1, 3)):
            statuses = self.both(training, out, chance.uniform(0, seconds), chance)
            count["kills"] += -9 in statuses
            count["of"][training.name] += -9 in statuses
        statuses = self.both(training, out, None, chance)
        if statuses != [0, 0] or result_of(out) != expected:
            return count | self.failure(training, f"statuses {statuses}")
        return count

    def both(
        self, training: Training, out: Path, after: float | None, chance: random.Random, modules: Path | None = None
    ) -> list[int | None]:
        """Trains with two ranks over the loopback; kills one ``after`` so many seconds, then both."""

        def rank() -> int:
            import torch.distributed

            try:
                return training.run(out)
            finally:
                if torch.distributed.is_initialized():
                    torch.distributed.destroy_process_group()

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
        work = rank if modules is None else learning(rank, modules)
        logs = [self.log, self.folder / "log of the other"]
        ranks = [Child(work, log, {**common, "RANK": str(i), "LOCAL_RANK": str(i)}) for i, log in enumerate(logs)]
        try:
            if after is not None:
                time.sleep(after)
                ranks[chance.randrange(2)].kill()
                for process in ranks:
                    process.wait(chance.choice([0.0, 0.3]))
                    process.kill()
            return [process.wait(LONGEST) for process in ranks]
        finally:
            for process in ranks:
                process.kill()
                process.wait(10)
