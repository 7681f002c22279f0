"""What networks and methods cost: parameters, operations, memory, time."""
