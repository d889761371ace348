"""How fast is this core just now? A fixed piece of arithmetic, timed beside every step, as the native engine does: on a
machine that others share, it tells a slow plan from a slow moment."""

import statistics
import time

import torch

ROWS, INNER, COLUMNS = 512, 128, 352
# Together larger than a core's own cache, as a layer's data is.
PRODUCTS = 8


class Reference:
    def __init__(self) -> None:
        self._operands = [
            (torch.zeros(ROWS, INNER), torch.zeros(INNER, COLUMNS), torch.zeros(ROWS, COLUMNS)) for _ in range(PRODUCTS)
        ]

    def seconds(self) -> float:
        """By the median product: what interrupts some of them says nothing of the core's speed."""
        products = []
        for left, right, out in self._operands:
            start = time.perf_counter()
            torch.mm(left, right, out=out)
            products.append(time.perf_counter() - start)
        return PRODUCTS * statistics.median(products)
