"""From a trained student to its users: files of predictions."""
