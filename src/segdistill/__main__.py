"""`python -m segdistill`: the command, for torchrun and wherever the script `segdistill` is not on the path."""

from segdistill.cli import main

if __name__ == "__main__":
    main()
