"""What the built-in data set is drawn with: a street, its things, their patterns."""
