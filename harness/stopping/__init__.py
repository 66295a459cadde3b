"""When a training ends: pure functions of its history."""
