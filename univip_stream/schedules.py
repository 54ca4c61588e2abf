"""Learning rate and momentum as pure functions of the step, so that a resumed run needs no state of a scheduler."""

import math


def cosine_lr(step: int, steps: int, base: float, warmup_steps: int = 0, final: float = 0.0) -> float:
    """Return the learning rate of update `step`: linear warm-up to `base`, then half a cosine down to `final`.

    Updates are numbered from 0 to `steps` - 1. Update i of the warm-up has base * (i + 1) / warmup_steps, so the first update
    already learns; the update after the last, `step` = `steps`, would have `final`. If the warm-up is as long as the run or
    longer, the cosine is never reached.
    """
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return final + (base - final) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def ema_momentum(step: int, steps: int, base: float) -> float:
    """Return the momentum m of Eq. 1 after update `step`: 1 - (1 - base) (cos(pi step / steps) + 1) / 2, from `base` up to 1.

    The paper states only that it increases to 1 until the end of training; the cosine is that of BYOL and ORL.
    """
    return 1 - (1 - base) * (math.cos(math.pi * min(1.0, step / max(1, steps))) + 1) / 2
