"""A network whose code goes past torch's count of writes, now and then. x: (B, 6) -> (B, 3)."""

from tests.training.moving_networks import Late


class Revived(Late):
    """Sets weights that are nearly dead to others in the fifth step."""

    def change(self) -> None:
        self.weight.data[self.weight.abs() < 0.2] = 0.2
