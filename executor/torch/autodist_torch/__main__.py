"""A rank. Started by autodist, it takes assignments from standard input and answers each with a line of JSON on standard
output; under torchrun, it trains the plan that the command line names:

    torchrun --nproc-per-node 2 -m autodist_torch plan.json --steps 10
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
import threading
from typing import TYPE_CHECKING, Any, TextIO

from .lifetime import die_with_parent, give_signs, prefer

if TYPE_CHECKING:
    from .world import World


def _answers() -> TextIO:
    """Standard output for answers alone: whatever a library prints goes to standard error."""
    kept = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return kept


def _answer(assignment: dict[str, Any], world: "World", tell: Callable[[Any], None]) -> Any:
    from . import device, links, trainer
    from .spec import BadInput, Task, read

    ((kind, task),) = assignment.items()
    if kind == "train":
        asked = read(Task, task)
        # A probe is short, and wanted whole.
        return trainer.train(asked, world, None if asked.detail else tell)
    if kind == "links":
        return links.measure(task, world)
    if kind == "overlap":
        return device.overlap(task)
    if kind == "hardware":
        return device.hardware(task)
    raise BadInput(f"`{kind}` is nothing that this engine measures")


def serve() -> int:
    """Ranks that autodist has started."""
    die_with_parent()
    answers = _answers()
    orders = json.load(sys.stdin)
    if orders["preferred"]:
        prefer()
    whole = threading.Lock()

    def say(answer: dict[str, Any] | str) -> None:
        line = json.dumps(answer) + "\n"
        with whole:
            answers.write(line)
            answers.flush()

    from .world import World

    # As often as native ranks do; while PyTorch was loaded, no thread could have spoken.
    give_signs(lambda: say("alive"), min(orders["timeout_s"] / 8, 1.0))

    try:
        world = World.join(orders["cuda"], orders["store"], orders["timeout_s"])
        for index, assignment in enumerate(orders["assignments"]):

            def tell(value: Any, index: int = index) -> None:
                say({"progress": {"assignment": index, "value": value}})

            say({"done": {"assignment": index, "value": _answer(assignment, world, tell)}})
    except (RuntimeError, ValueError, OSError) as error:
        # A peer's end is heard of as a broken connection, and is no cause.
        broken = type(error).__name__ == "DistBackendError" or "onnection" in str(error)
        say({"failed": {"message": str(error), "consequence": broken}})
        return 1
    return 0


def train(arguments: argparse.Namespace) -> int:
    """One plan, under torchrun."""
    import torch.distributed as dist

    from . import trainer
    from .engine import Refused
    from .spec import BadInput, Task
    from .world import World

    with open(arguments.plan, encoding="utf-8") as file:
        plan = json.load(file)
    world = World.join()
    try:
        task = Task.of_plan(plan, arguments.steps)
        outcome = trainer.train(task, world)
    except (Refused, BadInput) as error:
        if world.rank == 0:
            print(f"error: {arguments.plan}: {error}", file=sys.stderr, flush=True)
        # torchrun stops the others when the first rank has exited. All ranks refuse a plan alike.
        dist.barrier()
        return 2
    gathered: list[Any] = [None] * world.size
    dist.all_gather_object(gathered, outcome)
    if world.rank == 0:
        print(json.dumps({"losses": list(trainer.losses(gathered, task))}))
    dist.destroy_process_group()
    return 0


def main() -> int:
    if len(sys.argv) == 1:
        return serve()
    parser = argparse.ArgumentParser(prog="autodist_torch", description="Trains a plan of autodist with PyTorch.")
    parser.add_argument("plan", help="plan.json")
    parser.add_argument("--steps", type=int, default=10)
    return train(parser.parse_args())


if __name__ == "__main__":
    code = main()
    # Threads of the groups that are never closed would be waited for.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
