"""`python -m heal COMMAND ...`: the same as `heal COMMAND ...`."""

from heal.cli import main

if __name__ == "__main__":
    main()
