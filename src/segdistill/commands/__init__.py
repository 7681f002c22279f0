"""The commands, by what they are for; `cli` makes one program of them."""
