"""Whether distillation is worth it for a teacher, a student and their data, and what would help most."""
