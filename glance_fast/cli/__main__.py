"""``python -m glance_fast.cli``: the command, as torchrun starts it."""

from glance_fast.cli import main

if __name__ == "__main__":
    main()
