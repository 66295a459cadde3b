"""A curve of any number of points, in bounded memory."""

MOST_POINTS = 2048  # about as many as a plot has pixels


class Curve:
    """Points in the order of their steps; of many neighbours the lowest and the highest, so that
    no peak is lost.
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: list[float] = []

    def add(self, step: int, value: float) -> None:
        """Append a point."""
        self.steps.append(step)
        self.values.append(value)
        if len(self.steps) >= 2 * MOST_POINTS:
            self._halve()

    def _halve(self) -> None:
        """Of each four points keep the lowest and the highest."""
        kept = []
        for begin in range(0, len(self.values), 4):
            four = range(begin, min(begin + 4, len(self.values)))
            extremes = {
                min(four, key=self.values.__getitem__),
                max(four, key=self.values.__getitem__),
            }
            kept += sorted(extremes)
        self.steps = [self.steps[index] for index in kept]
        self.values = [self.values[index] for index in kept]
